"""The parts of a journal, each by itself: spans, files, folders, the sampler's writer."""

import contextlib
import os
import resource
import signal
import time
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.attribution.test_repeat_spread import stepped
from tests.support.examples import examples
from torchwatt.attribution.device_fit import NO_PRIORS
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.core.journal_format import Frame, FrameKind, decode_frames
from torchwatt.core.meter import Event
from torchwatt.core.terms import UNATTRIBUTED, Slot
from torchwatt.core.trace import Activity, ModuleInfo, SlotWork, Trace
from torchwatt.journal.journal_directory import WORK_FILE, JournalDirectory, journal_path, remove_journal
from torchwatt.journal.journal_reader import list_journals, prune_journals, reading_columns
from torchwatt.journal.recovery import attribute_until
from torchwatt.journal.trace_codec import pack_trace, unpack_trace
from torchwatt.reports.process_identity import ProcessIdentity, current_process
from torchwatt.reports.report_builder import RunInterval
from torchwatt.sensors.ring_journal import READINGS_FILE, JournalFile, RingJournal, create_journal_file
from torchwatt.sensors.sample_buffer import SampleBuffer, create_memory_file

SLOTS = (Slot("a.b", "forward"), Slot("(optimizer)", "optimizer"), Slot("ä", "backward"))


@st.composite
def traces(draw):
    rows = draw(st.lists(st.tuples(
        st.integers(0, 2), st.integers(0, 2**61), st.integers(0, 2**40), st.integers(0, 300), st.booleans(),
        st.integers(0, 2**33),
    ), max_size=20))  # fmt: skip
    slot, start, length, thread, filled, calls = np.array(rows, dtype=np.int64).reshape(-1, 6).T
    steps = tuple((s, s + 10) for s in draw(st.lists(st.integers(0, 2**50), max_size=4)))
    device = Activity(
        "gpu:0", SLOTS, slot, start, start + length, thread, filled.astype(bool), ("x", "y", "z"), slot,
        steps, steps[:1], ("a note",),
    )  # fmt: skip
    return Trace(
        SLOTS, slot, start, start + length, thread, filled.astype(bool), calls, steps, tuple(range(len(steps))),
        (ModuleInfo("a.b", "Linear", 4, 16, ("c",)),), {1: 0.25}, (Event(5, "info", "CODE", "run", "words"),), 0.5, 3,
        draw(st.sampled_from([(), (device,)])),
        step_stages=(
            tuple(draw(st.sampled_from(["train", "validation", ""])) for _ in steps) if draw(st.booleans()) else ()
        ),
        traced_steps=draw(st.integers(0, 99)),
        work=draw(st.sampled_from([(), (SlotWork(0, 2.5e12, 3e9, 7.5), SlotWork(2, 0.0, 1.0, 0.0))])),
    )  # fmt: skip


def told(value):
    """Return everything in a trace as plain values."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple):
        return [told(one) for one in value]
    names = getattr(value, "__dataclass_fields__", None)
    return {name: told(getattr(value, name)) for name in names} if names else value


@given(traces(), st.integers(0, 2**62))
def test_spans_come_back_as_they_were(trace, until_ns):
    again, until = unpack_trace(pack_trace(trace, until_ns))
    assert told(again) == told(trace)
    assert until == until_ns


@given(traces(), st.data())
@examples(20)
def test_damaged_spans_are_an_error_or_a_trace_and_nothing_else(trace, data):
    raw = bytearray(zlib.decompress(pack_trace(trace, 7)))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BundleError):
        unpack_trace(zlib.compress(bytes(raw[: data.draw(st.integers(1, len(raw)))])))


def in_child(work):
    """Run something in a forked child and return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_disk_that_takes_no_more_ends_the_file_behind_its_last_whole_frame(tmp_path):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        folder = os.open(tmp_path, os.O_RDONLY)
        file = JournalFile(create_journal_file("f", folder))
        added = [file.add(FrameKind.READINGS, bytes(300)) for _ in range(6)]
        told = (added, file.size, bool(file.fault), file.sync()) == ([True] * 3 + [False] * 3, 960, True, False)
        return 0 if told else 2

    assert in_child(full) == 0
    data = (tmp_path / "f").read_bytes()
    assert [part.payload for part in decode_frames(data) if isinstance(part, Frame)] == [bytes(300)] * 3
    assert len(data) == 960


