"""Every line of docs/faults.md, injected; and the page is the registry's."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults import child, table
from tests.faults.event_codes import codes_in_source, event_codes
from tests.faults.registry import FAULTS, Fault
from tests.faults.zero import no_silent_zero, zeros
from tests.support.reports import bare_report, sample_report
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.ledger import Ledger
from torchwatt.core.terms import METER_LOSSES

REPOSITORY = table.REPOSITORY
ALL = table.everything()
PART = {module: part for part, modules in child.PARTS.items() for module in modules}


def part_of(one: Fault) -> str:
    assert one.inject is not None
    return PART[one.inject.__module__.rpartition(".")[2]]


def injected(*parts: str) -> list[Any]:
    return [pytest.param(one, id=one.name) for one in ALL if one.inject is not None and part_of(one) in parts]


@pytest.fixture(scope="module", autouse=True)
def machine_process() -> Iterator[subprocess.Popen[str]]:
    """Begin before the first test: this part mostly waits."""
    process = table.start("machine")
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def machine(machine_process: subprocess.Popen[str]) -> dict[str, dict[str, Any]]:
    return table.results(machine_process)


@pytest.fixture(scope="module")
def gpus(nvml_simulator: Path) -> dict[str, dict[str, Any]]:
    return table.gpu_results()


@pytest.mark.parametrize("one", injected("meters", "user"))
def test_a_fault_is_told_and_nothing_is_made_up(one: Fault, tmp_path: Path) -> None:
    assert one.run(tmp_path) is not None


@pytest.mark.simhw
@pytest.mark.parametrize("one", injected("gpus"))
def test_a_fault_of_a_gpu_is_told_and_nothing_is_made_up(one: Fault, gpus: dict[str, dict[str, Any]]) -> None:
    assert not gpus[one.name]["error"], gpus[one.name]["error"]


@pytest.mark.parametrize("one", injected("machine"))
def test_a_fault_of_the_machine_is_told_and_nothing_is_made_up(one: Fault, machine: dict[str, dict[str, Any]]) -> None:
    assert not machine[one.name]["error"], machine[one.name]["error"]


def test_the_page_is_the_registry() -> None:
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), "run `python -m tests.faults.table --write`"


def test_every_event_code_of_the_source_is_on_the_page_with_its_meaning() -> None:
    page = table.PAGE.read_text(encoding="utf-8")
    assert codes_in_source() == event_codes()
    assert event_codes() >= METER_LOSSES
    assert [code for code in sorted(codes_in_source()) if page.count(f"\n| `{code}` | ") != 1] == []


def test_every_proof_elsewhere_exists() -> None:
    for one in FAULTS:
        assert one.inject is not None or one.proofs
        for proof in one.proofs:
            file, _, name = proof.partition("::")
            text = (REPOSITORY / file).read_text(encoding="utf-8")
            assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE), proof


def test_no_fault_is_there_twice_and_every_promise_has_words() -> None:
    names = [one.name for one in ALL]
    assert len(set(names)) == len(names)
    assert all(one.sees and one.keeps for one in ALL)


def test_a_silent_zero_would_be_found_wherever_it_stood() -> None:
    """The law is not blind: each way to show nothing for something is seen."""
    good = sample_report(impacts=(), factors=())
    no_silent_zero(replace(good, ledgers=good.ledgers[:1], curves=good.curves[:1], meters=good.meters[:1], steps=()))
    gpu, curve = good.ledgers[0], good.curves[0]
    flat = EnergyCurve(curve.domain, curve.t_ns, np.zeros(len(curve.t_ns)), "counter", "measured")
    nothing = Ledger(gpu.domain, 0.0, (), "counter", "measured", 24.0, 24.0)
    away = replace(gpu, known_s=3.0)
    first = replace(good.steps[0], energy_j={"gpu:0": 0.0})
    small = replace(gpu.entries[0], energy_self_j=0.0, energy_self_lo_j=0.0)
    rest = replace(gpu.entries[1], energy_self_j=gpu.entries[1].energy_self_j + gpu.entries[0].energy_self_j)
    for spoilt, word in (
        (replace(good, ledgers=(nothing,), curves=()), "ledger gpu:0"),
        (replace(good, curves=(flat,)), "samples gpu:0"),
        (replace(good, steps=(first,)), "step 0 gpu:0"),
        (replace(good, ledgers=(away,), events=()), "nothing says so"),
        (replace(good, ledgers=(replace(gpu, entries=(small, rest, *gpu.entries[2:])),)), "gpu:0 (root)"),
        (bare_report(unavailable=()), "nothing says why"),
    ):
        assert any(word in place for place in zeros(spoilt)), (word, zeros(spoilt))
