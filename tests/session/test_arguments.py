"""What `profile()` is given by mistake: one sentence that names the thing and the fix, and nothing is left behind."""

import traceback
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import torchwatt as tw
from torchwatt.core.errors import TorchwattError
from torchwatt.disk.helper_thread import helper_threads
from torchwatt.reports.run_options import named_models

OURS = str(Path(tw.__file__).parent)


def net():
    return nn.Linear(2, 2)


class Trainer:
    def __init__(self):
        self.model = net()


WRONG = {
    "a name for a model": (
        ("my project",), {}, r"profile\('my project'\): a string is not a model; write name='my project'"
    ),
    "a region for a model": (("FRA",), {}, "write region='FRA'"),
    "a result for a model": ((torch.ones(2),), {}, "a tensor, the result of a call; give the model itself"),
    "a class for a model": ((nn.Linear,), {}, r"profile\(Linear\): that is a class; build a model"),
    "an optimizer": ((torch.optim.SGD(net().parameters()),), {}, "that is an optimizer; give the model"),
    "a scheduler": (
        (torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net().parameters()), 1),), {}, "that is a scheduler"
    ),
    "a DataLoader": ((DataLoader([1]),), {}, "that is a DataLoader; give the model"),
    "a state_dict": ((net().state_dict(),), {}, "was given a state_dict: give the model itself"),
    "an empty list": (([],), {}, "an empty list: leave it out"),
    "a list with something else": (
        ([net(), 3],), {}, "3 in the list is not one: an int is not a model; give a torch.nn.Module"
    ),
    "a list of classes": (([nn.Linear],), {}, "Linear in the list is not one: that is a class"),
    "parameters": ((net().parameters(),), {}, "not model.parameters"),
    "a trainer": ((Trainer(),), {}, "give the model in it: profile"),
    "a function": ((len,), {}, "write @profile"),
    "a number": ((3,), {}, "an int is not a model"),
    "two models": ((net(), net()), {}, r"several models in a list: profile\(\[generator, critic\]\)"),
    "a region without its name": ((net(), "FRA"), {}, "need their names, such as region='FRA'"),
    "a name without its name": ((net(), "my run"), {}, "need their names, such as name='my run'"),
    "a misspelt option": ((), {"reggion": "FRA"}, "no option reggion=: did you mean region="),
    "an option of nobody": ((), {"qqqqqq": 1}, "no option qqqqqq=: help"),
    "an unknown region": ((), {"region": "Atlantis"}, "Atlantis"),
    "a number for a region": ((), {"region": 75}, "region=75"),
    "a text for a budget": ((), {"overhead_budget": "1 %"}, "overhead_budget='1 %': give a number from 0 to 1"),
    "a budget in per cent": ((), {"overhead_budget": 5}, "overhead_budget=5: give a number from 0 to 1"),
    "a negative baseline": ((), {"baseline_s": -1}, "baseline_s=-1"),
    "a text for a PUE": ((), {"pue": "1.2"}, "pue="),
    "a PUE below one": ((), {"pue": 0.5}, "pue="),
    "a negative intensity": ((), {"intensity_g_per_kwh": -3}, "intensity_g_per_kwh="),
    "a text for an intensity": ((), {"intensity_g_per_kwh": "low"}, "intensity_g_per_kwh="),
    "a text for a contract": ((), {"market": "green"}, "market="),
    "an unknown site": ((), {"facility": "moon/1"}, "moon/1"),
    "True for layers": ((), {"layers": True}, "layers=True: give 'on' or 'off'"),
    "a word for live": ((), {"live": "yes"}, "live='yes': give 'on' or 'off'"),
    "a number for a folder": ((), {"csv": 3}, "csv=3: give a path"),
    "an empty folder name": ((), {"csv": ""}, "csv='': give a path"),
    "a folder under the root": ((), {"csv": "/torchwatt-no-such-folder/audit"}, "no folder is made directly under /"),
    "a page under the root": ((), {"html": "/torchwatt-no-such-folder/a.html"}, "no folder is made directly under /"),
    "a word for overwrite": ((), {"overwrite": "yes"}, "overwrite='yes': give True or False"),
    "a project without a store": ((), {"project": "toy"}, "give keep= as well"),
    "a file of factors that is not there": ((), {"factors": "none.csv"}, "none.csv"),
    "a number for factors": ((), {"factors": 3}, "factors=3"),
    "a number for a feed": ((), {"feed": 3}, "feed=3"),
    "a number for a store": ((), {"keep": 3}, "keep=3"),
    "a number for a journal": ((), {"journal": 3}, "journal=3"),
    "a number for a job": ((), {"job": 3}, "job=3"),
    "a number for a powercap": ((), {"powercap_root": 3}, "powercap_root=3"),
    "a number for replays": ((), {"replays": 3}, "replays=3"),
    "a number for work": ((), {"work": 3}, "work=3"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_is_one_sentence_at_the_users_line(what):
    args, options, sentence = WRONG[what]
    threads = helper_threads()
    with pytest.raises(TorchwattError, match=sentence) as refused:
        tw.profile(*args, **options).__enter__()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert OURS not in "".join(traceback.format_tb(refused.value.__traceback__))
    assert helper_threads() == threads


def test_what_is_in_the_way_of_files_is_named_before_the_run(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    for options, sentence in (
        ({"csv": tmp_path / "file"}, "is a file: name a folder"),
        ({"csv": tmp_path / "file" / "x"}, "could not be written"),
        ({"html": tmp_path / "file" / "x"}, "could not be written"),
        ({"html": tmp_path}, "is not a file"),
        ({"html": "/dev/null"}, "is not a file"),
        ({"csv": tmp_path / "mine", "overwrite": True}, "is not a bundle"),
    ):
        with pytest.raises(TorchwattError, match=sentence):
            tw.profile(**options).__enter__()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "thesis.tex"]


def test_a_block_is_entered_once_at_a_time_and_another_one_nests():
    block = tw.profile(baseline_s=0, layers="off")
    with block as outer:
        with pytest.raises(TorchwattError, match="already running: make a new one for a nested block"):
            block.__enter__()
        with tw.profile(layers="off") as inner:
            pass
    assert (outer.nested, inner.nested) == (False, True)
    with block as again:
        pass
    assert again.status == "complete"


@pytest.mark.parametrize("several", [list, tuple, dict])
def test_several_models_are_named_by_their_variables_or_by_the_names_given(several):
    generator, critic = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1))
    given = {"left": generator, "right": critic} if several is dict else several([generator, critic])
    with tw.profile(given, baseline_s=0) as run:
        for _ in range(5):
            critic(generator(torch.ones(4, 2))).sum().backward()
    expected = ("left", "right") if several is dict else ("generator", "critic")
    names = {module.fqn for module in run.report.modules}
    assert names == {expected[0], expected[1], f"{expected[1]}.0"}
    assert names <= set(run.layers.fqn) | {expected[1]}


