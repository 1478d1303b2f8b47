"""Fill steps of which only the end was recorded from steps whose bounds were recorded. Pure."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from torchwatt.core.intervals import top_level
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.aggregated_spans import AggregatedSpans, SpanKinds
from torchwatt.tracing.call_template import (
    CallTemplate,
    TimedCall,
    first_part,
    reassign_pieces,
    relative_sd,
    template_of,
    warp_template,
)
from torchwatt.tracing.forward_templates import CallPaths, GraphSizes
from torchwatt.tracing.log_rows import (
    BACKWARD_KEY,
    FIRST_SCOPE_KEY,
    OPTIMIZER_KEY,
    OUTERMOST_TASK,
    UNKNOWN,
    CallSignature,
    stages_at,
)
from torchwatt.tracing.template_composer import (
    FEW_SAMPLES,
    NO_STEPS,
    UNKNOWN_CALLS,
    ModuleCalls,
    ProportionalOwners,
    TemplateComposer,
    calls_of,
    differing_owners,
    mark_unknown,
    sample_of,
    steps_among,
)

MOST_STEPS = 512  # templates to choose from, evenly spread in time
TEMPLATES_IN_TURN = 16  # templates used in turn around one instant
DISTURBED_RATIO = 4.0  # times the median length: a longer step was interrupted
TRIMMED = 0.1  # of the lengths of a part, at each end, by the wall clock
FEW_READINGS = 3  # of the CPU time in a step


class StepTemplates:
    """Templates, by slot, of one thread's steps whose bounds were recorded.

    Args:
        spans: The thread's spans (slot, start_ns, end_ns, calls), in any order.
        steps: Bounds of such steps: start_ns, end_ns, start_ns, ...
        traced: Bounds of the traced steps: for modules that ran in no other step.
        modules: The modules' calls, and the modules of slots. A step is of the stage in which it ends.
        excluded: Slots of the profiler's own work and of compilations, which are taken out.
        waits: Slots in which the program waits for data or for other ranks: time without CPU use is part of them.
        cpu: Times, sorted, and the thread's CPU time at each; shape (n, 2). Time taken by other programs is not
            part of a step.
        after_ns: How long torch works on a step after its recorded end.
    """

    def __init__(
        self,
        spans: IntArray,
        steps: Sequence[int],
        traced: Sequence[int],
        modules: ModuleCalls,
        *,
        excluded: Sequence[int],
        waits: Sequence[int] = (),
        cpu: IntArray = NO_STEPS,
        after_ns: int = 0,
    ) -> None:
        self._models: list[_StepModel] = []
        ran = modules.ran
        self._tree, self._slots, self._ran = modules.tree, modules.slots, ran
        self._straddles = False
        self._matching: dict[int, list[_StepModel]] = {}
        self._uncertain: dict[int, frozenset[int]] = {}
        self._composers: dict[tuple[frozenset[int], frozenset[int], int], TemplateComposer] = {}
        self._sizes: dict[frozenset[int], GraphSizes] = {}
        self.uncertain: set[int] = set()  # modules of which it is unknown whether they were called
        self.untold = False  # some steps have no recorded calls
        self.unlike: set[int] = set()  # modules, or modules of steps, that are similar to no template
        self.unfilled: set[int] = set()  # modules of steps that no template fills
        self.miscounted: set[int] = set()  # modules that ran more or less often than in the step's template
        self._compared: dict[tuple[int, int], tuple[CallTemplate, CallSignature]] = {}
        spans = spans[np.lexsort((-spans[:, 2], spans[:, 1]))]
        for bounds, is_traced in ((steps, False), (traced, True)):
            step_spans = _drop_disturbance(_step_spans(spans, bounds, excluded, after_ns, modules))
            for call, spans_inside, graph_nodes in step_spans:
                ran_in, ran_inside = _on_cpu_clock(call, spans_inside, cpu, waits)
                template = template_of(ran_in, ran_inside[:, (1, 2, 0, 3)])
                if template is not None:
                    counts, over = ran.within(call.start_ns, call.end_ns)
                    stage = int(stages_at(modules.stages, np.array([call.end_ns - after_ns - 1]))[0])
                    self._straddles |= ran.straddles(call.start_ns, call.end_ns)
                    model = _StepModel(
                        call, spans_inside[:, 1], ran_in.net_ns, template, counts, over, is_traced, graph_nodes, stage,
                        on_cpu_clock=ran_in is not call,
                    )  # fmt: skip
                    self._models.append(model)
        self._models.sort(key=lambda model: model.start_ns)

    def nearest(
        self, records: AggregatedSpans, kinds: SpanKinds, paths: CallPaths
    ) -> Iterator[tuple[int, CallTemplate]]:
        """Yield each step record with the template that fills it; templates near in time are used in turn."""
        for turn, i in enumerate(steps_among(records, kinds).tolist()):
            kind = int(records.kind[i])
            task = kinds.of[kind][3]
            signature = paths.signature(task if isinstance(task, int) else OUTERMOST_TASK)
            if task == OUTERMOST_TASK - UNKNOWN:
                ran, self.untold = signature, True
            else:
                ran = CallSignature(
                    signature.counts, signature.over | self._ran.outermost, signature.part, signature.nodes
                )
            if kind not in self._matching:
                self._uncertain[kind] = paths.uncertain_in_step(ran)
                if not self._explained(ran):
                    self._uncertain[kind] |= paths.inside_of(ran.counts) - ran.over
                self._matching[kind] = self._match(ran, self._uncertain[kind], kinds.stage[kind])
            template = self._taking_turns(self._matching[kind], int(records.start[i]), turn)
            if template is None and ran.over:
                length_ns = float(records.end[i] - records.start[i]) / int(records.count[i])
                template = self._composed(ran, self._uncertain[kind], kinds.stage[kind], length_ns)
            if template is None:
                self.unlike |= ran.counts.keys()
                self.unfilled |= ran.counts.keys()
            else:
                self._compare(template, ran)
                yield i, template

    def _explained(self, ran: CallSignature) -> bool:
        """Return whether the calls counted in a step account for the size of its graph."""
        if ran.part or not ran.over:
            return True
        if ran.nodes is None:
            return False
        if ran.over not in self._sizes:
            models = [model for model in self._models if model.over is None or ran.over <= model.over]
            steps = [(model.counts, model.nodes) for model in models if model.nodes is not None]
            self._sizes[ran.over] = GraphSizes(steps, ran.over, self._tree.archetypes)
        return self._sizes[ran.over].explain(ran.counts, ran.nodes)

    def _compare(self, template: CallTemplate, ran: CallSignature) -> None:
        """Add to `miscounted` the counted modules that a template has more or less often than they ran in the step."""
        which = id(template), id(ran.counts)
        if which in self._compared:
            return
        self._compared[which] = template, ran  # a reference, so that the ids are not reused
        ran_counts = Counter[int]()
        for slot, calls in calls_of(template).items():
            key = self._slots.keys.get(slot)
            if key is not None and not self._slots.is_backward(slot):
                ran_counts[key] = calls
        counted = self._slots.modules & ran.over
        self.miscounted |= {key for key in counted if ran_counts[key] not in {ran.counts.get(key, 0), UNKNOWN_CALLS}}

    def _match(self, ran: CallSignature, uncertain: frozenset[int], stage: int) -> list[_StepModel]:
        """Return the steps in which the same modules ran, with time of uncertain modules given to enclosing ones.

        Where kinds of steps alternate (an inner and an outer loop), those with equal graph sizes are of one kind.
        """
        models = self._known(ran, uncertain)
        if ran.part:
            begun = [self._beginning(model, ran) for model in models]
            return self._in_stage([model for model in begun if model is not None], stage)
        models = self._in_stage([model for model in models if ran.matches(model.counts)], stage)
        similar = [model for model in models if model.nodes == ran.nodes] or models
        chosen = _even_parts([model for model in similar if not model.traced] or similar)
        return self._agreed(chosen, models) if ran.over else chosen

    def _in_stage(self, models: Sequence[_StepModel], stage: int) -> list[_StepModel]:
        """Return the steps of a stage, or if it has none all steps, with slots of their stage moved to this one."""

        def moved(model: _StepModel) -> _StepModel:
            owners = [self._slots.in_stage(slot, model.stage, stage) for slot in model.template.owner.tolist()]
            template = replace(model.template, owner=np.array(owners, dtype=np.int64))
            return replace(model, template=template, stage=stage)

        return [model for model in models if model.stage == stage] or [moved(model) for model in models]

    def _beginning(self, model: _StepModel, ran: CallSignature) -> _StepModel | None:
        """Return the first part of a step whose calls match an interrupted step; None where no part does."""
        ran_until, counts = 0, Counter[int]()
        calls = list(self._ran.sequence(model.start_ns, model.end_ns))
        while ran_until < len(calls) and not ran.matches(counts):
            counts.update(calls[ran_until][1])
            ran_until += 1
        if not ran.matches(counts):
            return None
        end_ns = calls[ran_until][0] if ran_until < len(calls) else model.end_ns
        template = first_part(model.template, model.starts_ns < end_ns)
        if template is None:
            return None
        # A scope that had begun, and did not end in this part, is counted where it ended.
        still_open = [key <= FIRST_SCOPE_KEY and not ran.counts.get(key) for key in self._keys_of(template)]
        return replace(model, template=replace(template, calls=np.where(still_open, 0, template.calls)))

    def _keys_of(self, template: CallTemplate) -> list[int]:
        """Return the key of the module or scope of each piece of a template; 0: neither."""
        return [self._slots.keys.get(slot, 0) for slot in template.owner.tolist()]

    def _agreed(self, models: Sequence[_StepModel], comparable: Sequence[_StepModel]) -> list[_StepModel]:
        """Mark the calls of an owner as unknown where steps with equal counts disagree about them."""
        calls = [calls_of(model.template) for model in comparable]
        differ = differing_owners(calls)
        if self._straddles:  # a backward pass may run modules that were called in the step before
            slots = {slot for each in calls for slot in each}
            differ |= {slot for slot in slots if self._slots.is_backward(slot) and self._varies(slot)}
        return [replace(model, template=mark_unknown(model.template, differ.__contains__)) for model in models]

    def _varies(self, slot: int) -> bool:
        key = self._slots.keys.get(slot)
        return key is not None and self._tree.enclosing(key, self._ran.varying) != key

    def _known(self, ran: CallSignature, uncertain: frozenset[int]) -> list[_StepModel]:
        """Return the steps for which the calls of all counted modules are known."""
        models = [model for model in self._models if model.over is None or ran.over <= model.over]
        if not uncertain:
            return models
        self.uncertain |= uncertain
        return [replace(model, template=self._reassigned(model.template, uncertain)) for model in models]

    def _reassigned(self, template: CallTemplate, uncertain: frozenset[int]) -> CallTemplate:
        reassigned_template = reassign_pieces(template, partial(self._enclosing, uncertain))
        called = {slot for slot, calls in calls_of(reassigned_template).items() if calls}
        return mark_unknown(reassigned_template, lambda slot: self._slots.is_backward(slot) and slot not in called)

    def _enclosing(self, uncertain: frozenset[int], slot: int) -> int:
        key = self._slots.keys.get(slot)
        if key is None:
            return slot
        above = self._tree.enclosing(key, uncertain)
        return slot if above == key else self._slots.slot_of(slot, above)

    @staticmethod
    def _taking_turns(models: Sequence[_StepModel], t_ns: int, turn: int) -> CallTemplate | None:
        n = len(models)
        if not n:
            return None
        near = bisect.bisect(models, t_ns, key=lambda model: model.start_ns)
        begin = min(max(near - TEMPLATES_IN_TURN // 2, 0), max(n - TEMPLATES_IN_TURN, 0))
        return models[begin + turn % min(TEMPLATES_IN_TURN, n)].template

    def _composed(
        self, ran: CallSignature, uncertain: frozenset[int], stage: int, length_ns: float
    ) -> CallTemplate | None:
        which = ran.over, uncertain, stage
        if which not in self._composers:
            models = self._in_stage([model for model in self._known(ran, uncertain) if model.counts], stage)
            samples = [sample_of(model.template, model.length_ns, self._summed(model.counts)) for model in models]
            led = ProportionalOwners(self._slots.is_backward, self._ran.outermost, self._straddles)
            self._composers[which] = TemplateComposer(
                samples, self._tree, self._slots.keys.get, self._slots.slot_of, led, round_key=BACKWARD_KEY
            )
        over = ran.over - self._ran.optimizers | {OPTIMIZER_KEY}
        ran = replace(ran, counts=self._summed(ran.counts), over=over)
        self.unlike |= self._composers[which].unlike(ran) - {BACKWARD_KEY, OPTIMIZER_KEY}
        return self._composers[which].compose(ran, length_ns)

    def _summed(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Return calls with the steps of all optimizers, which share a slot, under one more key."""
        return {**counts, OPTIMIZER_KEY: sum(counts.get(key, 0) for key in self._ran.optimizers)}

    def carry_rel_sd(self) -> dict[int, float]:
        """Return the relative SD of each slot's share between traced steps."""
        windows: dict[int, list[Mapping[int, float]]] = defaultdict(list)
        for model in self._models:
            window: dict[int, float] = defaultdict(float)
            for slot, share in model.template.shares().items():
                window[slot] += share
            windows[model.stage].append(window)
        return relative_sd(list(windows.values()))


