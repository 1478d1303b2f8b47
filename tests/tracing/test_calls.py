"""Calls of a module are counted or left open, never invented: in every phase, whatever fills a step."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.examples import examples
from tests.tracing.nets import traced
from tests.tracing.test_paths import counts
from torchwatt.tracing.aggregated_spans import AggregatedSpans, SpanKinds
from torchwatt.tracing.backward_templates import BackwardTemplate, BackwardTemplates
from torchwatt.tracing.call_template import CallTemplate, ElasticTemplate, TimedCall, template_of
from torchwatt.tracing.forward_templates import CallPaths, paths_of
from torchwatt.tracing.log_rows import (
    BACKWARD,
    BACKWARD_KEY,
    FORWARD_TASK,
    OUTERMOST_TASK,
    UNKNOWN,
    CallSignature,
    SignatureTable,
)
from torchwatt.tracing.overhead_budget import OverheadBudget
from torchwatt.tracing.template_composer import (
    UNKNOWN_CALLS,
    CallSample,
    ModuleTree,
    ProportionalOwners,
    TemplateComposer,
    calls_of,
    differing_owners,
    mark_unknown,
)
from torchwatt.tracing.trace_spans import SpanColumns, SpanFiller
from torchwatt.tracing.tracing_policy import TracingPolicy

THRIFTY = 0.005  # so that most steps are noted by their ends


def net(width=48, hidden=160):
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def gradients_through(module, found, name):
    """Count the calls of a module that a backward pass comes through, by a hook on what it returns."""

    def after(_module, _args, y):
        if y.requires_grad:
            y.register_hook(lambda _: found.update([name]))

    module.register_forward_hook(after)


def hooked(**models):
    found = Counter()
    for top, model in models.items():
        for name, module in model.named_modules():
            gradients_through(module, found, f"{top}.{name}" if name else top)
    return found


def wrong(trace, true, phase="backward"):
    told = counts(trace, phase)
    return {name: (true[name], told[name]) for name in true if name in told and told[name] != true[name]}


@pytest.mark.parametrize("budget", [0.01, THRIFTY])
def test_a_call_that_no_backward_pass_follows_is_none_of_a_backward_pass(budget):
    encoder = net()
    true = hooked(encoder=encoder)
    opt = torch.optim.SGD(encoder.parameters(), 0.01)
    with traced(overhead_budget=budget) as run:
        for step in range(500):
            opt.zero_grad()
            (encoder(torch.randn(16, 48)) - encoder(torch.randn(16, 48))).square().mean().backward()
            opt.step()
            if step % 12 == 11:
                encoder(torch.randn(16, 48))  # with gradients on, and nothing follows
    assert not wrong(run.trace, true)


def play(generator, critic, optimizers, rounds):
    """Train a critic and a generator by turns; the generator's part runs backward in the step after its forward."""
    for _ in range(rounds):
        fake = generator(torch.randn(16, 48))
        (critic(torch.randn(16, 48)).mean() - critic(fake.detach()).mean()).backward()
        optimizers[0].step()
        critic(fake).mean().backward()
        optimizers[1].step()


@pytest.mark.parametrize("budget", [0.01, THRIFTY])
def test_what_ran_backward_in_the_step_after_is_told_right(budget, monkeypatch):
    # On a busy machine the budget may be spent before both backward calls of a step are recorded once.
    monkeypatch.setattr(OverheadBudget, "lent_ns", lambda *_: math.inf)
    generator, critic = net(), net()
    true = hooked(generator=generator, critic=critic)
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in (critic, generator)]
    with traced(overhead_budget=budget) as run:
        play(generator, critic, optimizers, 300)
    assert not wrong(run.trace, true)
    assert counts(run.trace, "backward")["generator.0"] == 300  # what always runs is told


def records(_policy, stride, _kind, _now_ns, *, is_new=False):
    stride.windowed = True
    return True


def test_a_recorded_call_through_an_untraced_forward_pass_hides_nothing_that_others_show(monkeypatch):
    generator, critic = net(), net()
    true = hooked(generator=generator, critic=critic)
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in (critic, generator)]
    traced_in_turn = itertools.cycle((True, False))
    for name, each in (
        ("grants_step", lambda *_: next(traced_in_turn)),
        ("steps_until_news", lambda *_, **__: 3),
        ("must_sleep", lambda *_: False),
    ):
        monkeypatch.setattr(OverheadBudget, name, each)
    monkeypatch.setattr(TracingPolicy, "wants_window", records)
    with traced(overhead_budget=0.01) as run:
        play(generator, critic, optimizers, 30)
    assert not wrong(run.trace, true)
    assert counts(run.trace, "backward")["generator.0"] == 30


