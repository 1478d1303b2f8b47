"""Uses the optional package `ecologits`: its electricity mixes as a second source, and its estimator of requests.

`ecologits.electricity_mix_repository.electricity_mixes` has one row per country: GWP (kgCO2e/kWh), ADPe (kgSbeq/kWh),
primary energy (MJ/kWh) and water (L/kWh), without year or source in the data (its documentation names ADEME, OWID and
WRI). `ecologits.impacts.llm.compute_llm_impacts` estimates a request from parameters and output tokens. Its patches of
other packages are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import log
from typing import Any

from torchwatt.core.errors import import_optional
from torchwatt.core.factor import Factor, with_factor_id
from torchwatt.core.units import J_PER_KWH

MJ_PER_KWH = 3.6
_NAME = "EcoLogits"
_URL = "https://github.com/mlco2/ecologits"
_UNITS = {"grid_adpe": "kg{Sbeq}/kW.h", "grid_pe": "MJ/kW.h", "grid_wue": "L/kW.h"}
PE_FLAG = (
    "PE_BELOW_3_6: below the 3.6 MJ in a kWh, which no total primary energy can be; likely its fossil part only. "
    "Published so, and kept as published"
)


@cache
def installed_version() -> str:
    """Return the version of ecologits; empty if it is not installed."""
    try:
        return version("ecologits") if find_spec("ecologits") is not None else ""
    except PackageNotFoundError:
        return ""


def _mix(zone: str) -> Any:
    if not installed_version():
        return None
    from ecologits.electricity_mix_repository import electricity_mixes

    return electricity_mixes.find_electricity_mix(zone)


def with_second_opinion(factor: Factor) -> Factor:
    """Return a country's life-cycle intensity with the range of two sources as `lo` and `hi`.

    Other factors, and those of countries without a second source, are returned unchanged.
    """
    mix = _mix(factor.zone) if factor.basis == "lifecycle" and factor.kind == "grid_gwp" else None
    if mix is None:
        return factor
    second_g_per_kwh = mix.gwp * 1000  # published in kg
    note = f"lo and hi are two sources: {_NAME} {installed_version()} has {second_g_per_kwh:.4g} g/kWh"
    return with_factor_id(
        replace(
            factor,
            lo=min(factor.value, second_g_per_kwh),
            hi=max(factor.value, second_g_per_kwh),
            distribution="uniform",
            coverage_note="; ".join(text for text in (factor.coverage_note, note) if text),
        )
    )


def other_criteria(zone: str) -> tuple[Factor, ...]:
    """Return abiotic depletion, primary energy and water use per kWh of a country; empty if unknown."""
    mix = _mix(zone)
    if mix is None:
        return ()
    values = {"grid_adpe": mix.adpe, "grid_pe": mix.pe, "grid_wue": mix.wue}
    warned = "; ".join(str(getattr(w, "code", w)) for w in mix.warnings)
    return tuple(_factor(kind, float(value), zone, warned) for kind, value in values.items())


def _factor(kind: str, value: float, zone: str, warned: str) -> Factor:
    notes = ["the table states neither year nor source"]
    if kind == "grid_pe" and value < MJ_PER_KWH:
        notes.append(PE_FLAG)
    if warned:
        notes.append(f"its own warnings: {warned}")
    return with_factor_id(
        Factor(
            factor_id="",
            kind=kind,
            value=value,
            unit=_UNITS[kind],
            provenance="sourced",
            source_name=_NAME,
            zone=zone,
            basis="unknown",
            accounting_method="location",
            source_url=_URL,
            source_version=f"ecologits {installed_version()}",
            licence="MPL-2.0",
            coverage_note="; ".join(notes),
            zone_system="iso3166-1",
        )
    )


PROVIDER = "huggingface_hub"  # of the PUE and water that the package states for hosts of open models
# Criterion -> unit, and the factor from the package's unit.
ESTIMATED_CRITERIA: Mapping[str, tuple[str, float]] = {
    "gwp": ("g{CO2e}", 1e3), "adpe": ("kg{Sbeq}", 1.0), "pe": ("MJ", 1.0), "wcf": ("L", 1.0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EstimatedRange:
    """A figure of the estimator, from `lo` to `hi`."""

    lo: float
    hi: float

    @property
    def mean(self) -> float:
        """Return the middle, as the package does."""
        return (self.lo + self.hi) / 2

    def times(self, factor: float) -> EstimatedRange:
        """Return the range in another unit."""
        return EstimatedRange(self.lo * factor, self.hi * factor)


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Joules and impacts of one output token, by criterion (`ESTIMATED_CRITERIA`)."""

    energy_j: EstimatedRange
    usage: Mapping[str, EstimatedRange]
    embodied: Mapping[str, EstimatedRange]


@dataclass(frozen=True, slots=True)
class TokenLoad:
    """The requests of a run, in the quantities that the estimator assumes.

    Attributes:
        batch: Requests at once.
        tokens_per_s: Output tokens of one request per second.
        device_j: Joules of the counted accelerators per output token.
        host_w: Mean watts of the other counted domains while requests ran.
    """

    batch: float
    tokens_per_s: float
    device_j: float
    host_w: float

    @property
    def energy_j(self) -> float:
        """Return joules per output token."""
        return self.device_j + self.host_w / (self.tokens_per_s * self.batch)