def test_folder_and_files_are_private_and_nothing_that_is_there_is_touched(tmp_path):
    os.umask(old := os.umask(0))
    try:
        os.umask(0)
        place = JournalDirectory(tmp_path / "new" / "journal")
    finally:
        os.umask(old)
    assert place.path.stat().st_mode & 0o777 == 0o700
    assert {(place.path / name).stat().st_mode & 0o777 for name in (WORK_FILE, READINGS_FILE)} == {0o600}
    with pytest.raises(ConfigError, match="not empty"):
        JournalDirectory(place.path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match="cannot be created"):
            JournalDirectory(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    place.remove()
    assert not place.path.exists()


def test_removing_a_journal_leaves_what_is_not_of_it(tmp_path):
    place = JournalDirectory(tmp_path / "journal")
    (place.path / "notes.txt").write_text("mine")
    place.remove()
    assert [path.name for path in place.path.iterdir()] == ["notes.txt"]
    (tmp_path / "link").symlink_to(place.path)
    remove_journal(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


def written(folder):
    """Return the readings of a sampler's file by key."""
    from torchwatt.core.journal_format import unpack_blocks

    blocks = {}
    for part in decode_frames((folder / READINGS_FILE).read_bytes()):
        if isinstance(part, Frame) and part.kind == FrameKind.READINGS:
            for block in unpack_blocks(part.payload):
                blocks.setdefault(block.key, []).append(block)
    return {key: reading_columns(some) for key, some in blocks.items()}


def test_a_sampler_s_file_stays_short_and_covers_the_whole_run(tmp_path, monkeypatch):
    monkeypatch.setattr("torchwatt.sensors.ring_journal.WRITE_S", 0.01)
    folder = os.open(tmp_path, os.O_RDONLY)
    file = JournalFile(create_journal_file(READINGS_FILE, folder))
    file.add(FrameKind.HEAD, b"{}")
    fd = create_memory_file("test")
    board = SampleBuffer.map(fd, 1, [1 << 16, 1 << 10])
    os.close(fd)
    journal = RingJournal(board, ["gpu:0/energy"], file, folder, most_bytes=40_000)
    rng, biggest = np.random.default_rng(1), 0
    for i in range(20_000):
        board.rings[0].append(i * 20_000_000 + int(rng.integers(1, 10**7)), float(i * 7), int(rng.integers(1, 10**5)))
        if i % 50 == 0:
            time.sleep(0.002)
            biggest = max(biggest, (tmp_path / READINGS_FILE).stat().st_size)
    journal.finish(gone=True)
    t_ns, raw, _ = written(tmp_path)["gpu:0/energy"]
    assert biggest < 120_000
    assert (raw[0], raw[-1]) == (0, 19_999 * 7)
    assert np.diff(t_ns).max() < 3e9  # no hole
    assert any(note.code == "JOURNAL_THINNED" for note in board.notes())
    assert not list(tmp_path.glob("*.new"))
    os.close(folder)


def test_an_owner_is_known_by_more_than_its_number():
    me = current_process()
    assert me.alive() is True
    assert ProcessIdentity(me.pid, (me.started_ticks or 0) + 1, me.boot_id, me.host).alive() is False
    assert ProcessIdentity(me.pid, me.started_ticks, "another boot", me.host).alive() is False
    assert ProcessIdentity(me.pid, me.started_ticks, me.boot_id, "another host").alive() is None
    pid = os.fork()
    if pid == 0:
        time.sleep(20)
        os._exit(0)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.05)
    assert ProcessIdentity(pid, 1, me.boot_id, me.host).alive() is False  # dead and not yet waited for
    os.waitpid(pid, 0)


def test_a_store_keeps_the_newest_journals_only_and_says_what_it_removed(tmp_path):
    for number in range(5):
        place = JournalDirectory(journal_path(tmp_path, f"run{number}"))
        place.close()
        os.utime(place.path / WORK_FILE, (number, number))
        os.utime(place.path / READINGS_FILE, (number, number))
    with pytest.warns(RuntimeWarning, match="run0: .*never recovered"):
        prune_journals(tmp_path, max_journals=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_journals(tmp_path, max_journals=4)
    assert [one.run_id for one in list_journals(tmp_path)] == ["run1", "run2", "run3", "run4"]


@pytest.mark.parametrize("accuracy_rel", [None, (-0.05, 0.1)])
def test_a_fitted_row_that_gets_the_tail_keeps_a_systematic_band(accuracy_rel):
    """Of a killed run whose trace ends early; a meter without stated accuracy, as RAPL's of memory, has none to add."""
    world, trace = stepped([30.0, 40.0], [5.0, 5.0])
    recording = world.recording()
    recording = replace(recording, meters=(replace(recording.meters[0], accuracy_rel=accuracy_rel),))
    bounds = RunInterval(0, world.end_ns, 0)
    whole, events = attribute_until(recording, trace, world.end_ns // 2, bounds, NO_PRIORS)
    assert [event.code for event in events] == ["LAYERS_END"]
    (ledger,) = whole.ledgers
    (rest,) = (entry for entry in ledger.entries if (entry.fqn, entry.phase) == (UNATTRIBUTED, "other"))
    assert rest.energy_self_j == pytest.approx(ledger.energy_j / 2, rel=0.1)
    assert "fit" in {entry.method for entry in ledger.entries}
    down, up = accuracy_rel or (0.0, 0.0)
    for entry in ledger.entries:
        if entry.method == "fit" or accuracy_rel is not None:
            own_j = entry.energy_self_j
            assert entry.energy_systematic_lo_j <= own_j * (1 + down) + 1e-9
            assert min(own_j * (1 + up), ledger.energy_j) <= entry.energy_systematic_hi_j + 1e-9
