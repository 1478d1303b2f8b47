"""What the main thread does with least effort while it notes the ends of steps only."""

from __future__ import annotations

from torchwatt.tracing.conductor import Stride
from torchwatt.tracing.rows import LIGHT_TASK, STEP_KEY, Row
from torchwatt.tracing.signatures import BACKWARD, NO_NODES, Signatures


class Quiet:
    """Whose calls and steps may pass by without a look at their thread's log, which costs more than all else they do.

    After a step's matrix products the caches are cold: each object that a wrapper touches counts. Only the main thread
    may be quiet, for as long as no other logs anything.
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
        self.alone = False  # the main thread logs, and no other ever did
        self.asleep = 0  # the ident of the main thread, while it notes the ends of steps only
        self.inside = 0  # the same, while it is inside an outermost call of such a step
        self.calls = 0  # outermost calls since the end of a step
        self.called: list[int] = []  # ids of modules called outside any other, or counted, since the end of a step
        self.ends: list[Row] = []  # ends of steps, and calls without gradients, for the thread's log to book
        self.steps = 0  # ended here since the thread's books knew of them
        self.most = 0  # so many may, of this optimizer
        self.optimizer = 0  # its id
        self.nodes_before = 0  # autograd's number at the end of a step, and how many nodes backward calls made since
        self.by_hand = False  # no optimizer: the first backward call after a call of a module ends a step

    def rest(self, optimizer: int, stride: Stride) -> None:
        """From now on note only the ends of steps, until the thread's next decision.

        Args:
            optimizer: Id of the one whose steps they are; 0: there is none.
            stride: Of the thread.
        """
        self.optimizer, self.most = optimizer, stride.planned - stride.steps - 1
        if not stride.planned:  # another thread wants a look, and said so a moment ago
            self.stir()

    def take_nodes(self, number: int) -> int:
        """Return how many autograd nodes a step made that ends now, where that is autograd's next number."""
        nodes, self.nodes_before = number - self.nodes_before, number
        return nodes

    def end_step(self, end_ns: int, signatures: Signatures, number: int) -> None:
        """Note the end of a step, which modules were called in it, and autograd's next number."""
        self.called.append(NO_NODES - self.take_nodes(number))
        called = tuple(self.called)
        signature = signatures.by_ids.get(called)
        if signature is None:
            signature = signatures.number(called)
        self.ends.append((STEP_KEY, 0, end_ns, 0, 0, LIGHT_TASK - signature))  # it began where the one before ended
        self.called.clear()
        self.steps += 1
        self.calls = 0

    def note(self, optimizer: object, *, asleep: bool) -> None:
        """Note which optimizer stepped, where that is all that is known of a step beside the calls in it."""
        if asleep and self.alone:
            self.called.append(id(optimizer))

    def leads_on(self) -> bool:
        """Say whether calls were noted that no backward call has followed by now."""
        return bool(self.called) and self.called[-1] != BACKWARD

    def stir(self) -> None:
        """Have the end of the next step seen by the thread's books, which may know better."""
        self.most = 0

    def rise(self) -> int:
        """Let the thread's books know of all from now on; return how many steps they do not know of."""
        steps, self.steps, self.most, self.calls = self.steps, 0, 0, 0
        return steps
