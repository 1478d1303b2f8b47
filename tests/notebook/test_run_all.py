"""What a reader of a notebook relies on when cells run one after the other, in a real kernel."""

import pytest

from tests.notebook.kernel import errors, reports, traceback, value

LITTER = "sorted(set(globals()) - {'seen'} - seen)"


def test_a_failing_cell_stops_run_all_with_its_own_error_its_report_and_its_name(kernel):
    bad, later = kernel.run_all(
        "%%energy -o failed\n\ndef f():\n    return 1 / 0\n\nmodel(ones)\nf()", "after_failed = 1"
    )
    assert errors(bad) == ["ZeroDivisionError"]
    assert len(reports(bad)) == 1
    assert "ZeroDivisionError" in reports(bad)[0]["text/plain"]
    assert later.execution_count is None
    assert kernel.value("(failed.status, failed.report.exit_reason, 'after_failed' in globals())") == (
        "aborted", "ZeroDivisionError", False,
    )  # fmt: skip
    # The lines are numbered as the user sees them, and none is ours.
    assert "line 4, in f()" in traceback(bad)
    assert "torchwatt" not in traceback(bad)


@pytest.mark.parametrize("form", ["torch.ones(1); time.sleep(60)", "for turn in range(600): await asyncio.sleep(0.1)"])
def test_an_interrupt_stops_run_all_and_the_report_is_there(kernel, tmp_path, form):
    marker = tmp_path / "begun"
    thread = kernel.interrupt_once_there(marker)
    cell, later = kernel.run_all(
        f"%%energy -o stopped\nimport pathlib, time\npathlib.Path({str(marker)!r}).touch()\n{form}", "after_stop = 1"
    )
    thread.join(10)
    (error,) = errors(cell)
    # ipykernel cancels a cell that waits, and signals one that does not.
    assert error == ("CancelledError" if "await" in form else "KeyboardInterrupt")
    assert "torchwatt" not in traceback(cell)
    assert len(reports(cell)) == 1
    assert later.execution_count is None
    status, reason, duration_s, codes = kernel.value(
        "(stopped.status, stopped.report.exit_reason, stopped.duration_s, [e.code for e in stopped.report.events])"
    )
    assert (status, reason) == ("aborted", error)
    assert 0 < duration_s < 60
    assert not {"SAMPLER_LOST", "TRACE_LOST", "ATTRIBUTION_LOST"} & set(codes)


def test_await_works_after_an_interrupted_cell_and_gives_its_value(kernel):
    cell = kernel.run("%%energy -o waited\nawait asyncio.sleep(0.05)\n'done'")
    assert value(cell) == "'done'"
    assert len(reports(cell)) == 1
    assert kernel.value("(_, waited.status, waited.duration_s >= 0.05)") == ("done", "complete", True)
    assert value(kernel.run("%%energy -q\nawait asyncio.sleep(0)\n'silent';")) is None
    bad, later = kernel.run_all("%%energy -o awaited\nawait asyncio.sleep(0)\n1 / 0", "1")
    assert (errors(bad), len(reports(bad)), later.execution_count) == (["ZeroDivisionError"], 1, None)
    assert kernel.value("awaited.status") == "aborted"


def test_the_value_is_the_cells_and_a_semicolon_silences_it(kernel):
    cell = kernel.run("%%energy -q\nmodel(ones)\n40 + 2")
    assert value(cell) == "42"
    assert kernel.value("(_, Out[max(Out)])") == (42, 42)
    for silent in ("%%energy -q\n40 + 3;", "%energy -q 40 + 3;"):
        assert kernel.run(silent).outputs == []
    assert kernel.value("_") == 42
    assert value(kernel.run("%energy -q 40 + 4")) == "44"
    assert value(kernel.run("got = %energy -q 40 + 5\ngot")) == "45"


def test_the_report_is_the_only_output(kernel):
    (output,) = kernel.run("%%energy\nfor _i in range(20): model(ones).sum().backward()").outputs
    assert output.output_type == "display_data"
    assert set(output.data) == {"text/plain", "text/html", "application/vnd.torchwatt.report.v1+json"}
    assert kernel.run("%%energy -q\nmodel(ones)").outputs[-1].output_type == "execute_result"
    assert kernel.run("%%energy --quiet\nmodel(ones);").outputs == []


