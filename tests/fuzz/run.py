"""Fuzz every parser for some minutes: `python -m tests.fuzz.run --minutes 60 [--only kineto,chain] [--out DIR]`.

Each target runs in a process of its own, guided by coverage (atheris) where that is installed, else by hypothesis. A
case that breaks a parser is made smaller and kept in `tests/fuzz/corpus/<target>/`; the run goes on. Exits with 1 if
any was found.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.cases import CORPUS, keep, kept, signature, smallest

RSS_MB, HANG_S = 2048, 60
_LIBFUZZER = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


def main() -> int:
    """Share the minutes among the targets, one process after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", help="targets, divided by commas")
    parser.add_argument("--out", type=Path, default=CORPUS, help="where found cases are kept")
    parser.add_argument("--log", type=Path, help="a line of JSON a target is added to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return _child(asked.child, asked.minutes * 60, asked.out)
    from tests.fuzz.targets import TARGETS

    names = asked.only.split(",") if asked.only else list(TARGETS)
    broken = 0
    for name in names:
        told = _target(name, asked.minutes * 60 / len(names), asked.out)
        line = json.dumps(told)
        print(line, flush=True)  # noqa: T201
        if asked.log:
            with asked.log.open("a") as file:
                file.write(line + "\n")
        broken += len(told["found"])  # type: ignore[arg-type]
    return 1 if broken else 0


def _target(name: str, seconds: float, out: Path) -> dict[str, object]:
    """Run one target in its own process and say how often, how long, and what broke."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz.run", "--child", name, "--minutes", repr(seconds / 60), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    found = [json.loads(line.removeprefix("FOUND ")) for line in said.splitlines() if line.startswith("FOUND ")]
    runs = [int(line.removeprefix("RUNS ")) for line in said.splitlines() if line.startswith("RUNS ")]
    runs += [int(match) for match in _LIBFUZZER.findall(said)]
    if done.returncode and not found:  # a hang, or too much memory: libFuzzer left the input as an artifact
        found.append({"signature": f"exit {done.returncode}", "said": said[-1500:]})
    minutes = (time.monotonic() - began) / 60
    return {"target": name, "minutes": round(minutes, 2), "executions": max(runs, default=0), "found": found}


class _Reporter:
    """Runs inputs, keeps one case of each way to break, and goes on."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out = name, out
        self.seen: set[str] = set()
        self.runs = 0

    def __call__(self, data: bytes) -> None:
        from tests.fuzz.targets import check

        self.runs += 1
        if self.runs % 100 == 0:
            print("RUNS", self.runs, flush=True)  # noqa: T201
        try:
            check(self.name, data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._broke(data, error)

    def _broke(self, data: bytes, error: BaseException) -> None:
        what = signature(error)
        if what in self.seen:
            return
        self.seen.add(what)
        small = smallest(data, lambda part: self._breaks(part, what)) if type(error).__name__ != "Slow" else data
        path = keep(self.out, self.name, small)
        print("FOUND", json.dumps({"signature": what, "file": path.name, "bytes": len(small), "said": str(error)[:300]}),
              flush=True)  # noqa: T201  # fmt: skip

    def _breaks(self, data: bytes, what: str) -> bool:
        from tests.fuzz.targets import check

        try:
            check(self.name, data)
        except BaseException as error:
            return signature(error) == what
        return False


def _child(name: str, seconds: float, out: Path) -> int:
    if importlib.util.find_spec("atheris") is not None:
        return _guided(name, seconds, out)
    return _drawn(name, seconds, out)


def _guided(name: str, seconds: float, out: Path) -> int:
    import atheris

    with atheris.instrument_imports(include=["torchwatt"]):
        from tests.fuzz import mutate, targets

        report = _Reporter(name, out)
        entry = targets.TARGETS[name]
        starts = [*entry.seeds(), *(path.read_bytes() for path in kept(name))]
        for start in starts:
            report(start)

    def custom(data: bytes, largest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.25:
            return bytes(atheris.Mutate(data, largest))
        start = data if data and chance.random() < 0.85 else chance.choice(starts)
        return mutate.mutate(entry.form, start, chance)[:largest]

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, start in enumerate(starts):
            (corpus / f"{number:04}").write_bytes(start)
        options = [
            f"-max_total_time={max(round(seconds), 1)}", f"-timeout={HANG_S}", f"-rss_limit_mb={RSS_MB}",
            f"-artifact_prefix={folder}/", "-print_final_stats=1", f"-max_len={mutate.LARGEST}", "-len_control=0",
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options, str(corpus)], report, custom_mutator=custom)
        with contextlib.suppress(SystemExit):
            atheris.Fuzz()
    return 0


def _drawn(name: str, seconds: float, out: Path) -> int:
    from hypothesis import HealthCheck, given, settings

    from tests.fuzz.strategies import inputs

    report, until = _Reporter(name, out), time.monotonic() + seconds

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs(name))
    def some(data: bytes) -> None:
        if time.monotonic() < until:
            report(data)

    while time.monotonic() < until:
        some()
    print("RUNS", report.runs, flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
