"""A run that is killed keeps its joules; one that ends by itself keeps its journal out of the way."""

import os
import shutil
import statistics
import time
from math import fsum, isclose
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchwatt as tw
from tests.support.ready import run_script
from torchwatt.audit import verify
from torchwatt.cli.command_parser import run_command as torchwatt
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.core.journal_format import HEAD_BYTES, Frame, FrameKind, decode_frames, encode_frame
from torchwatt.journal import journal_writer
from torchwatt.journal.journal_directory import JOURNALS_FOLDER, WORK_FILE
from torchwatt.journal.journal_reader import read_journal
from torchwatt.journal.recovery import recover_report
from torchwatt.reports.output_files import write_csv
from torchwatt.sensors.ring_journal import READINGS_FILE, WRITE_S, JournalFile

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 6  # each of five ways once, and one for the tests of its journal; benchmarks/kills.py kills hundreds


KILLING = """
import json, torch
from dataclasses import asdict
from pathlib import Path
from tests.support.killed import kill_one, killed
from tests.support.powercap import FakePowercap

torch.set_num_threads(1)
folder = Path(FOLDER)
with FakePowercap(folder / "powercap") as tree:
    results = [kill_one(tree, folder, seed, longest_s=1.0) for seed in range(KILLS)]
    results.append(killed(tree, folder / "owner", "owner", 0.4, spans=True))
print(json.dumps([asdict(result) for result in results]))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Kill some trainings; return what came of each, and the folder with their journals."""
    folder = tmp_path_factory.mktemp("killed")
    path = f"{REPOSITORY / 'src'}:{REPOSITORY}"
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return run_script(f"FOLDER, KILLS = {str(folder)!r}, {KILLS - 1}\n{KILLING}", env, 150), folder


@pytest.fixture(scope="module")
def journal(killed):
    """Return the journal of a run that was killed when its layers were known for a part of it."""
    return killed[1] / "owner"


@pytest.fixture
def copy(journal, tmp_path):
    return Path(shutil.copytree(journal, tmp_path / "copy"))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))


def train(net, seconds=0.4):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        net(torch.ones(4, 16)).sum().backward()


def balanced(report):
    return all(
        isclose(fsum(e.energy_self_j for e in ledger.entries), ledger.energy_j, rel_tol=1e-9, abs_tol=1e-12)
        for ledger in report.ledgers
    )


def codes(report):
    return {event.code for event in report.events}


def test_every_killed_run_is_recovered(killed):
    results, _ = killed
    assert len(results) == KILLS
    for result in results:
        assert (result["problem"], result["balanced"], result["verified"], result["left_over"]) == (
            "",
            True,
            True,
            False,
        )
        assert result["status"] in {"partial", "complete"}
    losses = [result["loss_s"] for result in results]
    assert statistics.median(losses) <= 0.5
    assert max(losses) <= 1.0


def test_what_is_lost_is_said_and_nothing_is_carried_over(journal):
    report = tw.recover(journal)
    assert report.status == "partial"
    assert "recovered from its journal" in report.exit_reason
    assert {"RECOVERED", "LAYERS_END"} <= codes(report)
    until_ns = next(event.t_ns for event in report.events if event.code == "LAYERS_END")
    cpu = next(ledger for ledger in report.ledgers if str(ledger.domain) == "cpu:0")
    curve = next(curve for curve in report.curves if curve.domain == cpu.domain)
    rest = next(entry for entry in cpu.entries if (entry.fqn, entry.phase) == ("(unattributed)", "other"))
    assert rest.energy_self_j >= curve.between(until_ns, report.end_ns) * 0.99
    named_s = fsum(entry.time_self_s for entry in cpu.entries if not entry.fqn.startswith("("))
    assert 0 < named_s <= (until_ns - report.start_ns) / 1e9


@pytest.mark.parametrize("name", [READINGS_FILE, WORK_FILE])
def test_a_file_cut_anywhere_in_its_last_frames_gives_all_that_was_before(copy, name):
    data, before = (copy / name).read_bytes(), 0
    first = [part for part in decode_frames(data) if isinstance(part, Frame)][-3].at
    cuts = {*range(len(data) - 40, len(data)), *np.random.default_rng(2).integers(first, len(data), 20).tolist()}
    for number, cut in enumerate(sorted(cuts)):
        (copy / name).write_bytes(data[:cut])
        found = read_journal(copy)
        read = sum(map(len, found.blocks["cpu:0/energy"]))
        assert read >= before
        before = read
        if number % 12 == 0:
            report = recover_report(found)
            assert balanced(report)
            assert report.status == "partial"
            assert report.energy_j > 0


