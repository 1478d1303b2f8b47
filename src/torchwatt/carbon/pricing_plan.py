"""Selects the factors to apply from the user's options: first the user's own, then facility, hourly file, yearly table.

No network is used, and a place that the user did not name is never assumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from errno import EFBIG
from os import PathLike
from pathlib import Path

from torchwatt.carbon.declared_factors import (
    Embodied,
    Ranged,
    declared_intensity,
    declared_market,
    declared_price,
    group_embodied,
    resolve_pue,
)
from torchwatt.carbon.ecologits import other_criteria, with_second_opinion
from torchwatt.carbon.electricity_maps import is_history, merge_histories, read_history
from torchwatt.carbon.facilities import facility
from torchwatt.carbon.factor_files import FactorLine, is_interval_file, read_factors, read_interval_file
from torchwatt.carbon.grid_series import GridSeries, constant_series, hourly_series
from torchwatt.carbon.impacts import PricingNote
from torchwatt.carbon.region_lookup import place_of, resolve_intensity
from torchwatt.core.errors import ConfigError, FactorError
from torchwatt.core.factor import Factor, with_factor_id
from torchwatt.disk.path_safety import read_user_path

MARKET_KINDS = ("contract_gwp", "residual_mix")
MAX_BYTES = 1 << 26  # 64 MiB: an hourly history of one zone has 1 MB a year
OTHER_KINDS = ("grid_adpe", "grid_pe", "grid_wue")
Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


@dataclass(frozen=True, slots=True)
class PricingPlan:
    """The factors to apply; `location` and `market` are candidates, preferred ones first."""

    location: tuple[GridSeries, ...] = ()
    market: tuple[GridSeries, ...] = ()
    pue: Factor | None = None
    wue: Factor | None = None
    price: Factor | None = None  # of a kilowatt-hour of electricity
    criteria: Mapping[str, Factor] = field(default_factory=dict)  # by kind: grid_adpe, grid_pe, grid_wue
    embodied: tuple[Embodied, ...] = ()
    facility: str = ""
    allow_expired: bool = False  # apply factors outside their dates; their coverage notes state it

    @property
    def nothing(self) -> bool:
        """Return whether there is no factor to apply."""
        return not (self.location or self.market or self.criteria or self.embodied or self.wue or self.price)


@dataclass(frozen=True, slots=True)
class CarbonOptions:
    """Options about carbon, named as in `profile()`."""

    region: str | None = None
    intensity_g_per_kwh: float | None = None
    market: float | None = None
    facility: str | None = None
    pue: Ranged | None = None
    factors: Paths | None = None
    allow_expired: bool | None = None
    price_per_kwh: str | None = None


def make_plan(options: CarbonOptions, at: datetime, extra: Iterable[GridSeries] = ()) -> PricingPlan:
    """Return the factors that the options select.

    Args:
        options: Of the user.
        at: The time of the run; the numbers of a facility expire.
        extra: Hourly grids that the caller fetched.

    Raises:
        ConfigError: A declared number is impossible, or two options contradict each other.
        FactorError: A name is in no table, a file cannot be read, or a factor is not valid at that time.
    """
    lines, histories = _files(options.factors)
    allowed = bool(options.allow_expired)
    preset_factors = facility(options.facility, at, allow_expired=allowed) if options.facility is not None else ()
    preset = {f.kind: f for f in preset_factors}
    declared = _by_kind(line.factor for line in lines if line.factor.temporal_resolution != "hour" and not line.device)
    by_hour = [line.factor for line in lines if line.factor.temporal_resolution == "hour"]
    if located := [factor for factor in by_hour if not _is_market(factor)]:
        histories.append(hourly_series("the hours of factors=", located))
    histories += extra  # also without a whole hour: pricing then names the hours that it lacks
    table = _table(options)
    _refuse_other_places(options, table, preset, histories, [line.factor for line in lines if not line.device])
    result = PricingPlan(
        location=tuple(_location(options, declared, preset, histories, table)),
        market=tuple(_market(options, declared, by_hour)),
        pue=resolve_pue(options.pue) or declared.get("pue") or preset.get("pue"),
        wue=declared.get("wue") or preset.get("wue"),
        price=None if options.price_per_kwh is None else declared_price(options.price_per_kwh),
        criteria=_other_factors(declared, preset, table),
        embodied=group_embodied((line.device, line.factor) for line in lines),
        facility=options.facility or "",
        allow_expired=allowed,
    )
    plan_in_force(result, at, at)  # `price` checks the whole time of the run
    return result


def _files(paths: Paths | None) -> tuple[list[FactorLine], list[GridSeries]]:
    lines: list[FactorLine] = []
    histories: list[GridSeries] = []
    for path in [] if paths is None else [paths] if isinstance(paths, str | PathLike) else paths:
        text = _text(Path(path))
        if is_history(text.partition("\n")[0]):
            histories.append(read_history(Path(path), text))
        elif is_interval_file(text.partition("\n")[0]):
            lines += [FactorLine(factor) for factor in read_interval_file(Path(path), text)]
        else:
            lines += read_factors(Path(path), text)
    if len(histories) > 1:
        histories = [merge_histories(", ".join(grid.label for grid in histories), tuple(histories))]
    return lines, histories


def _text(path: Path) -> str:
    """Return the text of a file with its line ends unchanged, because its SHA-256 is recorded."""
    try:
        return read_user_path(path, MAX_BYTES).decode()
    except OSError as error:
        fix = ": give the hours of the run only" if error.errno == EFBIG else ""
        raise FactorError(f"factors={str(path)!r}: cannot read it: {error.strerror}{fix}") from error
    except UnicodeDecodeError as error:
        raise FactorError(f"factors={str(path)!r}: cannot read it: {error}") from error


def _is_market(factor: Factor) -> bool:
    return factor.kind in MARKET_KINDS or factor.accounting_method == "market"


def _by_kind(factors: Iterable[Factor]) -> dict[str, Factor]:
    by_kind: dict[str, Factor] = {}
    for factor in factors:
        kind = "market" if _is_market(factor) else factor.kind
        if kind in by_kind:
            values = f"{by_kind[kind].value!r} and {factor.value!r}"
            raise FactorError(f"factors=: two numbers for {kind} ({values}): keep one")
        by_kind[kind] = factor
    return by_kind


def _table(options: CarbonOptions) -> Factor | None:
    """Return the factor of the region; None if the user gives the intensity, and the region is only a label."""
    if options.region is None or options.intensity_g_per_kwh is not None:
        return None
    factor = resolve_intensity(options.region)
    return None if factor is None else with_second_opinion(factor)


def _location(
    options: CarbonOptions,
    declared: Mapping[str, Factor],
    preset: Mapping[str, Factor],
    histories: Sequence[GridSeries],
    table: Factor | None,
) -> Iterable[GridSeries]:
    if options.intensity_g_per_kwh is not None:
        yield constant_series("user", declared_intensity(options.intensity_g_per_kwh, options.region))
    if "grid_gwp" in declared:
        yield constant_series("user", declared["grid_gwp"])
    if "grid_gwp" in preset:
        yield constant_series("facility", preset["grid_gwp"])
    yield from histories
    if table is not None:
        yield constant_series("yearly table", table)


def _market(options: CarbonOptions, declared: Mapping[str, Factor], by_hour: Sequence[Factor]) -> Iterable[GridSeries]:
    """Yield the market-based factors; only the user's own, there is no default."""
    if options.market is not None:
        yield constant_series("user", declared_market(options.market))
    if "market" in declared:
        yield constant_series("user", declared["market"])
    if hours := [factor for factor in by_hour if _is_market(factor)]:
        yield hourly_series("the hours of factors= (market)", hours)


