"""The process of one target: `python -m tests.fuzz.child TARGET SECONDS OUT WORK`; started by `run`."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import time
from hashlib import sha256
from pathlib import Path

from tests.fuzz.cases import content, keep, kept, signature, smallest

# Of libFuzzer, by the clock on the wall: a machine with other work stops us for minutes. `check` looks at CPU time.
RSS_MB, HANG_S = 2048, 900


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
            _say("RUNS", self.runs)
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
        slow = type(error).__name__ == "TooSlowError"
        small = data if slow else smallest(data, lambda part: self._breaks(part, what))
        path = keep(self.out, self.name, small)
        _say("FOUND", {"signature": what, "file": path.name, "bytes": len(small), "said": str(error)[:300]})

    def _breaks(self, data: bytes, what: str) -> bool:
        from tests.fuzz.targets import check

        try:
            check(self.name, data)
        except BaseException as error:
            return signature(error) == what
        return False


def _say(word: str, told: object) -> None:
    print(word, json.dumps(told), flush=True)  # noqa: T201


def main() -> None:
    """Fuzz one target."""
    name, seconds, out, work = sys.argv[1:]
    fuzz = _guided if importlib.util.find_spec("atheris") is not None else _drawn
    fuzz(name, float(seconds), Path(out), Path(work))


def _guided(name: str, seconds: float, out: Path, work: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["torchwatt"]):
        from tests.fuzz import mutate, targets

        report = _Reporter(name, out)
        entry = targets.TARGETS[name]
        starts = [*entry.seeds(), *map(content, kept(name))]
        for start in starts:  # also imports what is imported late
            report(start)

    def custom(data: bytes, largest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.25:
            return bytes(atheris.Mutate(data, largest))
        start = data if data and chance.random() < 0.85 else chance.choice(starts)
        return mutate.mutate(entry.form, start, chance)[:largest]

    corpus = work / "inputs"
    corpus.mkdir(exist_ok=True)
    for start in starts:
        (corpus / sha256(start).hexdigest()).write_bytes(start)
    options = [
        f"-max_total_time={max(round(seconds), 1)}", f"-timeout={HANG_S}", f"-rss_limit_mb={RSS_MB}",
        f"-artifact_prefix={work}/", "-print_final_stats=1", f"-max_len={mutate.LARGEST}", "-len_control=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], report, custom_mutator=custom)
    atheris.Fuzz()


def _drawn(name: str, seconds: float, out: Path, _: Path) -> None:
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
    _say("RUNS", report.runs)


if __name__ == "__main__":
    main()
