"""What profiling costs a GPU's steps: benchmarks/performance with its steps on the device, against the peers."""

import subprocess
import sys
from pathlib import Path

TOOLS = (
    "torchwatt, sampling only", "torchwatt, layers", "torchwatt, layers, budget 0.001", "codecarbon, 1 s",
    "zeus, a window a step", "zeus, power at 50 Hz", "torch.profiler", "bare",
)  # fmt: skip

if __name__ == "__main__":
    script = str(Path(__file__).parents[1] / "performance")
    options = ["--device", "cuda", "--pairs", "6", "--steps", "60", "--tool", *TOOLS]
    subprocess.run([sys.executable, script, *options, "--table", "steps"], check=False)