@dataclass(frozen=True, slots=True)
class Assumption:
    """One assumption of the estimator, and the estimate with the run's value in its place."""

    name: str
    unit: str
    assumed: EstimatedRange
    run_value: float
    replaced_j: EstimatedRange  # joules per output token
    log_ratio: float  # ln(replaced / own estimate)


class TokenEstimator:
    """Estimates one output token of a model by the functions of ecologits.

    Args:
        parameters: Of the model.
        active_parameters: Those that are used for one token.
        zone: Country of the electricity mix; where the package has none of it, that of its provider.

    Raises:
        MissingPackageError: ecologits is not installed.
    """

    def __init__(self, parameters: int, active_parameters: int, zone: str = "") -> None:
        self._llm: Any = import_optional("ecologits.impacts.llm", "against_estimate")
        provider = import_optional("ecologits.tracers.utils", "against_estimate").PROVIDER_CONFIG_MAP[PROVIDER]
        mixes = import_optional("ecologits.electricity_mix_repository", "against_estimate").electricity_mixes
        mix = mixes.find_electricity_mix(zone)
        self.zone = zone if mix is not None else provider.datacenter_location
        mix = mix or mixes.find_electricity_mix(self.zone)
        self._total, self._active = parameters / 1e9, active_parameters / 1e9
        self._pue = provider.datacenter_pue
        self._request = {
            "model_active_parameter_count": self._active,
            "model_total_parameter_count": self._total,
            "output_token_count": 1,
            **{f"if_electricity_mix_{name}": getattr(mix, name) for name in ("adpe", "pe", "gwp", "wue")},
            "datacenter_pue": self._pue,
            "datacenter_wue": provider.datacenter_wue,
        }
        bits = self._llm.MODEL_QUANTIZATION_BITS
        memory = self._llm.model_required_memory(self._total, bits)
        self.gpus = int(self._llm.gpu_required_count(memory, self._llm.GPU_MEMORY))
        self.batch = float(self._llm.BATCH_SIZE)

    def estimate(self, replaced: Mapping[str, Any] | None = None) -> TokenEstimate:
        """Return the package's estimate of one token; `replaced` has arguments that differ from the defaults."""
        impacts = self._llm.compute_llm_impacts(**{**self._request, **(replaced or {})})
        return TokenEstimate(
            _range(impacts.energy.value).times(J_PER_KWH),
            _criteria(impacts.usage),
            _criteria(impacts.embodied),
        )

    def assumptions(self, load: TokenLoad) -> tuple[Assumption, ...]:
        """Return each assumption with the estimate in which it alone has the run's value."""
        own_j = self.estimate().energy_j.mean
        replacements = self.replacements(load)
        rows = []
        for name, (unit, assumed, run_value) in self._values(load).items():
            replaced_j = self.estimate(replacements[name]).energy_j
            log_ratio = log(replaced_j.mean / own_j) if replaced_j.mean > 0 else float("-inf")
            rows.append(Assumption(name, unit, assumed, run_value, replaced_j, log_ratio))
        return tuple(rows)

    def replacements(self, load: TokenLoad) -> dict[str, dict[str, Any]]:
        """Return the arguments that put the run's values in the place of each assumption.

        All of them together give the run's joules per output token.
        """
        wh_per_gpu = load.device_j / J_PER_KWH * 1e3 / self.gpus
        server_kw = load.host_w / 1e3 * self._llm.SERVER_GPUS / self.gpus
        return {
            "batch": {"batch_size": load.batch},
            "tokens per second": {"tps": load.tokens_per_s},
            "hardware": {"gpu_energy_alpha": 0.0, "gpu_energy_beta": 0.0, "gpu_energy_gamma": wh_per_gpu},
            "boundary": {"server_power": server_kw},
            "PUE": {"datacenter_pue": 1.0},
        }

    def _values(self, load: TokenLoad) -> dict[str, tuple[str, EstimatedRange, float]]:
        """Return unit, the package's value and the run's value of each assumption."""
        llm = self._llm
        coefficients = (llm.GPU_ENERGY_ALPHA, llm.GPU_ENERGY_BETA, llm.GPU_ENERGY_GAMMA)
        gpus_j = self.gpus * J_PER_KWH * llm.gpu_energy(self._active, 1, llm.BATCH_SIZE, *coefficients)
        coefficients = (llm.LATENCY_ALPHA, llm.LATENCY_BETA, llm.LATENCY_GAMMA)
        token_s = llm.generation_latency(self._active, 1, llm.BATCH_SIZE, *coefficients, float("inf"))
        server_w = llm.SERVER_POWER * 1e3 * self.gpus / llm.SERVER_GPUS
        return {
            "batch": ("1", _range(llm.BATCH_SIZE), load.batch),
            "tokens per second": ("1/s", _range(1 / token_s), load.tokens_per_s),
            "hardware": ("J", _range(gpus_j), load.device_j),
            "boundary": ("W", _range(server_w), load.host_w),
            "PUE": ("1", _range(self._pue), 1.0),
        }


def _range(value: Any) -> EstimatedRange:
    """Return a number or the package's `RangeValue` as a range."""
    if isinstance(value, int | float):
        return EstimatedRange(float(value), float(value))
    return EstimatedRange(float(value.min), float(value.max))


def _criteria(phase: Any) -> dict[str, EstimatedRange]:
    return {
        name: _range(getattr(phase, name).value).times(scale)
        for name, (_, scale) in ESTIMATED_CRITERIA.items()
        if hasattr(phase, name)
    }
