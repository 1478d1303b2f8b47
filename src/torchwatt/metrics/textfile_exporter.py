"""Writes a file for node_exporter's textfile collector, so that short-lived jobs need no ports to scrape."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from torchwatt.core.errors import ConfigError, warn
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.metrics.energy_counters import Exporter
from torchwatt.metrics.prometheus_endpoint import MISSING, make_registry

EVERY_S = 15.0  # a typical scrape interval of node_exporter


class TextfileExporter(Exporter):
    """Exporter that replaces a file atomically, from a thread."""

    def __init__(self, path: Path, every_s: float, layers: int) -> None:
        super().__init__(layers)
        self.path = path
        self._registry = make_registry(self.books)
        self._every_s = every_s
        self._stop = threading.Event()
        self._failed = False
        self.books.open()
        try:
            self.write()
        except OSError as error:
            self.books.close()
            raise ConfigError(f"textfile({str(path)!r}): {error.strerror}") from error
        self._thread = HelperThread(self._loop, "torchwatt-textfile")
        self._thread.start()

    def write(self) -> None:
        """Write the file now.

        Raises:
            OSError: It cannot be written.
        """
        from prometheus_client import write_to_textfile

        write_to_textfile(str(self.path), self._registry)

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            self._try()

    def _try(self) -> None:
        try:
            self.write()
            self._failed = False
        except OSError as error:  # such as a full disk: warn once, and retry next time
            if not self._failed:
                warn(f"torchwatt could not write {self.path}: {error}")
            self._failed = True

    def _end(self) -> None:
        self._stop.set()
        self._thread.join(2.0)
        self._try()  # the final counters, without the power of ended runs


def textfile(path: str | os.PathLike[str], *, every_s: float = EVERY_S, layers: int = 0) -> TextfileExporter:
    """Keep a file of this process's runs up to date for node_exporter, until closed.

    Args:
        path: A `.prom` file in the folder of `--collector.textfile.directory`; one file per process.
        every_s: Seconds between writes.
        layers: Number of layers with separate series, besides reserved names; the others share one series.

    Raises:
        ConfigError: The path or the period is invalid, the file cannot be written, or prometheus_client is missing.
    """
    try:
        import prometheus_client  # noqa: F401  # is it there?
    except ImportError as error:
        raise ConfigError(MISSING) from error
    target = Path(path).absolute()
    if target.suffix != ".prom":
        raise ConfigError(f"textfile({str(path)!r}): node_exporter reads files that end in .prom")
    if not 0 < every_s < float("inf"):
        raise ConfigError(f"every_s={every_s!r}: give a number of seconds")
    return TextfileExporter(target, every_s, layers)
