"""Base class of the exporters."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from torchwatt.core.errors import ConfigError
from torchwatt.metrics.books import Books

MOST_LAYERS = 200


class Exporter:
    """Owns the energy counters of the process; ended by `close` or the end of its `with` block."""

    def __init__(self, layers: int) -> None:
        if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers <= MOST_LAYERS:
            raise ConfigError(f"layers={layers!r}: give how many layers get a series, from 0 to {MOST_LAYERS}")
        self.books = Books(layers)
        self.closed = False

    def close(self) -> None:
        """Stop exporting; a second call does nothing."""
        if not self.closed:
            self.closed = True
            self._end()
            self.books.close()

    def _end(self) -> None:
        """Stop the exporter's threads and servers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
