import pytest
import torch
from torch import nn

import torchwatt as tw
from torchwatt.core.errors import ConfigError


@pytest.mark.parametrize("name", ["(unattributed)", "(idle)", "(root)", "", "  ", None, 3])
def test_a_scope_cannot_take_a_row_of_the_reports_own(name):
    with pytest.raises(ConfigError, match="scope"):
        tw.scope(name)


def test_a_module_called_like_a_row_of_the_reports_own_is_set_apart(tmp_path):
    model = nn.Sequential()
    model.add_module("(outside)", nn.Linear(2, 2))
    with tw.profile(model, csv=tmp_path / "audit") as run:
        model(torch.ones(1, 2))
    rows = run.layers.set_index("fqn")
    assert "(outside)#module" in rows.index
    assert {"(outside)", "(outside)#module"} <= set(rows.index)
