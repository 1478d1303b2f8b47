"""Watches libraries that show stages and tokens, for the sessions that run: one set of patches for the process."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from torchwatt.core.tracebacks import without_own_frames
from torchwatt.generation.request_log import RequestLog
from torchwatt.generation.transformers_adapter import CONTINUOUS_MODULE, GENERATION_MODULE, TransformersAdapter


class Removable(Protocol):
    """A patch or an import hook."""

    def remove(self) -> Any:
        """Remove it."""


Patch = tuple[Any, str, Callable[[Any], Any]]  # owner, name, and the function from the original to its wrapper


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


PIPELINES_MODULE, MODELS_MODULE = "diffusers.pipelines.pipeline_utils", "diffusers.models.modeling_utils"
_AUTOENCODERS = ("Autoencoder", "VQModel")  # parts of the names of the classes whose `encode` and `decode` are a stage


class PipelineStages:
    """Stages of diffusers' pipelines: `text_encoder`, `denoise` (the loop with a progress bar), and `vae`.

    The methods are those of each pipeline's and autoencoder's own class: known are the classes that are loaded, and
    those of each pipeline that is made later.
    """

    def __init__(self, tools: LibraryTools, patch_all: Callable[[Sequence[Patch]], None]) -> None:
        self._stage, self._patch_all = tools.stage, patch_all
        self._seen: set[type] = set()

    def install(self) -> None:
        """Patch the classes that are loaded."""
        pipeline = getattr(sys.modules[PIPELINES_MODULE], "DiffusionPipeline", None)
        model = getattr(sys.modules.get(MODELS_MODULE), "ModelMixin", None)
        self._patch_all([(pipeline, "progress_bar", self._denoise), (pipeline, "register_modules", self._learn)])
        waiting = [each for each in (pipeline, model) if each is not None]
        while waiting:
            each = waiting.pop()
            self._add(each)
            waiting += each.__subclasses__()

    def _add(self, kind: type) -> None:
        """Patch what a class defines itself."""
        if kind in self._seen:
            return
        self._seen.add(kind)
        stages = {"encode_prompt": "text_encoder"}
        if any(part in kind.__name__ for part in _AUTOENCODERS):
            stages |= {"encode": "vae", "decode": "vae"}
        own = [(name, stage) for name, stage in stages.items() if name in vars(kind)]
        self._patch_all([(kind, name, stage_wrapper(self._stage, stage)) for name, stage in own])

    def _learn(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def register_modules(pipeline: Any, **modules: Any) -> Any:
            for each in (pipeline, *modules.values()):
                for kind in type(each).__mro__:
                    self._add(kind)
            return original(pipeline, **modules)

        return register_modules

    def _denoise(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def progress_bar(pipeline: Any, iterable: Any = None, total: int | None = None) -> Any:
            if iterable is not None:
                return original(pipeline, _StagedIterable(iterable, self._stage), total)
            bar = original(pipeline, iterable, total)
            stage = ExitStack()
            stage.enter_context(self._stage("denoise"))
            close = bar.close

            def close_and_leave() -> None:
                stage.close()
                close()

            bar.close = close_and_leave  # its `__exit__` calls it, whether or not the bar is shown
            return bar

        return progress_bar


class _StagedIterable:
    """An iterable whose iteration is the stage `denoise`."""

    def __init__(self, iterable: Any, stage: Callable[[str], AbstractContextManager[Any]]) -> None:
        self._iterable, self._stage = iterable, stage

    def __iter__(self) -> Iterator[Any]:
        with self._stage("denoise"):
            yield from self._iterable

    def __len__(self) -> int:
        return len(self._iterable)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterable, name)


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
        pipelines = PipelineStages(tools, functools.partial(self._patch_all, tools))
        self._when_loaded(PIPELINES_MODULE, tools, pipelines.install)
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

    def _patch_all(self, tools: LibraryTools, patches: Sequence[Patch]) -> None:
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
