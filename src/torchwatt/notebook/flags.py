"""The option line of `%energy`: which flags there are, and what a line asks for."""

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
    """One option: `argument` is what `profile()` calls it, if it does; `value` is empty for a switch."""

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
_SHOWN_BY = "%energy? shows them all"

# A word ends at a blank outside of quotes. A backslash is an ordinary character: paths may hold one.
_WORD = re.compile(r"""\s*((?:[^\s"']|"[^"]*"|'[^']*')+)(?=\s|$)""")
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'""")


@dataclass(frozen=True, slots=True)
class Asked:
    """What one option line asks for; `profile` holds the keyword arguments of `profile()`."""

    output: str | None = None
    quiet: bool = False
    live: bool = True
    profile: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Return whether no option was given."""
        return self == Asked()


def parse(line: str) -> tuple[Asked, str]:
    """Cut the options off the front of a line.

    IPython's `parse_options` removes options from a text by search and replace: `--region=FRA` leaves its `=` behind.
    Here the rest of the line is never touched, so that a statement stays as it was typed.

    Raises:
        UsageError: An option is unknown, given twice, or its value is missing or impossible.
    """
    given: dict[str, str] = {}
    rest = line.lstrip()
    while rest.startswith("-"):
        word, after = _word(rest)
        if word == "--":
            rest = after.lstrip()
            break
        name, value = _split(word)
        rest = after
        if FLAGS[name].value and value is None:
            value, rest = _value(name, after)
        if name in given:
            raise UsageError(f"{name} is given twice")
        given[name] = _unquoted(value or "")
        rest = rest.lstrip()
    return _asked(given), rest


def in_flags(message: str) -> str:
    """Return an error's message on one line, with the flags of the magic for the arguments of `profile()`."""
    for name, flag in FLAGS.items():
        if flag.argument:
            message = re.sub(rf"\b{flag.argument}=(?=[\w'\"-])", f"{name} ", message)
            message = re.sub(rf"\b{flag.argument}=", f"{name} {flag.value}", message)
    return " ".join(message.split())


def _word(text: str) -> tuple[str, str]:
    found = _WORD.match(text)
    if found is None:
        raise UsageError(f"a quote is not closed in {text.strip()!r}")
    return found[1], text[found.end() :]


def _split(word: str) -> tuple[str, str | None]:
    """Take `--name=value` and `-oNAME` apart."""
    name, equals, value = word.partition("=")
    if word[:2] == "-o" and len(name) > 2:
        return "-o", word[2:]
    if name not in FLAGS:
        near = get_close_matches(name, FLAGS, n=1)
        hint = f"did you mean {near[0]}?" if near else "write -- before a statement that begins with a minus;"
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


def _asked(given: Mapping[str, str]) -> Asked:
    for name, value in given.items():
        if FLAGS[name].value and not value:
            raise UsageError(f"{name} needs a value: {name} {FLAGS[name].value}")
    output = given.get("-o")
    if output is not None and (not output.isidentifier() or iskeyword(output)):
        raise UsageError(f"-o {output}: give a Python name, such as -o run")
    profile = {
        flag.argument: _typed(name, given[name]) for name, flag in FLAGS.items() if flag.argument and name in given
    }
    return Asked(output, "-q" in given or "--quiet" in given, "--no-live" not in given, profile)


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
