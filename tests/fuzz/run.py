"""Fuzz every parser for some minutes: `python -m tests.fuzz.run --minutes 60 [--only kineto,chain] [--out DIR]`.

Each target runs in a process of its own, turn by turn, guided by coverage (atheris) where that is installed, else by
hypothesis. A case that breaks a parser is made smaller and kept in `tests/fuzz/corpus/<target>/`; the run goes on. A
line of JSON a turn says what was done; the last one sums up. Exits with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.cases import CORPUS, keep

_LIBFUZZER = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
TURN_MINUTES = 1.5


def main() -> int:
    """Share the minutes among the targets, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", help="targets, divided by commas")
    parser.add_argument("--out", type=Path, default=CORPUS, help="where found cases are kept")
    parser.add_argument("--work", type=Path, help="where inputs that led to new code are kept between runs")
    parser.add_argument("--log", type=Path, help="lines are added to this file as well")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return _turns(asked, asked.work or Path(folder))


def _turns(asked: argparse.Namespace, work: Path) -> int:
    from tests.fuzz.targets import TARGETS

    names = asked.only.split(",") if asked.only else list(TARGETS)
    seconds = min(TURN_MINUTES, asked.minutes / len(names)) * 60
    until = time.monotonic() + asked.minutes * 60
    minutes: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    found: defaultdict[str, set[str]] = defaultdict(set)
    while True:
        for name in names:
            if time.monotonic() >= until:
                total = {"cpu_minutes": round(sum(minutes.values()), 1), "executions": runs.total()}
                _tell(asked.log, {"sum": total, "minutes": minutes, "executions": runs, "found": _plain(found)})
                return 1 if any(found.values()) else 0
            told = _turn(name, seconds, asked.out, work)
            minutes[name] += told["cpu_minutes"]
            runs[name] += told["executions"]
            found[name] |= {one["signature"] for one in told["found"]}
            _tell(asked.log, told)


def _plain(found: dict[str, set[str]]) -> dict[str, list[str]]:
    return {name: sorted(some) for name, some in found.items() if some}


def _tell(log: Path | None, told: dict[str, Any]) -> None:
    line = json.dumps(told)
    print(line, flush=True)  # noqa: T201
    if log:
        with log.open("a") as file:
            file.write(line + "\n")


def _turn(name: str, seconds: float, out: Path, work: Path) -> dict[str, Any]:
    """Run one target in its own process and say how often, how long (CPU time), and what broke."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "tests.fuzz.child", name, repr(seconds), str(out), str(folder)]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": temporary}
        )
        assert child.stdout is not None
        said = child.stdout.read().decode(errors="replace")
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    lines = said.splitlines()
    found = [json.loads(line.removeprefix("FOUND ")) for line in lines if line.startswith("FOUND ")]
    runs = [int(line.removeprefix("RUNS ")) for line in lines if line.startswith("RUNS ")]
    runs += [int(match) for match in _LIBFUZZER.findall(said)]
    found += _died(folder, name, out)
    if child.returncode and not found:
        found.append({"signature": f"exit {child.returncode}", "said": said[-1500:]})
    minutes = (used.ru_utime + used.ru_stime) / 60
    return {"target": name, "cpu_minutes": round(minutes, 3), "executions": max(runs, default=0), "found": found}


def _died(folder: Path, name: str, out: Path) -> Iterator[dict[str, Any]]:
    """Keep what libFuzzer left of a hang or of too much memory."""
    for path in sorted(folder.glob("*-*")):
        kind = path.name.partition("-")[0]
        if kind in {"crash", "timeout", "oom", "leak"}:
            kept = keep(out, name, path.read_bytes())
            path.unlink()
            yield {"signature": kind, "file": kept.name, "bytes": kept.stat().st_size}


if __name__ == "__main__":
    sys.exit(main())
