"""Recordings of others: the join's figures are the trace's own, and those of a slow join by other means.

`test_synthetic.py` has the same laws on generated traces, `test_own_recordings.py` on ours.
"""

import gzip
import json
from collections import defaultdict

import numpy as np
import pytest

from tests.kineto import reference_join as reference
from tests.support.other_recordings import recordings_of_others
from torchwatt.kineto import join_trace, read_trace
from torchwatt.sensors.logs.power_log import read_power_log

TRACES = recordings_of_others()
# Part of kernel time that reaches a module, a reserved row or a named range. Operators count for nothing here.
NAMED = {
    "alexnet_sync_a100": 0.99,
    "compile_graph_flux1_mi300x": 0.998,
    "compile_triton_small_mi300x": 0.99,  # a compiled graph and nothing else
    "fwdbwd_norm_layers_mi300x": 0.97,
    "gpu_only_mi210": 0.0,  # no host events at all
    "graph_capture_sglang_qwen3_8b_mi300x": 0.99,
    "graph_capture_vllm_full_mi300x": 0.99,
    "graph_capture_vllm_piecewise_mi300x": 0.99,
    "graph_replay_sglang_qwen3_8b_mi300x": 0.99,
    "graph_replay_vllm_full_mi300x": 0.99,
    "infer_bert_small_h100": 0.99,
    "infer_bert_small_mi300x": 0.99,
    "infer_qwen05b_h100": 0.69,  # the rest was launched before the trace began
    "infer_qwen05b_mi300x": 0.69,
    "infer_sglang_qwen3_8b_prefill_mi300x": 0.99,
    "infer_timesformer_h100": 0.97,
    "infer_vllm_moe_tp8_b200": 0.99,
    "multi_stream_sync_a100": 0.0,
    "train_128rank_sampled_rank0": 0.94,
    "train_compile_cudagraph_nccl_a100": 0.65,  # replays whose capture was not seen, and orphans
    "train_compile_nccl_v100": 0.40,
    "train_ddp_ckpt_resnet_mi300x": 0.93,
    "train_ddp_resnet_a100": 0.99,
    "train_dlrm_v100_cudagraph": 0.62,
    "train_linear_2080ti": 0.07,  # operators only, beside the optimizer
    "train_resnet50_v100_2021": 0.01,
    "train_toy_mi250": 0.07,
    "triton_one_kernel_a100": 0.0,
}
CAPTURES = {
    "graph_replay_sglang_qwen3_8b_mi300x": "graph_capture_sglang_qwen3_8b_mi300x",
    "graph_replay_vllm_full_mi300x": "graph_capture_vllm_full_mi300x",
}
WITHOUT_KERNELS = {"cupti_range_a100"}
# Layer: (forward, backward) in ns of device work, by `reference.layer_times` and spot checks of the raw events.
LAYERS = {
    "train_ddp_ckpt_resnet_mi300x": {
        "BatchNorm2d_0": (497625, 1210143),
        "Conv2d_19": (160981, 537661),
        "MaxPool2d_0": (70756, 246153),
    },
    "fwdbwd_norm_layers_mi300x": {
        "LayerNorm_0": (44344, 114280),
        "GroupNorm_0": (47823, 65918),
        "BatchNorm2d_0": (87795, 22786),
    },
    "infer_vllm_moe_tp8_b200": {
        "VocabParallelEmbedding_0": (254240, 0),
        "FusedMoE_1": (232896, 0),
        "RowParallelLinear_7": (47808, 0),
    },
    "infer_bert_small_h100": {
        "Linear_25": (41280, 0),
        "BertSdpaSelfAttention_0": (10080, 0),
        "Embedding_2": (3424, 0),
    },
    "infer_bert_small_mi300x": {
        "Linear_25": (25537, 0),
        "BertSdpaSelfAttention_0": (32032, 0),
        "GELUActivation_0": (5210, 0),
    },
    "infer_qwen05b_h100": {
        "Qwen2Attention_13": (525533, 0),
        "Qwen2RMSNorm_1": (152481, 0),
        "Linear_158": (86912, 0),
    },
    "infer_qwen05b_mi300x": {
        "Qwen2Attention_5": (440557, 0),
        "Qwen2RMSNorm_39": (122754, 0),
        "Linear_4": (118551, 0),
    },
    "infer_timesformer_h100": {
        "TimesformerSelfAttention_5": (11026470, 0),
        "Conv2d_0": (1297914, 0),
        "Linear_5": (166687, 0),
    },
    "infer_sglang_qwen3_8b_prefill_mi300x": {
        "MergedColumnParallelLinear_0": (6902942, 0),
        "RotaryEmbedding_0": (4725106, 0),
        "RadixAttention_21": (625372, 0),
    },
    "compile_graph_flux1_mi300x": {
        "T5Attention_0": (317884, 0),
        "Conv2d_26": (294832, 0),
        "Linear_239": (107999, 0),
    },
}


@pytest.fixture(scope="module")
def found():
    """Return a function that joins a recording once, with its capture where there is one."""
    known = {}

    def of(name):
        if name not in known:
            captures = [read_trace(path(CAPTURES[name]))] if name in CAPTURES else []
            known[name] = join_trace(read_trace(path(name)), captures=captures)
        return known[name]

    def path(name):
        return TRACES / "kineto" / f"{name}.json.gz"

    return of


