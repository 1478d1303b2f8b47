"""The name a user's variable gives to a module: what a reader of the report would call it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

MAX_FRAMES = 30
# f_locals of a running function is a copy that the frame keeps (before 3.13): frame, variable, argument.
OWN_REFERENCES = 3

_OURS = str(Path(__file__).resolve().parents[1])


def variable_name(module: Any, frame: FrameType | None) -> str | None:
    """Return the name that holds a module in the nearest user frame: a variable, else an attribute."""
    for user in _user_frames(frame):
        name = _in_frame(module, user)
        if name:
            return name
    return None


def _user_frames(frame: FrameType | None) -> Iterator[FrameType]:
    torch = sys.modules.get("torch")
    skipped = (*getattr(torch, "__path__", ()), _OURS)
    for _ in range(MAX_FRAMES):
        while frame is not None and frame.f_code.co_filename.startswith(skipped):
            frame = frame.f_back
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _in_frame(module: Any, frame: FrameType) -> str | None:
    names = frame.f_locals
    found = _holder(module, names) or _attribute(module, names) or _holder(module, frame.f_globals)
    is_copy = bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED) and type(names) is dict
    # Unless the user holds this very dict (`locals()`), empty it: it would keep tensors and models alive.
    if is_copy and sys.getrefcount(names) <= OWN_REFERENCES:
        names.clear()
    return found


def _holder(module: Any, names: Mapping[str, Any]) -> str | None:
    held = [name for name, value in list(names.items()) if value is module and name != "self"]
    # IPython keeps results as _, __, _12: any other name is better.
    return min(held, key=lambda name: name.startswith("_"), default=None)


def _attribute(module: Any, names: Mapping[str, Any]) -> str | None:
    for name, value in list(names.items()):
        attributes = getattr(value, "__dict__", None)
        if not isinstance(attributes, dict) or inspect.ismodule(value) or isinstance(value, type):
            continue
        children = attributes.get("_modules")
        held = _holder(module, attributes)
        if held is None and isinstance(children, dict):
            held = _holder(module, children)
        if held:
            return held if name == "self" else f"{name}.{held}"
    return None
