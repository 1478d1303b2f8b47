"""Assign integer keys to modules without keeping any module alive."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from torch import nn
from torch.fx import GraphModule

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import (
    COMMUNICATION,
    COMPILE,
    DATA,
    OPTIMIZER,
    PROFILER,
    RESERVED,
    ROOT,
    UNATTRIBUTED,
    Slot,
)
from torchwatt.core.trace import ModuleInfo
from torchwatt.tracing.log_rows import (
    COMMUNICATION_KEY,
    COMPILE_KEY,
    COMPILED_KEY,
    DATA_KEY,
    OPTIMIZER_KEY,
    PROFILER_KEY,
    UNCOUNTED_COMMUNICATION_KEY,
    UNKNOWN_KEY,
)
from torchwatt.tracing.module_operations import ModuleMetadata, ShapeReader, metadata_of, shape_reader
from torchwatt.tracing.user_process import caller_of, own_attributes, variable_name

# Wrappers whose name is left out of paths; `module` counts only below the data-parallel classes.
TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)

CONTAINERS = (nn.ModuleList, nn.ModuleDict)

ModulePlace = tuple[str, str, nn.Module]


@dataclass(slots=True, eq=False)
class RootModule:
    """An outermost module, or one given by the user; `paths` has the modules below it."""

    key: int
    name: str
    class_name: str
    heir_of: RootModule | None = None  # a former root, now deleted, that the same variable held
    # (path, key) -> path without wrappers; a path whose module was replaced has several keys
    paths: dict[tuple[str, int], str] = field(default_factory=dict)


def walk_modules(
    module: nn.Module, path: str = "", plain: str = "", above: tuple[int, ...] = ()
) -> Iterator[ModulePlace]:
    """Yield path, path without wrappers, and module for everything below a root, aliases included.

    Like `named_modules(remove_duplicate=False)`, but also for modules that cannot be hashed or contain themselves.
    """
    yield path, plain, module
    for leaf, child in list(module._modules.items()):
        if child is None or id(child) in above:
            continue
        through = leaf in TRANSPARENT or (leaf == "module" and issubclass(type(module), PARALLEL))
        inner_path = plain if through else f"{plain}.{leaf}" if plain else leaf
        yield from walk_modules(child, f"{path}.{leaf}" if path else leaf, inner_path, (*above, id(module)))


class ModuleRegistry:
    """Keys of modules (by identity, with weak references) and the roots found so far.

    Args:
        forgotten: Called when a module or an optimizer is deleted, after which its id may be reused.
    """

    def __init__(self, forgotten: Callable[[], None] = lambda: None) -> None:
        self._forgotten = forgotten
        self.by_id: dict[int, int] = {}
        self.facts: dict[int, ModuleMetadata] = {}
        self.readers: dict[int, ShapeReader] = {}  # of the modules of known classes, by key
        self.roots: list[RootModule] = []
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

    def add_root(self, module: nn.Module, name: str | None) -> RootModule:
        """Register a root and all modules below it."""
        with self._lock:
            key = self._key(module)
            label = name or type(module).__name__
            root = next((r for r in self.roots if r.key == key), None)
            if root is None:
                root = RootModule(key, label, type(module).__name__)
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

    def params_of(self, key: int, functions: Mapping[int, tuple[str, int]]) -> int:
        """Return the parameters of a module with its submodules, or those that a compiled function uses."""
        if key in functions:
            return functions[key][1]
        at = next(((root, path) for root in self.roots for path, own in root.paths if own == key), None)
        root, top = at or (RootModule(key, "", "", paths={("", key): ""}), "")
        below = {own for path, own in root.paths if not top or f"{path}.".startswith(f"{top}.")}
        return sum(self.facts[own].params for own in below if own in self.facts)

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

    def _place(self, root: RootModule, module: nn.Module) -> None:
        at: dict[str, int] = {}
        for path, plain, child in walk_modules(module):
            key = at[path] = self._key(child)
            self.facts[key] = metadata_of(child)
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

    def _ancestor(self, root: RootModule) -> RootModule | None:
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
        self.facts[key] = metadata_of(module)
        reader = shape_reader(module)
        if reader is not None:
            self.readers[key] = reader
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


# Slots of rows that are no module call.
RESERVED_SLOTS: Mapping[int, Slot] = {
    OPTIMIZER_KEY: Slot(OPTIMIZER, "optimizer"),
    DATA_KEY: Slot(DATA, "data"),
    COMMUNICATION_KEY: Slot(COMMUNICATION, "communication"),
    UNCOUNTED_COMMUNICATION_KEY: Slot(COMMUNICATION, "communication"),
    COMPILE_KEY: Slot(COMPILE, "compile"),
    PROFILER_KEY: Slot(PROFILER, "other"),
}


@dataclass(slots=True)
class ModuleNames:
    """The names of one session."""

    fqn: dict[int, str] = field(default_factory=dict)
    aliases: dict[int, list[str]] = field(default_factory=dict)
    wrapped: dict[int, int] = field(default_factory=dict)  # wrapper -> the wrapped module of the same name
    main: frozenset[int] = frozenset()  # keys of the model itself: its outermost calls are inference steps

    def of(self, key: int) -> str:
        """Return the name of a module's key."""
        return self.fqn.get(key, UNATTRIBUTED)


