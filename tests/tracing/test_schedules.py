"""Whatever is traced when: steps are the program's, and calls are those of the program or left open.

Which steps are traced, how, and which backward calls are recorded is drawn by chance here, and not by the budget: what
is rare on a quiet machine happens in each run. Bounds of memory are small, so that what was noted is folded as in a
long run.
"""

import random
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.tracing.nets import traced
from tests.tracing.test_paths import counts
from torchwatt.tracing import module_wrappers, span_assembly, step_controller, thread_log, trace_spans, tracing_policy
from torchwatt.tracing.log_rows import ALL_CALLS, OUTERMOST, STEP_ENDS

WIDTH, STEPS = 8, 50
SMALL = (
    (step_controller, "FOLD_STEPS", 12), (step_controller, "COMPACT_ROWS", 10),
    (thread_log, "MAX_RECORDS", 40), (thread_log, "FEW_ENTRIES", 2),
    (span_assembly, "LEAST_RECORDS", 50), (trace_spans, "MAX_FILLED", 500),
    (module_wrappers, "MOST_CALLS_PER_STEP", 3), (module_wrappers, "MOST_FAST_CALLS", 3),
)  # fmt: skip


class Truth:
    """The program's own counters."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.forward, self.backward, self.again, self.steps = Counter(), Counter(), Counter(), Counter()
        self._is_backward = False

    def count(self, module, prefix=""):
        for name, each in module.named_modules():
            full = ".".join(part for part in (prefix, name) if part) or "(root)"
            self.forward[full] += 0
            each.forward = self._counting(full, each.forward)
        return module

    def _counting(self, name, forward):
        def counted(*args):
            (self.again if self._is_backward else self.forward)[name] += 1
            y = forward(*args)
            if y.requires_grad:
                y.register_hook(lambda _: self.backward.update([name]))
            return y

        return counted

    def train(self, loss):
        self._is_backward = True
        loss.backward()
        self._is_backward = False


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))


def batch():
    return torch.randn(2, WIDTH)


class Blocks(nn.Module):
    """Some blocks of some groups run; with `again` they are computed once more in the backward pass."""

    def __init__(self, chance, *, again=False, fails=0.0):
        super().__init__()
        self.entry = nn.Linear(WIDTH, WIDTH)
        self.groups = nn.ModuleList(nn.ModuleList(mlp() for _ in range(2)) for _ in range(3))
        self.tail = mlp()  # no choice of a list: nobody knows that it may be left out
        self.chance, self.again, self.fails = chance, again, fails

    def forward(self, x):
        x = self.entry(x)
        for group in self.groups:
            if self.chance.random() < 0.2:
                continue
            for block in group:
                if self.chance.random() < 0.7:
                    x = x + (checkpoint(block, x, use_reentrant=False) if self.again else block(x))
                if self.chance.random() < self.fails:
                    raise ValueError
        return self.tail(x) if self.chance.random() < 0.8 else x


def with_optimizer(truth, model, *, evaluates=0.0, most=1):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(truth.random.randint(1, most)):
            truth.train(attempt(model))
        optimizer.step()
        truth.steps["train"] += 1
        if truth.random.random() < evaluates:
            evaluate(truth, model)


def attempt(model):
    """Return a loss, after as many attempts as it takes."""
    while True:
        try:
            return model(batch()).square().mean()
        except ValueError:
            continue


def evaluate(truth, model):
    with torch.no_grad():
        for _ in range(truth.random.randint(1, 9)):
            attempt(model)
            truth.steps["validation"] += 1


def drops(truth):
    model = truth.count(Blocks(truth.random))
    yield {"": model}
    with_optimizer(truth, model)


def drops_and_evaluates(truth):
    model = truth.count(Blocks(truth.random))
    yield {"": model}
    with_optimizer(truth, model, evaluates=0.06)


def accumulates(truth):
    model = truth.count(Blocks(truth.random))
    yield {"": model}
    with_optimizer(truth, model, most=5)


def computes_again(truth):
    model = truth.count(Blocks(truth.random, again=True))
    yield {"": model}
    with_optimizer(truth, model)


def retries(truth):
    model = truth.count(Blocks(truth.random, fails=0.02))
    yield {"": model}
    with_optimizer(truth, model)


def trains_evaluates_trains(truth):
    model = truth.count(mlp())
    yield {"": model}
    with_optimizer(truth, model)
    evaluate(truth, model)
    with_optimizer(truth, model)


def by_hand(truth):
    model = truth.count(Blocks(truth.random))
    yield {"": model}
    for _ in range(STEPS):
        truth.train(model(batch()).square().mean())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=1e-3)
        truth.steps["train"] += 1


def adversaries(truth):
    generator, critic = truth.count(mlp(), "generator"), truth.count(mlp(), "critic")
    yield {"generator": generator, "critic": critic}
    optimizers = [torch.optim.SGD(model.parameters(), 1e-3) for model in (critic, generator)]
    for _ in range(STEPS):
        fake = generator(batch())
        truth.train(critic(batch()).mean() - critic(fake.detach()).mean())
        optimizers[0].step()
        truth.train(critic(fake).mean())
        optimizers[1].step()
        truth.steps["train"] += 1


def follows_a_teacher(truth):
    student, teacher = truth.count(mlp(), "student"), truth.count(mlp(), "teacher")
    yield {"student": student, "teacher": teacher}
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    for _ in range(STEPS):
        with torch.no_grad():
            wanted = teacher(batch())
        truth.train((student(batch()) - wanted).square().mean())
        optimizer.step()
        truth.steps["train"] += 1


def is_followed_by_a_teacher(truth):
    student, teacher = truth.count(mlp(), "student"), truth.count(mlp(), "teacher")
    yield {"student": student, "teacher": teacher}
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    for step in range(STEPS):
        y = student(batch())
        with torch.no_grad():
            wanted = teacher(batch())
        truth.train((y - wanted).square().mean())
        optimizer.step()
        truth.steps["train"] += 1
        if step % 15 == 14:
            evaluate(truth, teacher)


def skips_easy_samples(truth):
    model = truth.count(mlp())
    yield {"": model}
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for step in range(STEPS + 1):
        y = sum(model(batch()).square().mean() for _ in range(3))
        if step < STEPS and truth.random.random() < 0.25:
            continue
        truth.train(y)
        optimizer.step()
        truth.steps["train"] += 1


def penalises_gradients(truth):
    generator, critic = truth.count(mlp(), "generator"), truth.count(mlp(), "critic")
    yield {"generator": generator, "critic": critic}
    optimizer = torch.optim.SGD(critic.parameters(), 1e-3)
    for _ in range(STEPS):
        with torch.no_grad():
            fake = generator(batch())
        x = batch().requires_grad_()
        y = critic(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        truth.backward.clear()  # which of the two backward calls reach a module twice is not asked here
        truth.train(critic(fake).mean() + slope.square().mean())
        truth.backward.clear()
        optimizer.step()
        truth.steps["train"] += 1


class TwoOfSix(nn.Module):
    """Each call goes through as many experts, and makes a graph of one size."""

    def __init__(self, chance):
        super().__init__()
        self.experts = nn.ModuleList(mlp() for _ in range(6))
        self.chance = chance

    def forward(self, x):
        weights = [9, 9, 9, 1, 1, 1]
        for k in {*self.chance.choices(range(6), weights), *self.chance.choices(range(6), weights)}:
            x = x + self.experts[k](x)
        return x


def chooses_experts(truth):
    model = truth.count(TwoOfSix(truth.random))
    yield {"": model}
    with_optimizer(truth, model)


@contextmanager
def drawn(seed, *, small):
    """Draw what is traced, and with which bounds."""
    chance = random.Random(seed)
    weights, longest = [chance.choice((1, 3, 10)) for _ in range(4)], chance.choice((3, 12, 40))
    windows, most = chance.choice((0.1, 0.4)), chance.choice((0, 1e9, 1e9))
    decisions = []

    def decide(self, stride, now_ns, rows, spans, *, can_sleep, cpu_ns=None):
        steps = max(stride.steps, 1)
        if stride.mode == ALL_CALLS:
            stride.calls = round((rows - stride.first_row) / steps)
        else:
            stride.light_steps += steps
        kinds = ["full"] if len(decisions) < 3 else chance.choices(["full", "light", "shown", "asleep"], weights)
        decisions.append(kinds)
        kind = kinds[0] if can_sleep or kinds[0] == "full" else "light"
        stride.mode = {"full": ALL_CALLS, "asleep": STEP_ENDS}.get(kind, OUTERMOST)
        stride.skeleton = kind == "shown"
        stride.start_ns, stride.first_row, stride.cpu_ns = now_ns, rows, cpu_ns
        stride.windowed, stride.backwards, stride.steps, stride.answered, stride.window_ns = False, 0, 0, 0, 0
        stride.planned = chance.randint(1, 3 if kind == "full" else longest)
        self.narrow = chance.random() < 0.5
        return stride.mode

    def wants_window(self, stride, kind, now_ns, *, is_new=False):
        wanted = chance.random() < windows
        stride.windowed |= wanted
        return wanted

    with ExitStack() as stack:
        for name, drawn_one in (("decide", decide), ("wants_window", wants_window)):
            stack.enter_context(patch.object(tracing_policy.TracingPolicy, name, drawn_one))
        stack.enter_context(patch.object(tracing_policy.TracingPolicy, "most_counted", lambda *_: most))
        for module, name, bound in SMALL if small else ():
            stack.enter_context(patch.object(module, name, bound))
        yield


PROGRAMS = (
    drops, drops_and_evaluates, accumulates, computes_again, retries, trains_evaluates_trains, by_hand, adversaries,
    follows_a_teacher, is_followed_by_a_teacher, skips_easy_samples, penalises_gradients, chooses_experts,
)  # fmt: skip


# Schedules in which a backward pass goes through calls of a step before, or through calls that were not recorded.
SEEDS = [(adversaries, False, 11), (adversaries, False, 14), (adversaries, True, 15), (adversaries, True, 28)]
CASES = [
    pytest.param(program, small, seed, id=f"{program.__name__}-{'small' if small else 'usual'}-{seed}")
    for program, small, seed in [*((program, small, 1) for program in PROGRAMS for small in (False, True)), *SEEDS]
]


@pytest.mark.parametrize(("program", "small", "seed"), CASES)
def test_steps_are_exact_and_calls_exact_or_open_whatever_is_traced_when(program, seed, small):
    torch.manual_seed(seed)
    truth = Truth(seed)
    running = program(truth)
    models = next(running)
    model = models.get("")
    with (
        drawn(7 * seed + 1, small=small),
        traced(model, models=() if model is not None else tuple(models.items())) as run,
    ):
        list(running)
    trace = run.trace
    found = Counter()
    for stage, n in zip(trace.step_stages, trace.step_counts or [1] * len(trace.steps), strict=True):
        found[stage] += n
    assert found == truth.steps
    forward, backward = counts(trace), counts(trace, "backward")
    assert not {name: (n, forward[name]) for name, n in truth.forward.items() if forward.get(name, n) != n}
    for name, n in truth.backward.items():
        # Where all that a module does is done by others inside, only what is computed again is a call of its own.
        assert backward.get(name, n) in {n + truth.again[name], truth.again[name] or n}, name
