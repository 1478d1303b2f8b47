"""Joules and time of generation by type of layer and stage, against plain hooks in runs without torchwatt."""

import os
import statistics
import time
from collections import defaultdict
from math import fsum, isclose

import pytest
import torch
from examples import smollm2

import torchwatt as tw
from tests.support.lazy_module import LazyModule, skip_without

os.environ.setdefault("HF_HUB_OFFLINE", "1")
skip_without("transformers", reason="the adapter is for transformers")
transformers = LazyModule("transformers")

pytestmark = pytest.mark.alone  # shares of time

POINTS = 3.0  # percentage points between a report's share of a stage and that of the hooks
ROUNDS = 3  # by turns with torchwatt and with hooks; their medians are compared
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
TYPES = ("embedding", "attention projections", "attention", "MLP", "norms", "lm_head")
REST = "rest"  # of the model and of the library around it


def layer_type(fqn):
    """Return the type of the layer that a module is, or is a part of."""
    parts = fqn.split(".")
    if parts[-1] in PROJECTIONS:
        return "attention projections"
    if "self_attn" in parts:
        return "attention"
    if "mlp" in parts:
        return "MLP"
    if parts[-1].endswith("norm"):
        return "norms"
    return {"embed_tokens": "embedding", "lm_head": "lm_head"}.get(parts[-1], REST)


class PlainHooks:
    """Seconds of each type of layer in each stage, by forward hooks and a clock. No code of torchwatt's."""

    def __init__(self, model):
        self.seconds = {"prefill": defaultdict(float), "decode": defaultdict(float)}
        self.whole = dict.fromkeys(self.seconds, 0.0)
        self.began_s = []  # of each pass of one call
        self.children_s = [0.0]  # of the open calls
        self.starts_s = []
        timed = [
            (name, module)
            for name, module in model.named_modules()
            if layer_type(name) != REST and (layer_type(name) != "MLP" or name.endswith("mlp"))
        ]
        self.handles = [model.register_forward_pre_hook(self.enter_model)]
        for name, module in timed:
            self.handles.append(module.register_forward_pre_hook(self.enter))
            self.handles.append(module.register_forward_hook(self.leaver(layer_type(name))))

    def enter_model(self, *_):
        self.began_s.append(time.perf_counter())

    def enter(self, *_):
        self.children_s.append(0.0)
        self.starts_s.append(time.perf_counter())

    def leaver(self, name):
        def leave(*_):
            whole_s = time.perf_counter() - self.starts_s.pop()
            stage = "prefill" if len(self.began_s) == 1 else "decode"
            self.seconds[stage][name] += whole_s - self.children_s.pop()
            self.children_s[-1] += whole_s

        return leave

    def run(self, generate):
        """Call something that generates once; the second pass of the model begins its decode stage."""
        self.began_s.clear()
        begin_s = time.perf_counter()
        generate()
        end_s = time.perf_counter()
        self.whole["prefill"] += self.began_s[1] - begin_s
        self.whole["decode"] += end_s - self.began_s[1]

    def shares(self):
        """Return percent of each stage by (stage, type)."""
        return {
            (stage, name): 100 * self.seconds[stage][name] / whole_s
            for stage, whole_s in self.whole.items()
            for name in TYPES
        }

    def remove(self):
        for handle in self.handles:
            handle.remove()


def hooked(model, generate, calls):
    hooks = PlainHooks(model)
    try:
        for _ in range(calls):
            hooks.run(generate)
    finally:
        hooks.remove()
    return hooks.shares()


def profiled(model, generate, calls):
    with tw.profile(model) as run:
        for _ in range(calls):
            generate()
    return run


def reported_shares(run, column):
    """Return percent of each stage by (stage, type); torchwatt's own work is in none."""
    rows = run.layers[(run.layers.domain == "cpu") & (run.layers.fqn != "(profiler)")]
    found = {}
    for stage in ("prefill", "decode"):
        of_stage = rows[rows.stage == stage]
        by_type = of_stage.groupby(of_stage.fqn.map(layer_type))[column].sum()
        found |= {(stage, name): 100 * by_type.get(name, 0.0) / of_stage[column].sum() for name in TYPES}
    return found


