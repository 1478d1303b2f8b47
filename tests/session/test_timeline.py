"""The spans of a run that a Perfetto trace shows: selected when somebody asks for them."""

import pytest
import torch

import torchwatt as tw
from torchwatt.session import session as session_module


@pytest.fixture
def selections(monkeypatch):
    """Return the list to which each selection of spans adds the number of spans it selects from."""
    made = []
    select = session_module.select_spans

    def select_one(trace):
        made.append(len(trace.start_ns))
        return select(trace, 1)

    monkeypatch.setattr(session_module, "select_spans", select_one)
    return made


def measure():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    with tw.profile(model, live="off") as run:
        for _ in range(3):
            model(torch.randn(2, 4))
    return run


def test_spans_are_selected_when_a_trace_is_written_and_not_at_the_end_of_a_run(selections, tmp_path):
    run = measure()
    assert selections == []
    run.to_perfetto(tmp_path / "first.json")
    run.to_perfetto(tmp_path / "second.json")
    assert len(selections) == 1
    assert selections[0] > 1
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