@pytest.mark.parametrize("name", [READINGS_FILE, WORK_FILE])
def test_flipped_bits_and_garbage_cost_their_frames_only(copy, tmp_path, name):
    data = bytearray((copy / name).read_bytes())
    rng = np.random.default_rng(3)
    first = HEAD_BYTES + len(next(decode_frames(bytes(data))).payload)
    for at in rng.integers(first, len(data), 3).tolist():
        data[at] ^= 1 << int(rng.integers(8))
    (copy / name).write_bytes(bytes(data) + rng.bytes(1000))
    report = tw.recover(copy)
    assert "JOURNAL_DAMAGED" in codes(report)
    assert balanced(report)
    found = verify(write_csv(report, tmp_path / "bundle"))
    assert found.ok, found


@pytest.mark.parametrize("name", [READINGS_FILE, WORK_FILE])
def test_one_file_of_the_two_is_enough_for_an_honest_report(copy, tmp_path, name):
    whole = tw.recover(copy)
    (copy / name).unlink()
    report = tw.recover(copy)
    assert "JOURNAL_MISSING" in codes(report)
    assert (report.status, report.run_id) == ("partial", whole.run_id)
    if name == READINGS_FILE:
        assert report.energy_j is None or report.energy_j < whole.energy_j  # what the owner read itself
    else:
        assert report.energy_j >= whole.energy_j  # where the run began within the readings is not known
        assert {entry.fqn for ledger in report.ledgers for entry in ledger.entries} <= {
            "(unattributed)",
            "(idle)",
            "(outside)",
        }
    assert balanced(report)
    found = verify(write_csv(report, tmp_path / "bundle"))
    assert found.ok, found


def test_what_is_no_journal_is_named(tmp_path, copy):
    with pytest.raises(BundleError, match="is not a journal"):
        tw.recover(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="neither"):
        tw.recover(tmp_path)
    (copy / READINGS_FILE).write_bytes(b"\0" * 500)
    (copy / WORK_FILE).write_bytes(encode_frame(FrameKind.HEAD, 0, b'{"run_id": 3}'))
    with pytest.raises(BundleError, match="does not contain a valid"):
        tw.recover(copy)


def test_a_run_that_ends_by_itself_has_a_complete_journal_that_says_the_same(net, powercap, tmp_path):
    with tw.profile(net, journal=tmp_path / "j", powercap_root=powercap.root) as run:
        train(net)
        run.count("image", 3)
        with tw.profile(net, name="inner"):
            train(net, 0.1)
        live = tw.recover(tmp_path / "j")
    assert live.status == "running"
    assert str(os.getpid()) in live.exit_reason
    again = tw.recover(tmp_path / "j")
    assert (again.status, again.run_id, dict(again.units)) == (run.status, run.run_id, {"image": 3.0})
    assert [window.name for window in again.windows] == ["inner"]
    for mine, its in zip(run.report.ledgers, again.ledgers, strict=True):
        assert its.energy_j == pytest.approx(mine.energy_j, rel=1e-12)
        assert {(e.fqn, e.phase): e.energy_self_j for e in its.entries} == pytest.approx(
            {(e.fqn, e.phase): e.energy_self_j for e in mine.entries}
        )
    assert len(again.steps) == len(run.report.steps)
    assert verify(write_csv(again, tmp_path / "bundle")).ok
    with pytest.raises(ConfigError, match="not empty"), tw.profile(journal=tmp_path / "j"):
        pass


def test_requests_are_in_the_journal_while_the_run_goes_on_and_after_it(powercap, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_writer, "MAX_BATCHES", 2)  # several frames
    with tw.profile(journal=tmp_path / "run", powercap_root=powercap.root, live="off") as run:
        for _ in range(3):
            with tw.stage("prefill"):
                time.sleep(0.01)
            with tw.stage("decode"):
                time.sleep(0.02)
            run.add_tokens(100, 7, cached=3)
        until_s = time.monotonic() + 20
        while len(tw.recover(tmp_path / "run").tokens) < 6 and time.monotonic() < until_s:
            time.sleep(0.1)
        early = tw.recover(tmp_path / "run")
        run.add_tokens(5, 1)
    assert [
        (row.request, row.stage, row.input_tokens, row.output_tokens, row.cached_tokens) for row in early.tokens
    ] == [(request, stage, 100, 7, 3) for request in range(3) for stage in ("prefill", "decode")]
    assert len(run.report.tokens) == 8
    assert tw.recover(tmp_path / "run").tokens == run.report.tokens


