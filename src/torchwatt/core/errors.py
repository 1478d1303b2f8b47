"""The exceptions of torchwatt.

TorchwattError
├── ConfigError    an argument is invalid: names the argument and the fix
├── SensorError    a meter could not be read: names the domain and the cause
├── TraceError     a span or a trace is inconsistent
├── LedgerError    the entries of a domain do not add up to its meter
├── FactorError    there is no carbon factor for the request
└── BundleError    a bundle cannot be written or read
"""

from __future__ import annotations

import contextlib
import warnings

from torchwatt.core.plain_text import escape_unprintable_lines


class TorchwattError(Exception):
    """Base of every error that torchwatt raises."""


class ConfigError(TorchwattError, ValueError):
    """An argument is invalid; the message names the argument and the fix."""


class SensorError(TorchwattError, OSError):
    """A meter could not be read; `code` is the event code of the cause."""

    def __init__(self, message: str, *, code: str = "SENSOR_ERROR") -> None:
        super().__init__(message)
        self.code = code


class TraceError(TorchwattError):
    """A span or a trace is inconsistent."""


class LedgerError(TorchwattError):
    """The entries of a domain do not add up to its meter."""


class FactorError(TorchwattError, LookupError):
    """There is no carbon factor for the request."""


class BundleError(TorchwattError):
    """A bundle cannot be written or read."""


def warn(message: str, *, stacklevel: int = 2) -> None:
    """Issue a RuntimeWarning; if it cannot be shown or filters turn it into an error, do nothing.

    A script may have closed its `sys.stderr`, or run with `-W error`.
    """
    with contextlib.suppress(Exception):
        warnings.warn(escape_unprintable_lines(message), RuntimeWarning, stacklevel=stacklevel + 1)
