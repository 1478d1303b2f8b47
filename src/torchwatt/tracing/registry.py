"""Assign integer keys to modules without keeping any module alive."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from torch import nn
from torch.fx import GraphModule

from torchwatt.tracing.frames import caller_of, own_attributes, variable_name
from torchwatt.tracing.rows import COMPILED_KEY, UNKNOWN_KEY

# Wrappers whose name is left out of paths; `module` counts only below the data-parallel classes.
TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)

CONTAINERS = (nn.ModuleList, nn.ModuleDict)

Place = tuple[str, str, nn.Module]


@dataclass(frozen=True, slots=True)
class Facts:
    """Class and size of a module, kept after its deletion; parameters are its own, without its children's."""

    class_name: str
    params: int
    param_bytes: int


@dataclass(slots=True, eq=False)
class Root:
    """An outermost module, or one given by the user; `paths` has the modules below it."""

    key: int
    name: str
    class_name: str
    heir_of: Root | None = None  # a former root, now deleted, that the same variable held
    # (path, key) -> path without wrappers; a path whose module was replaced has several keys
    paths: dict[tuple[str, int], str] = field(default_factory=dict)


def facts_of(module: nn.Module) -> Facts:
    """Count a module's own parameters; lazy ones count once they have a shape."""
    count = size = 0
    for parameter in vars(module).get("_parameters", {}).values():
        if parameter is not None and not nn.parameter.is_lazy(parameter):
            count += parameter.numel()
            size += parameter.numel() * parameter.element_size()
    return Facts(type(module).__name__, count, size)


def walk(module: nn.Module, path: str = "", plain: str = "", above: tuple[int, ...] = ()) -> Iterator[Place]:
    """Yield path, path without wrappers, and module for everything below a root, aliases included.

    Like `named_modules(remove_duplicate=False)`, but also for modules that cannot be hashed or contain themselves.
    """
    yield path, plain, module
    for leaf, child in list(module._modules.items()):
        if child is None or id(child) in above:
            continue
        through = leaf in TRANSPARENT or (leaf == "module" and issubclass(type(module), PARALLEL))
        inner_path = plain if through else f"{plain}.{leaf}" if plain else leaf
        yield from walk(child, f"{path}.{leaf}" if path else leaf, inner_path, (*above, id(module)))


