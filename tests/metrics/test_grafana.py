"""The dashboard asks for what a real endpoint says, and shows what matters of it."""

import json
import re
import time
from pathlib import Path

import pytest

import torchwatt as tw
from tests.metrics.feeds import LiveFeed
from tests.metrics.scraped import scrape

FILE = Path(__file__).resolve().parents[2] / "examples" / "grafana" / "torchwatt.json"
# Words of PromQL, and labels that Prometheus itself adds to every series.
PROMQL = {"sum", "by", "rate", "increase", "topk", "label_values", "__range", "__rate_interval", "project", "run"}
ADDED = {"instance", "job"}
UNITS = {"watt", "joule", "massg", "percentunit", "short"}


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def exposed():
    """Return {metric: labels} of an endpoint that has everything to say."""
    import torch

    with tw.metrics.prometheus(port=0, layers=5) as made:
        asked = {"baseline_s": 0, "feed": LiveFeed({"gpu:0": 200.0, "psys": 400.0})}
        with tw.profile(**asked, name="without a region", layers="off"):
            time.sleep(0.05)
        with tw.profile(**asked, name="all", intensity_g_per_kwh=50.0):
            torch.nn.Linear(8, 8)(torch.ones(2, 8)).sum().backward()
            time.sleep(0.1)
            during = scrape(made)
        after = scrape(made)
    found = {}
    for name, labels in [*during, *after]:
        found.setdefault(name, set()).update(dict(labels))
    return found


def expressions(dashboard):
    for panel in dashboard["panels"]:
        yield from ((panel, target["expr"], target["legendFormat"]) for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable, variable["query"]["query"], ""


def labels_of(expression, legend):
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", expression)
    grouped = [name for group in re.findall(r"by \(([^)]*)\)", expression) for name in re.split(r",\s*", group)]
    return {*matched, *grouped, *re.findall(r"\{\{(\w+)\}\}", legend)}


def metrics_of(expression):
    return set(re.findall(r"\btorchwatt_\w+", expression))


def test_every_metric_and_label_of_the_dashboard_is_exposed(dashboard, exposed):
    for place, expression, legend in expressions(dashboard):
        names = metrics_of(expression)
        assert names <= exposed.keys(), (place, names - exposed.keys())
        assert names
        for label in labels_of(expression, legend) - ADDED:
            assert all(label in exposed[name] for name in names), (expression, label)


def test_layers_come_from_a_real_run(exposed):
    assert exposed["torchwatt_layer_energy_joules_total"] == {
        "run",
        "project",
        "device",
        "layer",
        "phase",
        "provenance",
        "stage",
    }


def test_every_exposed_metric_is_shown(dashboard, exposed):
    shown = set().union(*(metrics_of(expression) for _, expression, _ in expressions(dashboard)))
    assert shown == exposed.keys()


def test_no_word_of_an_expression_is_unknown(dashboard, exposed):
    labels = set().union(*exposed.values())
    for _, expression, _ in expressions(dashboard):
        bare = re.sub(r'"[^"]*"', "", expression)
        words = set(re.findall(r"[A-Za-z_]\w*", bare)) - metrics_of(expression)
        assert words <= PROMQL | ADDED | labels, words


def test_counters_are_read_as_growth_and_gauges_as_they_are(dashboard):
    for _, expression, _ in expressions(dashboard):
        for name in metrics_of(expression):
            grown = re.search(rf"(rate|increase)\({name}\{{", expression)
            counter = name.endswith("_total") and "label_values" not in expression and "topk" not in expression
            assert bool(grown) == counter, expression


def test_units_ids_places_and_the_source_are_sane(dashboard):
    assert dashboard["title"] == "torchwatt"
    assert dashboard["schemaVersion"] >= 30
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["title"]
        assert all(one["datasource"]["uid"] == "${datasource}" for one in (panel, *panel["targets"]))
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert {"project", "run"} <= variables.keys()


def test_units_fit_the_metrics(dashboard):
    for panel in dashboard["panels"]:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            names, rated = metrics_of(target["expr"]), "rate(" in target["expr"]
            if unit == "watt":
                assert all(name.endswith("_watts") or rated for name in names)
            if unit == "joule":
                assert all(name.endswith("_joules_total") for name in names)
                assert not rated
            if unit == "massg":
                assert names == {"torchwatt_gwp_grams_total"}


def test_unknown_is_not_drawn_as_zero(dashboard):
    for panel in dashboard["panels"]:
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["noValue"] == "unknown"
        if panel["type"] == "timeseries":
            assert defaults["custom"]["spanNulls"] is False
