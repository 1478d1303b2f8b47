"""Stages of recorded files: joules by stage against known watts, and against what a clock window would say."""

from collections import Counter
from math import fsum, isclose

import numpy as np
import pytest

import torchwatt
from tests.attribution.cases import A100
from tests.attribution.simulator import GRID_S, ORIGIN_NS, measure
from tests.kineto.synthetic_traces import DECODE, PREFILL, SyntheticServer
from tests.kineto.trace_files import BASE_NS, note, pair, save
from tests.offline.test_offline_truth import write_power
from tests.support import ready
from torchwatt.core.errors import ConfigError

WATTS = {PREFILL: 650.0, DECODE: 250.0}  # of a kernel that runs alone
IDLE_W = 75.0


def running(starts_s, ends_s, cells):
    """Return how many of some intervals contain the middle of each cell of the power's grid."""
    middle = (np.arange(cells) + 0.5) * GRID_S
    begun, ended = (np.searchsorted(np.sort(edges), middle, side="right") for edges in (starts_s, ends_s))
    return begun - ended


def shared(counts):
    """Return the part of each cell that each stage has, if all that run at once share it equally."""
    total = np.maximum(sum(counts.values()), 1)
    return {stage: count / total for stage, count in counts.items()}


def truth_j(kernels, cells):
    """Each kernel's watts above idle, and its equal share of the idle power."""
    counts = {s: running(*(e[kernels.stage == s] for e in (kernels.start_s, kernels.end_s)), cells) for s in WATTS}
    return {
        stage: fsum(((WATTS[stage] - IDLE_W) * counts[stage] + IDLE_W * share) * GRID_S)
        for stage, share in shared(counts).items()
    }


def windows_j(windows, cell_j):
    """What the clock alone says: the joules of each instant, shared equally by the annotations open at that instant."""
    edges = {stage: np.array([each[1:] for each in windows if each[0] == stage]).T for stage in WATTS}
    counts = {stage: running(*edges[stage], len(cell_j)) for stage in WATTS}
    return {stage: fsum(share * cell_j) for stage, share in shared(counts).items()}


def off(joules, truth):
    return {stage: abs(joules[stage] / truth[stage] - 1) for stage in truth}


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1], ids=["each step is waited for", "launches run one step ahead"])
def test_stages_that_overlap_on_two_streams_have_their_joules_which_clock_windows_miss(tmp_path, ahead):
    server = SyntheticServer(1, 30.0, ahead=ahead)
    kernels = server.kernels()
    assert np.mean(running(kernels.start_s, kernels.end_s, round(30 / GRID_S)) > 1) > 0.3  # requests do overlap
    watts = np.array([WATTS[stage] for stage in kernels.stage])
    total_s = kernels.end_s.max() + 1.0
    recording, energy_j = measure(kernels.start_s, kernels.end_s, watts, A100, idle_w=IDLE_W, total_s=total_s, seed=1)
    log = tmp_path / "power.csv"
    write_power(log, recording, ORIGIN_NS, ORIGIN_NS + round(total_s * 1e9), BASE_NS)
    (ledger,) = torchwatt.attribute(server.save(tmp_path / "trace.json.gz"), log).ledgers
    truth, cell_j = truth_j(kernels, len(energy_j) - 1), np.diff(energy_j)

    by_stage = Counter()
    for entry in ledger.entries:
        by_stage[entry.stage] += entry.energy_self_j
    assert set(by_stage) == {PREFILL, DECODE, ""}
    assert max(off(by_stage, truth).values()) <= 0.03
    assert max(off(windows_j(server.windows, cell_j), truth).values()) > 0.2
    assert isclose(fsum(by_stage.values()), ledger.energy_j, rel_tol=1e-9)
    assert {entry.fqn for entry in ledger.entries if not entry.stage} == {"(idle)"}
    assert {entry.fqn for entry in ledger.entries if entry.stage == PREFILL} == {"Net_0.Attention_0", "Net_0.MLP_0"}


def ranges(folder):
    """A trace of two named ranges with a kernel each, and a third kernel outside of them; a log of constant power."""
    events = [
        note("prefill", 0, 100_000), *pair(10, 20_000, 200_000, 1),
        note("## decode_7 ##", 110_000, 10_000), *pair(110_010, 220_000, 100_000, 2),
        *pair(130_000, 320_000, 50_000, 3),
    ]  # fmt: skip
    log = folder / "p.csv"
    rows = [f"{BASE_NS + ms * 1_000_000},{200 + ms % 3}" for ms in range(-500, 900, 10)]
    log.write_text("t_ns,power_w\n" + "\n".join(rows) + "\n")
    return save(folder, events), log


@pytest.mark.parametrize(
    ("given", "second"), [(("prefill", "decode_*"), "decode_7"), (("prefill", "decode=decode_?"), "decode")]
)
def test_ranges_of_the_users_own_are_stages_where_they_are_given(tmp_path, given, second):
    trace, log = ranges(tmp_path)
    (ledger,) = torchwatt.attribute(trace, log, stage=given).ledgers
    busy = {e.stage: e.time_self_s for e in ledger.entries if e.fqn != "(idle)"}
    assert busy == pytest.approx({"prefill": 0.2, second: 0.1, "": 0.05})
    (plain,) = torchwatt.attribute(trace, log).ledgers
    assert {(e.fqn, e.stage) for e in plain.entries} >= {("prefill", ""), ("decode_7", "")}
    assert plain.energy_j == ledger.energy_j


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("prefil", r"--stage prefil: no record_function range of the trace has this name; it has: decode_7, prefill"),
        ("x=prefil*l?", "no record_function range"),
        ("=prefill", "give the stage a name"),
        ("", "give the stage a name"),
    ],
)
def test_a_stage_that_no_range_has_is_an_error_with_the_names_that_there_are(tmp_path, given, words):
    trace, log = ranges(tmp_path)
    with pytest.raises(ConfigError, match=words):
        torchwatt.attribute(trace, log, stage=["prefill", given])


def test_a_stage_is_looked_for_among_the_ranges_of_torchwatt_as_well_but_no_other_passes_for_it(tmp_path):
    path = save(tmp_path, [note("stage: prefill", 0, 100), note("ProfilerStep#1", 0, 100), *pair(10, 20, 30, 1)])
    joined = ready.torchwatt("attribute", "--trace", path, "--stage", "prefill")
    assert joined.returncode == 0, joined.stderr
    wrong = ready.torchwatt("attribute", "--trace", path, "--stage", "decode")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "--stage decode: no record_function range of the trace has this name; it has: prefill" in wrong.stderr


def test_the_command_prints_stages_where_the_trace_has_some(tmp_path):
    trace, _ = ranges(tmp_path)
    plain = ready.torchwatt("attribute", "--trace", trace)
    staged = ready.torchwatt("attribute", "--trace", trace, "--stage", "prefill", "--stage", "decode=decode_*")
    assert (plain.returncode, staged.returncode) == (0, 0)
    assert " stage " not in plain.stdout
    lines = [line.split() for line in staged.stdout.splitlines()]
    head = next(line for line in lines if line[:2] == ["layer", "stage"])
    assert head == ["layer", "stage", "phase", "busy", "share", "records"]
    assert ["(unattributed)", "prefill", "other", "200.000", "ms", "57.1%", "1"] in lines
    assert ["(unattributed)", "decode", "other", "100.000", "ms", "28.6%", "1"] in lines
    assert ["(unattributed)", "other", "50.000", "ms", "14.3%", "1"] in lines
