"""A program that closes every descriptor, as daemons do: the numbers that we held are then files of its own."""

import os
import subprocess
import sys

import pytest

from torchwatt.disk.descriptors import HeldDescriptor
from torchwatt.sensors.readers.kernel_files import KernelFile
from torchwatt.sensors.ring_journal import JournalFile

DAEMON = """
import os, time
os.closerange(3, 256)
own = [open(f"{folder}/own{{number}}", "w") for number in range(40)]
until = time.process_time() + 0.3
while time.process_time() < until:
    pass
for file in own:
    file.write("mine")
    file.flush()
time.sleep(0.3)
for file in own:
    file.close()
print("done")
"""


def replaced(fd, path):
    """Close a descriptor, and open a file that gets its number."""
    os.close(fd)
    other = os.open(path, os.O_RDWR)
    if other != fd:
        os.dup2(other, fd)
        os.close(other)


@pytest.fixture
def users(tmp_path):
    path = tmp_path / "users"
    path.write_bytes(b"12345")
    return path


def test_a_number_that_became_another_file_is_neither_used_nor_closed(tmp_path, users):
    fd = os.open(tmp_path / "ours", os.O_RDWR | os.O_CREAT)
    held = HeldDescriptor(fd)
    assert held.number() == fd
    replaced(fd, users)
    with pytest.raises(OSError, match="Bad file descriptor"):
        held.number()
    held.close()
    held.close()
    assert os.pread(fd, 9, 0) == b"12345"
    os.close(fd)


def test_a_journal_is_not_appended_to_the_programs_file(tmp_path, users):
    fd = os.open(tmp_path / "ours", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    journal = JournalFile(fd)
    replaced(fd, users)
    assert not journal.add(1, b"frame")
    assert journal.fault
    journal.close()
    assert os.pread(fd, 9, 0) == b"12345"
    os.close(fd)


def test_the_programs_file_is_not_read_as_a_counter(tmp_path, users):
    ours = tmp_path / "energy_uj"
    ours.write_bytes(b"777")
    counter = KernelFile(str(ours))
    assert counter.read() == b"777"
    replaced(counter._file.number(), users)
    with pytest.raises(Exception, match="energy_uj"):
        counter.read()
    assert counter.read() == b"777"  # opened anew
    counter.close()


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors as Unix daemons do")
def test_a_program_that_closes_all_descriptors_keeps_its_files_and_its_exit_status(tmp_path):
    script = tmp_path / "daemon.py"
    script.write_text(DAEMON.format(folder=tmp_path))
    command = [sys.executable, "-m", "torchwatt", "run", "-q", "--csv", str(tmp_path / "bundle"), str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "TORCHWATT_STORE": str(tmp_path / "store")},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert {path.read_bytes() for path in tmp_path.glob("own*")} == {b"mine"}
    assert (tmp_path / "bundle" / "MANIFEST.sha256").exists()