def _other_factors(
    declared: Mapping[str, Factor], preset: Mapping[str, Factor], table: Factor | None
) -> dict[str, Factor]:
    zone = table.zone if table is not None else _zone_of(preset)
    published = {factor.kind: factor for factor in other_criteria(zone)} if zone else {}
    return published | {kind: declared[kind] for kind in OTHER_KINDS if kind in declared}


def _zone_of(preset: Mapping[str, Factor]) -> str:
    """Return the zone of a facility, which all its factors have; empty without a facility."""
    return next((factor.zone for factor in preset.values()), "")


def _refuse_other_places(
    options: CarbonOptions,
    table: Factor | None,
    preset: Mapping[str, Factor],
    histories: Sequence[GridSeries],
    factors: Sequence[Factor],
) -> None:
    """Refuse options that name grids of two countries, or of two parts of one country.

    Contracts may be about electricity from elsewhere, and zones that are no place are not compared.

    Raises:
        ConfigError: Two options name different places.
    """
    zones: dict[str, str] = {}
    if options.region is not None:
        zones[f"region={options.region!r}"] = table.zone if table is not None else options.region
    if preset:
        zones[f"facility={options.facility!r}"] = _zone_of(preset)
    for grid in histories:
        zones |= {f"{grid.label} ({factor.zone})": factor.zone for factor in grid.by_hour.values()}
    for factor in factors:
        if factor.kind != "contract_gwp" and factor.instrument == "":
            zones[f"factors= ({factor.kind} of {factor.zone!r})"] = factor.zone
    places = {name: place for name, zone in zones.items() if (place := place_of(zone)) is not None}
    countries = {country for country, _ in places.values()}
    parts = {part for _, part in places.values() if part}
    if len(countries) > 1 or len(parts) > 1:
        statements = "; ".join(f"{name} is in {'/'.join(filter(None, place))}" for name, place in places.items())
        raise ConfigError(f"these are different grids: {statements}. Keep the one that fed the run")


