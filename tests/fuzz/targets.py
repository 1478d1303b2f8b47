"""One function a parser: bytes that anybody may have written, ending in a result or in one of our own errors."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from tests.fuzz import seeds
from tests.fuzz.files import parts_of, unpack
from tests.fuzz.watch import unwatched, watched
from torchwatt.core.errors import TorchwattError

SLOW_S = 10.0  # of CPU time: an input has a few kilobytes at most, and every parser is meant for megabytes
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
Target = Callable[[bytes, Path], object]


class TooSlowError(AssertionError):
    """A parser took longer than its input explains."""


@dataclass(frozen=True)
class Entry:
    """A target, valid inputs to start from, how they are mutated, and which programs it may start."""

    run: Target
    seeds: Callable[[], list[bytes]]
    form: str  # of mutation: json, csv, files, gz, bytes
    programs: frozenset[str] = field(default_factory=frozenset)


TARGETS: dict[str, Entry] = {}


def target(start: Callable[[], list[bytes]], form: str, programs: tuple[str, ...] = ()) -> Callable[[Target], Target]:
    """Register a target under its own name."""

    def register(run: Target) -> Target:
        TARGETS[run.__name__] = Entry(run, start, form, frozenset(programs))
        return run

    return register


def check(name: str, data: bytes) -> str:
    """Feed one input to one target, and return `read` or the name of our own error.

    Raises:
        BaseException: Whatever a parser should not have raised; `TooSlowError`, and `Trespass` of `watch`.
    """
    entry = TARGETS[name]
    _warmed(name)
    folder = Path(tempfile.mkdtemp(prefix="torchwatt-fuzz-"))
    try:
        # openpyxl writes its sheets to the temporary folder first; no input depends on what the disk has.
        with mock.patch.object(tempfile, "tempdir", str(folder)), mock.patch("os.fsync"):
            return _checked(entry, data, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _warmed(name: str) -> None:
    """Read a valid input unwatched: what runs at first use only (imports, typing of decoders) is no fault of a file."""
    entry = TARGETS[name]
    for data in entry.seeds()[:1]:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entry.run(data, Path(folder))


def _checked(entry: Entry, data: bytes, folder: Path) -> str:
    began_s = time.process_time()
    try:
        with warnings.catch_warnings(), watched(folder, entry.programs):
            warnings.simplefilter("ignore")
            # What numpy says of overflows reaches nobody's eyes in a session; a result that is no number is our fault.
            with np.errstate(all="ignore"):
                entry.run(data, folder)
    except TorchwattError as error:
        said = type(error).__name__ if str(error) else "nothing"
    else:
        said = "read"
    assert said != "nothing", "an error without a word"
    spent_s = time.process_time() - began_s
    if spent_s > SLOW_S:
        raise TooSlowError(f"{spent_s:.1f} s of CPU time for {len(data)} bytes")
    return said


def _put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _laid_out(usual: Mapping[str, bytes], data: bytes, folder: Path) -> Path:
    """Write the usual files, and over them those of the input."""
    with unwatched():
        for name, content in usual.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        unpack(data, folder, links=False)  # sysfs is full of links, and a file that the user names may be one
    return folder


# Traces


@target(seeds.traces, "json")
def kineto(data: bytes, folder: Path) -> None:
    """Read a trace in small blocks, so that borders of blocks fall everywhere, and join it."""
    from torchwatt.kineto import join_trace, read_trace

    path = _put(folder, "t.json", data)
    trace = read_trace(path, block=64 + 61 * (len(data) % 7))
    found = join_trace(trace, captures=[trace])
    for one in found.activities:
        assert (one.end_ns >= one.start_ns).all()
    assert 0.0 <= found.named_share <= 1.0 or math.isnan(found.named_share)


@target(seeds.traces_gz, "gz")
def kineto_gz(data: bytes, folder: Path) -> None:
    """Read a trace, gzipped or not, as it comes from a disk."""
    from torchwatt.kineto import join_trace, read_trace

    join_trace(read_trace(_put(folder, "t.json.gz", data)))


@target(seeds.sidecars, "json")
def sidecar(data: bytes, folder: Path) -> None:
    """Read what Inductor's kernels stand for."""
    from torchwatt.kineto import read_sidecar

    found = read_sidecar(_put(folder, "s.json", data))
    for kernels in found.graphs.values():
        for shares in kernels.values():
            assert not shares or math.isclose(sum(weight for _, weight in shares), 1.0)