@dataclass(frozen=True, slots=True, eq=False)
class _StepModel:
    bounds: TimedCall
    starts_ns: IntArray  # of the spans that the template is made of
    length_ns: int
    template: CallTemplate
    counts: Mapping[int, int]
    over: frozenset[int] | None
    traced: bool  # all its calls were logged, which lengthened it
    nodes: int | None  # size of its graph; None: unknown
    stage: int
    on_cpu_clock: bool  # without what other programs took

    @property
    def start_ns(self) -> int:
        """Return its start."""
        return self.bounds.start_ns

    @property
    def end_ns(self) -> int:
        """Return its end."""
        return self.bounds.end_ns


StepSpans = list[tuple[TimedCall, IntArray, int | None]]


def _step_spans(
    spans: IntArray, steps: Sequence[int], excluded: Sequence[int], after_ns: int, modules: ModuleCalls
) -> StepSpans:
    """Return each step without profiler work and compilations, its spans, and the size of its graph."""
    bounds = np.array(steps, dtype=np.int64).reshape(-1, 2)
    bounds = bounds[:: max(len(bounds) // MOST_STEPS, 1)]
    following = np.append(spans[:, 1], np.iinfo(np.int64).max)[np.searchsorted(spans[:, 1], bounds)]
    bounds = np.minimum(bounds + after_ns, following)
    step_spans = []
    for (start, end), size in zip(bounds.tolist(), modules.nodes_of(bounds), strict=True):
        begin, end_index = np.searchsorted(spans[:, 1], (start, end))
        own_spans = spans[begin:end_index].copy()
        own_spans[:, 2] = np.minimum(own_spans[:, 2], end)
        own = np.isin(own_spans[:, 0], excluded)
        ours = own_spans[own][top_level(own_spans[own, 1], own_spans[own, 2])]
        call = TimedCall(start, end, tuple((int(s), int(e)) for _, s, e, _ in ours))
        step_spans.append((call, own_spans[~own], size))
    return step_spans


def _on_cpu_clock(call: TimedCall, spans: IntArray, cpu: IntArray, waits: Sequence[int]) -> tuple[TimedCall, IntArray]:
    """Return a step and its spans on the thread's CPU clock where that was read often enough, else unchanged.

    On a busy machine a step of 2 ms may take 10 ms, and the delay falls into an arbitrary part of it. In spans of
    `waits` the clock goes on: there the program itself waits.
    """
    begin, end_row = np.searchsorted(cpu[:, 0], (call.start_ns, call.end_ns + 1))
    if end_row - begin < FEW_READINGS:
        return call, spans

    waiting = spans[np.isin(spans[:, 0], waits), 1:3]
    waiting = waiting[top_level(waiting[:, 0], waiting[:, 1])]
    slept_ns = np.maximum(np.diff(waiting)[:, 0] - np.diff(np.interp(waiting, cpu[:, 0], cpu[:, 1]))[:, 0], 0.0)

    def ran(t_ns: IntArray) -> IntArray:
        on_cpu = np.interp(t_ns, cpu[:, 0], cpu[:, 1])
        for (begin_ns, end_ns), ns in zip(waiting.tolist(), slept_ns.tolist(), strict=True):
            on_cpu += ns * np.clip((t_ns - begin_ns) / (end_ns - begin_ns), 0.0, 1.0)
        return np.asarray(on_cpu, dtype=np.int64)

    start_ns, end_ns = ran(np.array([call.start_ns, call.end_ns])).tolist()
    if end_ns <= start_ns:
        return call, spans
    inner = tuple((start, end) for start, end in ran(np.array(call.inner).reshape(-1, 2)).tolist())
    bounds = ran(spans[:, 1:3])
    return TimedCall(start_ns, end_ns, inner), np.column_stack((spans[:, 0], bounds, spans[:, 3]))


def _drop_disturbance(step_spans: StepSpans) -> StepSpans:
    """Discard steps much longer than others of equal graph size: another program ran meanwhile."""
    lengths = defaultdict[int | None, list[int]](list)
    for call, _, nodes in step_spans:
        lengths[nodes].append(call.net_ns)
    usual_ns = {nodes: float(np.median(each)) for nodes, each in lengths.items()}
    return [each for each in step_spans if each[0].net_ns <= DISTURBED_RATIO * usual_ns[each[2]]]


def _even_parts(models: Sequence[_StepModel]) -> list[_StepModel]:
    """Give steps of one kind the mean length of each of their outermost parts, trimmed if by the wall clock.

    Another program lengthens one part of one step; over many steps it lengthens all parts equally. The mean, since
    these parts stand for sums: where a part takes either of two lengths, its median is 6 points of the step off, and
    where it seldom takes long, trimmed means lack that.
    """
    groups: dict[tuple[int, ...], list[tuple[_StepModel, FloatArray]]] = defaultdict(list)
    for model in models:
        template = model.template
        top = top_level(template.first, template.last)
        bounds = np.concatenate(([0.0], np.column_stack((template.first[top], template.last[top])).ravel(), [1.0]))
        groups[tuple(template.owner[top].tolist())].append((model, np.maximum.accumulate(bounds)))
    result = []
    for group in groups.values():
        if len(group) < FEW_SAMPLES:
            result += [model for model, _ in group]
            continue
        trimmed = 0.0 if all(model.on_cpu_clock for model, _ in group) else TRIMMED
        parts = _mean(np.array([np.diff(bounds) * model.length_ns for model, bounds in group]), trimmed)
        usual = np.concatenate(([0.0], np.cumsum(parts))) / max(float(parts.sum()), 1.0)
        result += [replace(model, template=warp_template(model.template, bounds, usual)) for model, bounds in group]
    return sorted(result, key=lambda model: model.start_ns)


def _mean(values: FloatArray, trimmed: float) -> FloatArray:
    """Return the mean of each column without that part of its lowest and its highest values."""
    dropped = round(len(values) * trimmed)
    return np.asarray(np.sort(values, axis=0)[dropped : len(values) - dropped].mean(axis=0), dtype=np.float64)
