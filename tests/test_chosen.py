"""Which cases of a large set a commit chooses."""

import pytest

from tests.support.chosen import ALL, CASES, chosen, commit

NAMES = [f"case {n}" for n in range(20)]


def test_a_commit_chooses_the_same_cases_each_time_in_any_order():
    assert chosen(NAMES, 4, by="1f3a") == chosen(reversed(NAMES), 4, by="1f3a")
    assert len(chosen(NAMES, 4, by="1f3a")) == 4
    assert chosen(NAMES, 4, by="1f3a") < set(NAMES)


def test_every_case_is_chosen_by_some_commit_in_a_few_dozen():
    commits = [chosen(NAMES, 4, by=f"{n:040x}") for n in range(60)]
    assert set().union(*commits) == set(NAMES)
    assert all(2 <= sum(name in each for each in commits) <= 30 for name in NAMES)


def test_all_is_everything_and_a_small_set_is_whole():
    assert chosen(NAMES, 4, by=ALL) == set(NAMES)
    assert chosen(NAMES[:3], 4, by="1f3a") == set(NAMES[:3])


@pytest.fixture
def _forget():
    commit.cache_clear()
    yield
    commit.cache_clear()


@pytest.mark.usefixtures("_forget")
def test_the_variable_stands_for_the_commit(monkeypatch):
    monkeypatch.setenv(CASES, "1f3a")
    assert commit() == "1f3a"
    assert chosen(NAMES, 4) == chosen(NAMES, 4, by="1f3a")


@pytest.mark.usefixtures("_forget")
def test_without_git_something_is_chosen_all_the_same(monkeypatch, tmp_path):
    monkeypatch.delenv(CASES, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == ""
    assert len(chosen(NAMES, 4)) == 4