OLD_YEARS = 5  # older data gives the note FACTOR_OLD; grids change by half in that time
_REMEDY = "give one that holds, or say --allow-expired (allow_expired=True): its row then says so"


def plan_in_force(plan: PricingPlan, start: datetime, end: datetime) -> PricingPlan:
    """Return the plan with the factors that are valid from `start` to `end`.

    If `plan.allow_expired` is set, factors of other times stay, and their coverage notes state the time of the run.
    Factors of single hours are matched by hour elsewhere and not checked here.

    Raises:
        FactorError: A factor is not valid for the whole time.
    """

    def find_factor_in_force(factor: Factor) -> Factor:
        return _factor_in_force(factor, start, end, allow_expired=plan.allow_expired)

    return replace(
        plan,
        location=tuple(_grid_in_force(grid, start, end, plan) for grid in plan.location),
        market=tuple(_grid_in_force(grid, start, end, plan) for grid in plan.market),
        pue=None if plan.pue is None else find_factor_in_force(plan.pue),
        wue=None if plan.wue is None else find_factor_in_force(plan.wue),
        criteria={kind: find_factor_in_force(factor) for kind, factor in plan.criteria.items()},
        embodied=tuple(
            Embodied(
                item.device,
                find_factor_in_force(item.lifetime),
                find_factor_in_force(item.share),
                {kind: find_factor_in_force(total) for kind, total in item.totals.items()},
            )
            for item in plan.embodied
        ),
    )


def _grid_in_force(grid: GridSeries, start: datetime, end: datetime, plan: PricingPlan) -> GridSeries:
    if grid.always is None:
        return grid
    return replace(grid, always=_factor_in_force(grid.always, start, end, allow_expired=plan.allow_expired))


def _factor_in_force(factor: Factor, start: datetime, end: datetime, *, allow_expired: bool) -> Factor:
    early = factor.valid_from is not None and start < factor.valid_from
    late = factor.valid_to is not None and end > factor.valid_to
    if not (early or late):
        return factor
    dates = f"{_date_text(factor.valid_from, 'its beginning')} to {_date_text(factor.valid_to, 'now')}"
    run = f"{start:%Y-%m-%dT%H:%MZ}" if start == end else f"{start:%Y-%m-%dT%H:%MZ} to {end:%Y-%m-%dT%H:%MZ}"
    if not allow_expired:
        state = "has expired" if late else "does not hold yet"
        raise FactorError(
            f"{factor.kind} of {factor.source_name} {state}: it is valid from {dates}, the run is of {run}: {_REMEDY}"
        )
    note = f"applied outside of its dates: valid from {dates}, the run is of {run} (allow_expired)"
    return with_factor_id(replace(factor, coverage_note="; ".join(filter(None, (factor.coverage_note, note)))))


def _date_text(instant: datetime | None, unknown: str) -> str:
    return unknown if instant is None else f"{instant:%Y-%m-%dT%H:%MZ}"


def year_notes(factors: tuple[Factor, ...], start: datetime) -> Iterator[PricingNote]:
    """Yield a note for each yearly factor from a later year than the run, or from more than `OLD_YEARS` before it."""
    for factor in factors:
        year = factor.data_year
        if year is None or factor.temporal_resolution == "hour":
            continue
        subject = f"{factor.kind} of {factor.source_name} {factor.zone}".rstrip()
        if year > start.year:
            yield PricingNote("warning", "FACTOR_YEAR", f"{subject} is data of {year}, the run is of {start.year}")
        elif start.year - year > OLD_YEARS:
            text = f"{subject} is data of {year}, {start.year - year} years before the run"
            yield PricingNote("warning", "FACTOR_OLD", text)
