"""Map module keys to names as in `state_dict`. Pure: works on roots and paths, not modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

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
from torchwatt.tracing.registry import Facts, Root
from torchwatt.tracing.rows import (
    COMMUNICATION_KEY,
    COMPILE_KEY,
    DATA_KEY,
    OPTIMIZER_KEY,
    PROFILER_KEY,
    UNCOUNTED_COMMUNICATION_KEY,
)

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
class Names:
    """The names of one session."""

    fqn: dict[int, str] = field(default_factory=dict)
    aliases: dict[int, list[str]] = field(default_factory=dict)
    wrapped: dict[int, int] = field(default_factory=dict)  # wrapper -> the wrapped module of the same name
    main: frozenset[int] = frozenset()  # keys of the model itself: its outermost calls are inference steps
    modules: tuple[ModuleInfo, ...] = ()

    def of(self, key: int) -> str:
        """Return the name of a module's key."""
        return self.fqn.get(key, UNATTRIBUTED)


def models_among(sizes: Mapping[int, int], main: Collection[int], *, trained: bool) -> set[int]:
    """Return the called modules that are models: those as large as the given one, where something is trained.

    If the given one is not called, the largest count; if none has parameters, all do.

    Args:
        sizes: Parameters of each called module, by key.
        main: Keys of the given model.
        trained: Whether a call made a graph.
    """
    largest = max(sizes.values(), default=0)
    model_sizes = [size for key, size in sizes.items() if key in main]
    least = min(model_sizes, default=largest) if trained or not largest else 1
    return {key for key, size in sizes.items() if size >= least}


def resolve(
    roots: Sequence[Root], facts: Mapping[int, Facts], used: IntArray | Collection[int], given_key: int | None = None
) -> Names:
    """Name every module below a root that was used, and every module without a root.

    The main root (the given model, or the only root with parameters) has no prefix. The other roots are named by their
    variable, else by their class; a second one of the same name gets `#2`.
    """
    present = {int(key) for key in used if key > 0}
    used_roots = [r for r in roots if r.key == given_key or any(k in present for _, k in r.paths)]
    groups = _families(_tops(used_roots, given_key), given_key)
    main = _main(groups, facts, given_key)
    names = Names()
    taken: set[str] = set()
    for family in sorted(groups, key=lambda family: family is not main):
        prefix = "" if family is main else _distinct(family[0].name, taken)
        for root in family:
            _name_below(root, prefix, names)
        taken |= set(names.fqn.values())
    for key in sorted(present - set(names.fqn)):  # called, but not below any root
        if key in facts:
            names.fqn[key] = facts[key].class_name
    if main:
        names.main = frozenset(key for root in main for (_, key), plain in root.paths.items() if not plain)
    names.modules = _infos(names, facts)
    return names


def _tops(roots: Sequence[Root], given_key: int | None) -> list[Root]:
    nested = {key for root in roots for path, key in root.paths if path}
    return [root for root in roots if root.key == given_key or root.key not in nested]


def _families(roots: Sequence[Root], given_key: int | None) -> list[list[Root]]:
    """Group roots that one variable held one after the other, and the given model with its wrappers."""
    families: dict[int | None, list[Root]] = {}
    for root in roots:
        ancestor = root
        while ancestor.heir_of is not None:
            ancestor = ancestor.heir_of
        wraps_given = given_key is not None and any(
            k == given_key and not plain for (_, k), plain in root.paths.items()
        )
        families.setdefault(None if wraps_given else id(ancestor), []).append(root)
    return list(families.values())


def _main(families: Sequence[list[Root]], facts: Mapping[int, Facts], given_key: int | None) -> list[Root] | None:
    if given_key is not None:
        return next(family for family in families if any(root.key == given_key for root in family))
    trained = [family for family in families if any(facts[key].params for root in family for _, key in root.paths)]
    return trained[0] if len(trained) == 1 else None


def _distinct(name: str, taken: Collection[str]) -> str:
    heads = {fqn.partition(".")[0] for fqn in taken} | set(taken)
    number, result = 1, name
    while result in heads:
        number += 1
        result = f"{name}#{number}"
    return result


def _unreserved(fqn: str) -> str:
    """Return a name with `#module` appended if it equals a reserved row of the report."""
    return f"{fqn}#module" if fqn in RESERVED or fqn == ROOT else fqn


def _name_below(root: Root, prefix: str, names: Names) -> None:
    above: dict[str, tuple[str, int]] = {}  # the latest module of each name
    for (path, key), plain in root.paths.items():
        fqn = _unreserved(".".join(part for part in (prefix, plain) if part)) or ROOT
        outer, outer_key = above.get(plain, (path, key))
        if outer_key != key and len(path) > len(outer):
            names.wrapped.setdefault(outer_key, key)
        above[plain] = path, key
        first_name = names.fqn.setdefault(key, fqn)
        if first_name != fqn and fqn not in names.aliases.setdefault(key, []):
            names.aliases[key].append(fqn)


def _infos(names: Names, facts: Mapping[int, Facts]) -> tuple[ModuleInfo, ...]:
    infos: dict[str, ModuleInfo] = {}
    for key, fqn in names.fqn.items():
        if key in facts and key not in names.wrapped and fqn not in infos:
            fact = facts[key]
            aliases = tuple(names.aliases.get(key, ()))
            infos[fqn] = ModuleInfo(fqn, fact.class_name, fact.params, fact.param_bytes, aliases)
    return tuple(infos.values())
