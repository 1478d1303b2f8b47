"""Options of `%energy`, and the parser of its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from keyword import iskeyword
from typing import Any

from IPython.core.error import UsageError


@dataclass(frozen=True, slots=True)
class Flag:
    """One option: `argument` is its name in `profile()`, "" if it has none; `value` is "" for a switch."""

    argument: str
    value: str = ""
    choices: tuple[str, ...] = ()


FLAGS: Mapping[str, Flag] = {
    "-o": Flag("", "NAME"),
    "-q": Flag(""),
    "--quiet": Flag(""),
    "--region": Flag("region", "REGION"),
    "--intensity": Flag("intensity_g_per_kwh", "GRAMS"),
    "--market": Flag("market", "GRAMS"),
    "--facility": Flag("facility", "SITE"),
    "--pue": Flag("pue", "X"),
    "--factors": Flag("factors", "FILE"),
    "--allow-expired": Flag("allow_expired"),
    "--csv": Flag("csv", "DIR"),
    "--no-live": Flag(""),
    "--html": Flag("html", "FILE"),
    "--overwrite": Flag("overwrite"),
    "--keep": Flag("keep"),
    "--project": Flag("project", "NAME"),
    "--layers": Flag("layers", "on|off", ("on", "off")),
    "--name": Flag("name", "NAME"),
}
_NUMBERS = frozenset({"--intensity", "--market", "--pue"})
_SHOWN_BY = "%energy? lists them all"

# A word ends at a blank outside of quotes. A backslash is an ordinary character, because paths may contain one.
_WORD = re.compile(r"""\s*((?:[^\s"']|"[^"]*"|'[^']*')+)(?=\s|$)""")
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'""")


@dataclass(frozen=True, slots=True)
class Asked:
    """Parsed options of one line; `profile` are keyword arguments of `profile()`."""

    output: str | None = None
    quiet: bool = False
    live: bool = True
    profile: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Return whether there are no options."""
        return self == Asked()


def parse(line: str) -> tuple[Asked, str]:
    """Parse the options at the start of a line; return them and the unchanged remainder, a statement.

    IPython's `parse_options` is not used: it removes options by search and replace, which can change the statement.

    Raises:
        UsageError: An option is unknown, given twice, or its value is missing or invalid.
    """
    values: dict[str, str] = {}
    remaining = line.lstrip()
    while remaining.startswith("-"):
        word, after = _word(remaining)
        if word == "--":
            remaining = after.lstrip()
            break
        name, value = _split(word)
        remaining = after
        if FLAGS[name].value and value is None:
            value, remaining = _value(name, after)
        if name in values:
            raise UsageError(f"{name} is given twice")
        values[name] = _unquoted(value or "")
        remaining = remaining.lstrip()
    return _asked(values), remaining


def in_flags(message: str) -> str:
    """Return an error's message on one line, with arguments of `profile()` replaced by options of the magic."""
    for name, flag in FLAGS.items():
        if flag.argument:
            message = re.sub(rf"\b{flag.argument}=(?=[\w'\"-])", f"{name} ", message)
            message = re.sub(rf"\b{flag.argument}=", f"{name} {flag.value}", message)
    return " ".join(message.split())


def _word(text: str) -> tuple[str, str]:
    match = _WORD.match(text)
    if match is None:
        raise UsageError(f"a quote is not closed in {text.strip()!r}")
    return match[1], text[match.end() :]


def _split(word: str) -> tuple[str, str | None]:
    """Split `--name=value` and `-oNAME` into name and value."""
    name, equals, value = word.partition("=")
    if word[:2] == "-o" and len(name) > 2:
        return "-o", word[2:]
    if name not in FLAGS:
        near = get_close_matches(name, FLAGS, n=1)
        hint = f"did you mean {near[0]}?" if near else "write -- before a statement that starts with a minus;"
        raise UsageError(f"no option {name}: {hint} {_SHOWN_BY}")
    if equals and not FLAGS[name].value:
        raise UsageError(f"{name} takes no value")
    return name, value if equals else None


def _value(name: str, after: str) -> tuple[str, str]:
    if not after.strip() or after.lstrip().startswith("--"):
        raise UsageError(f"{name} needs a value: {name} {FLAGS[name].value}")
    return _word(after)


def _unquoted(text: str) -> str:
    return _QUOTED.sub(lambda quoted: quoted[1] or quoted[2] or "", text)


def _asked(values: Mapping[str, str]) -> Asked:
    for name, value in values.items():
        if FLAGS[name].value and not value:
            raise UsageError(f"{name} needs a value: {name} {FLAGS[name].value}")
    output = values.get("-o")
    if output is not None and (not output.isidentifier() or iskeyword(output)):
        raise UsageError(f"-o {output}: give a Python name, such as -o run")
    profile = {
        flag.argument: _typed(name, values[name]) for name, flag in FLAGS.items() if flag.argument and name in values
    }
    return Asked(output, "-q" in values or "--quiet" in values, "--no-live" not in values, profile)


def _typed(name: str, value: str) -> str | float:
    if not FLAGS[name].value:
        return True
    choices = FLAGS[name].choices
    if choices and value not in choices:
        raise UsageError(f"{name} {value}: give {' or '.join(choices)}")
    if name not in _NUMBERS:
        return value
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{name} {value}: give a number") from None