def resolve_names(
    roots: Sequence[RootModule],
    facts: Mapping[int, ModuleMetadata],
    used: IntArray | Collection[int],
    given_key: int | None = None,
) -> ModuleNames:
    """Name every module below a root that was used, and every module without a root.

    The main root (the given model, or the only root with parameters) has no prefix. The other roots are named by their
    variable, else by their class; a second one of the same name gets `#2`.
    """
    present = {int(key) for key in used if key > 0}
    used_roots = [r for r in roots if r.key == given_key or any(k in present for _, k in r.paths)]
    groups = _families(_top_modules(used_roots, given_key), given_key)
    main = _main_root(groups, facts, given_key)
    names = ModuleNames()
    taken: set[str] = set()
    for family in sorted(groups, key=lambda family: family is not main):
        prefix = "" if family is main else _distinct_names(family[0].name, taken)
        for root in family:
            _name_below(root, prefix, names)
        taken |= set(names.fqn.values())
    for key in sorted(present - set(names.fqn)):  # called, but not below any root
        if key in facts:
            names.fqn[key] = facts[key].class_name
    if main:
        names.main = frozenset(key for root in main for (_, key), plain in root.paths.items() if not plain)
    return names


def _top_modules(roots: Sequence[RootModule], given_key: int | None) -> list[RootModule]:
    nested = {key for root in roots for path, key in root.paths if path}
    return [root for root in roots if root.key == given_key or root.key not in nested]


def _families(roots: Sequence[RootModule], given_key: int | None) -> list[list[RootModule]]:
    """Group roots that one variable held one after the other, and the given model with its wrappers."""
    families: dict[int | None, list[RootModule]] = {}
    for root in roots:
        ancestor = root
        while ancestor.heir_of is not None:
            ancestor = ancestor.heir_of
        wraps_given = given_key is not None and any(
            k == given_key and not plain for (_, k), plain in root.paths.items()
        )
        families.setdefault(None if wraps_given else id(ancestor), []).append(root)
    return list(families.values())


def _main_root(
    families: Sequence[list[RootModule]], facts: Mapping[int, ModuleMetadata], given_key: int | None
) -> list[RootModule] | None:
    if given_key is not None:
        return next(family for family in families if any(root.key == given_key for root in family))
    trained = [family for family in families if any(facts[key].params for root in family for _, key in root.paths)]
    return trained[0] if len(trained) == 1 else None


def _distinct_names(name: str, taken: Collection[str]) -> str:
    heads = {fqn.partition(".")[0] for fqn in taken} | set(taken)
    number, result = 1, name
    while result in heads:
        number += 1
        result = f"{name}#{number}"
    return result


def _unreserved_name(fqn: str) -> str:
    """Return a name with `#module` appended if it equals a reserved row of the report."""
    return f"{fqn}#module" if fqn in RESERVED or fqn == ROOT else fqn


def _name_below(root: RootModule, prefix: str, names: ModuleNames) -> None:
    above: dict[str, tuple[str, int]] = {}  # the latest module of each name
    for (path, key), plain in root.paths.items():
        fqn = _unreserved_name(".".join(part for part in (prefix, plain) if part)) or ROOT
        outer, outer_key = above.get(plain, (path, key))
        if outer_key != key and len(path) > len(outer):
            names.wrapped.setdefault(outer_key, key)
        above[plain] = path, key
        first_name = names.fqn.setdefault(key, fqn)
        if first_name != fqn and fqn not in names.aliases.setdefault(key, []):
            names.aliases[key].append(fqn)


def module_infos(names: ModuleNames, facts: Mapping[int, ModuleMetadata]) -> tuple[ModuleInfo, ...]:
    """Return class and size of the named modules."""
    infos: dict[str, ModuleInfo] = {}
    for key, fqn in names.fqn.items():
        if key in facts and key not in names.wrapped and fqn not in infos:
            fact = facts[key]
            aliases = tuple(names.aliases.get(key, ()))
            infos[fqn] = ModuleInfo(fqn, fact.class_name, fact.params, fact.param_bytes, aliases, fact.dtype)
    return tuple(infos.values())
