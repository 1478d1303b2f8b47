"""A GPU run that is killed: what `torchwatt recover` finds, against the counter read beside it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import meter

TRAIN = """
import sys; sys.path[:0] = [{here!r}]
from models import language
import torchwatt as tw
model, step = language("cuda")
for _ in range(10): step()
with tw.profile(model, name="killed", journal={journal!r}):
    print("go", flush=True)
    while True: step().item()
"""


def main():
    gpu = meter.handle()
    folder = Path(tempfile.mkdtemp())
    code = TRAIN.format(here=str(Path(__file__).parent), journal=str(folder / "journal"))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    began_s, began_j = time.monotonic(), meter.energy_j(gpu)
    time.sleep(6)
    os.kill(child.pid, signal.SIGKILL)
    joules, seconds = meter.energy_j(gpu) - began_j, time.monotonic() - began_s
    child.wait()
    print(f"counter until the kill: {joules:.2f} J in {seconds:.2f} s")
    command = [sys.executable, "-m", "torchwatt", "recover", str(folder / "journal"), "--csv", str(folder / "bundle")]
    subprocess.run(command, check=False)
    subprocess.run([sys.executable, "-m", "torchwatt", "verify", str(folder / "bundle")], check=False)


if __name__ == "__main__":
    main()