@target(seeds.sidecars, "json")
def inductor(data: bytes, folder: Path) -> None:
    """Add what was compiled now to what an earlier run left."""
    from torchwatt.offline.inductor import ProvenanceRecorder

    recorder = ProvenanceRecorder()
    recorder.graphs = {"key": {"triton_0": [("fc", "forward", 1.0)]}}
    recorder.save(_put(folder, "s.json", data))


@target(seeds.offline, "files")
def offline(data: bytes, folder: Path) -> None:
    """Attribute a trace to a power log, show it and write the bundle, as `torchwatt attribute` does."""
    from torchwatt.offline.trace_attribution import RecordedFiles, attribute_files
    from torchwatt.reports.output_files import write_csv, write_html
    from torchwatt.views import to_text

    inputs = _laid_out(seeds.OFFLINE, data, folder / "in")
    idle = inputs / "idle.csv" if (inputs / "idle.csv").is_file() else None
    offset = "fit" if len(data) % 5 == 0 else 0.0
    files = RecordedFiles((inputs / "t.json",), inputs / "power.csv", offset=offset, idle=idle)  # type: ignore[arg-type]
    found = attribute_files(files)
    assert found.report is not None
    to_text(found.report)
    write_html(found.report, folder / "r.html")
    write_csv(found.report, folder / "audit")


@target(seeds.exchanges, "bytes")
def exchange(data: bytes, folder: Path) -> None:
    """Read what a worker process handed back."""
    from torchwatt.kineto.join_worker import read_activities

    read_activities(_put(folder, "w.npz", data))


# Sensors


@target(seeds.power_logs, "csv")
def power_csv(data: bytes, folder: Path) -> None:
    """Read a power log."""
    from torchwatt.sensors.logs.power_log import read_power_log

    found = read_power_log(_put(folder, "p.csv", data))
    for one in found.series:
        assert len(one) > 1 or one.channel.quantity == "counter"
        assert np.isfinite(one.raw).all()
        assert (np.diff(one.t_ns) >= 0).all()


@target(seeds.calibrations, "json")
def calibrations(data: bytes, folder: Path) -> None:
    """Load the calibrations of this machine's GPUs, as a session does, and add one."""
    from tests.support.reports import GPU
    from torchwatt.core.meter import Channel, Meter
    from torchwatt.reports.report_builder import load_sensor_models
    from torchwatt.sensors.calibrations import save_calibration

    path = _put(folder, "sensors.json", data)
    channel = Channel(GPU, "power", "power", "W", 1.0, 10**8, "nvml_power")
    meter = Meter(GPU, (channel,), "measured", "device", "x", facts=(("uuid", "GPU-1"), ("driver", "590")))
    with mock.patch.dict(os.environ, {"TORCHWATT_CALIBRATIONS": str(folder)}):
        models, events = load_sensor_models([meter])
    for model in models.values():
        assert all(math.isfinite(v) for v in (model.period_s, model.rms_w, model.gain, model.offset_w))
    assert not models or not events
    save_calibration(path, "GPU-1/590/nvml_power", {"gain": 1.0})


@target(seeds.recordings, "json")
def recording(data: bytes, folder: Path) -> None:
    """Load a recording and play it into a session's arithmetic."""
    _played(_put(folder, "r.jsonl", data))


@target(seeds.recordings_gz, "gz")
def recording_gz(data: bytes, folder: Path) -> None:
    """Load a gzipped recording."""
    _played(_put(folder, "r.jsonl.gz", data))


def _played(path: Path) -> None:
    from torchwatt.attribution.metered_curve import build_metered_curve
    from torchwatt.sensors.recordings import Replay, load_recording, save_recording

    found = load_recording(path)
    feed = Replay(found, clock_ns=lambda: 10**9)
    feed.start()
    now = feed.stop()
    for meter in now.meters:
        build_metered_curve(meter, now)
    save_recording(found, path.with_name("again.jsonl"))


