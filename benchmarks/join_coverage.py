"""How much of each recording's kernel time reaches a module, a reserved row or a named range.

Recordings are others' data: name their folder by TORCHWATT_TRACES, or give files.
"""

import argparse
import os
from pathlib import Path

from torchwatt.kineto import OUTCOMES, join_trace, read_trace

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "traces"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    folder = Path(os.environ.get("TORCHWATT_TRACES", DEFAULT)) / "kineto"
    files = parser.parse_args().files or sorted(folder.glob("*.json.gz"))
    if not files:
        print(f"no recordings in {folder}: name their folder by TORCHWATT_TRACES")
    for path in files:
        # A replay is labelled by the capture that was recorded beside it.
        beside = path.with_name(path.name.replace("graph_replay", "graph_capture"))
        captures = [read_trace(beside)] if beside != path and beside.is_file() else []
        found = join_trace(read_trace(path), captures=captures)
        parts = [f"{name} {found.share(name):.1%}" for name in OUTCOMES if found.kernel_ns[name]]
        name = path.name.removesuffix(".json.gz")
        print(f"{name:40} {found.total_kernel_ns / 1e6:9.3f} ms  named {found.named_share:6.1%}  {', '.join(parts)}")


if __name__ == "__main__":
    main()
