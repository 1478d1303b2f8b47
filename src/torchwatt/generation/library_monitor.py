"""Watches libraries that show stages and tokens, for the sessions that run: one set of patches for the process."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torchwatt.core.tracebacks import without_own_frames
from torchwatt.generation.request_log import RequestLog
from torchwatt.generation.transformers_adapter import CONTINUOUS_MODULE, GENERATION_MODULE, TransformersAdapter


class Removable(Protocol):
    """A patch or an import hook."""

    def remove(self) -> Any:
        """Remove it."""


@dataclass(frozen=True, slots=True)
class LibraryTools:
    """What the monitor uses of tracing.

    Attributes:
        stage: `torchwatt.stage`.
        patch: Replaces an attribute (owner, name) by a wrapper of it.
        when_imported: Calls a function when the program has imported a module.
        clock_ns: The sessions' clock.
    """

    stage: Callable[[str], AbstractContextManager[Any]]
    patch: Callable[[Any, str, Callable[[Any], Any]], Removable]
    when_imported: Callable[[str, Callable[[], None]], Removable]
    clock_ns: Callable[[], int]


@dataclass(frozen=True, slots=True)
class StagedMethod:
    """A method whose calls are a stage."""

    module: str
    owner: str
    method: str
    stage: str


# Calls of one inside another belong to the inner one: an evaluation during a training is `validation`.
STAGED_METHODS = (
    StagedMethod("transformers.trainer", "Trainer", "train", "train"),
    StagedMethod("transformers.trainer", "Trainer", "evaluate", "validation"),
    StagedMethod("transformers.trainer", "Trainer", "predict", "test"),
    *(
        StagedMethod(f"{package}.trainer.trainer", "Trainer", method, stage)
        for package in ("lightning.pytorch", "pytorch_lightning")
        for method, stage in (
            ("fit", "train"), ("validate", "validation"), ("test", "test"), ("predict", "inference"),
        )
    ),
    *(
        StagedMethod(f"{package}.loops.evaluation_loop", "_EvaluationLoop", "run", "validation")
        for package in ("lightning.pytorch", "pytorch_lightning")
    ),
    StagedMethod("sentence_transformers", "SentenceTransformer", "encode", "encode"),
)  # fmt: skip


class LibraryMonitor:
    """Patches the libraries while at least one session runs, and passes their stages and requests to its log."""

    def __init__(self) -> None:
        self.logs: tuple[RequestLog, ...] = ()
        self._removables: list[Removable] = []
        self._lock = threading.RLock()

    def join(self, log: RequestLog, tools: LibraryTools) -> None:
        """Start to pass requests to a session's log."""
        with self._lock:
            self.logs = (*self.logs, log)
            if len(self.logs) == 1:
                self._install(tools)

    def leave(self, log: RequestLog) -> None:
        """Stop passing requests to a log; the last one removes the patches."""
        with self._lock:
            self.logs = tuple(each for each in self.logs if each is not log)
            if not self.logs:
                while self._removables:
                    self._removables.pop().remove()

    def _install(self, tools: LibraryTools) -> None:
        adapter = TransformersAdapter(tools.stage, lambda: self.logs, tools.clock_ns)
        self._when_loaded(GENERATION_MODULE, tools, lambda: self._patch_all(tools, adapter.patches()))
        self._when_loaded(CONTINUOUS_MODULE, tools, lambda: self._patch_all(tools, adapter.pass_patches()))
        for module in sorted({each.module for each in STAGED_METHODS}):
            self._when_loaded(module, tools, functools.partial(self._patch_staged, tools, module))

    def _when_loaded(self, module: str, tools: LibraryTools, install: Callable[[], None]) -> None:
        if module in sys.modules:
            install()
        else:
            self._removables.append(tools.when_imported(module, install))

    def _patch_staged(self, tools: LibraryTools, module: str) -> None:
        methods = [each for each in STAGED_METHODS if each.module == module]
        owners = [(each, getattr(sys.modules[module], each.owner, None)) for each in methods]
        self._patch_all(tools, [(owner, each.method, stage_wrapper(tools.stage, each.stage)) for each, owner in owners])

    def _patch_all(self, tools: LibraryTools, patches: Sequence[tuple[Any, str, Callable[[Any], Any]]]) -> None:
        """Patch what a version of the library has."""
        with self._lock:
            if self.logs:
                self._removables += (
                    tools.patch(owner, name, functools.partial(_wrap_unseen, wrap))
                    for owner, name, wrap in patches
                    if hasattr(owner, name)
                )


def _wrap_unseen(wrap: Callable[[Any], Any], original: Any) -> Callable[..., Any]:
    """Return a wrapper of a library's method that leaves no frames in tracebacks."""
    return without_own_frames(wrap(original))


def stage_wrapper(
    stage: Callable[[str], AbstractContextManager[Any]], name: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a wrapper that runs a method inside a stage; Lightning's one loop evaluates for two of them."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def staged(owner: Any, *args: Any, **kwargs: Any) -> Any:
            is_test = getattr(getattr(owner, "_stage", None), "value", "") == "test"
            with stage("test" if is_test else name):
                return original(owner, *args, **kwargs)

        return staged

    return wrap


MONITOR = LibraryMonitor()
