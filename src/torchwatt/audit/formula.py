"""Evaluate the formulas of `impact.csv`: names, numbers, + - * / and parentheses. Never `eval`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torchwatt.core.errors import BundleError

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)|([a-z_][a-z0-9_]*)|([-+*/()]))")


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """Return the value of a formula, left to right with the usual precedence.

    Raises:
        BundleError: The text is no such formula, a name has no value, or something is divided by 0.
    """
    parser = _Parser(formula, values)
    try:
        return parser.whole()
    except ZeroDivisionError as error:
        raise BundleError(f"formula {formula!r} divides by 0") from error


class _Parser:
    """Recursive descent over the tokens of one formula."""

    def __init__(self, formula: str, values: Mapping[str, float]) -> None:
        self.formula = formula
        self.values = values
        self.tokens = self._tokens()

    def _tokens(self) -> list[str]:
        tokens, position = [], 0
        while position < len(self.formula.rstrip()):
            match = _TOKEN.match(self.formula, position)
            if match is None:
                raise BundleError(f"formula {self.formula!r}: cannot read {self.formula[position:]!r}")
            tokens.append(match.group().strip())
            position = match.end()
        return tokens[::-1]

    def _take(self, *wanted: str) -> str | None:
        return self.tokens.pop() if self.tokens and self.tokens[-1] in wanted else None

    def whole(self) -> float:
        value = self._sum()
        if self.tokens:
            raise BundleError(f"formula {self.formula!r}: did not expect {self.tokens[-1]!r}")
        return value

    def _sum(self) -> float:
        value = self._product()
        while sign := self._take("+", "-"):
            other = self._product()
            value = value + other if sign == "+" else value - other
        return value

    def _product(self) -> float:
        value = self._atom()
        while sign := self._take("*", "/"):
            other = self._atom()
            value = value * other if sign == "*" else value / other
        return value

    def _atom(self) -> float:
        if self._take("-"):
            return -self._atom()
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise BundleError(f"formula {self.formula!r}: a parenthesis is open")
            return value
        token = self.tokens.pop() if self.tokens else ""
        if token[:1].isdigit():
            return float(token)
        if token in self.values:
            return self.values[token]
        raise BundleError(f"formula {self.formula!r}: {token!r} has no value")