def test_time_stacks_on_either_side(kernel):
    for cell in ("%%time\n%%energy -q -o timed\n40 + 6", "%%energy -q -o timed\n%%time\n40 + 6"):
        ran = kernel.run(cell)
        assert [o.output_type for o in ran.outputs] == ["stream", "execute_result"]
        assert "Wall time" in ran.outputs[0].text
        assert ran.outputs[1].data["text/plain"] == "46"
        assert kernel.value("timed.status") == "complete"
    bad, later = kernel.run_all("%%time\n%%energy -q -o timed\n1 / 0", "1")
    assert (errors(bad), later.execution_count) == (["ZeroDivisionError"], None)


def test_capture_takes_the_report_with_everything_else(kernel):
    assert kernel.run("%%capture taken\n%%energy -o captured\nprint('said')\n7").outputs == []
    assert kernel.value("(taken.stdout, len(taken.outputs), captured.status)") == ("said\n", 2, "complete")
    kernel.run("%%energy -o around\n%%capture taken\nprint('inside')")
    assert kernel.value("(taken.stdout, around.status)") == ("inside\n", "complete")


def test_a_measured_line_inside_a_measured_cell_is_a_window_and_not_more_joules(kernel):
    kernel.run(
        "%%energy -o outer\nimport time\ntime.sleep(0.3)\n%energy -q -o inner (time.sleep(0.3), model(ones))[0]",
    )
    name, windows, inner_j, outer_j, booked_j = kernel.value(
        "(inner.report.name, [(w.name, w.energy_j) for w in outer.report.windows], inner.energy_j, outer.energy_j,"
        " float(outer.layers.energy_self_j.sum()))"
    )
    assert "time.sleep(0.3)" in name
    assert windows == [(name, pytest.approx(inner_j, rel=0.05))]
    assert 0 < inner_j < outer_j
    assert booked_j == pytest.approx(outer_j, rel=1e-9)
    # Bare, the magic shows the outer run: the one that ended last.
    assert kernel.value("get_ipython().run_line_magic('energy', '') is not None")
    kernel.run("latest = %energy")
    assert kernel.value("latest.report.name == outer.report.name and latest.energy_j == outer.energy_j")


def test_no_name_is_left_in_the_users_namespace(kernel):
    kernel.run("seen = set(globals())")
    kernel.run("%%energy -q\nmine = 1;")
    kernel.run("%%energy -q\nawait asyncio.sleep(0)\nmine = 2;")
    kernel.run_all("%%energy -q\nraise ValueError")
    kernel.run_all("%%energy --no-such\n1")
    left = [name for name in kernel.value(LITTER) if not name.startswith("_")]  # IPython's own history
    assert left == ["mine"]
    assert [name for name in kernel.value(LITTER) if not name.startswith(("_i", "_")) or "energy" in name] == left


def test_the_cell_can_use_its_run_and_gets_it_back_after_losing_it(kernel):
    kernel.run("%%energy -q -o mine\nmine.count('image', 3)\nmine.step()\nmine = None")
    assert kernel.value("mine.units") == {"image": 3.0}


def test_names_in_braces_and_dollars_are_the_codes_own(kernel):
    assert value(kernel.run("got = 'x'\n%energy -q print('{got} $got   ok')")) == "{got} $got   ok"
    assert value(kernel.run("%%energy -q\nprint('{got} $got')")) == "{got} $got"


def test_a_local_name_is_known_to_the_line_form(kernel):
    assert (
        value(kernel.run("def twice(n):\n    return_value = %energy -q n * 2\n    return return_value\ntwice(4)"))
        == "8"
    )


def test_a_folder_of_tables_is_written_where_asked_and_never_over_another(kernel, folder):
    """Restart and Run All goes through: the tables of the second run stand beside those of the first."""
    kernel.run(f'%%energy -q --csv "{folder}" --region FRA\nmodel(ones);')
    first = (folder / "run.csv").read_bytes()
    page = folder.parent / "page.html"
    for _ in range(2):
        kernel.run_all(f'%%energy -q --csv "{folder}" --html "{page}"\nran_again = 1', "1")
    assert kernel.value("ran_again") == 1
    assert (folder / "run.csv").read_bytes() == first
    assert (folder.with_name(f"{folder.name}-3") / "run.csv").is_file()
    assert page.is_file()
    kernel.run(f'%%energy -q --csv "{folder}" --overwrite\n1')
    assert (folder / "run.csv").read_bytes() != first


