"""Operations and bytes of modules against `FlopCounterMode`, against counts by hand, and against the programs' own."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import torchwatt as tw
from torchwatt.audit import verify
from torchwatt.audit.report_loader import load_report
from torchwatt.core.terms import Slot
from torchwatt.core.trace import SlotWork, Trace
from torchwatt.tracing.module_operations import CallWork, metadata_of, shape_reader, work_formula
from torchwatt.tracing.shape_samples import WorkSample, slot_works
from torchwatt.tracing.tracer import Tracer

NORMS = ("norm", "bn")
Works = dict[tuple[str, str, str], tuple[float, float, float]]


def works_of(trace: Trace) -> Works:
    """Return operations, bytes and rows of all calls by name, phase and stage."""
    calls = np.bincount(trace.slot, trace.calls, len(trace.slots))
    slots = [(trace.slots[work.slot], work, calls[work.slot]) for work in trace.work]
    return {(s.fqn, s.phase, s.stage): (w.flops * n, w.bytes_moved * n, w.rows * n) for s, w, n in slots}


def products(works: Works, phase: str) -> dict[str, float]:
    """Return the operations of matrix products of a phase by module; `FlopCounterMode` counts no norms."""
    return {
        name: work[0]
        for (name, its_phase, _), work in works.items()
        if its_phase == phase and not any(norm in name for norm in NORMS)
    }


def count_modules(model: nn.Module, program: Callable[[], object]) -> dict[str, int]:
    """Return the operations of each module by `FlopCounterMode`, with those inside, without the class's prefix."""
    with FlopCounterMode(display=False) as counter:
        program()
    prefix = f"{type(model).__name__}."
    return {name.removeprefix(prefix): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}


def train(model: nn.Module, loss: Callable[[int], torch.Tensor], steps: int = 4, budget: float = 1.0) -> Works:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4)
    tracer = Tracer(model, overhead_budget=budget)
    tracer.start()
    for step in range(steps):
        loss(step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return works_of(tracer.stop())


def check_training(model: nn.Module, loss: Callable[[int], torch.Tensor], steps: int = 4) -> Works:
    """Compare forward operations of each module, and backward operations of the model, with the counter's."""
    works = train(model, loss, steps)
    forward = count_modules(model, lambda: [loss(step) for step in range(steps)])
    for name, flops in products(works, "forward").items():
        assert flops == pytest.approx(forward.get(name, 0)), name
    assert sum(products(works, "forward").values()) == pytest.approx(forward["Global"])
    both = count_modules(model, lambda: [loss(step).backward() for step in range(steps)])
    assert sum(products(works, "backward").values()) == pytest.approx(both["Global"] - forward["Global"])
    return works


class Block(nn.Module):
    """Two convolutions around a shortcut, as in ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class ConvNet(nn.Module):
    """A small ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def test_a_convolutional_net_agrees_with_the_counter_also_where_the_batch_varies() -> None:
    net, batches = ConvNet(), [torch.randn(n, 3, 16, 16) for n in (2, 5, 3, 1)]
    works = check_training(net, lambda step: net(batches[step]).sum())
    # The stem's input wants no gradient: only that of its weights is computed.
    stem = works["stem", "forward", ""][0]
    assert works["stem", "backward", ""][0] == pytest.approx(stem)
    assert works["blocks.1.conv1", "backward", ""][0] == pytest.approx(2 * works["blocks.1.conv1", "forward", ""][0])
    assert works["blocks.0.bn1", "forward", ""][0] == pytest.approx(7 * 11 * 8 * 6 * 6)
    assert ("blocks.0", "forward", "") not in works
    assert works["head", "forward", ""][2] == pytest.approx(11)


def test_an_encoder_of_multihead_attention_agrees_with_the_counter() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 2))
    # The counter does not know the fused attention of the CPU.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        batches = [torch.randn(n, length, 8) for n, length in ((2, 7), (3, 5), (1, 9), (4, 4))]
        works = check_training(net, lambda step: net(batches[step]).sum())
    assert works["1.layers.0.norm1", "forward", ""][0] == pytest.approx(7 * 16 * (14 + 15 + 9 + 16))


