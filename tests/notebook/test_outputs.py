"""Where reports appear: in the cell, in an `ipywidgets.Output`, in `interact`, in a thread, and where nobody looks."""

import pytest

from tests.notebook.kernel import MIME, errors, reports

TRAIN = """import ipywidgets as widgets, time, torchwatt as tw
from IPython.display import clear_output, display
def work(n=3):
    for _ in range(n):
        model(ones).sum().backward()
        time.sleep(0.02)"""


def in_widgets(kernel):
    """Return the reports that the widgets of the latest notebook hold, each widget's own."""
    found = [state for state in kernel.widgets.values() if state.get("_model_name") == "OutputModel"]
    return [[each for each in state.get("outputs", ()) if MIME in each.get("data", {})] for state in found]


def test_a_report_appears_inside_an_output_widget(kernel):
    cell = kernel.run(
        TRAIN,
        "out = widgets.Output()\ndisplay(out)\nwith out:\n    with tw.profile(model):\n        work()\n    print(1)",
    )
    assert [len(each) for each in in_widgets(kernel)] == [1]
    assert reports(cell) == []


def test_a_report_appears_in_interact_each_time_a_widget_is_moved(kernel):
    function = "def f(n=2):\n    with tw.profile(model):\n        work(n)\n    print('done', n)"
    kernel.run(TRAIN, f"from ipywidgets import interact\n{function}\ninteract(f, n=(1, 4));")
    assert [len(each) for each in in_widgets(kernel)] == [1]


def test_a_widget_that_is_cleared_leaves_the_report_of_the_cell_in_its_place(kernel):
    loop = "for i in range(3):\n    with out:\n        clear_output(wait=True)\n        print('epoch', i)\n    work(8)"
    cell = kernel.run(TRAIN, f"%%energy -o a\nout = widgets.Output()\ndisplay(out)\n{loop}")
    kinds = [sorted(output.data) for output in cell.outputs]
    assert len(reports(cell)) == 1
    assert not any("is measuring" in str(output.data.get("text/plain")) for output in cell.outputs), kinds


def test_the_inner_one_of_two_output_widgets_takes_the_report(kernel):
    nested = "with outer:\n    display(inner)\n    with inner:\n        with tw.profile(model):\n            work()"
    cell = kernel.run(TRAIN, f"outer, inner = widgets.Output(), widgets.Output()\ndisplay(outer)\n{nested}")
    assert sorted(len(each) for each in in_widgets(kernel)) == [0, 1]
    assert reports(cell) == []


def test_clear_output_at_the_end_of_a_cell_leaves_one_report(kernel):
    for wait in (True, False):
        cell = kernel.run(TRAIN, f"%%energy\nwork()\nclear_output(wait={wait})\nprint('end')")
        assert len(reports(cell)) == 1, wait


def test_a_run_in_a_thread_shows_its_report_in_the_cell(kernel):
    run = (
        "def job():\n    with tw.profile(model):\n        work()\nt = threading.Thread(target=job)\nt.start()\nt.join()"
    )
    cell = kernel.run(TRAIN, f"import threading\n{run}")
    assert len(reports(cell)) == 1


@pytest.mark.parametrize("first", ["%%capture seen", "%%capture --no-stdout seen"])
def test_a_captured_cell_keeps_its_report_for_whom_captured_it(kernel, first):
    cell = kernel.run(TRAIN, f"{first}\nwith tw.profile(model):\n    work()")
    assert reports(cell) == []
    assert kernel.value(f"[{MIME!r} in each.data for each in seen.outputs]") == [True]


def test_a_front_end_without_our_extension_finds_html_and_text(kernel):
    """As VS Code, Colab and nbconvert do, which know no type of ours."""
    cell = kernel.run(TRAIN, "%%energy\nwork()")
    assert not errors(cell)
    (bundle,) = reports(cell)
    assert set(bundle) == {MIME, "text/html", "text/plain"}
    assert "<script" not in bundle["text/html"]
    assert "(root)" in bundle["text/html"]
