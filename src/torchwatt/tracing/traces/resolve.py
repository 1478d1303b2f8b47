"""Find the owner of a launch at an instant of a host thread, from module down to unattributed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.core.terms import UNATTRIBUTED, Phase, Slot
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.autograd import Owners, owners
from torchwatt.tracing.traces.claims import Claims, claims_of
from torchwatt.tracing.traces.labels import NODE_PREFIX, is_backward_op, is_reserved, scope_name
from torchwatt.tracing.traces.live import NO_LIVE, Live
from torchwatt.tracing.traces.nest import Nest, nest
from torchwatt.tracing.traces.outcome import CODE
from torchwatt.tracing.traces.tables import Kineto


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """The host side of a trace, prepared for look-ups."""

    trace: Kineto
    claims: Claims
    owners: Owners
    ops: Nest | None  # top operators, only without a better label

    def at(self, thread: IntArray, t_ns: IntArray) -> tuple[IntArray, IntArray]:
        """Return slot and outcome of launches at instants.

        Innermost module, autograd node, optimizer or loader; else the innermost named range; else the compiled graph;
        else, in a trace without module names, the operator; else `(unattributed)`.
        """
        claims, book = self.claims, self.claims.book
        slot, outcome, node = claims.at(thread, t_ns)
        in_backward = node != NOBODY
        slot = np.where(in_backward, np.append(self.owners.slot, NOBODY)[node], slot)
        outcome = np.where(in_backward, np.append(self.owners.outcome, NOBODY)[node], outcome)
        around = claims.scope_at(thread, t_ns)
        in_scope = around != NOBODY
        backward = in_backward & in_scope & (slot < 0)
        around = np.where(backward, book.in_phase(np.where(backward, around, NOBODY), "backward"), around)
        outcome = np.where((slot < 0) & in_scope, CODE["scope"], outcome)
        slot = np.where(slot < 0, around, slot)
        self._by_compiled_graph(thread, t_ns, node, slot, outcome)
        if self.ops is not None:
            self._by_operator(thread, t_ns, node, slot, outcome)
        nobody = slot < 0
        unclaimed = np.where(in_backward, book(Slot(UNATTRIBUTED, "backward")), book(Slot(UNATTRIBUTED, "other")))
        return np.where(nobody, unclaimed, slot), np.where(nobody, CODE["outside"], outcome)

    def _by_compiled_graph(
        self, thread: IntArray, t_ns: IntArray, node: IntArray, slot: IntArray, outcome: IntArray
    ) -> None:
        """Set launches without an owner to the compiled graph's call around them, a range that torch writes itself."""
        call = self.compiled_at(thread, t_ns)
        open_ = np.flatnonzero((slot < 0) & (call != NOBODY))
        for i in open_.tolist():
            phase: Phase = "backward" if node[i] != NOBODY else "other"
            name = scope_name(self.trace.names[int(self.claims.compiled_name[call[i]])])
            slot[i], outcome[i] = self.claims.book(Slot(name, phase)), CODE["scope"]

    def _by_operator(self, thread: IntArray, t_ns: IntArray, node: IntArray, slot: IntArray, outcome: IntArray) -> None:
        """Name by the forward operator of the autograd node, or by the outermost running operator."""
        assert self.ops is not None  # noqa: S101  # checked by the caller
        maker = np.append(self.owners.op, NOBODY)[node]
        running = self.ops.outermost(self.ops.at(thread, t_ns))
        op = np.where(maker != NOBODY, maker, running)
        open_ = np.flatnonzero((slot < 0) & (op != NOBODY))
        for code in np.unique(self.trace.ops.name[op[open_]]).tolist():
            mine = open_[self.trace.ops.name[op[open_]] == code]
            name = self.trace.names[code].removeprefix(NODE_PREFIX)
            for backward in (False, True):
                part = mine[((node[mine] != NOBODY) | is_backward_op(name)) == backward]
                phase: Phase = "backward" if backward else "forward"
                if len(part):
                    slot[part], outcome[part] = self.claims.book(Slot(name, phase)), CODE["op"]

    def compiled_at(self, thread: IntArray, t_ns: IntArray) -> IntArray:
        """Return the call of a compiled graph (place in `claims.compiled_name`) at instants, -1 outside."""
        return self.claims.compiled.at(thread, t_ns)


def host_of(trace: Kineto, live: Live = NO_LIVE) -> Host:
    """Prepare the host side of a trace."""
    claims = claims_of(trace, live)
    top: Nest | None = None
    if claims.labels in {"scope", "none"}:
        plain = np.array([not is_reserved(name) for name in trace.names] or [True], dtype=np.bool_)[trace.ops.name]
        # Reserved ranges that old traces wrote as operators enclose operators but are not operators.
        end = np.where(plain, trace.ops.end_ns, trace.ops.start_ns)
        top = nest(trace.ops.thread, trace.ops.start_ns, end)
    return Host(trace, claims, owners(trace, claims, live), top)