class Loops(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(24, 48), nn.GRUCell(48, 64), nn.Linear(64, 4)

    def forward(self, x, length):
        state = torch.zeros(len(x), 64)
        for t in range(length):
            state = self.cell(self.embed(x[:, t]), state)
        return self.head(state)


@pytest.mark.parametrize("budget", [0.01, THRIFTY])
def test_loops_of_random_length_have_their_calls_or_none(budget):
    model = Loops()
    true = hooked(model=model)
    forward, opt = Counter(), torch.optim.SGD(model.parameters(), 0.01)
    with traced(overhead_budget=budget) as run:
        for _ in range(250):
            opt.zero_grad()
            length = random.randint(1, 6)
            forward["model.cell"] += length
            forward["model.embed"] += length
            model(torch.randn(16, 6, 24), length).square().mean().backward()
            opt.step()
    plain = {name.removeprefix("model."): n for name, n in true.items()}
    assert not wrong(run.trace, plain)
    assert not wrong(run.trace, {name.removeprefix("model."): n for name, n in forward.items()}, "forward")


def test_a_plain_loop_keeps_all_its_calls():
    model = net()
    opt = torch.optim.AdamW(model.parameters())
    with traced(model, overhead_budget=THRIFTY) as run:
        for _ in range(400):
            opt.zero_grad()
            model(torch.randn(16, 48)).square().mean().backward()
            opt.step()
    assert [counts(run.trace)[name] for name in ("(root)", "0", "1", "2")] == [400] * 4
    assert [counts(run.trace, "backward")[name] for name in ("0", "1", "2")] == [400] * 3


# The parts, with counts of their own.

ROOT, CHILD, OWN = 1, 2, 12  # a module, one in it, and the owner of its backward calls
TREE = ModuleTree({CHILD: ROOT}, {})
LED = ProportionalOwners(lambda owner: owner == OWN, frozenset({ROOT, BACKWARD_KEY}))


def module_of(owner):
    return CHILD if owner in {CHILD, OWN} else ROOT


def sample(root, child, backward, own):
    times = {ROOT: 10.0, CHILD: 20.0, OWN: 30.0}
    counted = {ROOT: root, CHILD: child, BACKWARD_KEY: backward}
    return CallSample(100.0, times, dict.fromkeys(times, 0.5), {ROOT: root, CHILD: child, OWN: own}, counted)


def composed(samples, counted, led=LED):
    over = frozenset({ROOT, CHILD, BACKWARD_KEY})
    template = TemplateComposer(samples, TREE, module_of, led=led).compose(CallSignature(counted, over), 100.0)
    return calls_of(template)


def test_backward_calls_follow_from_forward_calls_where_the_calls_outside_are_in_proportion():
    samples = [sample(1, 2, 1, 2), sample(1, 3, 1, 3)]
    assert composed(samples, {ROOT: 2, CHILD: 7, BACKWARD_KEY: 2})[OWN] == 7
    assert composed(samples, {ROOT: 2, CHILD: 7, BACKWARD_KEY: 1}) == {ROOT: 2, CHILD: 7, OWN: UNKNOWN_CALLS}


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=4), st.integers(1, 9))
def test_a_rate_stands_for_others_only_where_all_samples_have_it(seen, child):
    samples = [sample(1, times, 1, own) for times, own in seen]
    told = composed(samples, {ROOT: 1, CHILD: child, BACKWARD_KEY: 1})[OWN]
    rates = {own / times for times, own in seen}
    assert told == UNKNOWN_CALLS or rates == {told / child}


def test_a_pass_that_began_in_the_step_before_leaves_all_open_in_a_step_like_none():
    samples, ran = [sample(2, 1, 2, 1)], {ROOT: 1, BACKWARD_KEY: 2}
    assert OWN not in composed(samples, ran)
    straddling = ProportionalOwners(LED.owners, LED.outside, straddles=True)
    assert composed(samples, ran, straddling)[OWN] == UNKNOWN_CALLS


def test_a_module_of_a_model_without_a_name_has_its_counterpart_in_another_one():
    tree = ModuleTree({2: 1, 4: 3, 6: 5}, {}, {1: "(root)", 2: "fc", 3: "(root)", 4: "fc", 5: "a", 6: "a.fc"})
    assert tree.counterpart(2, 1, 3) == 4
    assert tree.counterpart(2, 1, 5) == 6
    assert tree.counterpart(1, 1, 3) == 3


def template(*calls):
    n = len(calls)
    return CallTemplate(np.linspace(0, 0.9, n), np.linspace(0.1, 1, n), np.arange(n), np.array(calls))