@target(seeds.machines, "files")
def machine(data: bytes, folder: Path) -> None:
    """Look at a powercap folder, perf's events, /proc/cpuinfo and /proc/stat."""
    from torchwatt.sensors.load_model import nameplate_power, read_cpu_info, table_power_w
    from torchwatt.sensors.rapl import discover_rapl, power_events
    from torchwatt.sensors.readers.process_tree import MachineCpu

    _laid_out(seeds.MACHINE, data, folder)
    with mock.patch("time.sleep"):
        found = discover_rapl(folder / "powercap")
    for meter in found.meters:
        for channel in meter.channels:
            assert channel.modulus is None or channel.modulus > 0
    info = read_cpu_info(str(folder / "cpuinfo"))
    assert nameplate_power(info, table_power_w(info.model)).watts >= 0
    stat = MachineCpu(str(folder / "stat"))
    try:
        stat.busy_s()
    except TorchwattError:
        pass
    finally:
        stat.close()
    power_events(folder / "perf")


# Carbon


@target(seeds.factors, "csv")
def factors(data: bytes, folder: Path) -> None:
    """Price a kilowatt-hour with a file of factors or hours."""
    from tests.carbon.worlds import usage
    from torchwatt.carbon import CarbonOptions
    from torchwatt.carbon.pricing import price_run
    from torchwatt.carbon.pricing_plan import make_plan

    path = _put(folder, "f.csv", data)
    applied = make_plan(CarbonOptions(factors=path), NEW_YEAR)
    if not applied.nothing:
        for impact in price_run(usage(3.6e6), applied).impacts:
            assert math.isfinite(impact.value)


@target(seeds.answers, "json")
def electricity_maps(data: bytes, folder: Path) -> None:
    """Read an answer of the API; the connection itself is not opened here."""
    from torchwatt.carbon import electricity_maps_api as api

    with mock.patch.object(api, "_ask", return_value=data):
        grid = api.fetch_hours([490_000, 490_001], zone="FR", token="t", at=NEW_YEAR)  # noqa: S106
    for factor in grid.by_hour.values():
        assert math.isfinite(factor.value)
        assert factor.value >= 0


# Bundles


@cache
def _bundle_tables() -> Mapping[str, bytes]:
    from tests.support.bundles import rich_report, tables_of

    return tables_of(rich_report())


def _bundle(data: bytes, folder: Path) -> Path:
    """Make the bundle that an input describes: a good one, with some files replaced; sealed again where it can be."""
    from tests.support.bundles import rich_report
    from torchwatt.audit import write_files

    parts = parts_of(data)
    replaced = {name: content for kind, name, content in parts if kind == "file" and name in _bundle_tables()}
    twin = {"sample.csv.gz"} & {name for _, name, _ in parts}
    tables = {**_bundle_tables(), **replaced}
    for name in twin:
        tables.pop("sample.parquet")
        tables[name] = next(content for _, n, content in parts if n == name)
    with unwatched():
        bundle = write_files(tables, folder / "audit", run_id=rich_report().run_id)
        unpack(data, bundle)
    return bundle


@target(seeds.bundles, "files", programs=("ssh-keygen",))
def bundle_verify(data: bytes, folder: Path) -> None:
    """Check a bundle with its chain."""
    from torchwatt.audit import verify

    bundle = _bundle(data, folder)
    chain = folder / "chain.jsonl"
    with unwatched():
        if (bundle / "chain.jsonl").is_file():
            shutil.copyfile(bundle / "chain.jsonl", chain)
    told = str(verify(bundle, chain=chain if chain.exists() else None, runs=folder))
    assert all(line.isprintable() for line in told.split("\n"))


