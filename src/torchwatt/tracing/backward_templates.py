"""Make the backward spans of a trace: recorded calls joined, others filled from templates."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchwatt.core.intervals import top_level
from torchwatt.core.meter import IntArray
from torchwatt.tracing.aggregated_spans import AggregatedSpans, SpanKinds
from torchwatt.tracing.call_template import (
    CallTemplate,
    ElasticTemplate,
    TemplateCatalogue,
    TimedCall,
    even_interruptions,
    neighbours_in_time,
    reassign_pieces,
    relative_sd,
    stretch_template,
    template_of,
)
from torchwatt.tracing.forward_templates import NO_KEYS, CallPaths
from torchwatt.tracing.log_rows import (
    COMPILE_KEY,
    END,
    KEY,
    OUTERMOST_TASK,
    SEQ0,
    SEQ1,
    START,
    UNKNOWN_KEY,
    AutogradNodes,
    BackwardCall,
    CallSignature,
    is_partial,
    stages_at,
)
from torchwatt.tracing.template_composer import (
    ModuleTree,
    ProportionalOwners,
    TemplateComposer,
    calls_of,
    differing_owners,
    mark_unknown,
    sample_of,
)
from torchwatt.tracing.thread_log import ThreadLog
from torchwatt.tracing.trace_spans import LogSnapshot, SpanColumns, SpanFiller, fit_template, inner_spans, join_backward

NEIGHBOURING_CALLS = 4  # recorded calls before and after an unrecorded one, to choose from


def plain_structures(keys: Sequence[Hashable]) -> tuple[Hashable, ...]:
    """Return structures without the signatures of the modules that ran inside."""
    return tuple(
        (key[0], tuple((k, size, OUTERMOST_TASK) for k, size, _ in key[1]), *key[2:])
        if isinstance(key, tuple) and key[0] == "coarse" else key
        for key in keys
    )  # fmt: skip


def _forward_of(keys: Sequence[Hashable], paths: CallPaths) -> tuple[CallSignature, frozenset[int]]:
    """Return the signature of the forward pass before an untraced call, and the modules for which it is uncertain."""
    outer = next((key[1] for key in keys if isinstance(key, tuple) and key[0] == "coarse"), ())
    signatures = [paths.signature(task) for _, _, task in outer]
    counts = Counter(key for key, _, _ in outer)
    # Calls that one outermost call makes of others, as a model does of what is called alone to generate, are not noted.
    over = (paths.outermost - paths.inside_of(counts)).union(counts, *(each.over for each in signatures))
    for each in signatures:
        counts.update(each.counts)
    uncertain = (paths.uncertain(key, size, ran) for (key, size, _), ran in zip(outer, signatures, strict=True))
    return CallSignature(counts, over), frozenset().union(*uncertain)


@dataclass(frozen=True, slots=True, eq=False)
class BackwardTemplate:
    """A recorded call as a template for others.

    `net` leaves out nested work with separate spans (recomputed modules); `whole` includes it, for calls of which
    nothing else is known. `counts` has the calls of each module in the forward pass.
    """

    net: ElasticTemplate
    whole: ElasticTemplate
    counts: Mapping[int, int]
    length_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    """Recorded calls, by time, that can fill another call; `untold`: whether an owner's call count is uncertain."""

    entries: list[tuple[int, BackwardTemplate]]
    matched: bool
    untold: Callable[[int], bool]


def most_similar(
    entries: Sequence[tuple[int, BackwardTemplate]], t_ns: int, length_ns: float
) -> BackwardTemplate | None:
    """Return the recorded call near in time that is most similar in length, else None.

    A call that other programs interrupted is long, and is used for others that were interrupted.
    """
    near = neighbours_in_time(entries, t_ns, NEIGHBOURING_CALLS)
    return min(near, key=lambda model: abs(math.log(model.length_ns / max(length_ns, 1.0))), default=None)


