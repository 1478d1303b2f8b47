"""The one tree of errors.

TorchwattError
├── ConfigError    the caller asked for something impossible: names the argument and the fix
├── SensorError    a meter could not be read: names the domain and the cause
├── TraceError     a span or a trace does not make sense
├── LedgerError    books do not balance
├── FactorError    no carbon factor for what was asked
└── BundleError    a bundle cannot be written or read
"""


class TorchwattError(Exception):
    """Base of every error that torchwatt raises."""


class ConfigError(TorchwattError, ValueError):
    """The caller asked for something impossible; the message names the argument and the fix."""


class SensorError(TorchwattError, OSError):
    """A meter could not be read; `code` is the event code that tells why."""

    def __init__(self, message: str, *, code: str = "SENSOR_ERROR") -> None:
        super().__init__(message)
        self.code = code


class TraceError(TorchwattError):
    """A span or a trace does not make sense."""


class LedgerError(TorchwattError):
    """The entries of a domain do not add up to its meter."""


class FactorError(TorchwattError, LookupError):
    """No carbon factor for what was asked."""


class BundleError(TorchwattError):
    """A bundle cannot be written or read."""
