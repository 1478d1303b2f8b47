"""The running hub, if any; a separate module, so that `scope` works without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchwatt.tracing.hub import Hub


class Active:
    """Holds the one hub of this process."""

    __slots__ = ("hub",)

    def __init__(self) -> None:
        self.hub: Hub | None = None


ACTIVE = Active()
