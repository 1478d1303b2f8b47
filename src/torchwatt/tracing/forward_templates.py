"""Fill forward spans of untraced calls from traced calls in which the same modules ran."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.aggregated_spans import ANY_GRAPH, AggregatedSpans, SpanKinds
from torchwatt.tracing.call_template import (
    CallTemplate,
    ElasticTemplate,
    TimedCall,
    TracedCall,
    net_clock,
    reassign_pieces,
    relative_sd,
    traced_calls,
)
from torchwatt.tracing.log_rows import (  # fmt: skip
    COMPILE_KEY,
    END,
    FAILED_SIZE,
    FORWARD_TASK,
    KEY,
    NO_CHANGES,
    OUTERMOST_TASK,
    SEQ0,
    SEQ1,
    START,
    TASK,
    UNCOUNTED_COMMUNICATION_KEY,
    CallPattern,
    CallSignature,
    stages_at,
)
from torchwatt.tracing.template_composer import CallSample, ModuleTree, TemplateComposer, sample_of
from torchwatt.tracing.trace_spans import fit_template

SIZE_TOLERANCE = 1e-3  # of a node


class GraphSizes:
    """Graph sizes of steps as sums over the calls counted in them.

    Where each call of a counted module makes equally many nodes, the size of a graph follows from the calls. A step
    with another graph size called modules that were not counted more or less often.

    Args:
        steps: Calls of each module in a step, by key, and the number of nodes made.
        over: The counted modules.
        similar: Modules that make equal graphs share a value.
    """

    def __init__(
        self, steps: Sequence[tuple[Mapping[int, int], int]], over: frozenset[int], similar: Mapping[int, object]
    ) -> None:
        self._over, self._alike = over, similar
        rows = {(tuple(sorted(self._row(counts).items(), key=str)), nodes) for counts, nodes in steps}
        names = sorted({name for row, _ in rows for name, _ in row}, key=str)
        self._place = {name: i for i, name in enumerate(names)}
        self._seen = {(self._vector(dict(row)), nodes) for row, nodes in rows}
        self._rows = np.array([row for row, _ in self._seen], dtype=np.float64).reshape(len(self._seen), len(names))
        nodes = np.array([nodes for _, nodes in self._seen], dtype=np.float64)
        self._each = np.linalg.lstsq(self._rows, nodes, rcond=None)[0] if len(nodes) else np.zeros(0)
        self._is_exact = len(nodes) > 0 and bool(np.abs(self._rows @ self._each - nodes).max() < SIZE_TOLERANCE)

    def explain(self, counts: Mapping[int, int], nodes: int) -> bool:
        """Return whether a step with such calls makes that many nodes, judged by the recorded steps.

        A module without similar ones in those steps may have made the excess.
        """
        row = self._row(counts)
        new = row.keys() - self._place.keys()
        vector = self._vector(row)
        if not new and (vector, nodes) in self._seen:
            return True
        if not self._is_exact:
            return False
        of_rows = np.linalg.lstsq(self._rows.T, np.array(vector, dtype=np.float64), rcond=None)[0]
        is_told = np.abs(self._rows.T @ of_rows - vector).max() < SIZE_TOLERANCE
        residual = nodes - float(np.dot(vector, self._each))
        return bool(is_told and (residual > -SIZE_TOLERANCE if new else abs(residual) < SIZE_TOLERANCE))

    def _row(self, counts: Mapping[int, int]) -> Counter[object]:
        """Return the calls of modules, similar ones summed, with a constant 1 for the step."""
        row: Counter[object] = Counter({None: 1})
        for key, n in counts.items():
            if key in self._over and n:
                row[self._alike.get(key, key)] += n
        return row

    def _vector(self, row: Mapping[object, int]) -> tuple[int, ...]:
        return tuple(row.get(name, 0) for name in self._place)


MOST_COMPARED = 64  # traced calls of one kind, evenly spread, whose relative SD is computed
ENOUGH = 4  # traced and untraced calls of a kind needed to compare lengths
MOST_CALL_NS = 20_000.0  # logging one call: a larger difference is not caused by logging


@dataclass(frozen=True, slots=True, eq=False)
class CallPaths:
    """Which modules ran in the recorded calls of one thread.

    Args:
        calls: Outermost calls of which all module calls are known.
        varying: Modules whose number of calls varies per call of the enclosing module, by key and graph size of the
            outermost call.
    """

    calls: Sequence[TracedCall]
    varying: Mapping[tuple[int, int], frozenset[int]]
    tree: ModuleTree
    signatures: Sequence[CallSignature]
    outermost: frozenset[int] = frozenset()  # modules that were called outside any other
    inner_keys: Mapping[int, frozenset[int]] = field(default_factory=dict)  # modules ever called in a module

    def uncertain(self, key: int, size: int, ran: CallSignature) -> frozenset[int]:
        """Return the modules whose number of calls, possibly 0, is unknown in a call."""
        if (key, size) in self.varying:
            return self.varying[key, size] - ran.over
        # Where all traced calls made graphs of one size, a call with another size may have called other modules.
        inner_keys = self.inner_keys.get(key, NO_KEYS)
        traced = {inner for of, inner in self.varying if of == key and inner > 0}
        if size > 0 and len(traced) == 1 and not inner_keys & ran.over:
            return inner_keys
        return self.varying.get((key, ANY_GRAPH), NO_KEYS) - ran.over

    def uncertain_in_step(self, ran: CallSignature) -> frozenset[int]:
        """Return the same for a step of which only the end was recorded."""
        return frozenset().union(*(keys for (_, size), keys in self.varying.items() if size == ANY_GRAPH)) - ran.over

    def inside_of(self, keys: Collection[int]) -> frozenset[int]:
        """Return the modules ever called in some modules."""
        return NO_KEYS.union(*(self.inner_keys.get(key, NO_KEYS) for key in keys))

    def signature(self, task: int) -> CallSignature:
        """Return the signature in a row's task."""
        number = OUTERMOST_TASK - task
        return self.signatures[number] if 0 <= number < len(self.signatures) else EMPTY_SIGNATURE


