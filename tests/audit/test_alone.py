"""What writing and checking need: no network ever, and for checking no package but the standard library."""

import json
import os
import subprocess
import sys

from tests.support.bundles import rich_report
from tests.support.reports import sample_report
from torchwatt.audit import verify, write_bundle

BLOCKED = (
    "numpy",
    "torch",
    "pandas",
    "pyarrow",
    "codecarbon",
    "psutil",
    "pynvml",
    "IPython",
    "ipywidgets",
    "anywidget",
)

VERIFY_ALONE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
from torchwatt.audit import verify
for directory in sys.argv[1:]:
    print(verify(directory))
files = {{name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}}
foreign = files - set(sys.stdlib_module_names) - {{"torchwatt", "__main__", "sitecustomize"}}
assert not {{name for name in foreign if not name.startswith("_")}}, foreign  # an editable install
"""

# Loaded by every Python that starts, the sampler's too: whoever asks for the network is written down and refused.
REFUSE = """
import os, socket, sys
def refuse(*args, **kwargs):
    with open(os.environ["ASKED"], "a") as file:
        file.write(f"{sys.argv} {args}\\n")
    raise OSError("no network in this test")
socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.socket.sendto = refuse
socket.getaddrinfo = refuse
socket.create_connection = refuse
"""

EVERYTHING = """
import sys, torch, torchwatt as tw
from torchwatt.audit import read_bundle, verify
folder = sys.argv[1]
model = torch.nn.Linear(8, 8)
with tw.profile(model, region="FRA", pue=1.2, csv=folder + "/a", html=folder + "/r.html") as run:
    model(torch.ones(2, 8)).sum().backward()
run.to_csv(folder + "/b", samples="csv.gz", chain=folder + "/chain")
print(run)
for name in "ab":
    read_bundle(folder + "/" + name)
    found = verify(folder + "/" + name, chain=folder + "/chain" if name == "b" else None)
    assert found.ok, found
"""


def python(code, *args, **env):
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=170)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_verify_needs_the_standard_library_only(tmp_path):
    parquet = write_bundle(rich_report(), tmp_path / "parquet")
    packed = write_bundle(sample_report(), tmp_path / "packed", samples="csv.gz")
    out = python(VERIFY_ALONE.format(blocked=set(BLOCKED)), parquet, packed)
    for bundle in (parquet, packed):
        assert f"{bundle}: consistent; unsigned: anyone could have made it" in out.splitlines()
    assert out.count("only its hash was checked, its contents need pyarrow") == 1


def test_without_pyarrow_samples_are_csv(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    bundle = write_bundle(sample_report(), tmp_path / "audit")
    monkeypatch.undo()
    assert (bundle / "sample.csv.gz").exists()
    assert not (bundle / "sample.parquet").exists()
    found = verify(bundle)
    assert found.ok
    assert found.rows["sample.csv.gz"] == 3 * 241
    resources = json.loads((bundle / "datapackage.json").read_text())["resources"]
    assert [r["compression"] for r in resources if r["name"] == "sample"] == ["gz"]


def test_nothing_asks_for_the_network(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(REFUSE)
    asked = tmp_path / "asked"
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    python(EVERYTHING, tmp_path, PYTHONPATH=path, ASKED=str(asked))
    assert not asked.exists(), asked.read_text()
    # The trap works: a process that does ask is written down.
    python("import socket\ntry: socket.create_connection(('localhost', 9))\nexcept OSError: pass",
           PYTHONPATH=path, ASKED=str(asked))  # fmt: skip
    assert asked.exists()
