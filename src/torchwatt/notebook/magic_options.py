"""Options of `%energy`, and the parser of its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from keyword import iskeyword
from typing import Any

from IPython.core.error import TryNext, UsageError

from torchwatt.notebook.frontend import Shell


@dataclass(frozen=True, slots=True)
class MagicOption:
    """One option: `argument` is its name in `profile()`, "" if it has none; `value` is "" for a switch."""

    argument: str
    value: str = ""
    choices: tuple[str, ...] = ()


MAGIC_OPTIONS: Mapping[str, MagicOption] = {
    "-o": MagicOption("", "NAME"),
    "-q": MagicOption(""),
    "--quiet": MagicOption(""),
    "--region": MagicOption("region", "REGION"),
    "--intensity": MagicOption("intensity_g_per_kwh", "GRAMS"),
    "--market": MagicOption("market", "GRAMS"),
    "--facility": MagicOption("facility", "SITE"),
    "--pue": MagicOption("pue", "X"),
    "--factors": MagicOption("factors", "FILE"),
    "--allow-expired": MagicOption("allow_expired"),
    "--price-per-kwh": MagicOption("price_per_kwh", "'0.32 EUR'"),
    "--csv": MagicOption("csv", "DIR"),
    "--no-live": MagicOption(""),
    "--html": MagicOption("html", "FILE"),
    "--overwrite": MagicOption("overwrite"),
    "--keep": MagicOption("keep"),
    "--project": MagicOption("project", "NAME"),
    "--layers": MagicOption("layers", "on|off", ("on", "off")),
    "--name": MagicOption("name", "NAME"),
}
_NUMBERS = frozenset({"--intensity", "--market", "--pue"})
_HELP_HINT = "%energy? lists them all"

# A word ends at a blank outside of quotes. A backslash is an ordinary character, because paths may contain one.
_WORD = re.compile(r"""\s*((?:[^\s"']|"[^"]*"|'[^']*')+)(?=\s|$)""")
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'""")


@dataclass(frozen=True, slots=True)
class MagicArguments:
    """Parsed options of one line; `profile` are keyword arguments of `profile()`."""

    output: str | None = None
    quiet: bool = False
    live: bool = True
    profile: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Return whether there are no options."""
        return self == MagicArguments()


def parse_magic(line: str) -> tuple[MagicArguments, str]:
    """Parse the options at the start of a line; return them and the unchanged remainder, a statement.

    IPython's `parse_options` is not used: it removes options by search and replace, which can change the statement.

    Raises:
        UsageError: An option is unknown, given twice, or its value is missing or invalid.
    """
    values: dict[str, str] = {}
    remaining = line.lstrip()
    while remaining.startswith("-"):
        word, after = _take_word(remaining)
        if word == "--":
            remaining = after.lstrip()
            break
        name, value = _split_option(word)
        remaining = after
        if MAGIC_OPTIONS[name].value and value is None:
            value, remaining = _take_value(name, after)
        if name in values:
            raise UsageError(f"{name} is given twice")
        values[name] = _remove_quotes(value or "")
        remaining = remaining.lstrip()
    return _build_arguments(values), remaining


def translate_options(message: str) -> str:
    """Return an error's message on one line, with arguments of `profile()` replaced by options of the magic."""
    for name, flag in MAGIC_OPTIONS.items():
        if flag.argument:
            message = re.sub(rf"\b{flag.argument}=(?=[\w'\"-])", f"{name} ", message)
            message = re.sub(rf"\b{flag.argument}=", f"{name} {flag.value}", message)
    return " ".join(message.split())


def _take_word(text: str) -> tuple[str, str]:
    match = _WORD.match(text)
    if match is None:
        raise UsageError(f"a quote is not closed in {text.strip()!r}")
    return match[1], text[match.end() :]


def _split_option(word: str) -> tuple[str, str | None]:
    """Split `--name=value` and `-oNAME` into name and value."""
    name, equals, value = word.partition("=")
    if word[:2] == "-o" and len(name) > 2:
        return "-o", word[2:]
    if name not in MAGIC_OPTIONS:
        near = get_close_matches(name, MAGIC_OPTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else "write -- before a statement that starts with a minus;"
        raise UsageError(f"no option {name}: {hint} {_HELP_HINT}")
    if equals and not MAGIC_OPTIONS[name].value:
        raise UsageError(f"{name} takes no value")
    return name, value if equals else None


def _take_value(name: str, after: str) -> tuple[str, str]:
    if not after.strip() or after.lstrip().startswith("--"):
        raise UsageError(f"{name} needs a value: {name} {MAGIC_OPTIONS[name].value}")
    return _take_word(after)


def _remove_quotes(text: str) -> str:
    return _QUOTED.sub(lambda quoted: quoted[1] or quoted[2] or "", text)


def _build_arguments(values: Mapping[str, str]) -> MagicArguments:
    for name, value in values.items():
        if MAGIC_OPTIONS[name].value and not value:
            raise UsageError(f"{name} needs a value: {name} {MAGIC_OPTIONS[name].value}")
    output = values.get("-o")
    if output is not None and (not output.isidentifier() or iskeyword(output)):
        raise UsageError(f"-o {output}: give a Python name, such as -o run")
    profile = {
        flag.argument: _convert_value(name, values[name])
        for name, flag in MAGIC_OPTIONS.items()
        if flag.argument and name in values
    }
    return MagicArguments(output, "-q" in values or "--quiet" in values, "--no-live" not in values, profile)


def _convert_value(name: str, value: str) -> str | float:
    if not MAGIC_OPTIONS[name].value:
        return True
    choices = MAGIC_OPTIONS[name].choices
    if choices and value not in choices:
        raise UsageError(f"{name} {value}: give {' or '.join(choices)}")
    if name not in _NUMBERS:
        return value
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{name} {value}: give a number") from None


_COMPLETION_HOOK = "complete_command"
_MAGIC_LINE = re.compile(r"%%?energy\b")


def add_completion(shell: Shell) -> None:
    """Register completion of lines that begin with the magic."""
    shell.set_hook(_COMPLETION_HOOK, complete_option, re_key=_MAGIC_LINE.pattern)


def remove_completion(shell: Shell) -> None:
    """Remove the completion; IPython has no function for it."""
    dispatch = shell.strdispatchers.get(_COMPLETION_HOOK)
    if dispatch is not None:
        dispatch.regexs.pop(_MAGIC_LINE, None)


def complete_option(_shell: Shell, event: Any) -> list[str]:
    """Return the options, or the choices of the option before the cursor.

    Raises:
        TryNext: There is neither; IPython completes by other means.
    """
    before = event.text_until_cursor[: len(event.text_until_cursor) - len(event.symbol)].split()
    flag = MAGIC_OPTIONS.get(before[-1]) if before else None
    if flag is not None and flag.choices:
        return list(flag.choices)
    if event.symbol.startswith("-"):
        return list(MAGIC_OPTIONS)
    raise TryNext
