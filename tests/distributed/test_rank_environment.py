"""Which rank a process is, from the environments of torchrun and Slurm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.job import RankPlace
from torchwatt.distributed.rank_assignment import rank_place, tasks_per_node

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "TORCHELASTIC_RUN_ID": "lamp", "TORCHELASTIC_RESTART_COUNT": "0",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3",
    "SLURM_NTASKS": "7", "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
}  # fmt: skip


def test_torchrun_says_everything():
    assert rank_place(TORCHRUN) == RankPlace(5, 8, 1, 4, 1, "lamp", "torchrun")


def test_a_restarted_gang_is_another_attempt_and_overwrites_nothing():
    assert rank_place({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}).job == "lamp.attempt2"


def test_torchruns_id_is_none_unless_given():
    assert rank_place({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"}).job == "job"


def test_rank_and_world_size_alone_are_a_job_on_one_machine():
    assert rank_place({"RANK": "1", "WORLD_SIZE": "2"}) == RankPlace(1, 2, 1, 2, 0, "job", "environment")


def test_srun_says_everything_in_its_own_words():
    assert rank_place(SRUN) == RankPlace(6, 7, 0, 1, 3, "slurm-77.0", "slurm")


def test_srun_of_two_on_one_node():
    env = {**SRUN, "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "2",
           "SLURM_STEP_TASKS_PER_NODE": "2"}  # fmt: skip
    assert rank_place(env) == RankPlace(1, 2, 1, 2, 0, "slurm-77.0", "slurm")


def test_a_batch_script_is_no_rank():
    assert rank_place({name: value for name, value in SRUN.items() if "STEP" not in name}) is None


def test_torchrun_inside_a_slurm_step_is_right():
    assert rank_place({**SRUN, **TORCHRUN}).launcher == "torchrun"


def test_torch_distributed_is_right_where_it_differs():
    assert rank_place(TORCHRUN, (2, 3)).rank == 2
    assert rank_place({}, (1, 2)) == RankPlace(1, 2, 1, 2, 0, "job", "torch.distributed")


@pytest.mark.parametrize(
    "env",
    [{}, {"RANK": "gold", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"},
     {"RANK": "1"}, {"RANK": "²", "WORLD_SIZE": "4"}, {"RANK": "9" * 40, "WORLD_SIZE": "9" * 41}],
)  # fmt: skip
def test_what_makes_no_sense_is_somebody_elses_variable(env):
    assert rank_place(env) is None


@given(st.lists(st.integers(1, 64), min_size=1, max_size=12))
def test_slurms_short_form_of_tasks_is_read(counts):
    text = ",".join(str(n) for n in counts)
    assert tasks_per_node(text) == tuple(counts)


@given(st.text(max_size=30))
def test_any_text_for_tasks_is_survived(text):
    assert all(n >= 0 for n in tasks_per_node(text))


def test_runs_of_equal_nodes():
    assert tasks_per_node("2(x3),1") == (2, 2, 2, 1)
    assert tasks_per_node("1(x99999999)") == ()