@target(seeds.bundles, "files")
def bundle_use(data: bytes, folder: Path) -> None:
    """Show, export, reprice and keep a bundle that somebody sent."""
    from torchwatt.audit.exports import FORMATS, export
    from torchwatt.audit.run_index import monthly_sums
    from torchwatt.audit.store import Store
    from torchwatt.carbon import CarbonOptions
    from torchwatt.cli.bundle_commands import show_bundle
    from torchwatt.offline.repricing import reprice

    bundle = _bundle(data, folder)
    refused: TorchwattError | None = None
    store = Store(folder / "store")
    uses: list[Callable[[], object]] = [
        lambda: show_bundle(str(bundle), everything=True, out=io.StringIO()),
        lambda: reprice(bundle, CarbonOptions(intensity_g_per_kwh=50.0), scenario="x", target=folder / "again"),
        lambda: store.add(bundle),
        lambda: monthly_sums(store.runs()),
        *(lambda to=to: export([bundle], to, folder / f"out.{to}") for to in FORMATS),  # type: ignore[misc]
    ]
    for use in uses:
        try:
            use()
        except TorchwattError as error:
            refused = error
    if refused is not None:
        raise refused


@target(seeds.chains, "json")
def chain(data: bytes, folder: Path) -> None:
    """Check a chain, and add a run to it."""
    from torchwatt.audit.seal import next_link
    from torchwatt.audit.verification.finding import Findings
    from torchwatt.audit.verification.seal_checks import check_chain

    path = _put(folder, "chain.jsonl", data)
    check_chain(path, {"chain_sha256": "0" * 64}, "0" * 64, folder, Findings())
    next_link(path, "run", "audit", "0" * 64)


@target(seeds.stores, "bytes")
def store_index(data: bytes, folder: Path) -> None:
    """Look into a store whose index is anybody's."""
    from torchwatt.audit.run_index import monthly_sums
    from torchwatt.audit.store import Store

    _put(folder, "index.sqlite", data)
    store = Store(folder)
    monthly_sums(store.runs())
    store.find("x")


@target(seeds.formulas, "bytes")
def formula(data: bytes, folder: Path) -> None:
    """Evaluate the formula of an impact."""
    from torchwatt.audit.formula import evaluate, names

    text = data.decode("utf-8", "replace")
    try:
        evaluate(text, dict.fromkeys(names(text), 2.0))
    except OverflowError:  # both callers make a finding of it
        return


# What is shown


@target(seeds.names, "bytes")
def shown(data: bytes, folder: Path) -> None:
    """Show a run whose layers, device and events have these names, in every view, and write its bundle."""
    from tests.fuzz.pages import assert_harmless
    from tests.support.reports import named_report
    from torchwatt.audit import read_bundle, verify, write_bundle
    from torchwatt.sensors.gpu_facts import read_gpu_facts
    from torchwatt.views import layer_rows, to_html_page, to_payload, to_text

    nvml = SimpleNamespace(
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlDeviceGetName=lambda _: data, nvmlDeviceGetUUID=lambda _: data,
        nvmlDeviceGetPciInfo=lambda _: SimpleNamespace(busId=data), nvmlSystemGetDriverVersion=lambda: data,
        nvmlDeviceGetEnforcedPowerLimit=lambda _: 1, nvmlDeviceGetPowerManagementDefaultLimit=lambda _: 1,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=1),
    )  # fmt: skip
    facts = dict(read_gpu_facts(nvml, None, 0))
    texts = [facts["name"], *data.decode("utf-8", "surrogateescape").split("\n")]
    report = named_report(*dict.fromkeys(text for text in texts if text))
    assert_harmless(to_html_page(report))
    to_text(report)
    json.dumps(to_payload(report), allow_nan=False)
    layer_rows(report)
    bundle = write_bundle(report, folder / "audit")
    read_bundle(bundle)
    verify(bundle)


# What a killed run left


@target(seeds.journals, "files")
def journal(data: bytes, folder: Path) -> None:
    """Recover a journal of these frames: parts `work/<kind>.<number>`, checksums put right; kind 0 is no frame."""
    from torchwatt.core.journal_format import encode_frame
    from torchwatt.journal.recovery import recover

    files = {"work": b"", "readings": b""}
    for number, (_, name, content) in enumerate(parts_of(data)):
        file, _, rest = name.partition("/")
        kind = rest.partition(".")[0]
        if file in files and kind.isascii() and kind.isdecimal() and int(kind) < 256:
            files[file] += encode_frame(int(kind), number, content) if int(kind) else content  # type: ignore[arg-type]
    with unwatched():
        for name, content in files.items():
            (folder / f"{name}.journal").write_bytes(content)
    report = recover(folder)
    assert report.energy_j is None or math.isfinite(report.energy_j)
