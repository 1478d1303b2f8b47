"""Names of modules as users know them, given once everything that was called is known."""

from __future__ import annotations

from collections.abc import Iterable

from torchwatt.core.terms import RESERVED, ROOT
from torchwatt.core.trace import ModuleInfo
from torchwatt.tracing.registry import Known


def name_modules(known: list[Known], called: Iterable[int], main: int | None) -> dict[int, str]:
    """Return the fqn of every called module.

    The main root is the model that was given, or the only root with parameters among those that were called: its
    modules have the names of `state_dict` and it is `(root)` itself. Other roots carry the name of the variable that
    held them, or of their class, and their modules that name as prefix.
    """
    wanted = sorted(set(called))
    roots = sorted({root for key in wanted for root in _roots(known[key])})
    if main is None:
        heavy = [root for root in roots if known[root].holds_params]
        main = heavy[0] if len(heavy) == 1 else None
    prefixes = _prefixes(known, [root for root in roots if root != main])
    return {key: _fqn(known[key], main, prefixes) for key in wanted}


def infos(known: list[Known], names: dict[int, str], main: int | None) -> tuple[ModuleInfo, ...]:
    """Describe the called modules; wrapper and wrapped share a name and become one, the larger's class."""
    found: dict[str, ModuleInfo] = {}
    for key, fqn in names.items():
        module = known[key]
        aliases = tuple(dict.fromkeys(path or ROOT for root, path in module.paths if root == main and path != fqn))
        aliases = tuple(alias for alias in aliases if alias != fqn)
        info = ModuleInfo(fqn, module.class_name, module.params, module.param_bytes, aliases)
        if fqn not in found or module.params > found[fqn].params:
            found[fqn] = info
    return tuple(sorted(found.values(), key=lambda m: m.fqn))


def _roots(module: Known) -> set[int]:
    own = {root for root, _ in module.paths}
    return own or {module.key}


def _prefixes(known: list[Known], roots: list[int]) -> dict[int, str]:
    """Give every root but the main one a name of its own; an inner root of a named one needs none."""
    taken: set[str] = {*RESERVED, ROOT}
    names: dict[int, str] = {}
    for root in roots:
        base = known[root].hint or known[root].class_name
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        names[root] = name
    return names


def _fqn(module: Known, main: int | None, prefixes: dict[int, str]) -> str:
    for root, path in module.paths:
        if root == main:
            return path or ROOT
    for root, path in module.paths:
        return f"{prefixes[root]}.{path}" if path else prefixes[root]
    return prefixes.get(module.key) or module.class_name
