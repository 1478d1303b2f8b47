"""Evaluates formulas of `impact.csv` and of the schema: names, numbers, + - * / and parentheses; without `eval`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import add, mul, sub, truediv

from torchwatt.core.errors import BundleError

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)|([a-z_][a-z0-9_]*)|([-+*/()]))")
# Formulas are untrusted: nesting is bounded, so that parsing cannot end in a RecursionError.
_DEEPEST = 50
_LONGEST = 300  # tokens

Values = Mapping[str, float]
Formula = Callable[[Values], float]


def evaluate(formula: str, values: Values) -> float:
    """Return the value of a formula, evaluated left to right with the usual precedence.

    Raises:
        BundleError: The text is not a formula, a name has no value, or a divisor is 0.
    """
    try:
        return parse(formula)(values)
    except ZeroDivisionError as error:
        raise BundleError(f"formula {formula!r} divides by 0") from error
    except KeyError as error:
        raise BundleError(f"formula {formula!r}: {error.args[0]!r} has no value") from error


def parse(formula: str) -> Formula:
    """Return a function of the named values, which raises KeyError for a missing name and ZeroDivisionError.

    Raises:
        BundleError: The text is not a formula.
    """
    return _Parser(formula).whole()


def names(formula: str) -> tuple[str, ...]:
    """Return the names in a formula, each once."""
    return tuple(dict.fromkeys(match[2] for match in _TOKEN.finditer(formula) if match[2]))


def _binary(operator: Callable[[float, float], float], first_operand: Formula, second_operand: Formula) -> Formula:
    return lambda values: operator(first_operand(values), second_operand(values))


class _Parser:
    """Recursive descent over the tokens of one formula."""

    def __init__(self, formula: str) -> None:
        self.formula = formula
        self.tokens = self._tokens()
        self.depth = 0

    def _tokens(self) -> list[str]:
        tokens, position = [], 0
        while position < len(self.formula.rstrip()):
            match = _TOKEN.match(self.formula, position)
            if match is None:
                raise self._error(f"cannot read {self.formula[position : position + 40]!r}")
            tokens.append(match.group().strip())
            position = match.end()
            if len(tokens) > _LONGEST:
                raise self._error(f"more than {_LONGEST} parts")
        return tokens[::-1]

    def _error(self, problem: str) -> BundleError:
        return BundleError(f"formula {self.formula[:200]!r}: {problem}")

    def _take(self, *tokens: str) -> str | None:
        return self.tokens.pop() if self.tokens and self.tokens[-1] in tokens else None

    def whole(self) -> Formula:
        value = self._sum()
        if self.tokens:
            raise self._error(f"did not expect {self.tokens[-1]!r}")
        return value

    def _sum(self) -> Formula:
        value = self._product()
        while sign := self._take("+", "-"):
            value = _binary(add if sign == "+" else sub, value, self._product())
        return value

    def _product(self) -> Formula:
        value = self._atom()
        while sign := self._take("*", "/"):
            value = _binary(mul if sign == "*" else truediv, value, self._atom())
        return value

    def _atom(self) -> Formula:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._error(f"more than {_DEEPEST} levels deep")
        value = self._inner()
        self.depth -= 1
        return value

    def _inner(self) -> Formula:
        if self._take("-"):
            inner = self._atom()
            return lambda values: -inner(values)
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise self._error("a parenthesis is open")
            return value
        token = self.tokens.pop() if self.tokens else ""
        if token[:1].isdecimal():
            number = float(token)
            return lambda _: number
        if token[:1].isalpha() or token[:1] == "_":
            return lambda values: values[token]
        raise self._error(f"{token!r} is no value")