def test_requests_that_are_longer_than_the_bound_are_not_written_again_each_time(powercap, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_writer, "MAX_WORK_BYTES", 20_000)
    rewritten, replace = [], JournalFile.replace

    def counted(file, *args):
        rewritten.append(file.size)
        return replace(file, *args)

    monkeypatch.setattr(JournalFile, "replace", counted)
    with tw.profile(journal=tmp_path / "run", powercap_root=powercap.root, live="off", layers="off") as run:
        for _ in range(500):
            run.add_tokens(100, 7)
        time.sleep(12 * WRITE_S)
    assert 1 <= len(rewritten) <= 2
    assert tw.recover(tmp_path / "run").tokens == run.report.tokens


def test_in_the_store_it_is_gone_when_the_run_has_ended(net, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHWATT_STORE", str(tmp_path))
    with tw.profile(net, journal=True) as run:
        there = (tmp_path / JOURNALS_FOLDER / run.run_id / WORK_FILE).exists()
        train(net, 0.1)
    assert there
    assert not tmp_path.exists()  # a store that was made for the journal alone goes with it


def test_a_store_that_cannot_be_written_costs_the_journal_and_not_the_run(net, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHWATT_STORE", str(tmp_path / "file"))
    with tw.profile(net, journal=True) as run:
        train(net, 0.1)
    assert "NO_JOURNAL" in set(run.events.code)
    assert run.energy_j is not None


def test_a_sampler_in_threads_has_a_journal_as_well(net, powercap, tmp_path):
    from torchwatt.sensors import Sampler, discover

    feed = Sampler(discover(powercap_root=powercap.root), mode="thread")
    with tw.profile(net, journal=tmp_path / "j", feed=feed) as run:
        train(net, 0.7)
        shutil.copytree(tmp_path / "j", tmp_path / "then")
    assert tw.recover(tmp_path / "j").energy_j == pytest.approx(run.energy_j, rel=1e-12)
    then = tw.recover(tmp_path / "then")
    assert 0.3 * run.energy_j < then.energy_j < run.energy_j
    assert then.sampler.mode == "thread"


FULL = """
import json, os, resource, time, warnings, torch
from torch import nn
import torchwatt as tw
net = nn.Linear(8, 1)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    with tw.profile(net, journal=JOURNAL, powercap_root=TREE) as run:
        for pid in (os.getpid(), run._session.feed.sampler_pid):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            net(torch.ones(4, 8)).sum().backward()
ours = [str(one.message) for one in told if "journal" in str(one.message)]
print(json.dumps([ours, list(run.events.code), run.status, run.energy_j]))
"""


def test_a_full_disk_ends_the_journal_and_not_the_run_and_is_said_once(powercap, tmp_path):
    code = f"JOURNAL, TREE = {str(tmp_path / 'j')!r}, {str(powercap.root)!r}\n{FULL}"
    ours, seen, status, energy_j = run_script(code, timeout_s=150)
    assert len(ours) == 1
    assert "the run goes on" in ours[0]
    assert seen.count("JOURNAL_STOPPED") == 1
    assert status == "complete"
    partial = tw.recover(tmp_path / "j")
    assert partial.status == "partial"
    assert partial.energy_j is None or partial.energy_j <= energy_j
    assert balanced(partial)


def test_recover_and_runs_on_the_command_line(journal, tmp_path, capsys):
    stored = tmp_path / JOURNALS_FOLDER / tw.recover(journal).run_id
    shutil.copytree(journal, stored)
    assert torchwatt(["runs", "--store", str(tmp_path)]) == 0
    assert f"torchwatt recover {stored.name}" in capsys.readouterr().out
    asked = ["recover", stored.name, "--store", str(tmp_path), "--csv", str(tmp_path / "bundle"), "--keep"]
    assert torchwatt(asked) == 0
    assert "partial" in capsys.readouterr().out
    assert torchwatt(["verify", str(tmp_path / "bundle")]) == 0
    assert not stored.exists()
    capsys.readouterr()
    assert torchwatt(["runs", "--store", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert stored.name in told
    assert "not recovered" not in told
    assert torchwatt(["recover", "nothing", "--store", str(tmp_path)]) == 2


def test_torchwatt_run_writes_a_journal_unless_told_not_to(tmp_path, monkeypatch):
    from torchwatt.cli import command_table

    asked = []
    monkeypatch.setattr(command_table, "run_script", lambda *_, options, **__: asked.append(options["journal"]) or 0)
    for flags in ([], ["--no-journal"], ["--journal", "there"]):
        assert torchwatt(["run", *flags, "script.py", "--journal", "its own"]) == 0
    assert asked == [True, False, "there"]