def test_what_some_calls_do_not_confirm_is_left_open():
    first, second = template(1, 2, 3), template(1, 3)
    differ = differing_owners([calls_of(first), calls_of(second)])
    assert differ == {1, 2}
    assert calls_of(mark_unknown(first, differ.__contains__)) == {0: 1, 1: UNKNOWN_CALLS, 2: UNKNOWN_CALLS}


def test_calls_that_are_not_known_stay_unknown_whoever_reads_them():
    columns = SpanColumns()
    slot = [columns.index("a", "backward"), columns.index("b", "backward")]
    one = np.zeros((1, 2), dtype=np.int64)
    SpanFiller(columns, 0, lambda key, _stage: slot[key]).fill(template(UNKNOWN_CALLS, 2), one, one + 5, np.array([3]))
    assert columns.of_thread(0)[:, 3].tolist() == [-3, 6]
    assert columns.untold_calls() == {slot[0]}
    assert columns.arrays()["calls"].tolist() == [0, 6]


def test_backward_calls_are_counted_among_modules_and_parts_of_steps_keep_their_order():
    keys = {100: 1, 200: 2}
    signatures = SignatureTable(keys.get)
    whole = signatures.number([100, BACKWARD, 200])
    assert signatures.of[whole].counts == {1: 1, BACKWARD_KEY: 1, 2: 1}
    assert signatures.number([100, 200, BACKWARD]) == whole
    assert signatures.number([200, 100, BACKWARD]) != whole  # another module is called first
    part = signatures.number_of_part([100, BACKWARD, 200])
    assert signatures.of[part].part == (1, BACKWARD_KEY, 2)
    assert part != whole
    assert signatures.number([100, 300]) == UNKNOWN


@examples(15)
@given(st.sets(st.integers(1, 4), min_size=1), st.integers(0, 5))
def test_a_graph_of_a_size_that_was_never_traced_may_be_of_another_path(traced_sizes, size):
    varying = {(1, each): frozenset() for each in (*traced_sizes, -1)}
    paths = CallPaths((), varying, TREE, (), inner_keys={1: frozenset({CHILD})})
    is_open = size > 0 and size not in traced_sizes and len(traced_sizes) == 1
    assert paths.uncertain(1, size, CallSignature()) == ({CHILD} if is_open else set())
    assert not paths.uncertain(1, size, CallSignature({CHILD: 1}, frozenset({CHILD})))


def test_a_module_of_a_list_that_the_program_calls_itself_surely_ran():
    members, inner = (3, 4), {3: 13, 4: 14}
    rows = [
        (key, 100 * n + begin, 100 * n + end, 10 * n, 10 * n + 5, FORWARD_TASK)
        for n, member in enumerate((3, 4, 3))
        for key, begin, end in ((inner[member], 10, 20), (member, 0, 30))
    ]
    tree = ModuleTree({inner[member]: member for member in members}, dict.fromkeys(members, "alike"))
    paths = paths_of(np.array(rows), tree, (), frozenset(members), dict.fromkeys(members, frozenset(members)))
    assert [paths.uncertain(member, 5, CallSignature()) - {3, 4} for member in members] == [set(), set()]
    assert not [member for member in members if member in paths.uncertain(member, 5, CallSignature())]


def test_a_backward_call_like_none_that_was_recorded_leaves_open_what_varies():
    """The forward pass of that size was traced, but no backward call after one."""
    pieces = np.array([(0, 40, 1, 1), (40, 60, 2, 1), (60, 80, 2, 1), (80, 100, 3, 1)])
    elastic = ElasticTemplate(template_of(TimedCall(0, 100), pieces), 100)
    book = BackwardTemplates({}, {})
    book._catalogue.add((coarse(5),), 0, BackwardTemplate(elastic, elastic, {1: 1, 2: 2, 3: 1}, 100))
    paths = CallPaths((), {(1, 5): frozenset(), (1, 9): frozenset(), (1, -1): frozenset({2})}, TREE, (), frozenset({1}))
    kinds = SpanKinds()
    kind = np.array([kinds.number(("backward", coarse(5))), kinds.number(("backward", coarse(9)))])
    start, zero = np.array([200, 400]), np.zeros(2, dtype=np.int64)
    records = AggregatedSpans(kind, start, start + 100, zero + 1, zero, np.arange(2), zero)
    told = [calls_of(template) for _, template in book.nearest(records, kinds, paths)]
    assert told == [{1: 1, 2: 2, 3: 1}, {1: 1, 2: UNKNOWN_CALLS, 3: 1}]


def coarse(size):
    return "coarse", ((1, size, OUTERMOST_TASK),), False, 0
