"""A powercap folder in a temporary place whose counters follow powers that a test sets while it runs."""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

INTEL_RANGE_UJ = 262_143_328_850  # (2**32 - 1) units of 61.035 uJ, what Intel packages report


class PowerLog:
    """Watts that are set while time goes on, and their exact integral."""

    def __init__(self, watts: float, t_ns: int) -> None:
        self._t_ns = [t_ns]
        self._watts = [watts]
        self._joules = [0.0]  # at each change of power

    def set(self, watts: float, t_ns: int) -> None:
        """Change the power from an instant on."""
        joules = self.energy_j(t_ns)
        self._joules.append(joules)
        self._watts.append(watts)
        self._t_ns.append(t_ns)  # last: `energy_j` in the writer's thread finds its segment by this list

    def energy_j(self, t_ns: int) -> float:
        """Return the true joules from the beginning to a monotonic instant."""
        i = max(bisect.bisect_right(self._t_ns, t_ns) - 1, 0)
        return self._joules[i] + self._watts[i] * (t_ns - self._t_ns[i]) * 1e-9


class FakeZone(PowerLog):
    """One counter: the integral of the watts that were set, in microjoules, modulo its range."""

    def __init__(self, path: Path, name: str, watts: float, range_uj: int, start_uj: int, t_ns: int) -> None:
        super().__init__(watts, t_ns)
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.name = name
        self.file = path / "energy_uj"
        self._modulus = range_uj + 1
        self._start_uj = start_uj
        self._fd = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o444)

    def write(self, t_ns: int) -> None:
        """Publish the counter: one write of fixed width, so that no reader sees half a number."""
        value = (self._start_uj + int(self.energy_j(t_ns) * 1e6)) % self._modulus
        os.pwrite(self._fd, f"{value:<19d}\n".encode(), 0)

    def close(self) -> None:
        """Close the file; it stays on disk."""
        os.close(self._fd)


class FakePowercap:
    """Zones by name of folder, such as `{"intel-rapl:0": ("package-0", 40.0)}`, kept up to date by a thread.

    `with FakePowercap(root, zones) as powercap:` then `powercap.set("package-0", 90.0)` and
    `powercap.energy_j("package-0", a_ns, b_ns)` for the truth. Sub-zones (`intel-rapl:0:0`) lie inside their parent
    and are linked flat, as sysfs does.
    """

    def __init__(
        self,
        root: Path,
        zones: Mapping[str, tuple[str, float]] | None = None,
        *,
        range_uj: int = INTEL_RANGE_UJ,
        start_uj: int = 5_000_000_000,
        update_s: float = 0.001,
    ) -> None:
        self.root = root
        self._update_s = update_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.zones: dict[str, FakeZone] = {}
        t_ns = time.monotonic_ns()
        zones = zones or {"intel-rapl:0": ("package-0", 40.0), "intel-rapl:0:0": ("dram", 5.0)}
        for number, (folder, (name, watts)) in enumerate(zones.items()):
            path = self._path(folder)
            # Counters of different hardware stand at different values.
            self.zones[folder] = FakeZone(path, name, watts, range_uj, start_uj + number * 7_000_000_000, t_ns)
            if not (root / folder).exists():
                (root / folder).symlink_to(path)
        self._publish()

    def _path(self, folder: str) -> Path:
        driver, *numbers = folder.split(":")
        path = self.root / driver
        for i in range(len(numbers)):
            path /= ":".join([driver, *numbers[: i + 1]])
        return path

    def zone(self, name: str) -> FakeZone:
        """Return a zone by its folder, or the first of a name."""
        return self.zones.get(name) or next(z for z in self.zones.values() if z.name == name)

    def set(self, name: str, watts: float) -> None:
        """Change a zone's power from now on."""
        with self._lock:
            self.zone(name).set(watts, time.monotonic_ns())

    def energy_j(self, name: str, start_ns: int, end_ns: int) -> float:
        """Return the true joules of a zone between two monotonic instants."""
        zone = self.zone(name)
        return zone.energy_j(end_ns) - zone.energy_j(start_ns)

    def _publish(self) -> None:
        with self._lock:
            for zone in self.zones.values():
                zone.write(time.monotonic_ns())

    def _run(self) -> None:
        while not self._stop.wait(self._update_s):
            self._publish()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="fake-powercap", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for zone in self.zones.values():
            zone.close()
