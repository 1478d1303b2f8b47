"""Find, in the user's frames, the variable that holds a module and the module whose method calls it.

The program's own objects are inspected without running their code: a proxy may raise, or create its target.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, GetSetDescriptorType, ModuleType
from typing import Any

from torchwatt.disk.helper_thread import HelperThread

MAX_FRAMES = 30
# f_locals of a running function is a copy that the frame keeps (before 3.13): frame, two variables, argument.
OWN_REFERENCES = 4


class _Plain:
    """A class whose instances have the attributes of every class without `__slots__`."""


_MADE_BY_CLASS = vars(_Plain)["__dict__"]
_OWN_FOLDER = str(Path(__file__).resolve().parents[1])


def variable_name(module: Any, frame: FrameType | None) -> str | None:
    """Return the name of a module in the nearest user frame that has one: a variable, else an attribute."""
    for user in _user_frames(frame):
        with _locals(user) as names:
            name = (
                _variable_holding(module, names)
                or _attribute(module, names)
                or _variable_holding(module, user.f_globals)
            )
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
    skipped = (*getattr(torch, "__path__", ()), _OWN_FOLDER)
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


def _variable_holding(module: Any, names: Mapping[str, Any]) -> str | None:
    held = [name for name, value in list(names.items()) if value is module and name != "self"]
    # IPython keeps results as _, __, _12: prefer any other name.
    return min(held, key=lambda name: name.startswith("_"), default=None)


def _attribute(module: Any, names: Mapping[str, Any]) -> str | None:
    for name, value in list(names.items()):
        attributes = own_attributes(value)
        if attributes is None or issubclass(type(value), ModuleType | type):
            continue
        held = _variable_holding(module, attributes) or _variable_holding(module, children_of(value))
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


class ImportHook:
    """Calls a function once, when the program has imported a module; a failing import fails as without the hook.

    Args:
        name: The module.
        imported: Called on the importing thread, when the module's own code has run.
    """

    def __init__(self, name: str, imported: Callable[[], None]) -> None:
        self._name = name
        self._imported = imported
        self._searching = False
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002  a finder's arguments
        """Return the module's spec with a loader that calls the hook; None for any other module."""
        if name != self._name or self._searching:
            return None
        self._searching = True
        try:
            spec = find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def done(self) -> None:
        """Remove the hook and call the function: the module is imported."""
        if self in sys.meta_path:
            self.remove()
            self._imported()

    def remove(self) -> None:
        """Remove the hook."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)


class _Loader(Loader):
    """Load a module with its own loader, restore that loader, and call the hook."""

    def __init__(self, loader: Loader, hook: ImportHook) -> None:
        self._loader = loader
        self._hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._hook.done()


class StepJitter:
    """Sleep for a random time after each optimizer step and each step that the user marks; only on request.

    With up to 1 ms per step, a run in sync with the sensor's period has a third of the error (docs/attribution.md, T5).

    Args:
        most_s: Maximum sleep in seconds; drawn uniformly from 0 on.
        seed: Of the draws.
    """

    def __init__(self, most_s: float, seed: int | None = None) -> None:
        self.most_s = most_s
        self.slept_s = 0.0
        self.steps = 0
        self._draw = random.Random(seed)  # noqa: S311  not used for cryptography
        self._handle: Any = None

    def start(self) -> None:
        """Register a hook on the optimizers of this process."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._handle = register_optimizer_step_post_hook(lambda *_: self.delay_randomly())

    def delay_randomly(self) -> None:
        """Sleep for a random time."""
        import torch

        if torch.compiler.is_compiling():
            return
        seconds = self._draw.uniform(0.0, self.most_s)
        time.sleep(seconds)
        self.slept_s += seconds
        self.steps += 1

    def told(self) -> str:
        """Return a sentence on the delays, for the report."""
        most_ms, slept_ms = self.most_s * 1e3, self.slept_s * 1e3
        return f"{self.steps} steps were shaken by {slept_ms:.1f} ms in all, as asked: at most {most_ms:g} ms each"

    def stop(self) -> None:
        """Remove the hook."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()


def device_names(torch_cuda: Any, meters: Mapping[str, str]) -> dict[str, str]:
    """Map "gpu:<torch index>" to the domain of the device's meter.

    torch numbers the devices in CUDA_VISIBLE_DEVICES in CUDA's order; a meter is identified by its UUID. A device
    without a meter keeps torch's number with a mark, so that it is never given the energy of another device.

    Args:
        torch_cuda: `torch.cuda`.
        meters: Domain of each meter by the device's UUID, as NVML writes it ("GPU-...").
    """
    by_uuid = {_bare_uuid(uuid): domain for uuid, domain in meters.items()}
    names = {}
    for index in range(torch_cuda.device_count()):
        uuid = ""
        with contextlib.suppress(Exception):  # a device whose properties cannot be read has no meter
            uuid = str(torch_cuda.get_device_properties(index).uuid)
        names[f"gpu:{index}"] = by_uuid.get(_bare_uuid(uuid), f"gpu:{index} (no meter)")
    return names


def _bare_uuid(uuid: str) -> str:
    return uuid.removeprefix("GPU-").lower()


PATIENCE_S = 60.0  # limit for a collective that another rank does not join, or a kernel that does not end


def devices_in_use() -> tuple[int, ...]:
    """Return torch's indices of the CUDA devices that this process has initialised; initialises none."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():  # not loaded, or only partly
        return ()
    has_context = torch._C._cuda_hasPrimaryContext
    return tuple(index for index in range(torch.cuda.device_count()) if has_context(index))


def cuda_domains(meters: Mapping[str, str]) -> tuple[bool, frozenset[str]]:
    """Return whether CUDA is initialised here, and the domains of the devices on which this process has a context.

    Args:
        meters: Domain of each meter by the device's UUID, as NVML writes it ("GPU-...").
    """
    used = devices_in_use()
    torch = sys.modules.get("torch")
    started = torch is not None and hasattr(torch, "cuda") and bool(torch.cuda.is_initialized())
    names = device_names(sys.modules["torch"].cuda, meters) if used else {}
    return started, frozenset(names[f"gpu:{index}"] for index in used)


def synchronize() -> None:
    """Wait until all devices that this process uses have finished their queued work, without a time limit."""
    _synchronize(_can_synchronize())


def wait_for_devices(patience_s: float = PATIENCE_S) -> bool:
    """Wait until all devices that this process uses have finished their queued work; initialises no device.

    A failed device raises in the program's own next call, not here. During graph capture there is no wait.

    Args:
        patience_s: The longest wait.

    Returns:
        Whether they have finished; False after `patience_s`.
    """
    used = _can_synchronize()
    if not used:
        return True
    # On a separate thread: the wait is in C, where interrupts are not handled.
    waiting = HelperThread(partial(_synchronize, used), "torchwatt-wait")
    waiting.start()
    waiting.join(patience_s)
    return not waiting.is_alive()


def _can_synchronize() -> Sequence[int]:
    with contextlib.suppress(Exception):
        if (used := devices_in_use()) and not sys.modules["torch"].cuda.is_current_stream_capturing():
            return used
    return ()


def _synchronize(used: Sequence[int]) -> None:
    for index in used:
        with contextlib.suppress(Exception):
            sys.modules["torch"].cuda.synchronize(index)
