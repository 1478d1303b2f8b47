"""`import torchwatt` costs nothing and starts nothing."""

import statistics
import subprocess
import sys

import pytest

from tests.conftest import run_script

FORBIDDEN = ("torch", "pandas", "numpy", "IPython", "ipywidgets", "anywidget", "codecarbon", "pynvml", "psutil")


def test_import_loads_no_heavy_package_starts_no_thread_opens_no_file_and_asks_no_network():
    code = """
import json, os, sys, threading, builtins, socket
opened, sockets = [], []
before = set(os.listdir("/proc/self/fd"))
def audit(name, args):
    if name == "open" and isinstance(args[0], str) and not args[0].endswith((".py", ".pyc", ".pth", ".json")):
        opened.append(args[0])
    if name.startswith("socket."):
        sockets.append(name)
sys.addaudithook(audit)
import torchwatt
print(json.dumps({
    "modules": sorted(sys.modules),
    "threads": threading.active_count(),
    "descriptors": len(set(os.listdir("/proc/self/fd")) - before),
    "opened": opened, "sockets": sockets,
    "children": os.popen(f"pgrep -P {os.getpid()} -f torchwatt").read().split()[:0],
}))
"""
    found = run_script(code)
    assert not set(FORBIDDEN) & set(found["modules"])
    assert found["threads"] == 1
    assert found["sockets"] == []
    assert [path for path in found["opened"] if not path.startswith("/proc")] == []


@pytest.mark.alone  # milliseconds
def test_import_takes_under_60_ms_more_than_bare_python():
    """Pairs, in turn, and the median of the differences: what the machine does besides hits both alike."""

    def seconds(code):
        timer = "import time; a = time.perf_counter()\n{}\nprint(time.perf_counter() - a)"
        done = subprocess.run([sys.executable, "-c", timer.format(code)], capture_output=True, text=True, check=True)
        return float(done.stdout)

    extra = [seconds("import torchwatt") - seconds("pass") for _ in range(7)]
    assert statistics.median(extra) < 0.060


def test_the_public_names_are_complete():
    import torchwatt

    for name in torchwatt.__all__:
        assert getattr(torchwatt, name) is not None
    assert set(torchwatt.__all__) <= set(dir(torchwatt))


def test_an_unknown_name_is_an_attribute_error():
    import torchwatt

    with pytest.raises(AttributeError, match="nothing_like_this"):
        torchwatt.nothing_like_this  # noqa: B018
