"""The widget of the live view in the browser; its state is constant in size."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import traitlets
from anywidget import AnyWidget

from torchwatt.core.errors import ConfigError

_STATIC = Path(__file__).parent / "static"
_EMPTY_MODULE = "export default {}"
_PLACEHOLDER_TEXT = "torchwatt is measuring; the report follows when the cell ends."


@cache
def _read_asset(name: str) -> str:
    path = _STATIC / name
    if not path.is_file():
        raise ConfigError(f"the front end was not built: {path} is missing; run `make front`, or install a wheel")
    return path.read_text(encoding="utf-8")


class LiveWidget(AnyWidget):
    """One live view; `begin` is the payload of `views.start_payload`."""

    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)
    begin = traitlets.Dict().tag(sync=True)

    def __init__(self, begin: dict[str, Any]) -> None:
        super().__init__(_esm=_read_asset("widget.js"), _css=_read_asset("widget.css"), begin=begin)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add the text that a front end without widgets shows until the report replaces it."""
        mimebundle = super()._repr_mimebundle_(**kwargs)
        if mimebundle is None:
            return None
        data, metadata = mimebundle
        return {**data, "text/plain": _PLACEHOLDER_TEXT, "text/html": f"<p>{_PLACEHOLDER_TEXT}</p>"}, metadata

    def end(self) -> None:
        """Close the widget and clear its state, so that saved notebooks stay small."""
        with self.hold_sync():
            self._esm, self._css, self.begin = _EMPTY_MODULE, "", {}
        self.close()


class LivePlaceholder:
    """The output that the live view, and then the report, replaces."""

    def __repr__(self) -> str:
        return _PLACEHOLDER_TEXT
