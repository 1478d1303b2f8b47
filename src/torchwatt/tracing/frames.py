"""Find, in the user's frames, the variable that holds a module and the module whose method calls it.

The program's own objects are inspected without running their code: a proxy may raise, or create its target.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, GetSetDescriptorType, ModuleType
from typing import Any

MAX_FRAMES = 30
# f_locals of a running function is a copy that the frame keeps (before 3.13): frame, two variables, argument.
OWN_REFERENCES = 4


class _Plain:
    """A class whose instances have the attributes of every class without `__slots__`."""


_MADE_BY_CLASS = vars(_Plain)["__dict__"]
_OURS = str(Path(__file__).resolve().parents[1])


def variable_name(module: Any, frame: FrameType | None) -> str | None:
    """Return the name of a module in the nearest user frame that has one: a variable, else an attribute."""
    for user in _user_frames(frame):
        with _locals(user) as names:
            name = _holder(module, names) or _attribute(module, names) or _holder(module, user.f_globals)
        if name:
            return name
    return None


def caller_of(module: Any, frame: FrameType | None) -> Any:
    """Return the outermost module that contains this one and whose method calls it, else the module itself.

    The `forward` of such a module need not be called: Lightning calls `training_step`.
    """
    caller = module
    for user in _user_frames(frame):
        if not user.f_code.co_argcount:
            continue
        with _locals(user) as names:
            receiver = names.get(user.f_code.co_varnames[0])
        if receiver is not None and _contains(receiver, caller):
            caller = receiver
    return caller


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


@contextmanager
def _locals(frame: FrameType) -> Iterator[Mapping[str, Any]]:
    names = frame.f_locals
    yield names
    is_copy = bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED) and type(names) is dict
    # Unless the user holds this dict (`locals()`), empty it: it would keep tensors and models alive.
    if is_copy and sys.getrefcount(names) <= OWN_REFERENCES:
        names.clear()


def _holder(module: Any, names: Mapping[str, Any]) -> str | None:
    held = [name for name, value in list(names.items()) if value is module and name != "self"]
    # IPython keeps results as _, __, _12: prefer any other name.
    return min(held, key=lambda name: name.startswith("_"), default=None)


def _attribute(module: Any, names: Mapping[str, Any]) -> str | None:
    for name, value in list(names.items()):
        attributes = own_attributes(value)
        if attributes is None or issubclass(type(value), ModuleType | type):
            continue
        held = _holder(module, attributes) or _holder(module, children_of(value))
        if held:
            return held if name == "self" else f"{name}.{held}"
    return None


def _contains(outer: Any, module: Any) -> bool:
    """Return whether a module is below another one."""
    waiting, visited = [outer], {id(module)}
    while waiting:
        for child in list(children_of(waiting.pop()).values()):
            if child is module and outer is not module:
                return True
            if child is not None and id(child) not in visited:
                visited.add(id(child))
                waiting.append(child)
    return False


def children_of(value: Any) -> Mapping[str, Any]:
    """Return the modules directly below a module; empty for other objects."""
    children = (own_attributes(value) or {}).get("_modules")
    return children if isinstance(children, dict) else {}


def own_attributes(value: Any) -> dict[str, Any] | None:
    """Return an object's attributes as `vars` does, without running code of its class; None where it has none.

    Only classes made by `class` are read: proxies written in C return the attributes of their target.
    """
    for cls in _of_type("__mro__", type(value)):
        descriptor = _of_type("__dict__", cls).get("__dict__")
        if descriptor is not None:
            plain = type(descriptor) is GetSetDescriptorType and descriptor.__doc__ == _MADE_BY_CLASS.__doc__
            attributes = descriptor.__get__(value) if plain else None
            return attributes if type(attributes) is dict else None
    return None


def _of_type(name: str, cls: type) -> Any:
    return type.__dict__[name].__get__(cls)  # past a metaclass