class BackwardTemplates:
    """Templates of the backward calls of some threads, and the spans made from them."""

    def __init__(self, looks: Mapping[ThreadLog, LogSnapshot], paths: Mapping[ThreadLog, CallPaths]) -> None:
        self._looks = looks
        self._tables = {log: snapshot.table for log, snapshot in looks.items()}
        self._paths = paths
        self._tree = next((each.tree for each in paths.values()), ModuleTree({}, {}))
        self._catalogue: TemplateCatalogue[BackwardTemplate] = TemplateCatalogue()
        self._composers: dict[
            bool, TemplateComposer
        ] = {}  # key: whether the modules that ran inside have their own spans
        self._left_open: dict[tuple[int, int], tuple[CallTemplate, _Candidates, CallTemplate]] = {}
        self._reassigned: dict[tuple[int, frozenset[int]], ElasticTemplate] = {}
        self.uncertain: set[int] = set()  # modules of which it is unknown whether they were called
        self.unseen: set[int] = set()  # the same for backward calls
        self.untold = False  # there are calls of which nothing inside is known
        self._models: dict[Hashable, list[BackwardTemplate]] = defaultdict(list)
        self._set_aside: set[int] = set()  # ids of recorded calls that are filled from others
        self.mismatched = 0
        self.unfilled = 0
        self._counts: dict[int, Mapping[int, int]] = {}  # calls of each module before a backward call, by the call's id
        for log, snapshot in looks.items():
            before: Mapping[int, int] = {}
            for call in snapshot.calls:
                # A second backward call through the same forward pass follows no other forward pass.
                before = self._counts[id(call)] = self._forward(log, call) or before
        recorded: dict[Hashable, list[tuple[BackwardCall, BackwardTemplate]]] = defaultdict(list)
        for log, snapshot in looks.items():
            for call in snapshot.calls:
                model = self._study(log, call)
                if model is not None:
                    recorded[plain_structures(call.cache["keys"])[:1]].append((call, model))
        self._set_aside_bare(recorded)
        self._recorded = {key: [model for _, model in calls] for key, calls in recorded.items()}  # not evened
        for key, calls in recorded.items():
            for (call, _), model in zip(calls, _drop_disturbance(calls), strict=True):
                self._catalogue.add(plain_structures(call.cache["keys"]), call.start_ns, model)
                self._models[key].append(model)

    def _set_aside_bare(self, recorded: dict[Hashable, list[tuple[BackwardCall, BackwardTemplate]]]) -> None:
        """Drop recorded calls that go through the modules of an untraced step, where others of their structure do not.

        What ran inside these modules is known of the others only.
        """
        for key, calls in recorded.items():
            bare = {id(call) for call, _ in calls if _reaches_back(call)}
            if len(bare) < len(calls):
                recorded[key] = [each for each in calls if id(each[0]) not in bare]
                self._set_aside |= bare
            else:
                known = set[int]().union(*(model.counts for _, model in calls))
                self.unseen |= set(self._tree.parent) - known

    def _study(self, log: ThreadLog, call: BackwardCall) -> BackwardTemplate | None:
        """Return the model of a recorded call; None if it was not recorded."""
        if call.nodes is None:
            return None
        if "model" not in call.cache:
            call.cache["model"] = self._model(log, call)
        model: BackwardTemplate | None = call.cache["model"]
        return model

    def _model(self, log: ThreadLog, call: BackwardCall) -> BackwardTemplate | None:
        lanes = self.pieces(log, call)
        if not lanes or not len(lanes[0]):
            return None
        clock = self._on_clock(log, call)
        net = _elastic(clock, lanes[0])
        rows = self._tables[log][call.first : call.last]
        modules, reserved = rows[rows[:, KEY] > 0], rows[rows[:, KEY] <= 0]
        compiled = rows[rows[:, KEY] == COMPILE_KEY]
        length_ns = call.end_ns - call.start_ns - int((compiled[:, END] - compiled[:, START]).sum())
        counts = self._counts[id(call)]
        if not len(modules):
            return None if net is None else BackwardTemplate(net, net, counts, length_ns)
        again = np.column_stack((modules[:, START], modules[:, END], modules[:, KEY], np.ones(len(modules), np.int64)))
        again[:, :2] = np.clip(again[:, :2], call.start_ns, call.end_ns)
        all_pieces = np.concatenate((lanes[0], again))
        all_pieces = all_pieces[np.lexsort((-all_pieces[:, 1], all_pieces[:, 0]))]
        top = reserved[top_level(reserved[:, START], reserved[:, END])]
        inner = tuple((int(s), int(e)) for s, e in np.clip(top[:, [START, END]], call.start_ns, call.end_ns))
        with_nested = _elastic(TimedCall(call.start_ns, call.end_ns, inner), all_pieces)
        return None if net is None or with_nested is None else BackwardTemplate(net, with_nested, counts, length_ns)

    def _forward(self, log: ThreadLog, call: BackwardCall) -> Mapping[int, int]:
        """Return the calls of each module in the traced forward pass that led to a backward call."""
        table, total = self._tables[log], Counter[int]()
        for each in self._paths[log].calls:
            if call.since <= each.row < call.first and table[each.row, SEQ1] > table[each.row, SEQ0]:
                total.update(each.counts)
        return total

    def pieces(self, log: ThreadLog, call: BackwardCall) -> list[IntArray]:
        """Return the pieces of a recorded call, one table (start_ns, end_ns, owner, calls) per thread."""
        if "lanes" not in call.cache:
            other_tables = [table for other_log, table in self._tables.items() if other_log is not log]
            call.cache["lanes"] = join_backward(call, self._tables[log], other_tables)
        tables: list[IntArray] = call.cache["lanes"]
        return tables

    def _on_clock(self, log: ThreadLog, call: BackwardCall) -> TimedCall:
        if "clock" not in call.cache:
            inner = inner_spans(call, self._tables[log])
            call.cache["clock"] = TimedCall(call.start_ns, call.end_ns, inner)
        clock: TimedCall = call.cache["clock"]
        return clock

    def write(
        self,
        columns: SpanColumns,
        slot_of: Callable[[int, int], int],
        log: ThreadLog,
        calls: Sequence[BackwardCall],
        thread: int,
    ) -> None:
        """Add the spans of backward calls in traced steps; `slot_of`: backward slot of an owner's key in a stage."""
        bounds = np.array([call.cache["wide"] for call in calls], dtype=np.int64).T
        starts_ns = np.array([call.start_ns for call in calls], dtype=np.int64)
        stages = stages_at(self._looks[log].stages, starts_ns).tolist()
        slots = np.array([slot_of(UNKNOWN_KEY, stage) for stage in stages], dtype=np.int64)
        columns.add(slots, *bounds, thread=thread, filled=False, calls=1)
        filler, ones = SpanFiller(columns, thread, slot_of), np.ones(1, dtype=np.int64)
        for call, stage in zip(calls, stages, strict=True):
            if call.nodes is not None and id(call) not in self._set_aside:
                for lane, table in enumerate(self.pieces(log, call)):
                    slot = np.array([slot_of(key, stage) for key in table[:, 2].tolist()], dtype=np.int64)
                    where = thread if lane == 0 else 1000 * (thread + 1) + lane
                    columns.add(slot, table[:, 0], table[:, 1], thread=where, filled=False, calls=table[:, 3])
            elif is_partial(call.cache["keys"]):
                self._leave_open(1)
            else:
                counts = self._counts[id(call)]
                ran = CallSignature(counts, frozenset(counts) | self._all_keys())
                candidates = self._candidates(call.cache["keys"], ran, self._paths[log])
                clock = self._on_clock(log, call)
                length_ns = call.end_ns - call.start_ns
                model, template = self._find(candidates, ran, call.start_ns, length_ns, 1, net=True)
                template = template if model is None else self._told(model.net.fitted(clock.net_ns), candidates)
                if template is not None:
                    starts, ends = stretch_template(template, clock)
                    filler.fill(template, starts[None], ends[None], ones, stage)

    def nearest(
        self, records: AggregatedSpans, kinds: SpanKinds, paths: CallPaths
    ) -> Iterator[tuple[int, CallTemplate]]:
        """Yield each backward call among the records with the template that fills it."""
        by_kind: dict[int, tuple[CallSignature, frozenset[int], _Candidates]] = {}
        for i, (kind, start) in enumerate(zip(records.kind.tolist(), records.start.tolist(), strict=True)):
            description = kinds.of[kind]
            if description[0] != "backward":
                continue
            if is_partial(description[1:]):
                self._leave_open(int(records.count[i]))
                continue
            if kind not in by_kind:
                ran, uncertain = _forward_of(description[1:], paths)
                by_kind[kind] = ran, uncertain, self._candidates(description[1:], ran, paths)
            ran, uncertain, candidates = by_kind[kind]
            count = int(records.count[i])
            model, template = self._find(
                candidates, ran, start, float(records.end[i] - records.start[i]) / count, count
            )
            if model is not None:
                template = self._told(fit_template(self._known(model, uncertain), records, i), candidates)
            if template is not None:
                yield i, template

    def _leave_open(self, count: int) -> None:
        """Count calls of which nothing inside is known."""
        self.unfilled += count
        self.untold = True

    def _known(self, model: BackwardTemplate, uncertain: frozenset[int]) -> ElasticTemplate:
        """Return a model's template, with the time of modules that may not have run given to the enclosing module."""
        if not uncertain:
            return model.whole
        self.uncertain |= uncertain
        key = id(model), uncertain
        if key not in self._reassigned:
            template = reassign_pieces(model.whole.plain, lambda k: self._tree.enclosing(k, uncertain) or None)
            called = {owner for owner, calls in calls_of(template).items() if calls}
            # Owners without calls have only the time of modules inside them.
            template = mark_unknown(template, lambda owner: owner not in called)
            self._reassigned[key] = ElasticTemplate(template, model.length_ns)
        return self._reassigned[key]

    def _told(self, template: CallTemplate, candidates: _Candidates) -> CallTemplate:
        """Return a recorded call's template with calls marked unknown where similar recorded calls disagree."""
        key = id(template), id(candidates)
        if key not in self._left_open:  # references, so that the ids are not reused
            self._left_open[key] = template, candidates, mark_unknown(template, candidates.untold)
        return self._left_open[key][2]

    def _candidates(self, keys: Sequence[Hashable], ran: CallSignature, paths: CallPaths) -> _Candidates:
        """Return the recorded calls like one; without one of its structure, calls of what varies are unknown."""
        entries, matched = self._catalogue.candidates(plain_structures(keys), lambda model: ran.matches(model.counts))
        if not matched and not ran.over:
            return _Candidates(entries, matched, lambda _: True)
        differ = differing_owners([calls_of(model.whole.plain) for _, model in entries])
        varying = NO_KEYS if matched else paths.uncertain_in_step(ran)
        return _Candidates(
            entries, matched, lambda owner: owner in differ or self._tree.enclosing(owner, varying) != owner
        )

    def _find(
        self, candidates: _Candidates, ran: CallSignature, t_ns: int, length_ns: float, count: int, *, net: bool = False
    ) -> tuple[BackwardTemplate | None, CallTemplate | None]:
        """Return the nearest recorded call after an equal forward pass, else a composed template."""
        model = most_similar(candidates.entries, t_ns, length_ns)
        if model is not None:
            self.mismatched += count * (not candidates.matched)
            return model, None
        composer = self._made(net=net)
        template = composer.compose(ran, length_ns) if ran.over else None
        unseen = set(ran.counts) if template is None else composer.unlike(ran)
        self.unfilled += count * (template is None or bool(unseen))
        self.unseen |= unseen
        self.untold |= template is None and not ran.counts
        return None, template

    def _made(self, *, net: bool) -> TemplateComposer:
        if net not in self._composers:
            models = [model for group in self._models.values() for model in group if model.counts]
            samples = [
                sample_of(of.plain, of.net_ns, model.counts)
                for model in models
                for of in (model.net if net else model.whole,)
            ]
            outside = frozenset[int]().union(*(each.outermost for each in self._paths.values()))
            led = ProportionalOwners(lambda _: True, outside, of_one_call=True)
            self._composers[net] = TemplateComposer(
                samples, self._tree, lambda owner: owner if owner > 0 else None, led=led
            )
        return self._composers[net]

    def _all_keys(self) -> frozenset[int]:
        """Return the modules that ran in the forward pass before any recorded call."""
        return frozenset(key for group in self._models.values() for model in group for key in model.counts)

    def carry_rel_sd(self, slot_of: Callable[[int], int]) -> dict[int, float]:
        """Return the relative SD of each backward slot's share between windows.

        Interruptions are spread over a window's work where other windows show its uninterrupted length: with more
        windows their earlier difference matters less.
        """
        before = relative_sd([_shares(models, slot_of) for models in self._recorded.values()])
        after = relative_sd([_shares(models, slot_of) for models in self._models.values()])
        count = max(sum(map(len, self._models.values())), 1)
        return {slot: math.hypot(after[slot], sd / count) for slot, sd in before.items()}