NO_KEYS: frozenset[int] = frozenset()
EMPTY_SIGNATURE = CallSignature()


def paths_of(
    table: IntArray,
    tree: ModuleTree,
    signatures: Sequence[CallSignature],
    outermost: frozenset[int] = NO_KEYS,
    siblings: Mapping[int, frozenset[int]] = MappingProxyType({}),
) -> CallPaths:
    """Study the traced calls of a log.

    Where one module of a list is not always called, none of its `siblings` is known to be; nor are they where a call
    passes one of several alike: another call may choose another one, and make a graph of the same size. Only the
    module that is called itself surely ran.
    """
    calls = traced_calls(table)
    patterns: dict[tuple[int, int], CallPattern] = defaultdict(CallPattern)
    for call in calls:
        key, size = kind_of(table, call.row)
        if size == FAILED_SIZE:
            continue
        chosen = _choices(call.counts, siblings, tree)
        for each in ((key, size), (key, ANY_GRAPH)):
            patterns[each].add(call.counts, tree.parent)
            patterns[each].varying |= chosen
    varying = {
        kind: frozenset(pattern.varying).union(*(siblings.get(key, NO_KEYS) for key in pattern.varying)) - {kind[0]}
        for kind, pattern in patterns.items()
    }
    inside_of: dict[int, frozenset[int]] = defaultdict(frozenset)
    for call in calls:
        key, _ = kind_of(table, call.row)
        inside_of[key] |= call.counts.keys() - {key}
    return CallPaths(calls, varying, tree, signatures, outermost, inside_of)