class LowRank(nn.Module):
    """A frozen layer with a trained bypass of low rank."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(requires_grad=False)
        self.lora_a, self.lora_b = nn.Linear(width, 2, bias=False), nn.Linear(2, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_b(self.lora_a(x))


def test_frozen_weights_make_no_gradients_of_their_own() -> None:
    net = nn.Sequential(nn.Linear(6, 8).requires_grad_(requires_grad=False), LowRank(8), LowRank(8))
    x = torch.randn(5, 6)
    works = check_training(net, lambda _: net(x).relu().sum())
    assert ("0", "backward", "") not in works
    assert ("1.base", "backward", "") not in works  # neither its input nor its weights want a gradient
    assert works["2.base", "backward", ""][0] == pytest.approx(works["2.base", "forward", ""][0])
    assert works["1.lora_a", "backward", ""][0] == pytest.approx(works["1.lora_a", "forward", ""][0])
    assert works["2.lora_a", "backward", ""][0] == pytest.approx(2 * works["2.lora_a", "forward", ""][0])


class Recomputing(nn.Module):
    """A net with a checkpointed part."""

    def __init__(self, *inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(8, 16), nn.Sequential(*inner), nn.Linear(16, 4)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize(("reentrant", "alone", "times"), [(True, True, 3), (False, True, 2), (False, False, 3)])
def test_what_a_checkpoint_recomputes_is_work_of_the_backward_call(reentrant: bool, alone: bool, times: int) -> None:
    """A checkpoint that is not reentrant stops before the last product, whose input is all that it needs."""
    inner = [nn.Linear(16, 16)] if alone else [nn.Linear(16, 16), nn.ReLU()]
    net, batches = Recomputing(*inner, reentrant=reentrant), [torch.randn(n, 8) for n in (4, 9, 5, 2)]
    works = check_training(net, lambda step: net(batches[step]).sum())
    assert works["inner.0", "backward", ""][0] == pytest.approx(times * works["inner.0", "forward", ""][0])


class Mixture(nn.Module):
    """A mixture of experts that counts itself how many tokens it routes to each."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(4))
        self.routed: Counter[int] = Counter()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, chosen = torch.zeros_like(x), self.gate(x).topk(2, dim=-1).indices
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).any(-1).nonzero()[:, 0]
            if len(rows):
                self.routed[number] += len(rows)
                out = out.index_add(0, rows, expert(x[rows]))
        return out


def test_experts_have_the_tokens_that_the_program_routed_to_them() -> None:
    torch.manual_seed(0)
    net, batches = Mixture(), [torch.randn(n, 8) for n in (30, 12, 7, 21)]
    works = train(net, lambda step: net(batches[step]).sum())
    routed = Counter(net.routed)
    assert len(routed) == 4
    for number, tokens in routed.items():
        for part in ("0", "2"):
            flops, _, rows = works[f"experts.{number}.{part}", "forward", ""]
            assert rows == pytest.approx(tokens)
            assert flops == pytest.approx(2 * 8 * 16 * tokens)


