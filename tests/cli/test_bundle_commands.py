"""The commands over finished bundles, as a user types them."""

import csv
import gzip
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.support import ready
from tests.support.reports import sample_report
from torchwatt.audit import verify, write_bundle
from torchwatt.core.report import Window


def torchwatt(*args, **env):
    return ready.torchwatt(*args, env=env)


def token(value):
    return {"ELECTRICITYMAPS_TOKEN": value}


def test_reprice_then_export_then_verify(bundle, factors, tmp_path):
    done = torchwatt("reprice", bundle, "--factors", factors, "--pue", 1.5, "--scenario", "2026")
    assert done.returncode == 0, done.stderr
    assert "energy_j/3.6e6*pue*grid_gwp" in done.stdout
    new = bundle.with_name("bundle.2026")
    assert verify(new).ok
    out = tmp_path / "e.csv"
    done = torchwatt("export", new, "--to", "codecarbon", "--out", out, "--scenario", "repriced:2026")
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as file:
        assert next(csv.DictReader(file))["pue"] == "1.5"


def test_a_bundle_is_exported_for_perfetto_with_its_epochs_and_without_modules(tmp_path):
    report = sample_report()
    ends = (report.start_ns, report.start_ns + 9_000_000_000)
    report = replace(report, windows=(*report.windows, Window("epoch 1", *ends, 1000.0, "epoch")))
    bundle, out = write_bundle(report, tmp_path / "bundle"), tmp_path / "run.json.gz"
    done = torchwatt("export", bundle, "--to", "perfetto", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    document = json.loads(gzip.decompress(out.read_bytes()))
    names = [event["name"] for event in document["traceEvents"] if event["ph"] == "X"]
    assert [name for name in names if name.startswith("step ")] == [f"step {i}" for i in range(40)]
    assert {"epoch 1", "warm up", "train", "validation"} <= set(names)
    assert document["otherData"]["module_slices"].startswith("none")
    assert document["otherData"]["energy_j"] == report.energy_j


def test_a_mistake_is_one_line_and_exit_code_2(bundle, joules_only):
    for args, said in (
        (("reprice", bundle), "no factors to price with"),
        (("export", bundle, "--to", "pdf"), "no format 'pdf'"),
        (("export", bundle, bundle, "--to", "perfetto"), "perfetto is about one run; 2 bundles were given"),
        (("export", bundle, "--to", "perfetto", "--out", bundle), "exists already: name another file with --out"),
        (("export", joules_only, "--to", "huggingface"), "reprice"),
        (("export", bundle, "--to", "sci", "--set", "organisation"), "NAME=VALUE"),
        (("show", "no-such-run", "--store", bundle.with_name("none")), "no run 'no-such-run'"),
        (("reprice", bundle, "--electricity-maps", "FR"), "ELECTRICITYMAPS_TOKEN"),
    ):
        done = torchwatt(*args, **token(""))
        assert done.returncode == 2, done
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_kept_runs_are_listed_added_up_and_shown(tmp_path):
    script, store = tmp_path / "train.py", tmp_path / "store"
    script.write_text("import torch\ntorch.nn.Linear(4, 4)(torch.ones(2, 4))\n")
    for _ in range(2):
        done = torchwatt("run", "-q", "--keep", "--store", store, "--project", "toy", "--intensity", 50, script)
        assert done.returncode == 0, done.stderr
    listed = torchwatt("runs", "--store", store)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("train.py") == 2
    assert "toy 20" in listed.stdout
    run_id = listed.stdout.splitlines()[1].split()[0]
    shown = torchwatt("show", run_id, "--store", store)
    assert shown.returncode == 0, shown.stderr
    assert run_id in shown.stdout
    assert torchwatt("runs", "--store", store, "--rebuild").stdout == listed.stdout
    assert "no runs in" in torchwatt("runs", "--store", tmp_path / "empty").stdout


def test_without_keep_there_is_no_store(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("pass\n")
    done = torchwatt("run", "-q", script, TORCHWATT_STORE=str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "store").exists()
    assert "add --keep" in torchwatt("run", "-q", "--store", tmp_path / "store", script).stderr


@pytest.fixture
def api():
    """Answer 24 g/kWh for any hour that is asked for, on the loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.tokens.append(self.headers["auth-token"])
            row = {"zone": "FR", "carbonIntensity": 24, "datetime": "2026-11-24T06:00:00Z", "isEstimated": False,
                   "emissionFactorType": "lifecycle"}  # fmt: skip
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"zone": "FR", "data": [row]}).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.tokens = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_electricity_maps_is_asked_only_where_the_command_says_so(bundle, factors, api):
    url = f"http://127.0.0.1:{api.server_port}"
    others = factors.with_name("others.csv")
    others.write_text(factors.read_text().replace("50.0,", "51.0,"))
    quiet = torchwatt("reprice", bundle, "--factors", others, "--scenario", "a", **token("t"))
    assert quiet.returncode == 0, quiet.stderr
    assert api.tokens == []
    asked = ("--electricity-maps", "FR", "--electricity-maps-url", url)
    done = torchwatt("reprice", bundle, *asked, "--scenario", "b", **token("s3cret"))
    assert done.returncode == 0, done.stderr
    assert api.tokens == ["s3cret"]
    new = bundle.with_name("bundle.b")
    assert verify(new).ok
    assert not any("s3cret" in path.read_text(errors="replace") for path in new.iterdir())
    with (new / "factor.csv").open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["temporal_resolution"] == "hour"]
    assert (row["zone"], row["value"], row["is_estimated"], row["valid_from"]) == (
        "FR", "24.0", "false", "2026-11-24T06:00:00.000000Z",
    )  # fmt: skip