def _reaches_back(call: BackwardCall) -> bool:
    """Return whether a recorded call has nodes that were made before the traced steps in which it lies."""
    nodes = call.nodes if call.nodes is None or isinstance(call.nodes, AutogradNodes) else call.nodes.nodes()
    if nodes is None:
        return False
    numbered = nodes.seq >= 0
    is_of_one_thread = len(np.unique(nodes.forward_thread[numbered])) == 1  # each thread has numbers of its own
    return is_of_one_thread and bool((nodes.seq[numbered] < call.cache["traced_from"]).any())


def _shares(models: Sequence[BackwardTemplate], slot_of: Callable[[int], int]) -> list[Mapping[int, float]]:
    windows: list[Mapping[int, float]] = []
    for model in models:
        window: dict[int, float] = defaultdict(float)
        for key, share in model.whole.plain.shares().items():
            window[slot_of(key)] += share
        windows.append(window)
    return windows


def _drop_disturbance(calls: Sequence[tuple[BackwardCall, BackwardTemplate]]) -> list[BackwardTemplate]:
    """Return the models of recorded calls of one structure, with interruptions spread over their work."""
    away_ns = [call.away_ns for call, _ in calls]
    nets, wholes = (
        even_interruptions([getattr(model, name) for _, model in calls], away_ns) for name in ("net", "whole")
    )  # fmt: skip
    return [
        replace(model, net=net, whole=with_nested)
        for (_, model), net, with_nested in zip(calls, nets, wholes, strict=True)
    ]


def _elastic(call: TimedCall, pieces: IntArray) -> ElasticTemplate | None:
    template = template_of(call, pieces)
    return None if template is None else ElasticTemplate(template, call.net_ns)