def test_a_run_has_a_row_for_each_expert_and_its_bundle_the_work(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, batches = Mixture(), [torch.randn(n, 8) for n in (30, 12, 7, 21)]
    with tw.profile(net, overhead_budget=1.0) as run:
        for batch in batches:
            net(batch).sum().backward()
    experts = run.experts.set_index("expert")
    assert experts.layer.unique().tolist() == ["experts"]
    assert experts.tokens.to_dict() == pytest.approx(dict(net.routed))
    booked = [e for ledger in run.report.ledgers for e in ledger.entries if e.fqn.startswith("experts.")]
    assert experts.energy_j.sum() == pytest.approx(sum(e.energy_self_j for e in booked))
    folder = run.to_csv(tmp_path / "bundle")
    assert verify(folder).ok
    again = {(str(e.domain), e.fqn, e.phase): e for ledger in load_report(folder).ledgers for e in ledger.entries}
    first = next(e for e in booked if e.flops)
    assert again[str(first.domain), first.fqn, first.phase].flops == first.flops
    gate = run.layers.query("fqn == 'gate' and phase == 'forward'").iloc[0]
    assert gate["dtype"] == "float32"
    assert gate.energy_per_tflop_j == pytest.approx(gate.energy_self_j / gate.flops * 1e12)
    assert gate.bytes_per_s == pytest.approx(gate.bytes_moved / gate.time_self_s)
    assert run.layers.query("fqn == 'experts.0.1'").flops.isna().all()  # ReLU is of no known class


def llama(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 60, "attn_implementation": "eager", **changes,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


@pytest.mark.parametrize("budget", [1.0, pytest.param(0.01, marks=pytest.mark.heavy)])
def test_prefill_and_decode_agree_with_the_counter_though_few_steps_are_traced(budget: float) -> None:
    model, prompt, new = llama(), torch.randint(3, 60, (2, 17)), 40
    requests = 3 if budget == 1.0 else 12

    def generate(tokens: int = new) -> None:
        model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)

    prefill, both = (count_modules(model, lambda n=n: generate(n)) for n in (1, new))
    generate(2)
    with tw.profile(model, overhead_budget=budget, live="off") as run:
        for _ in range(requests):
            generate()
    entries = [e for e in run.report.ledgers[0].entries if e.phase == "forward" and "norm" not in e.fqn]
    known = {(e.fqn, e.stage): e.flops for e in entries if e.flops is not None}
    decode = {name: both[name] - prefill[name] for name in both}
    for stage, counted in (("prefill", prefill), ("decode", decode)):
        for block in range(2):
            attention = f"model.layers.{block}.self_attn"
            parts = [f"{attention}.{name}_proj" for name in "qkvo"]
            own = {part: counted[part] for part in parts}
            own[attention] = counted[attention] - sum(own.values())
            for name, flops in own.items():
                if budget == 1.0 or (name, stage) in known:  # a stage without a traced call is unknown
                    assert known[name, stage] == pytest.approx(requests * flops, rel=0.02), (name, stage)
    if budget == 1.0:
        of_stage = {stage: sum(f for (_, of), f in known.items() if of == stage) for stage in ("prefill", "decode")}
        assert of_stage["prefill"] == pytest.approx(requests * prefill["Global"])
        assert of_stage["decode"] == pytest.approx(requests * decode["Global"], rel=0.02)
    else:
        assert any(stage == "decode" for _, stage in known)
        assert 0 < run.report.tracing_cost_s < 0.1 * run.duration_s


def slot_of_calls(n: int, begins_ns: list[int], sampled: dict[int, float]) -> SlotWork | None:
    """Return the work of a slot of n calls, one each 10 ns, of which some are sampled: their number -> operations."""
    start = np.arange(n, dtype=np.int64) * 10
    spans = {
        "slot": np.zeros(n, dtype=np.int64), "start_ns": start, "end_ns": start + 9, "calls": np.ones(n, np.int64),
    }  # fmt: skip
    works = [WorkSample(10 * at, CallWork(flops, flops, 1), recomputed=False) for at, flops in sampled.items()]
    begins = {"decode": np.array(begins_ns, dtype=np.int64)}
    found = list(slot_works({("fc", "decode"): works}, [Slot("fc", "forward", "decode")], spans, begins))
    return found[0] if found else None


def test_work_that_grows_along_a_stage_is_not_the_mean_of_early_calls() -> None:
    requests = [0, 1000, 2000, 3000]  # of 100 calls each
    early = {at: 50.0 + at % 100 for request in (0, 100, 200) for at in range(request, request + 6)}
    work = slot_of_calls(400, requests, early)
    assert work is not None
    assert work.flops == pytest.approx(50.0 + 99 / 2)


def test_requests_have_their_own_work_and_others_the_mean() -> None:
    requests = [1000 * i for i in range(4)]
    work = slot_of_calls(400, requests, {0: 90.0, 100: 100.0, 200: 110.0})
    assert work is not None
    assert work.flops == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("sampled", "known"),
    [
        ({0: 100.0, 100: 100.0, 200: 100.0}, True),
        ({0: 100.0, 100: 100.0}, False),  # two requests do not tell how much a third differs
        ({0: 100.0, 100: 250.0, 200: 20.0}, False),
        ({0: 100.0, 100: 250.0, 200: 20.0, 300: 70.0}, True),  # all of them
    ],
)
def test_work_is_empty_where_the_samples_do_not_tell_it(sampled: dict[int, float], known: bool) -> None:
    assert (slot_of_calls(400, [0, 1000, 2000, 3000], sampled) is not None) == known


@pytest.mark.parametrize(("batches", "known"), [((8, 9, 8, 7, 8, 9), True), ((1, 64, 2, 32, 1, 8), False)])
def test_batches_that_vary_much_need_more_samples(batches: tuple[int, ...], known: bool) -> None:
    sampled = {17 * i: float(batch) for i, batch in enumerate(batches)}
    work = slot_of_calls(100, [], sampled)
    assert (work is not None) == known
    if work is not None:
        assert work.flops == pytest.approx(8.2, rel=0.1)