@pytest.fixture(scope="module")
def raw():
    return lambda name: reference.load(TRACES / "kineto" / f"{name}.json.gz")


def by_leaf(found):
    """Return {(module's own name, phase): ns}."""
    times = defaultdict(int)
    for activity in found.activities:
        length = np.bincount(activity.slot, activity.end_ns - activity.start_ns, len(activity.slots))
        for slot, ns in zip(activity.slots, length, strict=True):
            times[slot.fqn.rpartition(".")[2], slot.phase] += int(ns)
    return times


def test_every_recording_is_in_the_list():
    """A recording that is added must be given its bound."""
    there = {path.name.removesuffix(".json.gz") for path in (TRACES / "kineto").glob("*.json.gz")}
    index = {row["file"].removesuffix(".json.gz") for row in json.loads((TRACES / "index.json").read_text())}
    assert there & index <= NAMED.keys() | WITHOUT_KERNELS


@pytest.mark.parametrize("name", sorted(NAMED))
def test_all_kernel_time_is_joined_and_the_named_share_keeps_its_bound(name, found, raw):
    one = found(name)
    assert one.total_kernel_ns == reference.kernel_ns(raw(name)) > 0
    assert one.named_share >= NAMED[name]
    assert sum(len(a) for a in one.activities) == one.records


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_hand_checked_layers_have_their_forward_and_backward_time(name, found):
    times = by_leaf(found(name))
    for layer, (forward, backward) in LAYERS[name].items():
        assert (times[layer, "forward"], times[layer, "backward"]) == (forward, backward), layer


@pytest.mark.parametrize("name", ["train_ddp_ckpt_resnet_mi300x", "fwdbwd_norm_layers_mi300x", "infer_qwen05b_h100"])
def test_every_layer_agrees_with_a_slow_join_by_other_means(name, found, raw):
    times = by_leaf(found(name))
    slow = reference.layer_times(raw(name))
    assert len(slow) > 20
    assert {key: times[key] for key in slow} == slow


def test_a_trace_without_kernels_has_no_activity_and_says_no_wrong_figure():
    one = join_trace(read_trace(TRACES / "kineto" / "cupti_range_a100.json.gz"))
    assert one.activities == ()
    assert one.total_kernel_ns == 0
    assert one.named_share == 0


@pytest.mark.parametrize("name", sorted(CAPTURES))
def test_replayed_kernels_belong_to_the_modules_that_launched_them_at_capture(name, found, raw):
    times = by_leaf(found(name))
    expected = replayed(raw(CAPTURES[name]), raw(name))
    assert sum(expected.values()) > 9e6
    for module, ns in expected.items():
        assert times[module, "forward"] == ns + reference.layer_times(raw(name)).get((module, "forward"), 0), module


def replayed(capture, replay):
    """Pair captured launches and replayed kernels by their order in time; {module: ns}."""
    begin = next(e["ts"] for e in capture if e["name"] == "hipStreamBeginCapture")
    end = next(e["ts"] for e in capture if e["name"] == "hipStreamEndCapture")
    launches = [e for e in capture if "Launch" in e["name"] and e.get("cat") == "cuda_runtime"]
    launches = sorted((e for e in launches if begin < e["ts"] < end), key=lambda e: e["ts"])
    graph = next(e["args"]["correlation"] for e in replay if e["name"] == "hipGraphLaunch")
    kernels = [e for e in replay if e.get("cat") == "kernel" and e["args"]["correlation"] == graph]
    kernels.sort(key=lambda e: e["ts"])
    modules = [e for e in capture if e.get("cat") == "python_function" and e["name"].startswith(reference.MODULE)]
    times = defaultdict(int)
    for call, record in zip(launches, kernels, strict=True):
        assert call["args"]["kernel"] == record["name"]
        inner = reference.innermost(modules, call["ts"])
        if inner:
            times[inner["name"].removeprefix(reference.MODULE)] += reference.ns(record["dur"])
    return times


def test_a_replay_without_its_capture_is_booked_to_what_encloses_it_and_said():
    one = join_trace(read_trace(TRACES / "kineto" / "graph_replay_sglang_qwen3_8b_mi300x.json.gz"))
    assert one.share("graph") > 0.98
    assert any("have no capture that fits" in text for text in one.notes)


def test_the_checkpointed_training_splits_as_published(found):
    """The split that was found by a prototype, over all records (kernels, copies, fills), in per cent."""
    one = found("train_ddp_ckpt_resnet_mi300x")
    total = sum(one.kernel_ns.values()) + sum(one.copy_ns.values())
    published = {"communication": 71.4, "module-backward": 9.5, "recompute": 4.2}
    got = {name: 100 * (one.kernel_ns[name] + one.copy_ns[name]) / total for name in published}
    assert got == pytest.approx(published, abs=0.2)


def test_busy_time_is_less_than_the_sum_where_streams_overlap(found):
    one = found("train_ddp_ckpt_resnet_mi300x")
    assert 0 < one.busy_ns["gpu:2"] < one.total_kernel_ns


def test_logs_of_nvidia_smi_are_read(tmp_path):
    for packed in sorted((TRACES / "power" / "gpu_power_benchmark").glob("*_nvidia_smi.csv.gz")):
        path = tmp_path / packed.stem
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        (series,) = read_power_log(path).series
        assert len(series) > 100
        assert (np.diff(series.t_ns) >= 0).all()
        assert 20 < float(np.median(series.raw)) < 500
