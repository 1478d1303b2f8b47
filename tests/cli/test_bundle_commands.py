"""The commands over finished bundles, as a user types them."""

import csv
import gzip
import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from types import SimpleNamespace

import pytest

from tests.support import ready
from tests.support.bundles import rich_report
from tests.support.reports import START_NS, another_report, sample_report
from torchwatt.audit import verify, write_bundle
from torchwatt.audit.report_loader import load_priced_report
from torchwatt.cli import doctor
from torchwatt.cli.bundle_commands import show_bundle
from torchwatt.cli.command_parser import build_parser
from torchwatt.cli.command_table import COMMANDS
from torchwatt.core.meter import Channel, Meter, Unavailable
from torchwatt.core.report import Window
from torchwatt.core.terms import Domain
from torchwatt.sensors.protocol import event_now
from torchwatt.views import VIEWS, to_html_page, to_text
from torchwatt.views.power_chart import power_bands


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


def test_all_runs_of_a_training_are_exported_by_its_name(tmp_path):
    for number, status, reason in ((1, "complete", ""), (2, "aborted", "KeyboardInterrupt")):
        report = another_report(number, name="gpt", status=status, exit_reason=reason)
        write_bundle(report, tmp_path / "runs" / report.run_id)
    out = tmp_path / "form.md"
    done = torchwatt("export", tmp_path / "runs", "--to", "ai-act", "--training", "gpt", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert "| Runs | 2: 1 aborted, 1 complete |" in out.read_text()


def test_a_mistake_is_one_line_and_exit_code_2(bundle, joules_only):
    for args, said in (
        (("export", bundle, "--to", "ai-act", "--training", "none"), "no run of training 'none'"),
        (("export", bundle, "--to", "xlsx", "--training", "x"), "xlsx has no form about a training"),
        (("export", bundle, "--to", "perfetto", "--training", "x"), "perfetto has no form about a training"),
        (("export", bundle.with_name("no"), "--to", "ai-act", "--training", "x"), "is no folder"),
        (("export", bundle, "--to", "sci-ai"), "--set persona=consumer"),
        (("export", bundle, "--to", "cyclonedx"), "--set lifecycle_stage="),
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


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["showx"], "torchwatt: no 'showx': did you mean show? See `torchwatt --help`"),
        (["run", "--regin", "FRA", "a.py"], "unknown option --regin: did you mean --region"),
        (["show", "a", "--by", "blockx"], "argument --by: no 'blockx': did you mean blocks?"),
        (["show", "a", "--by", "42"], "no '42': give one of hottest, blocks, tree, type, stage;"),
        (["show"], "torchwatt show: the following arguments are required: DIR|RUN; see `torchwatt show --help`"),
    ],
)
def test_a_wrong_argument_is_one_line_with_similar_names(args, said, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(args)
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in message
    assert message.count("\n") == 1


def test_show_prints_the_report_of_the_run_in_each_view(tmp_path):
    report = rich_report()
    write_bundle(report, tmp_path / "audit")
    for view in VIEWS:
        out = StringIO()
        show_bundle(str(tmp_path / "audit"), by=view, out=out)
        shown, printed = out.getvalue(), to_text(report, by=view)
        assert shown[: shown.index("How this was measured")] == printed[: printed.index("How this was measured")]
        grams = [line.split(" · ")[0] for line in printed.splitlines() if line.startswith("carbon ")]
        assert f"\n{grams[0]} · " in shown
    out = StringIO()
    show_bundle(str(tmp_path / "audit"), markdown=True, out=out)
    assert out.getvalue().startswith(f"# {report.name}\n\n")
    assert "| :-- |" in out.getvalue()


def test_a_page_from_a_bundle_lacks_only_what_the_bundle_has_not(tmp_path, capsys):
    epoch = Window("epoch 0", START_NS + 10**9, START_NS + 20 * 10**9, 1000.0, "epoch")
    report = sample_report()
    report = replace(report, windows=(*report.windows, epoch))
    write_bundle(report, tmp_path / "audit")
    arguments = build_parser().parse_args(["show", str(tmp_path / "audit"), "--html", str(tmp_path / "report.html")])
    assert COMMANDS["show"](arguments) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'report.html'}\n"
    loaded = load_priced_report(tmp_path / "audit")
    bands, of_run = power_bands(loaded), power_bands(report)
    assert {row: of_run[row] for row in of_run if row != "phases"} == bands
    assert {"epochs", "stages", "steps"} <= set(bands)
    page, page_of_run = (tmp_path / "report.html").read_text(encoding="utf-8"), to_html_page(report)
    sentence = "a bundle, which has no phases, utilisation or temperature over time"
    assert sentence in page
    assert sentence not in page_of_run
    text, text_of_run = (re.findall(r">([^<]+)<", html[: html.index("Power</div>")]) for html in (page, page_of_run))
    assert text == text_of_run  # the answer, the figures, the views of the layers
    assert "readings late" not in page or not re.search(r"(\d+) of \1 readings late", page)


def test_doctor_ends_with_a_verdict_and_succeeds_where_a_run_works(monkeypatch, capsys):
    meter = Meter(Domain("cpu"), (Channel(Domain("cpu"), "power", "power", "W", 1.0, 10**8, "tdp_model"),), "modelled",
                  "process", "a model")  # fmt: skip
    gone = (Unavailable("gpu", "no driver", "install one"),)
    for meters, status, said in (
        ((meter,), 0, "A run works here; no power meter was found; estimated: cpu; the fixes above would add: gpu."),
        ((), 1, "A run works here but reports no joules"),
    ):
        found = SimpleNamespace(meters=meters, unavailable=gone, events=())
        monkeypatch.setattr(doctor, "discover", lambda found=found: found)
        assert doctor.print_discovery() == status
        assert capsys.readouterr().out.splitlines()[-1].startswith(said)
        assert doctor.print_discovery(as_json=True) == status
        facts = json.loads(capsys.readouterr().out)
        assert facts["works"] == bool(meters)
        assert facts["verdict"].startswith(said)


@pytest.mark.parametrize("columns", [60, 100])
def test_doctor_wraps_its_lines_at_the_terminals_width_and_loses_no_word(monkeypatch, capsys, columns):
    fix = "run on the host or with --security-opt systempaths=unconfined; on bare metal: modprobe intel_rapl_msr " * 2
    power = Channel(Domain("cpu"), "power", "power", "W", 1.0, 10**8, "tdp_model")
    meter = Meter(Domain("cpu"), (power,), "modelled", "process", "a model", notes=("every note is a sentence " * 8,))
    event = event_now("warning", "SHARED_DEVICE", "gpu:0", "another process used the GPU " * 5)
    gone = (Unavailable("gpu", "gpu: nvmlInit: NVML Shared Library Not Found", fix),)
    found = SimpleNamespace(meters=(meter,), unavailable=gone, events=(event,))
    monkeypatch.setattr(doctor, "discover", lambda: found)
    monkeypatch.setenv("COLUMNS", str(columns))
    doctor.print_discovery()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert f"fix: {fix.strip()}" in " ".join(out.split())
    assert "\n  gpu: nvmlInit: " in out  # the name of the domain is not repeated
    assert all(line.startswith("      ") for line in out.splitlines() if "modprobe" in line)


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