def assert_shares_are_those_of_hooks(model, generate, calls, rounds=ROUNDS):
    """Compare medians of runs by turns; return the runs."""
    generate()  # the first call loads and allocates
    runs, truths = [], []
    for _ in range(rounds):
        truths.append(hooked(model, generate, calls))
        runs.append(profiled(model, generate, calls))
    table, wrong = [], []
    for column in ("energy_self_j", "time_self_s"):
        reported = [reported_shares(run, column) for run in runs]
        for key in truths[0]:
            true, told = (statistics.median(each[key] for each in part) for part in (truths, reported))
            table.append(f"{column:14} {key[0]:8} {key[1]:22} {true:6.2f} {told:6.2f} {told - true:+6.2f}")
            wrong += [table[-1]] if abs(told - true) > POINTS else []
    assert not wrong, "\n".join(table)
    return runs


def assert_stages_add_up(run):
    """What prefill, decode and the rest have is the total: of all rows, and of each meter's ledger."""
    stages = run.layers.groupby("stage").energy_self_j.apply(fsum)
    assert set(stages.index) == {"prefill", "decode", ""}
    assert stages["prefill"] > 0
    assert stages["decode"] > 0
    assert isclose(fsum(stages), run.energy_j, rel_tol=1e-9)
    for ledger in run.report.counted:
        parts = defaultdict(list)
        for entry in ledger.entries:
            parts[entry.stage].append(entry.energy_self_j)
        assert set(parts) == {"prefill", "decode", ""}
        assert isclose(fsum(map(fsum, parts.values())), ledger.energy_j, rel_tol=1e-9)
    for stage in ("prefill", "decode"):  # by the rows of requests, which the meters' curves give
        by_request = run.tokens[run.tokens.stage == stage].energy_j.sum()
        assert by_request == pytest.approx(stages[stage], rel=0.05)


def assert_tokens_are_those_of_the_tensors(run, mask, sequences, ends, calls):
    generated = sequences[:, mask.shape[1] :].tolist()
    output = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in generated]
    told = run.tokens.drop_duplicates("request")
    assert told.input_tokens.tolist() == mask.sum(-1).tolist() * calls
    assert told.output_tokens.tolist() == output * calls
    assert run.generation["all"]["output_tokens"] == calls * sum(output)


@pytest.mark.usefixtures("one_thread")
def test_a_random_llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 2000, (8, 64))
    ids[0, :20], ids[3, :7] = 0, 0
    mask = (ids != 0).long()
    sequences = None

    def generate():
        nonlocal sequences
        sequences = model.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)

    runs = assert_shares_are_those_of_hooks(model, generate, calls=8, rounds=5)
    for run in runs:
        assert_stages_add_up(run)
        assert_tokens_are_those_of_the_tensors(run, mask, sequences, {2}, calls=8)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_smollm2():
    if not smollm2.is_installed():
        pytest.skip(f"SmolLM2 is in requirements-all.txt: {smollm2.HOW}")
    tokenizer, model = smollm2.load()
    tokenizer.padding_side = "left"
    texts = ["The capital of France is", "Joules are", "A meter says how much, and a trace says who:"]
    texts.append("Energy is a word of physics. " * 20)
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    ends = {model.generation_config.eos_token_id}
    sequences = None

    def generate():
        nonlocal sequences
        sequences = model.generate(**inputs, max_new_tokens=24, do_sample=False)

    runs = assert_shares_are_those_of_hooks(model, generate, calls=2)
    for run in runs:
        assert_stages_add_up(run)
        assert_tokens_are_those_of_the_tensors(run, inputs["attention_mask"], sequences, ends, calls=2)
