"""Small traces by hand: who owns each record, rule by rule."""

import numpy as np
import pytest

from tests.kineto.trace_files import BACK, BASE_NS, MAIN, joined, kernel, launch, module, node, note, op, owned, pair
from torchwatt.core.terms import Slot
from torchwatt.kineto.host_ownership import RecordedRanges
from torchwatt.kineto.trace_labels import Sidecar, normalise_shares


def training():
    """Two layers forward, their backward on another thread, an optimizer step."""
    return [
        module("Net_0", 0, 100),
        module("Linear_0", 10, 30),
        module("Linear_1", 50, 30),
        op("aten::linear", 11, 20, seq=0),
        op("aten::linear", 51, 20, seq=1),
        *pair(12, 15, 7, 1),
        *pair(52, 55, 5, 2),
        node("AddmmBackward0", 110, 20, seq=1),
        node("torch::autograd::AccumulateGrad", 131, 4),
        node("AddmmBackward0", 140, 20, seq=0),
        *pair(112, 115, 11, 3, tid=BACK),
        *pair(132, 135, 3, 4, tid=BACK),
        *pair(142, 145, 13, 5, tid=BACK),
        note("Optimizer.step#SGD.step", 200, 20),
        *pair(205, 210, 2, 6),
    ]


def test_forward_backward_and_optimizer_reach_their_rows(tmp_path):
    found = joined(tmp_path, training())
    assert owned(found) == {
        ("Net_0.Linear_0", "forward"): 7000,
        ("Net_0.Linear_1", "forward"): 5000,
        ("Net_0.Linear_1", "backward"): 14000,  # its own node, and the accumulation that ran right after it
        ("Net_0.Linear_0", "backward"): 13000,
        ("(optimizer)", "optimizer"): 2000,
    }
    assert found.kernel_ns["module-backward"] == 27000
    assert [info.fqn for info in found.modules] == ["Net_0", "Net_0.Linear_0", "Net_0.Linear_1"]
    assert found.modules[1].class_name == "Linear"


def test_times_are_unix_nanoseconds_plus_the_offset(tmp_path):
    events = [module("A_0", 0, 9), *pair(1, 2.125, 3.25, 1)]
    (activity,) = joined(tmp_path, events, offset_ns=-50).activities
    assert activity.start_ns.tolist() == [BASE_NS + 2125 - 50]
    assert activity.end_ns.tolist() == [BASE_NS + 5375 - 50]


def test_the_last_operator_with_a_sequence_number_is_the_one_that_made_the_node(tmp_path):
    events = [
        module("A_0", 0, 10), op("aten::detach", 1, 1, seq=5),
        module("B_0", 20, 10), op("aten::mul", 21, 1, seq=5),
        node("MulBackward0", 50, 10, seq=5), *pair(51, 60, 4, 1, tid=BACK),
    ]  # fmt: skip
    assert owned(joined(tmp_path, events)) == {("B_0", "backward"): 4000}


def test_sequence_numbers_of_two_forward_threads_are_told_apart(tmp_path):
    """Both threads use number 1; arrows say which of torch's own thread numbers is which thread."""

    def arrow(key, begin, end):
        flow = {"cat": "fwdbwd", "name": "fwdbwd", "id": key, "pid": 1}
        return [
            {**flow, "ph": "s", "tid": begin[0], "ts": begin[1]},
            {**flow, "ph": "f", "bp": "e", "tid": end[0], "ts": end[1]},
        ]

    other = 101
    events = [
        module("A_0", 0, 10), op("aten::mul", 1, 1, seq=1),
        module("B_0", 0, 10, tid=other), op("aten::mul", 1, 1, tid=other, seq=1),
        node("MulBackward0", 50, 10, seq=1, forward=8), *pair(51, 52, 3, 1, tid=BACK),
        node("MulBackward0", 70, 10, seq=1, forward=9), *pair(71, 72, 4, 2, tid=BACK),
        *arrow(1, (other, 1), (BACK, 50)), *arrow(2, (MAIN, 1), (BACK, 70)),
    ]  # fmt: skip
    assert owned(joined(tmp_path, events)) == {("B_0", "backward"): 3000, ("A_0", "backward"): 4000}