def _choices(counts: Mapping[int, int], siblings: Mapping[int, frozenset[int]], tree: ModuleTree) -> set[int]:
    """Return the called modules of lists in which modules alike were not called as often."""
    choices: set[int] = set()
    for key in counts.keys() & siblings.keys():
        similar = {sibling for sibling in siblings[key] if tree.archetypes.get(sibling) == tree.archetypes.get(key)}
        if any(counts.get(sibling, 0) != counts[key] for sibling in similar):
            choices |= similar
    return choices


def kind_of(table: IntArray, row: int) -> tuple[int, int]:
    """Return the key of a call, and the number of sequence numbers that autograd assigned during it."""
    return int(table[row, KEY]), int(table[row, SEQ1] - table[row, SEQ0])


class ForwardTemplates:
    """The traced outermost calls of one thread, by module, graph size, and modules called.

    Args:
        table: Rows of the thread's log.
        paths: Of the same rows.
        call_ns: Cost of logging one call, where it cannot be estimated.
        stages: Changes of the thread's stage, as in `stages_at`: a call is filled in from one of its own.
    """

    def __init__(self, table: IntArray, paths: CallPaths, call_ns: float = 0.0, stages: IntArray = NO_CHANGES) -> None:
        self._table = table
        self._compiled = table[table[:, KEY] == COMPILE_KEY]
        self._paths = paths
        self._call_ns = call_ns
        rows = [call.row for call in paths.calls]
        self._stage = dict(zip(rows, stages_at(stages, table[rows, START]).tolist(), strict=True))
        self._of: dict[tuple[int, int], list[TracedCall]] = defaultdict(list)
        for call in paths.calls:
            key, size = kind_of(table, call.row)
            if size == FAILED_SIZE:
                continue
            self._of[key, size].append(call)
            self._of[key, ANY_GRAPH].append(call)
        self._templates: dict[tuple[int, frozenset[int]], CallTemplate | None] = {}
        self._matching: dict[tuple[int, int, int, int], list[tuple[int, TracedCall]]] = {}
        self._composers: dict[tuple[int, int], TemplateComposer] = {}
        self._sizes: dict[tuple[int, frozenset[int]], GraphSizes] = {}
        self.uncertain: set[int] = set()  # modules whose calls are unknown
        self.untold = 0  # number of calls with such modules
        self.unlike: set[int] = set()  # modules that ran but whose inner calls no traced call shows
        self.unfilled = 0  # calls of such modules
        self._elastic: dict[tuple[int, frozenset[int]], ElasticTemplate] = {}

    def nearest(self, records: AggregatedSpans, kinds: SpanKinds) -> Iterator[tuple[int, CallTemplate]]:
        """Yield each outermost call among the records with the template that fills it."""
        self._call_ns = self._cost_ns(records, kinds)
        for i, (kind, start) in enumerate(zip(records.kind.tolist(), records.start.tolist(), strict=True)):
            description = kinds.of[kind]
            if description[0] != "row" or not isinstance(description[1], int) or description[1] <= 0:
                continue
            length_ns = float(records.end[i] - records.start[i]) / int(records.count[i])
            template = self.fill(
                (description[1], int(description[2]), int(description[3]), kinds.stage[kind]),
                start, length_ns, int(records.count[i]),
            )  # fmt: skip
            if template is not None:
                yield i, fit_template(template, records, i)

    def fill(self, kind: tuple[int, int, int, int], t_ns: int, length_ns: float, count: int) -> ElasticTemplate | None:
        """Return the template for untraced calls with a kind (key, size, task, stage), if any."""
        key, size, task, stage = kind
        if size == FAILED_SIZE:  # its end is unknown
            self.unlike.add(key)
            self.unfilled += count
            return None
        ran = self._paths.signature(task)
        matching = self._match(kind, ran)
        if not matching:
            composed = self._composed((key, size, stage), ran, length_ns)
            if composed is None and self._paths.tree.holds(key):
                self.unlike.add(key)
                self.unfilled += count
            return None if composed is None else ElasticTemplate(composed, round(length_ns))
        starts = [start for start, _ in matching]
        at = bisect.bisect(starts, t_ns)
        near = min(range(max(at - 1, 0), min(at + 1, len(starts))), key=lambda i: abs(starts[i] - t_ns))
        uncertain = self._paths.uncertain(key, size, ran) | self._unexplained(key, size, ran)
        self.uncertain |= uncertain
        self.untold += count * bool(uncertain)
        return self._stretchable(matching[near][1], uncertain)

    def _stretchable(self, call: TracedCall, uncertain: frozenset[int]) -> ElasticTemplate | None:
        template = self.template(call, uncertain)
        if template is None:
            return None
        if (call.row, uncertain) not in self._elastic:
            length_ns = int(self._table[call.row, END] - self._table[call.row, START])
            self._elastic[call.row, uncertain] = ElasticTemplate(template, length_ns)
        return self._elastic[call.row, uncertain]

    def _in_stage(self, calls: Sequence[TracedCall], stage: int) -> Sequence[TracedCall]:
        """Return the calls of a stage, or all if it has no traced call."""
        return [call for call in calls if self._stage[call.row] == stage] or calls

    def _match(self, kind: tuple[int, int, int, int], ran: CallSignature) -> list[tuple[int, TracedCall]]:
        if kind not in self._matching:
            key, size, _, stage = kind
            of_size = [call for call in self._of[key, size] if ran.matches(call.counts)]
            calls = of_size or [call for call in self._of[key, ANY_GRAPH] if ran.over and ran.matches(call.counts)]
            if not calls and not ran.over:
                calls = self._of[key, ANY_GRAPH]
            calls_of_stage = self._in_stage(calls, stage)
            self._matching[kind] = [(int(self._table[call.row, START]), call) for call in calls_of_stage]
        return self._matching[kind]

    def _unexplained(self, key: int, size: int, ran: CallSignature) -> frozenset[int]:
        """Return the modules that, by the call's graph size, may have run more or less often than in traced calls."""
        inner_keys = self._paths.inside_of((key,)) - ran.over
        if size <= 0 or not inner_keys or not ran.over:
            return NO_KEYS
        if (key, ran.over) not in self._sizes:
            traced = [(call.counts, kind_of(self._table, call.row)[1]) for call in self._of[key, ANY_GRAPH]]
            grown = [(counts, nodes) for counts, nodes in traced if nodes > 0]
            self._sizes[key, ran.over] = GraphSizes(grown, ran.over - {key}, self._paths.tree.archetypes)
        return NO_KEYS if self._sizes[key, ran.over].explain(ran.counts, size) else inner_keys

    def _composed(self, kind: tuple[int, int, int], ran: CallSignature, length_ns: float) -> CallTemplate | None:
        key, size, stage = kind
        if (key, stage) not in self._composers:
            samples = [self._sample(call) for call in self._in_stage(self._of[key, ANY_GRAPH], stage)]
            usable = [sample for sample in samples if sample is not None]
            self._composers[key, stage] = TemplateComposer(usable, self._paths.tree, lambda owner: owner)
        uncertain = self._paths.uncertain(key, ANY_GRAPH, ran) | self._unexplained(key, size, ran)
        self.uncertain |= uncertain
        self.unlike |= self._composers[key, stage].unlike(ran)
        template = self._composers[key, stage].compose(ran, length_ns)
        return (
            template
            if template is None
            else reassign_pieces(template, lambda k: self._paths.tree.enclosing(k, uncertain) or None)
        )

    def _sample(self, call: TracedCall) -> CallSample | None:
        template = self.template(call)
        return None if template is None else sample_of(template, float(self._on_clock(call).net_ns), call.counts)

    def _on_clock(self, call: TracedCall) -> TimedCall:
        """Return a traced call's interval with its compilations, which do not recur."""
        start, end = int(self._table[call.row, START]), int(self._table[call.row, END])
        compilations = self._compiled[(self._compiled[:, START] >= start) & (self._compiled[:, END] <= end)]
        return TimedCall(start, end, tuple((int(s), int(e)) for s, e in compilations[:, [START, END]]))

    def template(self, call: TracedCall, uncertain: frozenset[int] = NO_KEYS) -> CallTemplate | None:
        """Return the template of a traced call; None if it called nothing."""
        cache_key = (call.row, uncertain)
        if cache_key not in self._templates:
            if uncertain:
                plain = self.template(call)
                enclosing = self._paths.tree.enclosing
                result = (
                    None if plain is None else reassign_pieces(plain, lambda key: enclosing(key, uncertain) or None)
                )
            else:
                result = self._made(call)
            self._templates[cache_key] = result
        return self._templates[cache_key]

    def _made(self, call: TracedCall) -> CallTemplate | None:
        rows = self._table[call.first_row : call.row]
        on_clock = self._on_clock(call)
        rows = rows[(rows[:, START] >= on_clock.start_ns) & (rows[:, TASK] == FORWARD_TASK)]
        rows = rows[rows[:, KEY] != COMPILE_KEY]
        if not len(rows):
            return None
        rows = rows[np.lexsort((-rows[:, END], rows[:, START]))]
        start, end = on_clock.to_net(rows[:, START]), on_clock.to_net(rows[:, END])
        clock = net_clock((0, on_clock.net_ns), start, end, self._call_ns)
        if clock.total_ns <= 0:
            return None
        starts, ends = clock.at(start) / clock.total_ns, clock.at(end) / clock.total_ns
        counted = (rows[:, KEY] != UNCOUNTED_COMMUNICATION_KEY).astype(np.int64)
        return CallTemplate(starts, ends, rows[:, KEY], counted)

    def _cost_ns(self, records: AggregatedSpans, kinds: SpanKinds) -> float:
        """Return the cost of logging a call: the excess length of traced calls over others of their kind, in ns."""
        costs = []
        for number, description in enumerate(kinds.of):
            traced = self._of.get((description[1], description[2]), ()) if description[0] == "row" else ()  # type: ignore[arg-type]
            untraced = np.flatnonzero(records.kind == number)
            inner_calls = sum(sum(call.counts.values()) - 1 for call in traced) / max(len(traced), 1)
            if len(traced) < ENOUGH or int(records.count[untraced].sum()) < ENOUGH or not inner_calls:
                continue
            rows = [call.row for call in traced]
            full_ns = float(np.median(self._table[rows, END] - self._table[rows, START]))
            light_ns = float(np.median((records.end[untraced] - records.start[untraced]) / records.count[untraced]))
            costs.append((full_ns - light_ns) / inner_calls)
        return min(max(float(np.median(costs)) if costs else self._call_ns, 0.0), MOST_CALL_NS)

    def carry_rel_sd(self, slot_of: Callable[[int], int], used: Collection[int]) -> dict[int, float]:
        """Return the relative SD of each slot's share between traced calls, for the modules that were filled."""
        groups = []
        for (key, size), calls in self._of.items():
            if key in used and size != ANY_GRAPH:
                for stage in sorted({self._stage[call.row] for call in calls}):
                    calls_of_stage = self._in_stage(calls, stage)
                    chosen = calls_of_stage[:: max(len(calls_of_stage) // MOST_COMPARED, 1)]
                    groups.append([self._shares(call, key, slot_of) for call in chosen])
        return relative_sd(groups)

    def _shares(self, call: TracedCall, key: int, slot_of: Callable[[int], int]) -> dict[int, float]:
        template = self.template(call)
        shares: dict[int, float] = defaultdict(float)
        shares[slot_of(key)] = 1.0
        for owner, share in (template.shares() if template is not None else {}).items():
            shares[slot_of(owner)] += share
            shares[slot_of(key)] -= share
        return shares