def one_call(module: nn.Module, *args: torch.Tensor) -> CallWork | None:
    reader = shape_reader(module)
    assert reader is not None
    return work_formula(module)(reader(module, args, {}, module(*args)))


def test_bytes_are_input_weights_and_output_once() -> None:
    x = torch.randn(3, 5, 8)
    linear = one_call(nn.Linear(8, 16), x)
    assert linear is not None
    assert linear.bytes_moved == 4 * (3 * 5 * 8 + 8 * 16 + 16 + 3 * 5 * 16)
    assert linear.gradient_bytes == 4 * (3 * 5 * 16 + 3 * 5 * 8 + 8 * 16 + 16)  # of the weights alone
    half = one_call(nn.Linear(8, 16, bias=False).bfloat16(), x.bfloat16())
    assert half is not None
    assert half.bytes_moved == 2 * (3 * 5 * 8 + 8 * 16 + 3 * 5 * 16)
    lookup = one_call(nn.Embedding(100, 6), torch.tensor([[1, 2, 3]]))
    assert lookup is not None
    assert (lookup.flops, lookup.bytes_moved, lookup.rows) == (0.0, 3 * (2 * 6 * 4 + 8), 3)
    norm = one_call(nn.LayerNorm(8), x)
    assert norm is not None
    assert norm.bytes_moved == 4 * (2 * 3 * 5 * 8 + 16)
    conv = one_call(nn.Conv1d(4, 6, 3, groups=2), torch.randn(2, 4, 9))
    assert conv is not None
    assert conv.bytes_moved == 4 * (2 * 4 * 9 + 6 * 2 * 3 + 6 + 2 * 6 * 7)


@pytest.mark.parametrize(
    ("module", "size"),
    [
        (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, dilation=2), (2, 4, 9, 8)),
        (nn.Conv3d(4, 6, 3, groups=2), (2, 4, 5, 6, 7)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, padding=1, output_padding=1, stride=2), (2, 4, 9, 8)),
        (nn.ConvTranspose3d(4, 6, 3, groups=2), (2, 4, 5, 6, 7)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_convolution_agrees_with_the_counter(module: nn.Module, size: tuple[int, ...]) -> None:
    x = torch.randn(size)
    work = one_call(module, x)
    with FlopCounterMode(display=False) as counter:
        module(x)
    assert work is not None
    assert work.flops == counter.get_total_flops()


class OwnForward(nn.Linear):
    """A linear layer that does something else as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) @ torch.ones(self.out_features, 3)


class Subclass(torch.Tensor):
    """A tensor whose attributes are the program's business."""

    reads: ClassVar[Counter[str]] = Counter()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.reads[getattr(func, "__name__", "")] += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_unknown_work_is_empty_and_never_zero() -> None:
    assert shape_reader(OwnForward(4, 4)) is None
    assert shape_reader(nn.Sequential(nn.Linear(4, 4))) is None
    assert shape_reader(nn.LSTM(4, 4)) is None
    net = nn.Sequential(nn.Linear(4, 4), OwnForward(4, 4))
    works = train(net, lambda _: net(torch.randn(2, 4)).sum())
    assert ("0", "forward", "") in works
    assert ("1", "forward", "") not in works


def test_subclasses_of_tensors_are_not_read() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4).as_subclass(Subclass)
    net(x)
    plain, Subclass.reads = Counter(Subclass.reads), Counter()
    tracer = Tracer(net, overhead_budget=1.0)
    tracer.start()
    net(x)
    works = works_of(tracer.stop())
    assert Subclass.reads == plain
    assert not works


def test_under_torch_func_the_hidden_dimension_leaves_work_empty() -> None:
    net = nn.Linear(4, 4)
    tracer = Tracer(net, overhead_budget=1.0)
    tracer.start()
    for _ in range(3):
        torch.vmap(net)(torch.randn(5, 2, 4))
    assert not works_of(tracer.stop())


def test_a_default_device_is_no_obstacle() -> None:
    net = nn.Linear(4, 4)
    tracer = Tracer(net, overhead_budget=1.0)
    tracer.start()
    with torch.device("cpu"):
        for _ in range(3):
            net(torch.randn(2, 4))
    assert works_of(tracer.stop())["(root)", "forward", ""][0] == 3 * 2 * 2 * 16


def test_the_type_of_a_module_is_that_of_most_of_its_parameters() -> None:
    assert metadata_of(nn.Linear(4, 4).bfloat16()).dtype == "bfloat16"
    assert not metadata_of(nn.ReLU()).dtype
