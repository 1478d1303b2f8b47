"""A patch that is taken off leaves its owner as it was, whatever kind of attribute it covered."""

import pytest
import torch.distributed as dist

from torchwatt.tracing.patches import Patch


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