def test_one_model_in_a_list_is_named_as_alone():
    net = nn.Sequential(nn.Linear(2, 2))
    with tw.profile([net], baseline_s=0) as run:
        net(torch.ones(1, 2))
    assert {module.fqn for module in run.report.modules} == {"(root)", "0"}


def test_wrapped_models_are_models():
    scripted, compiled = torch.jit.script(net()), torch.compile(net())
    for model in (scripted, compiled, nn.DataParallel(net()), nn.ModuleList([net()])):
        assert named_models(model) == (("", model),)


def test_numbers_of_other_libraries_are_numbers():
    with tw.profile(
        layers="off", intensity_g_per_kwh=np.float32(50), pue=(np.float32(1.5), 1, Fraction(2)), baseline_s=np.int64(0)
    ) as run:
        run.count("image", np.int64(64))
    assert run.energy_per("image") == pytest.approx(run.energy_j / 64)
    assert run.carbon_g == pytest.approx(run.energy_j / 3.6e6 * 50 * 1.5)


def test_who_looks_for_the_result_at_the_manager_is_told_where_it_is():
    block = tw.profile(layers="off")
    with block:
        pass
    with pytest.raises(AttributeError, match=r"what `with profile\(\) as run:` gives, so write run.energy_j"):
        block.energy_j  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'no_such_thing'$"):
        block.no_such_thing  # noqa: B018
    assert not hasattr(block, "_repr_html_")
