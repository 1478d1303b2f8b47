"""The rule that counts each joule once, against sums that know the machines and not the rule."""

from dataclasses import replace
from math import fsum, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.audit.counted_run import CountedDevice, CountedRun, Counter, run_of_text, text_of
from torchwatt.audit.deduplication import count_once
from torchwatt.core.errors import BundleError

S = 10**9
START_NS = 1_795_500_000 * S


def device(energy_j, *, key="card", raw=None, **changes):
    counter = None if raw is None else Counter(*raw, 1e-3, 0)
    return replace(CountedDevice("gpu:0", "gpu", energy_j, key, "m1", "device", counter), **changes)


def run(name, start_s, end_s, *devices, **changes):
    start_ns, end_ns = START_NS + round(start_s * S), START_NS + round(end_s * S)
    return replace(CountedRun(name, f"id-{name}", start_ns, end_ns, (end_ns - start_ns) / S, devices), **changes)


def added(*runs):
    return {name: share.energy_j for name, share in count_once(runs).items()}


def states(*runs):
    return {name: share.state for name, share in count_once(runs).items()}


# A world of three machines with two cards each: millijoules that every card uses in each of 12 seconds.
CARDS = st.lists(st.lists(st.integers(1, 400_000), min_size=12, max_size=12), min_size=6, max_size=6)
RUNS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 11), st.integers(1, 6)).map(
        lambda r: (r[0], r[1], min(r[1] + r[2], 12))
    ),
    min_size=1,
    max_size=12,
)


def metered(cards, number, card, start, end):
    """Meter a card in whole seconds, as a process does: index 0 or 1 on its machine, the counter's own readings."""
    before, used_mj = sum(cards[card][:start]), sum(cards[card][start:end])
    name, place = f"gpu:{card % 2}", f"m{card // 2}"
    found = device(
        used_mj / 1e3, key=f"card{card}", raw=(7 + before, 7 + before + used_mj), device_id=name, machine=place
    )
    return run(f"r{number}", start, end + number * 1e-9, found)


@given(CARDS, RUNS)
def test_every_joule_of_every_card_is_counted_once(cards, picks):
    found = count_once([metered(cards, number, *pick) for number, pick in enumerate(picks)])
    seconds = {(card, second) for card, start, end in picks for second in range(start, end)}
    truth_j = fsum(cards[card][second] for card, second in seconds) / 1e3
    assert isclose(fsum(share.energy_j for share in found.values()), truth_j, rel_tol=1e-9)
    assert {share.state for share in found.values()} <= {"yes", "shared"}


@given(CARDS, RUNS, st.randoms())
def test_the_order_of_runs_and_copies_under_new_ids_change_nothing(cards, picks, chance):
    runs = [metered(cards, number, *pick) for number, pick in enumerate(picks)]
    clones = [replace(one, name=f"x{i}{one.name}", run_id=f"new-{i}{one.name}") for i in range(3) for one in runs[:2]]
    before, after = count_once(runs), count_once(chance.sample([*runs, *clones], len(runs) + len(clones)))
    assert isclose(fsum(s.energy_j for s in before.values()), fsum(s.energy_j for s in after.values()), rel_tol=1e-9)
    assert isclose(fsum(s.seconds for s in before.values()), fsum(s.seconds for s in after.values()), rel_tol=1e-9)
    assert sum(share.state == "copy" for share in after.values()) == len(clones)


@given(CARDS, RUNS)
def test_what_is_kept_as_text_is_the_same_run(cards, picks):
    for number, pick in enumerate(picks):
        one = replace(metered(cards, number, *pick), contained=(("a", "b"),), sources=("x",), overlaps=number % 2 == 0)
        assert run_of_text(text_of(one), one.name) == one


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        '["a",1,2,NaN,[],[],[],false]',
        '["a",1,2,3,[["g","gpu",1,"","","",{}]],[],[],false]',
        '["a",1,2,3,[[1]],[],[],false]',
        '["a",1.5,2,3,[],[],[],0]',
    ],
)
def test_what_is_no_such_text_is_refused(content):
    with pytest.raises(BundleError, match="is not the metered devices of a run"):
        run_of_text(content)


def test_two_processes_on_one_card_use_what_the_card_used():
    # 1,037 J in 10 s; the second process began .2 s later and ended .2 s later.
    one = run("a", 0, 10, device(1037.0, raw=(1000, 1_038_000)))
    two = run("b", 0.2, 10.2, device(1037.0, raw=(21_740, 1_058_740)))
    assert fsum(added(one, two).values()) == pytest.approx(1057.74)
    assert states(one, two) == {"a": "shared", "b": "shared"}
    assert fsum(s.seconds for s in count_once([one, two]).values()) == pytest.approx(10.2)


def test_without_readings_common_time_says_what_is_common():
    long, inside, beyond = (
        run("a", 0, 100, device(1000.0)),
        run("b", 50, 60, device(99.0)),
        run("c", 90, 110, device(220.0)),
    )
    assert added(long, inside, beyond) == {"a": 1000.0, "b": 0.0, "c": pytest.approx(110.0)}
    assert count_once([long, inside, beyond])["c"].neighbours == ("a",)


def test_cards_with_one_index_on_several_hosts_are_several_cards():
    runs = [run(f"h{i}", 0, 10, device(100.0, key=f"uuid{i}", machine=f"m{i}")) for i in range(4)]
    assert set(states(*runs).values()) == {"yes"}


def test_runs_one_after_the_other_add_up_also_where_the_clock_was_set_between_them():
    first = run("a", 0, 10, device(100.0, raw=(0, 100_000)))
    touching = run("b", 10 - 1e-6, 20, device(100.0, raw=(100_000, 200_000)))
    set_back = run("c", 15, 25, device(100.0, raw=(200_000, 300_000)))
    assert added(first, touching, set_back) == {"a": 100.0, "b": 100.0, "c": 100.0}
    assert set(states(first, touching, set_back).values()) == {"yes"}


