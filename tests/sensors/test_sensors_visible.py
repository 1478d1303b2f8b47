import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.sensors.cuda_visible_devices import VisibleDevice, select_devices
from torchwatt.sensors.gpu_facts import count_other_processes

UUIDS = ("GPU-aaaa1111", "GPU-aaaa2222", "GPU-bbbb3333")
MIGS = {"MIG-77770001": 1, "MIG-77770002": 1}


def shown(value):
    return [pick.index for pick in select_devices(value, UUIDS, MIGS).picks]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("  ", []),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("GPU-bbbb3333", [2]),
        ("GPU-b", [2]),
        ("GPU-aaaa2,GPU-aaaa1", [1, 0]),
        ("MIG-77770002", [1]),
        ("MIG-GPU-aaaa2222/3/0", [1]),
    ],
)
def test_valid_lists_show_what_cuda_shows(value, expected):
    selection = select_devices(value, UUIDS, MIGS)
    assert [pick.index for pick in selection.picks] == expected
    assert selection.stopped == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0,7,1", [0]),
        ("-1", []),
        ("1,-1,0", [1]),
        ("NoDevFiles", []),
        ("0x1", []),
        ("1,1", [1]),
        ("GPU-aaaa", []),  # two begin so
        ("GPU-cc,0", []),
        ("MIG-7777", []),
        ("MIG-77770001,MIG-77770002", [1]),
        ("0,MIG-77770001", [0]),
        ("0,,1", [0]),
    ],
)
def test_the_first_invalid_entry_hides_itself_and_all_after_it(value, expected):
    assert shown(value) == expected
    assert select_devices(value, UUIDS, MIGS).stopped


def test_a_slice_remembers_that_it_is_one():
    assert select_devices("MIG-77770001", UUIDS, MIGS).picks == (VisibleDevice(1, "MIG-77770001"),)


@given(st.text(alphabet="0123456789,-GPUMIabc ", max_size=30))
def test_no_value_raises_or_shows_a_device_twice_or_one_that_is_not_there(value):
    found = shown(value)
    assert len(set(found)) == len(found)
    assert all(0 <= index < 3 for index in found)


@pytest.mark.parametrize(
    ("pids", "visible", "pid_ns", "expected"),
    [
        ([10], {10}, "pid:[1]", (0, True)),
        ([10, 11], {10, 11}, "pid:[1]", (1, True)),
        ([900], set(), "pid:[1]", (1, False)),  # a container: that one may be ourselves
        ([900, 901], set(), "pid:[1]", (2, True)),
        ([10, 900], {10}, "pid:[1]", (1, True)),
        ([900], set(), "pid:[4026531836]", (1, True)),
        ([], set(), "pid:[1]", (0, True)),
    ],
)
def test_other_processes_are_counted_as_far_as_they_can_be_told_apart(pids, visible, pid_ns, expected):
    assert count_other_processes(pids, 10, visible.__contains__, pid_ns) == expected