def test_a_module_called_inside_backward_is_recomputed(tmp_path):
    events = [
        module("A_0", 0, 10), op("aten::mul", 1, 1, seq=1),
        node("CheckpointBackward", 50, 40, seq=1),
        module("B_0", 55, 10, tid=BACK), *pair(56, 60, 4, 1, tid=BACK),
    ]  # fmt: skip
    found = joined(tmp_path, events)
    assert owned(found) == {("B_0", "backward"): 4000}
    assert found.kernel_ns["recompute"] == 4000


def test_a_node_inside_a_module_is_backward_and_not_that_modules_forward(tmp_path):
    """A trainer that is a module itself calls backward on the thread of its own forward (CPU engine, or hooks)."""
    events = [
        module("Trainer_0", 0, 100), module("A_0", 1, 10), op("aten::mul", 2, 1, seq=1),
        node("MulBackward0", 50, 10, seq=1, tid=MAIN), *pair(51, 55, 4, 1),
    ]  # fmt: skip
    found = joined(tmp_path, events)
    assert owned(found) == {("Trainer_0.A_0", "backward"): 4000}
    assert found.kernel_ns["recompute"] == 0


def test_collectives_transfers_data_and_scopes_have_their_rows(tmp_path):
    events = [
        module("A_0", 0, 10),
        *pair(1, 5, 50, 1, name="ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"),
        *pair(2, 6, 5, 2, name="Memcpy HtoD (Pageable -> Device)", cat="gpu_memcpy"),  # inside a module: the module's
        *pair(20, 21, 6, 3, name="Memcpy HtoD (Pinned -> Device)", cat="gpu_memcpy"),
        *pair(22, 30, 7, 4, name="Memcpy DtoD (Device -> Device)", cat="gpu_memcpy"),
        note("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 40, 10), *pair(41, 45, 8, 5),
        note("## loss ##", 60, 10), *pair(61, 65, 9, 6),
        note("Optimizer.zero_grad#SGD.zero_grad", 80, 10), *pair(81, 85, 2, 7),
        *pair(95, 96, 1, 8),
    ]  # fmt: skip
    found = joined(tmp_path, events)
    assert owned(found) == {
        ("(communication)", "communication"): 50000,
        ("A_0", "forward"): 5000,
        ("(transfer)", "transfer"): 6000,
        ("(unattributed)", "other"): 8000,
        ("(data)", "data"): 8000,
        ("loss", "other"): 9000,
        ("(optimizer)", "optimizer"): 2000,
    }
    assert found.copy_ns["transfer"] == 6000
    assert found.busy_ns == {"gpu:0": 50000 + 9000 + 2000 + 1000}  # the collective ran under all that came before 55


def test_what_fsdp_copies_around_its_collectives_is_communication_as_they_are(tmp_path):
    events = [
        module("A_0", 0, 30), note("FSDP::pre_forward (a)", 1, 10),
        note("FSDP::all_gather_copy_out (a)", 2, 5), *pair(3, 5, 4, 1), *pair(15, 20, 8, 2),
        node("MulBackward0", 50, 30), note("FSDP::post_backward_reduce (a)", 60, 5), *pair(61, 65, 6, 3),
        note("FullyShardedDataParallel._post_backward_hook", 70, 5), *pair(71, 75, 3, 4),
    ]  # fmt: skip
    assert owned(joined(tmp_path, events)) == {("(communication)", "communication"): 13000, ("A_0", "forward"): 8000}


def test_a_record_without_a_launch_is_an_orphan_in_plain_sight(tmp_path):
    found = joined(tmp_path, [module("A_0", 0, 10), kernel(1, 5, 77), kernel(7, 2, -1)])
    assert owned(found) == {("(orphan)", "other"): 7000}
    assert found.share("orphan") == 1.0
    assert any("2 records have no launch" in text for text in found.notes)


def test_launches_without_a_record_are_counted_as_lost(tmp_path):
    events = [module("A_0", 0, 10), *pair(1, 2, 3, 1), launch(4, 2), launch(5, 3, name="cudaStreamSynchronize")]
    assert joined(tmp_path, events).lost == 1


def test_a_correlation_id_used_twice_means_the_last_launch_before_the_record(tmp_path):
    events = [
        module("A_0", 0, 10), *pair(1, 2, 3, 1),
        module("B_0", 100, 10), *pair(101, 102, 5, 1),
    ]  # fmt: skip
    found = joined(tmp_path, events)
    assert owned(found) == {("A_0", "forward"): 3000, ("B_0", "forward"): 5000}
    assert any("share a correlation id" in text for text in found.notes)


def test_devices_and_streams_are_kept_apart(tmp_path):
    events = [
        module("A_0", 0, 10),
        *pair(1, 10, 8, 1, device=0, stream=7), *pair(2, 12, 4, 2, device=0, stream=20), *pair(3, 10, 5, 3, device=3),
    ]  # fmt: skip
    found = joined(tmp_path, events)
    assert [a.device for a in found.activities] == ["gpu:0", "gpu:3"]
    assert found.activities[0].stream.tolist() == [7, 20]
    assert found.busy_ns == {"gpu:0": 8000, "gpu:3": 5000}


@pytest.mark.parametrize("prefix", ["torchwatt::", "tw::"])
def test_ranges_named_for_us_are_layers_and_may_say_their_phase(tmp_path, prefix):
    events = [
        module("Net_0", 0, 100),
        note(f"{prefix}blocks.0.fc", 1, 10), *pair(2, 3, 1, 1),
        note(f"{prefix}blocks.0.fc::backward", 20, 10), *pair(21, 22, 2, 2),
        note(f"{prefix}std::vector", 40, 10), *pair(41, 42, 4, 3),
    ]  # fmt: skip
    assert owned(joined(tmp_path, events)) == {
        ("blocks.0.fc", "forward"): 1000,
        ("blocks.0.fc", "backward"): 2000,
        ("std::vector", "forward"): 4000,
    }


def test_ranges_that_a_session_recorded_win_over_what_the_trace_says(tmp_path):
    slots = (Slot("net.fc", "forward"), Slot("net", "forward"))
    at = lambda *us: np.array([BASE_NS + t * 1000 for t in us])  # noqa: E731
    live = RecordedRanges(
        thread=np.array([MAIN, MAIN]), start_ns=at(10, 0), end_ns=at(40, 100),
        seq0=np.array([0, 0]), seq1=np.array([1, 2]), slot=np.array([0, 1]), slots=slots,
    )  # fmt: skip
    events = [e for e in training() if e["cat"] != "python_function"]
    assert owned(joined(tmp_path, events, live=live)) == {
        ("net.fc", "forward"): 7000,
        ("net", "forward"): 5000,
        ("net", "backward"): 14000,
        ("net.fc", "backward"): 13000,
        ("(optimizer)", "optimizer"): 2000,
    }


def test_without_modules_backward_belongs_to_the_range_or_operator_that_made_it(tmp_path):
    events = [
        note("DistributedDataParallel.forward", 0, 50), op("aten::conv2d", 1, 10, seq=0), *pair(2, 3, 3, 1),
        op("aten::mse_loss", 60, 10, seq=1), *pair(61, 62, 1, 2),
        node("MseLossBackward0", 100, 10, seq=1), *pair(101, 102, 2, 3, tid=BACK),
        node("ConvolutionBackward0", 120, 10, seq=0), *pair(121, 122, 4, 4, tid=BACK),
    ]  # fmt: skip
    found = joined(tmp_path, events)
    assert owned(found) == {
        ("DistributedDataParallel.forward", "other"): 3000,
        ("aten::mse_loss", "forward"): 1000,
        ("aten::mse_loss", "backward"): 2000,
        ("DistributedDataParallel.forward", "backward"): 4000,
    }
    assert found.kernel_ns["op"] == 3000


def test_a_trace_without_host_events_knows_nobody(tmp_path):
    found = joined(tmp_path, [kernel(1, 5, 1), kernel(3, 5, 2, stream=8)])
    assert found.named_share == 0
    assert found.busy_ns == {"gpu:0": 7000}


def captured():
    """A graph of two kernels captured inside two modules, and replayed later."""
    return [
        launch(0, 90, name="cudaStreamBeginCapture"),
        module("A_0", 1, 5), launch(2, 91, kernel="gemm"),
        module("B_0", 10, 5), launch(11, 92, kernel="relu"),
        launch(20, 93, name="cudaStreamEndCapture"),
        note("decode", 100, 50), launch(101, 94, name="cudaGraphLaunch"),
    ]  # fmt: skip


def test_a_replay_is_labelled_by_the_order_of_its_capture(tmp_path):
    events = [*captured(), kernel(110, 4, 94, "gemm"), kernel(120, 2, 94, "relu")]
    found = joined(tmp_path, events)
    assert owned(found) == {("A_0", "forward"): 4000, ("B_0", "forward"): 2000}
    assert found.lost == 0


def test_a_replay_that_streams_reordered_is_labelled_name_by_name(tmp_path):
    events = [*captured(), kernel(110, 2, 94, "relu"), kernel(111, 4, 94, "gemm", stream=9)]
    assert owned(joined(tmp_path, events)) == {("A_0", "forward"): 4000, ("B_0", "forward"): 2000}


def test_a_replay_that_does_not_fit_is_booked_to_what_encloses_it(tmp_path):
    events = [*captured(), kernel(110, 4, 94, "gemm"), kernel(120, 2, 94, "softmax")]
    found = joined(tmp_path, events)
    assert owned(found) == {("decode", "other"): 6000}
    assert found.kernel_ns["graph"] == 6000


def test_layers_that_are_captured_alike_are_replayed_in_turn(tmp_path):
    events = []
    for layer in range(3):
        at = layer * 100
        events += [
            launch(at, 10 * layer + 1, name="cudaStreamBeginCapture"), module(f"Block_{layer}", at + 1, 9),
            launch(at + 2, 10 * layer + 2, kernel="gemm"), launch(at + 20, 10 * layer + 3, name="cudaStreamEndCapture"),
        ]  # fmt: skip
    for turn in range(6):
        events += [launch(1000 + turn * 10, 500 + turn, name="cudaGraphLaunch")]
        events += [kernel(1001 + turn * 10, 1 + turn, 500 + turn, "gemm")]
    assert owned(joined(tmp_path, events)) == {(f"Block_{i}", "forward"): (1 + i + 4 + i) * 1000 for i in range(3)}
    lone = joined(tmp_path, events[:-2])  # five replays of three graphs: whose turn it is cannot be known
    assert lone.share("graph") == 1.0


def compiled():
    key = "fabc123"
    return [
        module("Opt_0", 0, 100), note(f"## Call CompiledFxGraph {key} ##", 1, 50),
        *pair(2, 10, 10, 1, name="triton_poi_fused_add_gelu_0"), *pair(3, 30, 5, 2, name="triton_red_fused_mean_1"),
    ]  # fmt: skip


def test_a_fused_kernel_is_cut_in_proportion_to_the_sidecars_weights(tmp_path):
    shares = normalise_shares([("net.fc", "forward", 3.0), ("net.act", "forward", 1.0)])
    sidecar = Sidecar({"fabc123": {"triton_poi_fused_add_gelu_0": shares}})
    found = joined(tmp_path, compiled(), sidecar=sidecar)
    assert owned(found) == {("net.fc", "forward"): 7500, ("net.act", "forward"): 2500, ("Opt_0", "forward"): 5000}
    assert found.total_kernel_ns == 15000
    assert found.busy_ns == {"gpu:0": 15000}
    assert any("1 compiled kernels have no provenance" in text for text in found.notes)


def test_a_kernel_written_once_and_called_for_each_layer_is_told_apart_by_its_calls(tmp_path):
    name = "triton_poi_fused_gelu_0"
    rows = {f"{name}#{i}": normalise_shares([(f"{i}.act", "forward", 1.0)]) for i in range(2)}
    rows[name] = normalise_shares([("0.act", "forward", 1.0), ("1.act", "forward", 1.0)])
    sidecar = Sidecar({"fabc": rows})
    call = [note("## Call CompiledFxGraph fabc ##", 0, 50)]
    twice = [*call, *pair(1, 10, 10, 1, name=name), *pair(2, 30, 6, 2, name=name)]
    assert owned(joined(tmp_path, twice, sidecar=sidecar)) == {("0.act", "forward"): 10000, ("1.act", "forward"): 6000}
    thrice = [*twice, *pair(3, 60, 4, 3, name=name)]  # not the calls that were compiled: shared alike
    assert owned(joined(tmp_path, thrice, sidecar=sidecar)) == {
        ("0.act", "forward"): 10000,
        ("1.act", "forward"): 10000,
    }


def called(n):
    """A compiled graph that calls aten::mm n times, one of them with an operator inside, and aten::copy_ between."""
    events = [module("Opt_0", 0, 100), note("## Call CompiledFxGraph fabc ##", 1, 50)]
    for i in range(n):
        at = 2 + 10 * i
        events += [op("aten::mm", at, 5), *pair(at + 1, 100 + 20 * i, 4 + i, 2 * i, name="gemm")]
        events += [op("aten::copy_", at + 6, 2), *pair(at + 7, 110 + 20 * i, 1, 2 * i + 1, name="copy")]
    return [*events, op("aten::mm", 2 + 1, 3)]  # nested in the first: no call of the graph's own


def test_operators_that_a_compiled_graph_calls_are_told_apart_by_their_order(tmp_path):
    rows = {f"extern_kernels.mm#{i}": normalise_shares([(f"{i}.fc", "forward", 1.0)]) for i in range(3)}
    sidecar = Sidecar({"fabc": rows})
    expected = {(f"{i}.fc", "forward"): 4000 + 1000 * i for i in range(3)}
    found = joined(tmp_path, called(3), sidecar=sidecar)
    assert owned(found) == {**expected, ("Opt_0", "forward"): 3000}
    for other in (2, 4):  # not the calls that were compiled: whose is which cannot be known
        alone = owned(joined(tmp_path, called(other), sidecar=sidecar))
        assert set(alone) == {("Opt_0", "forward")}


def test_another_graphs_kernel_of_the_same_name_is_not_taken(tmp_path):
    sidecar = Sidecar({"fother": {"triton_poi_fused_add_gelu_0": normalise_shares([("net.fc", "forward", 1.0)])}})
    assert owned(joined(tmp_path, compiled(), sidecar=sidecar)) == {("Opt_0", "forward"): 15000}


def test_a_module_seen_first_without_its_callers_gets_its_full_path_all_the_same(tmp_path):
    events = [
        module("Conv_0", 0, 5), *pair(1, 2, 1, 1),
        module("Net_0", 10, 50), module("Conv_0", 20, 5), *pair(21, 22, 2, 2),
    ]  # fmt: skip
    assert owned(joined(tmp_path, events)) == {("Net_0.Conv_0", "forward"): 3000}


def test_steps_lie_on_the_devices_own_timeline(tmp_path):
    events = [
        note("ProfilerStep#1", 0, 100), *pair(10, 150, 20, 1),
        note("ProfilerStep#2", 100, 100), *pair(110, 180, 20, 2), *pair(120, 210, 30, 3),
    ]  # fmt: skip
    (activity,) = joined(tmp_path, events).activities
    got = [((a - BASE_NS) // 1000, (b - BASE_NS) // 1000) for a, b in activity.steps]
    assert got == [(150, 180), (180, 240)]