class Registry:
    """Keys of modules (by identity, with weak references) and the roots found so far.

    Args:
        forgotten: Called when a module or an optimizer is deleted, after which its id may be reused.
    """

    def __init__(self, forgotten: Callable[[], None] = lambda: None) -> None:
        self._forgotten = forgotten
        self.by_id: dict[int, int] = {}
        self.facts: dict[int, Facts] = {}
        self.roots: list[Root] = []
        self.parent: dict[int, int] = {}  # the enclosing module, whether or not it is called itself
        self.choices: set[int] = set()  # modules in lists and dicts: a program may call only some of them
        self.dirty = False  # a module without a known path was called
        self.calls_code: frozenset[CodeType] = frozenset()  # of the call wrapper: its frames show nesting
        self.compiled_code: frozenset[CodeType] = frozenset()  # code of the functions that torch.compile returns
        self._refs: dict[int, weakref.ref[Any]] = {}
        self._by_hooks: dict[int, int] = {}  # data-parallel replicas share this dict with their original
        self._replicas: set[object] = set()
        self._optimizers: dict[int, str] = {}  # key -> class, in order of first steps
        self._lock = threading.RLock()
        self._next = 1

    def register(self, module: nn.Module) -> int:
        """Return the key of a module called for the first time; it becomes a root if no other call encloses it."""
        try:
            with self._lock:
                key = self.by_id.get(id(module))
                if key is not None:
                    return key
                if issubclass(type(module), GraphModule) and self._is_compiled(module, sys._getframe(1)):
                    return self._remember(module, COMPILED_KEY)
                if (own_attributes(module) or {}).get("_is_replica") and (original := self._original(module)):
                    self._remember(module, original)
                    return original
                if self.enclosed(sys._getframe(1)):
                    self.dirty = True
                    return self._key(module)
                frame = sys._getframe(1)
                root = caller_of(module, frame)
                self.add_root(root, variable_name(root, frame))
                return self._key(module)
        except Exception:
            # The user's forward must not fail because a module cannot be inspected.
            return self.by_id.get(id(module), UNKNOWN_KEY)

    def add_root(self, module: nn.Module, name: str | None) -> Root:
        """Register a root and all modules below it."""
        with self._lock:
            key = self._key(module)
            label = name or type(module).__name__
            root = next((r for r in self.roots if r.key == key), None)
            if root is None:
                root = Root(key, label, type(module).__name__)
                root.heir_of = self._ancestor(root)
                self.roots.append(root)
            self._place(root, module)
            return root

    def refresh(self) -> None:
        """Walk every living root again: modules added since then get their names."""
        with self._lock:
            self.dirty = False
            for root in self.roots:
                module = self._alive(root.key)
                if module is not None:
                    self._place(root, module)

    def optimizer_key(self, optimizer: object) -> int:
        """Return the key of an optimizer; a new one inherits the key of a deleted one of its class."""
        own_key = self.by_id.get(id(optimizer))
        if own_key is not None:
            return own_key
        with self._lock:
            kind = type(optimizer).__name__
            gone = [k for k, name in self._optimizers.items() if name == kind and self._alive(k) is None]
            key = gone[0] if gone else self._new()
            self._optimizers[key] = kind
            return self._remember(optimizer, key)

    def function_key(self) -> int:
        """Return a new key for the rows of a compiled function."""
        with self._lock:
            return self._new()

    def class_of(self, key: int) -> type | None:
        """Return the class of a module or optimizer; None if it was deleted."""
        instance = self._alive(key)
        return None if instance is None else type(instance)

    def module(self, key: int) -> nn.Module | None:
        """Return the module of a key; None if it was deleted."""
        module: nn.Module | None = self._alive(key)
        return module

    def _place(self, root: Root, module: nn.Module) -> None:
        at: dict[str, int] = {}
        for path, plain, child in walk(module):
            key = at[path] = self._key(child)
            self.facts[key] = facts_of(child)
            root.paths[path, key] = plain
            if path:
                self.parent.setdefault(key, at[path.rpartition(".")[0]])
            if issubclass(type(child), CONTAINERS) and len(child._modules) > 1:
                self.choices.update(self._key(each) for each in child._modules.values() if each is not None)

    def _is_compiled(self, module: nn.Module, frame: FrameType | None) -> bool:
        """Return whether a graph module was made by a compiler, and is itself no module of the program."""
        if not self.enclosed(frame) and not self.enclosed(frame, self.compiled_code):
            return False
        self.refresh()
        return id(module) not in self.by_id

    def _ancestor(self, root: Root) -> Root | None:
        for candidate in reversed(self.roots):
            same = (candidate.name, candidate.class_name) == (root.name, root.class_name)
            if same and self._alive(candidate.key) is None:
                return candidate
        return None

    def _alive(self, key: int) -> Any:
        ref = self._refs.get(key)
        return None if ref is None else ref()

    def _key(self, module: nn.Module) -> int:
        own_key = self.by_id.get(id(module))
        if own_key is not None:
            return own_key
        key = self._remember(module, self._new())
        self.facts[key] = facts_of(module)
        self._by_hooks[id(vars(module).get("_forward_hooks"))] = key
        return key

    def _original(self, replica: nn.Module) -> int | None:
        return self._by_hooks.get(id(vars(replica).get("_forward_hooks")))

    def _new(self) -> int:
        self._next += 1
        return self._next - 1

    def _remember(self, instance: object, key: int) -> int:
        ident, hooks = id(instance), id(getattr(instance, "__dict__", {}).get("_forward_hooks"))
        replica = key in self._refs

        def forget(ref: object) -> None:  # the id may be reused
            self.by_id.pop(ident, None)
            self._forgotten()
            if not replica:
                self._refs.pop(key, None)
                self._by_hooks.pop(hooks, None)
            else:
                self._replicas.discard(ref)

        ref = weakref.ref(instance, forget)
        if replica:
            self._replicas.add(ref)
        else:
            self._refs[key] = ref
        self.by_id[ident] = key
        return key

    def enclosed(self, frame: FrameType | None, codes: frozenset[CodeType] | None = None) -> bool:
        """Return whether another module's call, or a call of `codes`, encloses this frame of the wrapper."""
        codes = self.calls_code if codes is None else codes
        while frame is not None and frame.f_code in self.calls_code:
            frame = frame.f_back  # the wrapper's own frames of this call
        while frame is not None:
            if frame.f_code in codes:
                return True
            frame = frame.f_back
        return False
