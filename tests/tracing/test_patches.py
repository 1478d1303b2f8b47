"""A patch that is taken off leaves its owner as it was, whatever kind of attribute it covered."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from torchwatt.tracing.patches import Patch, has_several_steps


def wrapped(original):
    def wrapper(*args):
        return original(*args)

    return wrapper


class Owner:
    def plain(self):
        return self

    @classmethod
    def of_class(cls):
        return cls

    @staticmethod
    def static():
        return None


class Heir(Owner):
    pass


@pytest.mark.parametrize("name", ["plain", "of_class", "static"])
@pytest.mark.parametrize("owner", [Owner, Heir])
def test_a_patch_that_is_removed_leaves_the_very_same_attribute(owner, name):
    before = dict(vars(owner))
    patch = Patch(owner, name, wrapped)
    assert vars(owner)[name] is patch.wrapper
    assert patch.remove()
    assert dict(vars(owner)) == before


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_a_method_of_a_class_in_c_is_bound_again_afterwards():
    before = vars(dist.HashStore)["num_keys"] if "num_keys" in vars(dist.HashStore) else vars(dist.Store)["num_keys"]
    owner = dist.HashStore if "num_keys" in vars(dist.HashStore) else dist.Store
    store = dist.HashStore()
    patch = Patch(owner, "num_keys", wrapped)
    assert store.num_keys() == 0
    patch.remove()
    assert vars(owner)["num_keys"] is before
    assert store.num_keys() == 0


class Optimizer(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        return closure


class InheritsStep(Optimizer):
    pass


class CallsInheritedStep(Optimizer):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize(
    ("kind", "several"), [(InheritsStep, False), (CallsInheritedStep, True), (Optimizer, False)]
)  # in this order: torch wraps the step of each class when the first of its optimizers is made
def test_only_an_optimizer_that_overrides_a_step_may_run_the_hooks_twice(kind, several):
    assert has_several_steps(kind([nn.Parameter(torch.zeros(1))])) is several
