"""docs/options.md names every option of `profile()` with its default, and the same option elsewhere."""

import inspect
import re
from pathlib import Path

import torchwatt as tw
from torchwatt.cli.command_parser import build_parser
from torchwatt.notebook.magic_options import MAGIC_OPTIONS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "options.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]


def test_every_option_of_profile_is_on_the_page_with_its_default():
    parameters = inspect.signature(tw.profile).parameters.values()
    options = {
        each.name: f"`{each.default!r}`".replace("'", '"') for each in parameters if each.default is not each.empty
    }
    assert {name.strip("`"): default for name, default, *_ in ROWS} == options


def test_the_page_names_the_options_of_the_notebook():
    for option, described in MAGIC_OPTIONS.items():
        if described.argument:
            (row,) = [row for row in ROWS if row[0] == f"`{described.argument}`"]
            assert f"`{option}`" in row[-1], option


def test_the_page_names_options_that_the_command_line_has():
    parser = build_parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    known = {text for action in commands["run"]._actions for text in action.option_strings}
    named = {text for row in ROWS for text in re.findall(r"`(--[\w-]+)`", row[-2])}
    assert named <= known
    about_files_and_grams = known & {f"--{row[0].strip('`').replace('_', '-')}" for row in ROWS}
    assert about_files_and_grams <= named
