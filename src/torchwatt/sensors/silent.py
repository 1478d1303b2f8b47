"""Feed of a run whose sampling could not be started: no readings, only the reason."""

from __future__ import annotations

from torchwatt.core.meter import Meter, Recording, Unavailable
from torchwatt.sensors.protocol import event

CODE = "SAMPLER_LOST"


class Silent:
    """A `Feed` without meters: the user's program runs, and its report contains the reason why nothing was metered."""

    def __init__(self, error: BaseException) -> None:
        self.reason = f"sampling could not begin: {type(error).__name__}: {error}"
        self._fix = "raise the limits (ulimit -n, -v, -u), or free some memory; the program itself ran on"
        self._event = event("warning", CODE, "run", self.reason)

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Return no meters."""
        return ()

    @property
    def unavailable(self) -> tuple[Unavailable, ...]:
        """Return the reason, for the domain `run`."""
        return (Unavailable("run", self.reason, self._fix),)

    def start(self) -> None:
        """Do nothing."""

    def read_now(self) -> None:
        """Do nothing."""

    def linger(self) -> None:
        """Do nothing."""

    def snapshot(self, since_ns: int = 0) -> Recording:
        """Return no readings."""
        return Recording((), (), self.unavailable, (self._event,) if self._event.t_ns >= since_ns else ())

    def stop(self) -> Recording:
        """Return no readings, and the reason."""
        return self.snapshot()
