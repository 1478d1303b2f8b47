"""Fast path of the main thread while only the ends of steps are recorded."""

from __future__ import annotations

from torchwatt.tracing.conductor import Stride
from torchwatt.tracing.rows import LIGHT_TASK, STEP_KEY, Row
from torchwatt.tracing.signatures import BACKWARD, NO_NODES, Signatures


class Quiet:
    """State of the calls and steps that bypass their thread's log, whose access costs more than their other work.

    After a step's matrix products the caches are cold: each object that a wrapper touches counts. Only the main thread
    may use the fast path, while no other thread logs anything.
    """

    __slots__ = (
        "alone",
        "asleep",
        "by_hand",
        "called",
        "calls",
        "ends",
        "inside",
        "most",
        "nodes_before",
        "optimizer",
        "steps",
    )

    def __init__(self) -> None:
        self.alone = False  # the main thread logs, and no other thread has
        self.asleep = 0  # ident of the main thread while it records only ends of steps
        self.inside = 0  # the same, while it is inside an outermost call of such a step
        self.calls = 0  # outermost calls since the end of a step
        self.called: list[int] = []  # ids of outermost or counted modules called since the end of a step
        self.ends: list[Row] = []  # ends of steps, and calls without gradients, to be settled by the thread's log
        self.steps = 0  # number of steps since the thread's log was last updated
        self.most = 0  # maximum of `steps`, with this optimizer
        self.optimizer = 0  # id of the optimizer
        self.nodes_before = 0  # autograd's number at the end of a step, plus the nodes made by backward calls since
        self.by_hand = False  # no optimizer: the first backward call after a module call ends a step

    def rest(self, optimizer: int, stride: Stride) -> None:
        """Enter the fast path: record only ends of steps, until the thread's next decision.

        Args:
            optimizer: Id of the optimizer that ends the steps; 0: none.
            stride: Of the thread.
        """
        self.optimizer, self.most = optimizer, stride.planned - stride.steps - 1
        if not stride.planned:  # another thread has just requested a full trace
            self.stir()

    def take_nodes(self, number: int) -> int:
        """Return the number of autograd nodes made by the step that ends, given autograd's next number."""
        nodes, self.nodes_before = number - self.nodes_before, number
        return nodes

    def end_step(self, end_ns: int, signatures: Signatures, number: int) -> None:
        """Record the end of a step, the modules called in it, and autograd's next number."""
        self.called.append(NO_NODES - self.take_nodes(number))
        called = tuple(self.called)
        signature = signatures.by_ids.get(called)
        if signature is None:
            signature = signatures.number(called)
        self.ends.append((STEP_KEY, 0, end_ns, 0, 0, LIGHT_TASK - signature))  # it began where the step before ended
        self.called.clear()
        self.steps += 1
        self.calls = 0

    def note(self, optimizer: object, *, asleep: bool) -> None:
        """Record which optimizer stepped, in a step of which else only the calls are recorded."""
        if asleep and self.alone:
            self.called.append(id(optimizer))

    def leads_on(self) -> bool:
        """Return whether calls were recorded after the latest backward call."""
        return bool(self.called) and self.called[-1] != BACKWARD

    def stir(self) -> None:
        """Leave the fast path at the end of the next step."""
        self.most = 0

    def rise(self) -> int:
        """Leave the fast path; return the number of steps that the thread's log has not counted."""
        steps, self.steps, self.most, self.calls = self.steps, 0, 0, 0
        return steps
