"""The same account by every way out, as their readers see it."""

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY

import torchwatt as tw
from tests.metrics.feeds import LiveFeed
from tests.metrics.scraped import of, parsed, scrape
from tests.support.reports import HOSTILE, sample_report
from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import RESERVED
from torchwatt.metrics.energy_counters import OTHER_LAYERS, LayerCounters
from torchwatt.metrics.prometheus_endpoint import metric_families

ENERGY, POWER = "torchwatt_device_energy_joules_total", "torchwatt_device_power_watts"


def profile(feed, **asked):
    return tw.profile(feed=feed, **{"baseline_s": 0, "layers": "off", **asked})


def wait(seconds=0.12):
    time.sleep(seconds)


@pytest.fixture
def endpoint():
    with tw.metrics.prometheus(port=0) as made:
        yield made


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader):
    made = MeterProvider([reader])
    yield made
    made.shutdown()


def points(reader):
    """Return {name: (unit, data, {attributes: value})} of what the SDK collected."""
    data = reader.get_metrics_data()
    found = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            assert scope.scope.name == "torchwatt"
            for metric in scope.metrics:
                values = {frozenset(p.attributes.items()): p.value for p in metric.data.data_points}
                found[metric.name] = (metric.unit, metric.data, values)
    return found


def test_a_scrape_says_joules_watts_and_how_they_are_known(endpoint):
    assert scrape(endpoint) == {("torchwatt_sessions", frozenset()): 0.0}
    with profile(LiveFeed({"gpu:0": 200.0, "cpu:0": 50.0}, silent=("dram:0",)), name="r") as run:
        wait()
        first = scrape(endpoint)
        wait()
        then = scrape(endpoint)
    last = scrape(endpoint)
    labels = {"run": "r", "project": "default", "device": "gpu:0", "provenance": "measured"}
    assert of(then, POWER, **labels) == [pytest.approx(200.0)]
    assert [of(seen, "torchwatt_sessions") for seen in (first, then, last)] == [[1.0], [1.0], [0.0]]
    energies = [of(seen, ENERGY, **labels)[0] for seen in (first, then, last)]
    assert energies == sorted(energies)
    truth = {str(ledger.domain): ledger.energy_j for ledger in run.report.ledgers}
    assert {dict(has)["device"]: value for (name, has), value in last.items() if name == ENERGY} == pytest.approx(truth)
    assert of(last, POWER) == []  # nothing runs: its power is not 0 but unknown


def test_real_counters_over_a_real_sampler_come_out_at_the_report(endpoint, powercap):
    with tw.profile(powercap_root=powercap.root, baseline_s=0, layers="off", name="r") as run:
        wait(0.5)
        watts = of(scrape(endpoint), POWER, device="cpu:0")
        powercap.set("package-0", 90.0)
        wait(0.3)
    found = scrape(endpoint)
    assert watts == [pytest.approx(40.0, rel=0.1)]
    for ledger in run.report.ledgers:
        assert of(found, ENERGY, device=str(ledger.domain)) == [pytest.approx(ledger.energy_j, rel=1e-9)]


def test_the_endpoint_is_on_this_machine_only_and_gone_after_its_block(endpoint):
    assert endpoint.server.server_address[0] == "127.0.0.1"
    assert endpoint.url == f"http://127.0.0.1:{endpoint.port}/metrics"
    endpoint.close()
    endpoint.close()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", endpoint.port), 1):
        pass
    assert not [thread for thread in threading.enumerate() if "serve_forever" in thread.name]


def test_nothing_is_put_into_the_programs_own_registry_or_provider(endpoint, provider):
    before, known = api.get_meter_provider(), list(REGISTRY._collector_to_names)
    with tw.metrics.otel(provider), profile(LiveFeed({"gpu:0": 200.0})):
        wait(0.05)
        scrape(endpoint)
    assert api.get_meter_provider() is before
    assert list(REGISTRY._collector_to_names) == known


def test_a_port_that_is_taken_or_impossible_is_one_clear_error(endpoint):
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{endpoint.port}: Address already in use; give another port="):
        tw.metrics.prometheus(port=endpoint.port)
    for port in (-1, 70_000, True, "9464"):
        with pytest.raises(ConfigError, match="port="):
            tw.metrics.prometheus(port=port)
    for layers in (-1, 10_000, True, 1.5):
        with pytest.raises(ConfigError, match="layers="):
            tw.metrics.prometheus(port=0, layers=layers)
    with pytest.raises(ConfigError, match="MeterProvider"):
        tw.metrics.otel(None)


