"""Compiled kernels find their modules: the real compiler on a CPU, and the parts by hand."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import Slot
from torchwatt.kineto import read_sidecar
from torchwatt.offline.inductor import ProvenanceRecorder, module_name, recording, shares


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(x)))


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) for the CPU inductor")
@pytest.mark.slow
def test_the_compiler_tells_blocks_of_a_loop_apart_forward_and_backward(tmp_path):
    torch._dynamo.reset()
    net = nn.Sequential(*[Block(8) for _ in range(2)])
    with torch._inductor.config.patch(force_disable_caches=False, fx_graph_cache=True), fresh(tmp_path):
        with recording() as recorder:
            torch.compile(net)(torch.randn(4, 8, requires_grad=True)).sum().backward()
        sidecar = read_sidecar(recorder.save(tmp_path / "sidecar.json"))
    slots = {slot for kernels in sidecar.graphs.values() for rows in kernels.values() for slot, _ in rows}
    for block in ("0", "1"):
        assert Slot(f"{block}.act", "forward") in slots
        assert Slot(f"{block}.act", "backward") in slots
        assert Slot(f"{block}.fc1", "forward") in slots  # an operator that the graph calls as it is
    assert len(sidecar.graphs) == 2  # one graph forward, one backward
    weights = [sum(w for _, w in rows) for kernels in sidecar.graphs.values() for rows in kernels.values()]
    assert weights == pytest.approx([1.0] * len(weights))


def fresh(folder):
    from torch._inductor.utils import fresh_inductor_cache

    return fresh_inductor_cache(dir=str(folder))


def test_recording_leaves_the_compiler_as_it_was():
    from torch._inductor import compile_fx, config

    before = compile_fx.fx_codegen_and_compile
    with pytest.raises(KeyError), recording():
        assert compile_fx.fx_codegen_and_compile is not before
        raise KeyError
    assert compile_fx.fx_codegen_and_compile is before
    assert config.post_grad_custom_post_pass is None


def test_a_pass_that_somebody_else_set_is_not_replaced():
    from torch._inductor import config

    with (
        config.patch(post_grad_custom_post_pass=ProvenanceRecorder()._pass),
        pytest.raises(ConfigError, match="another custom pass"),
        recording(),
    ):
        pass


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("L['self']._modules['blocks']._modules['0'].fc1", "blocks.0.fc1"),
        ("L['self'].blocks[0].mlp", "blocks.0.mlp"),
        ("L['self']._modules['_orig_mod'].fc", "fc"),
        ("L['self']", "(root)"),
        ("L['fn']._modules['0'].fc1", "0.fc1"),
        ("layers.3.attn", "layers.3.attn"),
    ],
)
def test_traced_paths_become_names_as_in_state_dict(path, name):
    assert module_name(path) == name


def test_nodes_weigh_alike_and_those_without_a_module_keep_their_part():
    owners = {"a": ("fc", "forward"), "b": ("fc", "forward"), "c": ("act", "forward")}
    rows = [("(unattributed)", "forward", 1.0), ("act", "forward", 1.0), ("fc", "forward", 2.0)]
    assert shares({"k:1": ["a", "b", "c", "x"], "other:2": ["x"]}, owners) == {"k": rows, "k#0": rows}


def test_one_kernel_called_for_two_layers_is_told_apart_call_by_call():
    owners = {"a": ("0.act", "forward"), "b": ("1.act", "forward")}
    assert shares({"k:10": ["b"], "k:9": ["a"]}, owners) == {
        "k": [("0.act", "forward", 1.0), ("1.act", "forward", 1.0)],
        "k#0": [("0.act", "forward", 1.0)],
        "k#1": [("1.act", "forward", 1.0)],
    }


def test_a_sidecar_grows_and_never_overwrites_a_strange_file(tmp_path):
    path = tmp_path / "s.json"
    for key in ("f1", "f2"):
        recorder = ProvenanceRecorder()
        recorder._pass.owners = {"a": ("fc", "forward")}
        recorder.note(SimpleNamespace(_fx_graph_cache_key=key), {"k:1": ["a"]})
        recorder.save(path)
    assert set(json.loads(path.read_text())["graphs"]) == {"f1", "f2"}
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no sidecar"):
        ProvenanceRecorder().save(path)
    assert path.read_text() == "mine"
