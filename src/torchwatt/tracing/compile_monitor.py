"""Record when torch.compile compiles, and on which thread, and hide a session's patches from it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from torchwatt.core.meter import Severity
from torchwatt.core.tracebacks import drop_own_frames
from torchwatt.tracing.log_rows import COMPILE_KEY, OFF
from torchwatt.tracing.overhead_budget import thread_clock
from torchwatt.tracing.patches import (
    DYNAMO,
    Patch,
    Patches,
    Wrapped,
    eval_frame_module,
    graph_task_id,
    sequence_nr,
    skip_own_code,
)
from torchwatt.tracing.thread_log import ThreadLog
from torchwatt.tracing.user_process import ImportHook

own_ns = thread_clock()

# Inductor's work at the first launch of a Triton kernel: outside the compilation that Dynamo reports.
AT_FIRST_LAUNCH = (
    ("torch._inductor.runtime.triton_heuristics", "CachingAutotuner", "autotune_to_one_config"),
    ("torch._inductor.runtime.triton_heuristics", "CachingAutotuner", "coordinate_descent_tuning"),
)


class CompileContext(Protocol):
    """The attributes of the hub that are used here."""

    clock_ns: Callable[[], int]
    patches: Patches
    logs: list[ThreadLog]
    off: bool

    def log(self) -> ThreadLog:
        """Return this thread's log."""

    def note(self, severity: Severity, code: str, message: str) -> None:
        """Record an event, once per code."""


class CompileMonitor:
    """Log each compilation as one row of the thread that it occupies, in every mode.

    During a compilation nothing else is logged on its thread, and the session's patches are removed, so that no graph
    and no guard depends on them.
    """

    def __init__(self, host: CompileContext) -> None:
        self._host = host
        self._local = threading.local()
        self._hooks: list[Patch] = []
        self._hooked: set[object] = set()
        self._attach: list[Callable[[Any], None]] = []
        self._import: ImportHook | None = None
        self._lock = threading.RLock()

    def when_imported(self, attach: Callable[[Any], None]) -> None:
        """Register a function to call once, with `torch._dynamo.eval_frame`, when the program has imported it."""
        self._attach.append(attach)

    def start(self) -> None:
        """Start watching as soon as the program imports Dynamo."""
        self.look()
        if not self._hooked:
            self._import = ImportHook(DYNAMO, self.look)

    def look(self) -> None:
        """Hook the modules that the program has imported so far."""
        eval_frame = eval_frame_module()
        if eval_frame is None:
            return
        with self._lock:
            if eval_frame not in self._hooked:
                self._hooked.add(eval_frame)
                skip_own_code(eval_frame)
                self._host.patches.restore_keepers()
                self._hook_compilation(sys.modules["torch._dynamo"].callback_handler)
                for attach in self._attach:
                    attach(eval_frame)
            for module, kind, method in AT_FIRST_LAUNCH:
                owner = getattr(sys.modules.get(module), kind, None)
                if owner is not None and (owner, method) not in self._hooked and hasattr(owner, method):
                    self._hooked.add((owner, method))
                    self._hook(owner, method, self._during)

    def hook(self, owner: Any, name: str, wrap: Callable[[Wrapped], Wrapped]) -> None:
        """Patch an attribute that no compiled program sees, until the end of the session."""
        if hasattr(owner, name):
            self._hook(owner, name, wrap)

    def _hook(self, owner: Any, name: str, wrap: Callable[[Wrapped], Wrapped]) -> None:
        self._hooks.append(Patch(owner, name, wrap))

    def _hook_compilation(self, handler: Any) -> None:
        frames = getattr(sys.modules.get("torch._dynamo.convert_frame"), "CatchErrorsWrapper", None)
        if frames is not None:  # from torch 2.5 on: all of Dynamo's work on a new function
            self._hook(frames, "__call__", self._during)
        if hasattr(handler, "install_callbacks"):
            self._hook(handler, "install_callbacks", self._manager)
        else:  # torch 2.4
            self._hook(handler, "run_start_callbacks", lambda original: self._before(original, self._reads))
            self._hook(handler, "run_end_callbacks", lambda original: self._before(original, self._has_read))

    def remove(self) -> None:
        """Remove all hooks."""
        for patch in reversed(self._hooks):
            patch.remove()
        self._hooks.clear()
        if self._import is not None:
            self._import.remove()
            self._import = None

    @property
    def is_compiling(self) -> bool:
        """Whether this thread compiles at the moment."""
        return getattr(self._local, "depth", 0) > 0

    def began(self) -> None:
        """Record the start of a compilation on this thread; a nested compilation is part of the outer one."""
        local = self._local
        local.depth = getattr(local, "depth", 0) + 1
        if local.depth > 1:
            return
        local.log, local.own_ns = self._waiting() or self._host.log(), own_ns()
        local.start_ns = self._host.clock_ns()
        local.mode, local.log.mode = local.log.mode, OFF

    def _waiting(self) -> ThreadLog | None:
        """Return the log of the thread that waits for this one, if this is autograd's device thread; else None.

        That thread's backward call contains the compilation, so the row belongs there.
        """
        if graph_task_id() < 0 or _runs_backward(sys._getframe()):
            return None
        idents = [ident for ident, frame in sys._current_frames().items() if _runs_backward(frame)]
        logs = [log for log in list(self._host.logs) if log.ident in idents]
        return logs[0] if len(logs) == 1 else None

    def ended(self) -> None:
        """Log the compilation that ended on this thread."""
        local = self._local
        local.depth = getattr(local, "depth", 0) - 1
        if local.depth:
            local.depth = max(local.depth, 0)  # one that began before the session
            return
        log, start_ns = local.log, local.start_ns
        if self._host.off or local.mode == OFF:
            return
        log.mode = local.mode
        log.settle()
        number, end_ns = sequence_nr(), self._host.clock_ns()
        log.rows.append((COMPILE_KEY, start_ns, end_ns, number, number, graph_task_id()))
        log.stride.leave_out(end_ns - start_ns, own_ns() - local.own_ns)

    def _manager(self, original: Wrapped) -> Wrapped:
        @contextmanager
        def install_callbacks(*args: Any, **kwargs: Any) -> Iterator[None]:
            self._reads()
            try:
                with original(*args, **kwargs):
                    yield
            finally:
                self._has_read()

        return install_callbacks

    def _during(self, original: Wrapped) -> Wrapped:
        def work(*args: Any, **kwargs: Any) -> Any:
            self.began()
            try:
                return original(*args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise
            finally:
                self.ended()

        return work

    def _reads(self) -> None:
        """Begin a compilation, which reads the program and torch's attributes."""
        self.began()
        self._host.patches.step_aside()

    def _has_read(self) -> None:
        self._host.patches.step_back()
        self.ended()
        self.look()

    @staticmethod
    def _before(original: Wrapped, act: Callable[[], None]) -> Wrapped:
        def run_callbacks(*args: Any, **kwargs: Any) -> Any:
            act()
            return original(*args, **kwargs)

        return run_callbacks


def _runs_backward(frame: FrameType | None) -> bool:
    """Return whether a thread, by its innermost frame, is inside a backward call."""
    while frame is not None:
        if frame.f_code.co_name == "_engine_run_backward":
            return True
        frame = frame.f_back
    return False
