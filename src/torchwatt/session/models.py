"""Checks the `model` argument of `profile()` before anything starts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from torchwatt.core.errors import ConfigError

LEAVE_OUT = "leave it out, and models are detected automatically"
_LONGEST = 40


def models_of(argument: Any) -> tuple[tuple[str, Any], ...]:
    """Return (name, model) pairs; a name is "" if it is to be taken from the user's variable.

    Args:
        argument: A module, several in a list, or a mapping of names to modules; None for no model.

    Raises:
        ConfigError: It is something else; the message names it and the fix.
    """
    if argument is None:
        return ()
    if _is_module(argument):
        return (("", argument),)
    if isinstance(argument, Mapping):
        _check_each(argument.values(), "mapping", argument)
        return tuple((str(name), model) for name, model in argument.items())
    if isinstance(argument, list | tuple | set | frozenset):
        _check_each(argument, type(argument).__name__, argument)
        return tuple(("", model) for model in argument)
    raise ConfigError(f"profile({_shown(argument)}): {_reason(argument)}")


def refuse_misplaced(values: tuple[Any, ...]) -> None:
    """Reject positional arguments after the first.

    Raises:
        ConfigError: There are any; the message suggests the option.
    """
    if not values:
        return
    if all(map(_is_module, values)):
        raise ConfigError("profile() takes several models in a list: profile([generator, critic])")
    first_value = values[0]
    option = "region" if isinstance(first_value, str) and len(first_value) == 3 and first_value.isupper() else "name"
    hint = f"{option}={first_value!r}" if isinstance(first_value, str) else "profile(model, region='FRA', csv='audit')"
    raise ConfigError(
        f"profile(model, {_shown(first_value)}): all arguments but the model need their names, such as {hint}"
    )


def refuse_unknown(names: Iterable[str], option_names: Iterable[str]) -> None:
    """Reject options that do not exist.

    Raises:
        ConfigError: There are any; the message suggests the nearest existing one.
    """
    for name in names:
        near = get_close_matches(name, list(option_names), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}=?" if near else "help(torchwatt.profile) lists all options"
        raise ConfigError(f"profile() has no option {name}=: {hint}")


def _check_each(models: Iterable[Any], kind: str, argument: Any) -> None:
    each = list(models)
    tensors = [model for model in each if _is(model, "torch", "Tensor")]
    if tensors and len(tensors) == len(each):
        mistake = "a state_dict" if isinstance(argument, Mapping) else "tensors"
        raise ConfigError(f"profile() was given {mistake}: give the model itself, profile(model)")
    if not each:
        raise ConfigError(f"profile() was given an empty {kind}: {LEAVE_OUT}")
    for model in each:
        if not _is_module(model):
            raise ConfigError(f"profile() takes models, and {_shown(model)} in the {kind} is not one: {_reason(model)}")


def _reason(argument: Any) -> str:  # noqa: PLR0911  one sentence for each kind of mistake
    kind = type(argument).__name__
    if isinstance(argument, type):
        return f"that is a class; build a model of it first: model = {argument.__name__}(...)"
    if isinstance(argument, str):
        option = "region" if len(argument) == 3 and argument.isupper() else "name"
        return f"a string is not a model; write {option}={argument!r}"
    if _is(argument, "torch", "Tensor"):
        return "that is a tensor, the result of a call; give the model itself: profile(model), not profile(model(x))"
    for module, name, description in (
        ("torch.optim.optimizer", "Optimizer", "an optimizer"),
        ("torch.optim.lr_scheduler", "LRScheduler", "a scheduler"),
        ("torch.utils.data", "DataLoader", "a DataLoader"),
        ("torch.utils.data", "Dataset", "a dataset"),
    ):
        if _is(argument, module, name):
            return f"that is {description}; give the model; {description} is detected automatically"
    if _is_module(getattr(argument, "model", None)):
        return f"that is {_a(kind)}; give the model in it: profile({kind.lower()}.model)"
    if hasattr(argument, "__next__"):
        return f"{_a(kind)} is not a model; give the model itself, not model.parameters() or model.modules()"
    if callable(argument):
        return "profile takes a model or no argument: write @profile() with parentheses to decorate a function"
    return f"{_a(kind)} is not a model; give a torch.nn.Module, or {LEAVE_OUT}"


def _is_module(value: Any) -> bool:
    return _is(value, "torch.nn", "Module")


def _is(value: Any, module: str, name: str) -> bool:
    """Return whether a value is an instance of a class; a module that is not imported has no instances."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _a(kind: str) -> str:
    return f"an {kind}" if kind[:1].lower() in "aeiou" else f"a {kind}"


def _shown(value: Any) -> str:
    """Return a short text that identifies a value for the user."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, str | int | float | bool):
        text = repr(value)
        return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return getattr(value, "__qualname__", "") or f"<{type(value).__name__}>"
