"""Files of a report: written where they were asked for, also a second time, and never over what is not ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchwatt as tw
from tests.support.reports import sample_report
from torchwatt.audit import verify
from torchwatt.core.errors import BundleError
from torchwatt.disk.private_files import make_private_folder, missing_folders
from torchwatt.reports.output_files import write_csv, write_html


def profiled(**asked):
    with tw.profile(baseline_s=0, layers="off", **asked) as run:
        pass
    return run


def test_running_all_again_writes_the_page_again_and_the_tables_beside_the_first(tmp_path):
    asked = {"csv": tmp_path / "audit", "html": tmp_path / "report.html"}
    first = profiled(**asked, name="first")
    with pytest.warns(RuntimeWarning, match="is not empty: this run is in .*audit-2"):
        second = profiled(**asked, name="second")
    assert first.files == (tmp_path / "audit", tmp_path / "report.html")
    assert second.files == (tmp_path / "audit-2", tmp_path / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "audit-2", "report.html"]
    assert "second" in (tmp_path / "report.html").read_text()
    assert first.run_id in (tmp_path / "audit" / "run.csv").read_text()
    assert verify(tmp_path / "audit-2").ok
    assert first.to_csv(tmp_path / "audit") == tmp_path / "audit-3"


def test_overwrite_replaces_a_bundle_and_nothing_else(tmp_path):
    write_csv(sample_report(), tmp_path / "audit")
    run = profiled(csv=tmp_path / "audit", overwrite=True)
    assert run.files == (tmp_path / "audit",)
    assert run.run_id in (tmp_path / "audit" / "run.csv").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(BundleError, match="only a bundle can be replaced"):
        run.to_csv(tmp_path / "mine", overwrite=True)
    assert run.to_csv(tmp_path / "mine") == tmp_path / "mine-2"
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


def test_folders_that_are_made_are_named(tmp_path):
    with pytest.warns(RuntimeWarning, match="created the folder") as said:
        profiled(html=tmp_path / "a" / "b" / "report.html")
    assert [str(each.message).split(" for ")[0].split("folder ")[1] for each in said] == [
        str(tmp_path / "a"),
        str(tmp_path / "a" / "b"),
    ]
    with pytest.warns(RuntimeWarning, match=f"created the folder {tmp_path / 'c'} for csv"):
        profiled(csv=tmp_path / "c" / "audit")


def test_no_folder_is_made_directly_under_the_root():
    absent = Path("/torchwatt-no-such-folder")
    for make in (missing_folders, make_private_folder):
        with pytest.raises(PermissionError, match="no folder is made directly under /"):
            make(absent / "inside")
    for write in (write_csv, write_html):
        with pytest.raises(BundleError, match="no folder is made directly under /"):
            write(sample_report(), absent / "inside")
        with pytest.raises(BundleError):
            write(sample_report(), absent if write is write_csv else absent / "a.html")
    assert not absent.exists()


def test_a_page_replaces_a_file_and_nothing_that_is_none(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link.html").symlink_to(tmp_path / "victim")
    write_html(sample_report(), tmp_path / "link.html")
    assert (tmp_path / "victim").read_text() == "mine"
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(BundleError, match="is not a file"):
            write_html(sample_report(), tmp_path / name)


def test_a_warning_that_cannot_be_shown_or_is_an_error_ends_no_program(tmp_path):
    code = f"""
import sys, warnings
import torchwatt as tw
warnings.simplefilter("error")
with tw.profile(baseline_s=0, layers="off", html={str(tmp_path / "a" / "one.html")!r}): pass
warnings.simplefilter("always")
sys.stderr.close()
with tw.profile(baseline_s=0, layers="off", html={str(tmp_path / "b" / "two.html")!r}): pass
print("on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "on\n"
    assert (tmp_path / "a" / "one.html").is_file()
    assert (tmp_path / "b" / "two.html").is_file()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437"])
def test_what_a_stream_cannot_encode_is_ascii(encoding, tmp_path):
    code = f"""
import locale
import torchwatt as tw
from tests.support.reports import sample_report
from tests.support.bundles import rich_report
from torchwatt.audit import verify
from torchwatt.notebook.run_history import RunHistory, run_record
from torchwatt.reports.output_files import write_csv
from torchwatt.reports.report_result import JobRun
with tw.profile(baseline_s=0, layers="off", name="Größe — µ") as run: pass
history = RunHistory()
history.put(run_record(run.report, None))
print(run, run.report, history)
print(JobRun(rich_report()), JobRun(rich_report())._repr_mimebundle_()["text/plain"])
bundle = write_csv(sample_report(), {str(tmp_path / "audit")!r})
print(verify(bundle))
locale.getpreferredencoding = lambda do_setlocale=True: "ascii"
str(run).encode("ascii")
"""
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding},
        cwd=repository,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "torchwatt" in done.stdout.decode(encoding)


@pytest.mark.parametrize("command", [["show", "{bundle}", "--all"], ["verify", "{bundle}"], ["doctor"], ["--help"]])
def test_so_does_the_command_line(command, tmp_path):
    bundle = write_csv(sample_report(name="Größe — µ"), tmp_path / "audit")
    words = [word.format(bundle=bundle) for word in command]
    done = subprocess.run(
        [sys.executable, "-m", "torchwatt", *words], capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    assert done.stdout
