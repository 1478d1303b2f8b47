"""Which module is which: a number for each one that was called, and its names in every root that holds it."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_WRAPPER_PARTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PARALLEL = frozenset({"DistributedDataParallel", "DataParallel"})
_OWN_FOLDER = str(Path(__file__).resolve().parent.parent)
MAX_FRAMES = 200


@dataclass(slots=True)
class Known:
    """What is kept of a module: no reference that keeps it alive."""

    key: int
    class_name: str
    params: int
    param_bytes: int
    is_root: bool = False
    hint: str = ""  # the variable that held a root when it was first called
    holds_params: bool = False
    paths: list[tuple[int, str]] = field(default_factory=list)  # (key of a root, name inside it)


class Registry:
    """Numbers modules as they are first called, and names them from the root that contains them."""

    def __init__(self, wrapper_code: CodeType | None = None) -> None:
        self.keys: dict[int, int] = {}  # id(module) -> key; an entry goes when its module does
        self.known: list[Known] = []
        self.wrapper_code = wrapper_code
        self._refs: list[weakref.ref[Any]] = []

    def add(self, module: nn.Module, *, root: bool = False) -> int:
        """Return the module's key; the first time, find out whether it is a root and what its variable is called."""
        key = self.keys.get(id(module))
        if key is None:
            key = self._number(module)
            frame = sys._getframe(1)
            if not root and not _inside_a_module(frame, self.wrapper_code):
                root = True
                self.known[key].hint = _variable(frame, module)
        if root and not self.known[key].is_root:
            self._name_children(key, module)
        return key

    def rename_late_children(self) -> None:
        """Name modules that were built after their root was first called."""
        for known, ref in zip(list(self.known), list(self._refs), strict=True):
            module = ref()
            if known.is_root and module is not None:
                self._name_children(known.key, module)

    def _number(self, module: nn.Module) -> int:
        key, address = len(self.known), id(module)
        own = list(module.parameters(recurse=False)) if hasattr(module, "parameters") else []
        self.known.append(
            Known(
                key,
                type(module).__name__,
                sum(_size(p) for p in own),
                sum(_size(p) * p.element_size() for p in own),
                holds_params=any(True for _ in module.parameters()),
            )
        )
        self.keys[address] = key
        # An address may be used again: the entry goes with its module.
        self._refs.append(weakref.ref(module, lambda _: self.keys.pop(address, None)))
        return key

    def _name_children(self, root: int, module: nn.Module) -> None:
        self.known[root].is_root = True
        for name, child in _named(module):
            key = self.keys.get(id(child))
            if key is None:
                key = self._number(child)
            if (root, name) not in self.known[key].paths:
                self.known[key].paths.append((root, name))


def _size(parameter: Any) -> int:
    try:
        return int(parameter.numel())
    except (RuntimeError, ValueError):  # lazy parameters have no size yet
        return 0


def _named(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """List all modules with the names that users know: those of `state_dict` without wrappers' parts."""
    found = []
    by_name = dict(root.named_modules(remove_duplicate=False))
    for name, module in by_name.items():
        parts, path = [], ""
        for part in name.split(".") if name else ():
            parent = by_name.get(path)
            path = f"{path}.{part}" if path else part
            if part in _WRAPPER_PARTS or (part == "module" and type(parent).__name__ in _PARALLEL):
                continue
            parts.append(part)
        found.append((".".join(parts), module))
    return found


def _inside_a_module(frame: FrameType | None, wrapper_code: CodeType | None) -> bool:
    """Say whether another module's call encloses this one: our wrapper is on the stack more than once."""
    seen = 0
    for _ in range(MAX_FRAMES):
        if frame is None:
            break
        seen += frame.f_code is wrapper_code
        frame = frame.f_back
    return seen > 1


def _variable(frame: FrameType | None, module: nn.Module) -> str:
    """Return the name of the variable that holds a module in the nearest frame of the user's."""
    for _ in range(MAX_FRAMES):
        if frame is None:
            break
        file = frame.f_code.co_filename
        if not file.startswith(_OWN_FOLDER) and "/torch/" not in file:
            for names in (frame.f_locals, frame.f_globals):
                for name, value in list(names.items()):
                    if value is module and name != "self" and not name.startswith("_"):
                        return name
        frame = frame.f_back
    return ""