def test_an_overlap_that_a_clock_hides_is_in_the_readings():
    first = run("a", 0, 10, device(100.0, raw=(0, 100_000)))
    set_on = run("b", 12, 22, device(100.0, raw=(50_000, 150_000)))
    assert fsum(added(first, set_on).values()) == pytest.approx(150.0)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 10**8), min_size=40, max_size=40), st.data())
def test_a_counter_that_wraps_is_unwrapped(origin, used_uj, data):
    modulus = 2**32
    runs, seconds = [], set()
    for number in range(3):
        start = data.draw(st.integers(0, 38))
        end = data.draw(st.integers(start + 1, 40))
        seconds |= set(range(start, end))
        before, used = (origin + sum(used_uj[:start])) % modulus, sum(used_uj[start:end])
        counter = Counter(before, before + used, 1e-6, modulus)
        runs.append(run(f"r{number}", start, end + number * 1e-9, replace(device(used / 1e6), counter=counter)))
    assert fsum(added(*runs).values()) == pytest.approx(sum(used_uj[second] for second in seconds) / 1e6)


def test_a_meter_of_the_whole_machine_has_the_joules_of_its_card():
    node = run("n", 0, 100, device(5000.0, key="meter", kind="node", device_id="node"))
    card = run("g", 10, 20, device(300.0))
    elsewhere = run("e", 10, 20, device(300.0, key="other", machine="m2"))
    assert added(node, card, elsewhere) == {"n": 5000.0, "g": 0.0, "e": 300.0}


def test_a_module_has_its_gpus_joules_whichever_run_says_that_it_contains_it():
    module = run(
        "m", 0, 10, device(700.0, key="module", kind="module", device_id="module:0"), contained=(("card", "module"),)
    )
    assert added(module, run("g", 0, 10, device(500.0)), run("h", 0, 10, device(9.0, key="c2"))) == {
        "m": 700,
        "g": 0,
        "h": 9,
    }


def test_shares_of_processes_add_up_and_are_inside_the_package():
    share = {"kind": "cpu", "device_id": "cpu", "scope": "process"}
    one, two = run("a", 0, 10, device(50.0, key="p1", **share)), run("b", 0, 10, device(30.0, key="p2", **share))
    assert added(one, two) == {"a": 50.0, "b": 30.0}
    package = run("c", 0, 10, device(120.0, key="package", kind="cpu", device_id="cpu:0"))
    assert added(one, two, package) == {"a": 0.0, "b": 0.0, "c": 120.0}
    again = run("d", 2, 8, device(20.0, key="p1", **share))  # two sessions of one process
    assert added(one, again) == {"a": 50.0, "d": 0.0}


def test_the_runs_of_a_jobs_ranks_are_parts_of_it():
    ranks = [run(f"r{i}", 0, 10, device(100.0, key=f"c{i}")) for i in range(2)]
    job = run("job", 0, 10, device(200.0, key="both"), sources=("id-r0", "id-r1"))
    assert states(*ranks, job) == {"r0": "part of a job", "r1": "part of a job", "job": "yes"}
    assert added(*ranks, job) == {"r0": 0.0, "r1": 0.0, "job": 200.0}
    copied = replace(ranks[0], name="z", run_id="new")
    assert fsum(added(*ranks, job, copied).values()) == 200.0


def test_a_run_that_is_there_twice_is_counted_once_and_so_is_its_copy_under_another_date():
    one = run(
        "p/a", 0, 10, device(100.0, raw=(5, 100_005)), device(7.0, key="", device_id="ram", kind="ram", scope="process")
    )
    twin = replace(one, name="q/a")
    moved = replace(one, name="b", run_id="b", start_ns=one.start_ns + 3600 * S, end_ns=one.end_ns + 3600 * S)
    assert states(one, twin, moved) == {"p/a": "yes", "q/a": "copy", "b": "copy"}
    assert fsum(added(one, twin, moved).values()) == 107.0


def test_what_is_not_identified_counts_alone_and_not_beside_what_it_may_be():
    unknown = run("u", 0, 10, device(100.0, key="", machine=""))
    assert states(unknown, run("later", 10, 20, device(100.0))) == {"u": "yes", "later": "yes"}
    assert states(unknown, run("beside", 5, 20, device(100.0))) == {"u": "unidentified", "beside": "yes"}
    here = run("u", 0, 10, device(100.0, key=""))
    assert states(here, run("b", 5, 20, device(100.0, key="card", machine="m2"))) == {"u": "yes", "b": "yes"}
    assert states(here, run("cpu", 5, 20, device(9.0, kind="cpu")))["u"] == "yes"


def test_a_run_that_names_another_session_is_left_out_where_the_rule_cannot_look():
    assert states(run("a", 0, 10, device(1.0, key=""), overlaps=True)) == {"a": "overlapping"}
    assert states(run("a", 0, 10, device(1.0), overlaps=True)) == {"a": "yes"}


def test_nothing_metered_is_unknown_and_a_meter_that_saw_nothing_takes_nothing():
    assert added(run("a", 0, 10)) == {"a": None}
    assert added(run("a", 0, 100, device(0.0)), run("b", 0, 10, device(50.0))) == {"a": 0.0, "b": 50.0}


def test_devices_that_contain_each_other_end():
    loop = (("x", "y"), ("y", "x"))
    runs = [run(n, 0, 10, device(5.0, key=n), contained=loop) for n in "xy"]
    assert fsum(added(*runs).values()) == 5.0