@pytest.mark.parametrize(
    ("package", "extra", "make"),
    [
        ("prometheus_client", "prometheus", lambda folder: tw.metrics.prometheus(port=0)),
        ("prometheus_client", "prometheus", lambda folder: tw.metrics.textfile(folder / "x.prom")),
        ("opentelemetry", "otel", lambda folder: tw.metrics.otel("global")),
    ],
)
def test_a_missing_package_is_one_clear_error(package, extra, make, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'torchwatt\[{extra}\]'"):
        make(tmp_path)


def test_names_of_anybody_are_read_back_from_the_text_as_they_are(endpoint):
    for name in HOSTILE[::3]:
        with profile(LiveFeed({"gpu:0": 1.0}), name=name):
            wait(0.03)
    found = {dict(has)["run"] for (name, has) in scrape(endpoint) if name == ENERGY}
    assert found == set(HOSTILE[::3])


def test_opentelemetry_gets_the_conventions_names_units_and_attributes(provider, reader):
    feed = LiveFeed({"gpu:0": 200.0, "ram": 10.0, "psys": 300.0})
    with tw.metrics.otel(provider), profile(feed, name="r", intensity_g_per_kwh=50.0) as run:
        wait()
        first = points(reader)
        wait()
        then = points(reader)
    assert {name: unit for name, (unit, _, _) in then.items()} == {
        "hw.energy": "J", "hw.power": "W", "hw.host.energy": "J", "torchwatt.gwp": "g{CO2e}",
    }  # fmt: skip
    for name in ("hw.energy", "hw.host.energy", "torchwatt.gwp"):
        data = then[name][1]
        assert data.is_monotonic
        assert data.aggregation_temporality.name == "CUMULATIVE"
        assert all(then[name][2][key] > value for key, value in first[name][2].items())
    ours = {"torchwatt.run": "r", "torchwatt.project": "default", "torchwatt.provenance": "measured"}
    inside = {**ours, "hw.parent": "psys"}
    gpu = frozenset({**inside, "hw.id": "gpu:0", "hw.type": "gpu", "hw.name": "model of gpu:0"}.items())
    ram = frozenset({**inside, "hw.id": "ram", "hw.type": "memory", "hw.name": "model of ram"}.items())
    assert then["hw.power"][2] == {gpu: pytest.approx(200.0), ram: pytest.approx(10.0)}
    assert set(then["hw.energy"][2]) == {gpu, ram}  # the machine's own meter contains them and is not beside them
    ((host, _),) = then["hw.host.energy"][2].items()
    assert host == frozenset({**ours, "hw.id": "psys"}.items())
    assert run.energy_j > 0


def test_opentelemetrys_last_numbers_are_the_reports_and_stand_still_after_close(provider, reader):
    with tw.metrics.otel(provider) as exporter:
        with profile(LiveFeed({"gpu:0": 200.0})) as run:
            wait()
        ((_, joules),) = points(reader)["hw.energy"][2].items()
        assert joules == pytest.approx(run.energy_j, rel=1e-9)
        assert "hw.power" not in points(reader)
    with profile(LiveFeed({"gpu:0": 200.0})):
        wait(0.05)
    assert list(points(reader)["hw.energy"][2].values()) == [joules]
    assert exporter.closed


def test_the_global_provider_is_used_when_that_word_is_given(monkeypatch, provider, reader):
    monkeypatch.setattr(api, "get_meter_provider", lambda: provider)
    with tw.metrics.otel("global"), profile(LiveFeed({"gpu:0": 200.0})):
        wait()
        assert "hw.energy" in points(reader)


def test_two_exporters_tell_the_same_and_disturb_no_one(endpoint, provider, reader):
    with tw.metrics.otel(provider), profile(LiveFeed({"gpu:0": 200.0})) as run:
        wait(0.05)
        scrape(endpoint)
        points(reader)
        wait(0.05)
    assert of(scrape(endpoint), ENERGY) == [pytest.approx(run.energy_j, rel=1e-9)]


def test_a_file_for_node_exporter_is_whole_at_every_moment(tmp_path):
    path, torn = tmp_path / "torchwatt.prom", []
    with tw.metrics.textfile(path, every_s=0.005), profile(LiveFeed({"gpu:0": 200.0}), name="r") as run:
        end_s = time.monotonic() + 0.4
        while time.monotonic() < end_s:
            text = path.read_text()
            if not text.endswith("\n") or ("torchwatt_sessions", frozenset()) not in parsed(text):
                torn.append(text)
    assert torn == []
    last = parsed(path.read_text())
    assert of(last, ENERGY, run="r") == [pytest.approx(run.energy_j, rel=1e-9)]
    assert [of(last, name) for name in (POWER, "torchwatt_sessions")] == [[], [0.0]]
    assert [item.name for item in tmp_path.iterdir()] == ["torchwatt.prom"]


def test_a_file_that_cannot_be_one_is_refused_and_a_full_disk_ends_no_run(tmp_path):
    with pytest.raises(ConfigError, match=r"\.prom"):
        tw.metrics.textfile(tmp_path / "x.txt")
    with pytest.raises(ConfigError, match="No such file"):
        tw.metrics.textfile(tmp_path / "none" / "x.prom")
    with pytest.raises(ConfigError, match="every_s"):
        tw.metrics.textfile(tmp_path / "x.prom", every_s=0)
    folder = tmp_path / "gone"
    folder.mkdir()
    with pytest.warns(RuntimeWarning, match="could not write"), tw.metrics.textfile(folder / "x.prom") as made:
        made.path.unlink()
        folder.rmdir()
        with profile(LiveFeed({"gpu:0": 200.0})) as run:
            wait(0.05)
    assert run.energy_j > 0


def test_layers_have_a_bounded_number_of_names_and_all_of_the_joules():
    ledgers = sample_report().ledgers
    books = LayerCounters(3)
    for _ in range(2):
        books.add("r", "p", ledgers)
    found = books.sums()
    layers = {key.layer for key in found}
    assert len({name for name in layers if name not in RESERVED} - {OTHER_LAYERS}) == 3
    assert OTHER_LAYERS in layers
    for ledger in ledgers:
        joules = sum(value for key, value in found.items() if key.device == str(ledger.domain))
        assert joules == pytest.approx(2 * ledger.energy_j, rel=1e-9)


def test_the_joules_of_each_stage_of_a_layer_are_a_series():
    ledgers = sample_report().ledgers
    staged = [
        replace(
            ledger,
            entries=tuple(replace(entry, stage=("prefill", "decode")[i % 2]) for i, entry in enumerate(ledger.entries)),
        )
        for ledger in ledgers
    ]
    books = LayerCounters(100)
    books.add("r", "p", staged)
    for stage in ("prefill", "decode"):
        joules = sum(value for key, value in books.sums().items() if key.stage == stage)
        own_j = sum(e.energy_self_j for ledger in staged for e in ledger.entries if e.stage == stage)
        assert joules == pytest.approx(own_j, rel=1e-9)


def test_without_layers_asked_for_there_are_none(endpoint):
    with profile(LiveFeed({"cpu:0": 100.0})):
        wait(0.05)
    assert of(scrape(endpoint), "torchwatt_layer_energy_joules_total") == []
    assert "torchwatt_layer_energy_joules" not in {
        family.name for family in metric_families(endpoint.books.current_values())
    }


def test_torchwatt_run_exports_where_it_is_told_and_refuses_what_it_does_not_know(tmp_path, powercap):
    script = tmp_path / "train.py"
    script.write_text("import time; time.sleep(0.1)")

    def run(where):
        command = [sys.executable, "-m", "torchwatt", "run", "-q", "--layers", "off", "--metrics", where, str(script)]
        env = {**os.environ, "TORCHWATT_POWERCAP_ROOT": str(powercap.root)}
        return subprocess.run(command, capture_output=True, text=True, env=env)

    done = run(f"textfile:{tmp_path / 'x.prom'}")
    assert (done.returncode, done.stderr) == (0, "")
    found = parsed((tmp_path / "x.prom").read_text())
    assert {dict(has)["device"] for name, has in found if name == ENERGY} >= {"cpu:0", "dram:0"}
    refused = run("graphite:1")
    assert refused.returncode == 2
    assert "give prometheus:PORT" in refused.stderr


@pytest.mark.parametrize(
    "text", ["prometheus", "prometheus:", "prometheus:x", "prometheus:٣", "textfile:", "otel:x", "graphite:1", ""]
)
def test_a_name_of_no_exporter_is_refused(text):
    with pytest.raises(ConfigError, match="give prometheus:PORT"):
        tw.metrics.named(text)


def test_exporters_are_opened_by_name(tmp_path):
    with tw.metrics.named("prometheus:0") as made:
        assert made.address == "127.0.0.1"
    with tw.metrics.named("prometheus:127.0.0.2:0") as made:
        assert scrape(made)
    with tw.metrics.named(f"textfile:{tmp_path / 'x.prom'}"):
        assert (tmp_path / "x.prom").is_file()