def test_mistakes_are_one_clean_line_and_stop_run_all(kernel):
    kernel.run("ran = []")
    for cell, said in {
        "%%energy\n": "empty",
        "%%energy\n  \n# only a comment\n": "nothing to measure",
        "%%energy --regio FRA\nran.append(1)": "did you mean --region?",
        "%%energy --region Atlantis\nran.append(1)": "--region 'Atlantis'",
        "%%energy --pue half\nran.append(1)": "give a number",
        "%%energy --pue 0.5\nran.append(1)": "at least 1",
        "%%energy -o 1x\nran.append(1)": "a Python name",
        "%%energy ran.append(1)\nran.append(1)": "only options may follow",
        "%energy -o": "-o needs a value",
        '%%energy --csv "open\nran.append(1)': "a quote is not closed",
        "%energy -q await asyncio.sleep(0)": "await works on the lines under",
    }.items():
        bad, later = kernel.run_all(cell, "ran.append(2)")
        assert {(o.output_type, o.name) for o in bad.outputs} == {("stream", "stderr")}, cell
        text = "".join(o.text for o in bad.outputs)  # a busy kernel may send a line in two pieces
        assert text.startswith("UsageError: "), cell
        assert said in text, cell
        assert text.count("\n") == 1, cell
        assert later.execution_count is None, cell
    assert kernel.value("ran") == []


def test_a_syntax_error_shows_the_users_line_only_and_nothing_is_measured(kernel):
    for cell, line in (("%%energy\nfine = 1\nx = (1", 3), ("%%energy\n\nreturn 5", 3), ("%%energy\nawait x y", 2)):
        number = kernel.value("get_ipython().execution_count")
        bad, later = kernel.run_all(cell, "1")
        assert errors(bad) == ["SyntaxError"]
        assert reports(bad) == []
        assert later.execution_count is None
        assert f"Cell In[{number}], line {line}" in traceback(bad)
        assert "torchwatt" not in traceback(bad)
    assert errors(kernel.run_all("%energy x = (")[0]) == ["SyntaxError"]


STATE = """
import gc, os, psutil
from torchwatt.disk.helper_thread import helper_threads
from torchwatt.sensors.sampler_process import sampler_name
def state():
    ip = get_ipython()
    hooks = [t for t in ip.input_transformers_post if "torchwatt" in type(t).__module__]
    completers = [r.pattern for r in ip.strdispatchers["complete_command"].regexs if "energy" in r.pattern]
    magics = [name for kind in ip.magics_manager.magics.values() for name in kind if "energy" in name]
    children = [p for p in psutil.process_iter(["cmdline"]) if sampler_name(os.getpid()) in (p.info["cmdline"] or ())]
    threads = helper_threads()
    return len(hooks), len(completers), len(magics), len(children), len(threads), torch.nn.Module.__call__.__module__
"""


def test_reloading_and_unloading_leave_nothing_behind(kernel):
    kernel.run(STATE, "%%energy -q\nmodel(ones);")
    loaded = (1, 1, 3, 0, 0, "torch.nn.modules.module")
    assert kernel.value("state()") == loaded
    for _ in range(2):
        assert kernel.run("%reload_ext torchwatt").outputs == []
        assert kernel.value("state()") == loaded
    assert kernel.run("%unload_ext torchwatt").outputs == []
    assert kernel.value("state()") == (0, 0, 0, 0, 0, "torch.nn.modules.module")
    assert "not found" in errors(kernel.run_all("%%energy\n1")[0])[0]
    assert kernel.run("%load_ext torchwatt").outputs == []
    assert kernel.value("state()") == loaded


def test_options_complete_in_both_forms(kernel):
    found = kernel.value(
        "[[m for m in get_ipython().complete(w, line, len(line))[1] if not m.startswith('%')] for w, line in"
        " (('--re', '%energy --re'), ('--', '%%energy -q --'), ('o', '%%energy --layers o'))]"
    )
    assert found[0] == ["--region"]
    assert {"--region", "--csv", "--quiet"} <= set(found[1])
    assert {"on", "off"} <= set(found[2])


def test_the_help_has_an_example_that_runs(kernel):
    doc = kernel.value("get_ipython().find_cell_magic('energy').__doc__")
    _, _, example = doc.partition("Copy, paste, run::\n\n")
    lines = example.partition("\n\n")[0].splitlines()
    from textwrap import dedent

    cell = kernel.run(dedent("\n".join(lines)))
    assert len(reports(cell)) == 1
    assert "backward" in reports(cell)[0]["text/plain"]
    for flag in ("-o NAME", "-q, --quiet", "--region", "--csv"):
        assert flag in doc
