"""Adds bundles to a lake, in several processes; repeated calls change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from torchwatt.audit.fleet.bundle_ingestion import (
    BundleRef,
    IngestOptions,
    IngestOutcome,
    add_bundle,
    looks_like_bundle,
)
from torchwatt.audit.fleet.lake import Lake, LocalFiles
from torchwatt.audit.seal import MANIFEST
from torchwatt.core.errors import BundleError, ConfigError, install_command
from torchwatt.disk.path_safety import folder_entries
from torchwatt.helper_process import helper_command

CHUNK = 32


def add_bundles(
    root: Path, bundles: Sequence[BundleRef], options: IngestOptions, jobs: int
) -> tuple[IngestOutcome, ...]:
    """Add bundles with several processes and return the outcomes in the order of the bundles.

    Raises:
        BundleError: A process ended before its work was done.
    """
    chunks = [bundles[at : at + CHUNK] for at in range(0, len(bundles), CHUNK)]
    done: dict[int, list[IngestOutcome]] = {}
    waiting, lock = list(enumerate(chunks))[::-1], threading.Lock()
    with ThreadPoolExecutor(jobs) as pool:
        for feeder in [pool.submit(_feed_worker, root, options, waiting, lock, done) for _ in range(jobs)]:
            feeder.result()
    return tuple(outcome for index in sorted(done) for outcome in done[index])


def _feed_worker(
    root: Path,
    options: IngestOptions,
    waiting: list[tuple[int, Sequence[BundleRef]]],
    lock: threading.Lock,
    done: dict[int, list[IngestOutcome]],
) -> None:
    """Send chunks to one process until none is left."""
    # One thread per process: the parallelism is by processes.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}
    command = helper_command("torchwatt.audit.fleet.ingestion", str(root), json.dumps(asdict(options)))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdin is not None  # noqa: S101  # both are pipes
        assert process.stdout is not None  # noqa: S101
        while True:
            with lock:
                if not waiting:
                    break
                index, chunk = waiting.pop()
            process.stdin.write(json.dumps([asdict(item) for item in chunk]) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
            if not reply:
                raise BundleError("a process that adds bundles has ended before its work: see its messages on stderr")
            done[index] = [IngestOutcome(**item) for item in json.loads(reply)]
        process.stdin.close()


DEFAULT_PROJECT = "default"
UPLOADS = 16  # at a time
MIN_BUNDLES_FOR_WORKERS = 150  # bundles; for fewer, starting processes takes longer
MAX_DEPTH = 4
_STRIDE = 7919  # a prime: processes with neighbouring PIDs begin far apart


@dataclass(frozen=True, slots=True)
class IngestResult:
    """Outcomes of an ingest, one per bundle."""

    outcomes: tuple[IngestOutcome, ...]

    def count(self, *states: str) -> int:
        """Return the number of bundles in any of these states."""
        return sum(outcome.state in states for outcome in self.outcomes)

    @property
    def refused(self) -> tuple[IngestOutcome, ...]:
        """Return the bundles that are not in the lake, each with its reason."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "refused")

    @property
    def no_bundles(self) -> tuple[IngestOutcome, ...]:
        """Return the folders without a bundle."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "no bundle")


def ingest(
    lake: Lake,
    places: Sequence[str | os.PathLike[str]],
    *,
    project: str | None = None,
    samples: bool = False,
    replace: bool = False,
    jobs: int | None = None,
) -> IngestResult:
    """Add every bundle below some folders to a lake; runs that are already in it are not changed.

    Bundles with a file that differs from the manifest, unreadable bundles, those of unfinished runs, and folders with
    tables and no manifest are refused and listed; the others are added. Several processes and machines may add to one
    lake concurrently.

    Args:
        lake: The target; created if it does not exist.
        places: Stores (`<store>/<project>/<run>`), folders of bundles, or bundles.
        project: Of all bundles; by default that of the store, else `default`.
        samples: Also copy the power curves, which are most of the bytes.
        replace: Replace runs that are there with other content, such as by a repriced bundle.
        jobs: Processes; default is one per CPU, at most 8. To an object store: uploads at a time, default 16.

    Raises:
        BundleError: The place holds something else, or cannot be written.
        ConfigError: A place is no folder, or pyarrow is not installed.
    """
    _require_pyarrow()
    shared = isinstance(lake.files, LocalFiles) and lake.files.shared
    options = IngestOptions(replace=replace, samples=samples, shared=shared)
    bundles = list(chain.from_iterable(bundles_below(Path(place), project) for place in places))
    lake.make()
    processes = min(jobs or min(_cpus(), 8), len(bundles))
    if jobs is None and len(bundles) < MIN_BUNDLES_FOR_WORKERS:
        processes = 1
    if processes > 1 and isinstance(lake.files, LocalFiles):
        return IngestResult(add_bundles(lake.files.root, bundles, options, processes))
    present = lake.runs()
    if isinstance(lake.files, LocalFiles):
        # Concurrent ingests of the same bundles start at different ones and skip those that others have added.
        begin = os.getpid() * _STRIDE % max(len(bundles), 1)
        outcomes = [add_bundle(lake, bundle, present, options) for bundle in (*bundles[begin:], *bundles[:begin])]
        cut = len(bundles) - begin
        return IngestResult((*outcomes[cut:], *outcomes[:cut]))
    with ThreadPoolExecutor(jobs or UPLOADS) as pool:  # object stores have high latency and serve many requests at once
        return IngestResult(tuple(pool.map(lambda bundle: add_bundle(lake, bundle, present, options), bundles)))


def bundles_below(place: Path, project: str | None = None) -> Iterator[BundleRef]:
    """Yield the bundles below a folder; the project is the parent folder's name, unless that is `place` itself.

    Raises:
        ConfigError: `place` is no folder.
    """
    if not place.is_dir():
        raise ConfigError(f"{place} is no folder: give a store, a folder of bundles, or a bundle")
    for folder in _walk(place, place, MAX_DEPTH):
        inner = place not in {folder, folder.parent}
        yield BundleRef(str(folder), project or (folder.parent.name if inner else DEFAULT_PROJECT), str(place))


def _walk(folder: Path, root: Path, deeper: int) -> Iterator[Path]:
    """Yield bundles, and leaf folders without a bundle, which are reported, in order of name.

    Hidden folders and links to folders are omitted.
    """
    try:
        entries = folder_entries(folder, root)
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}") from error
    subfolders = [name for name, kind in entries.items() if kind == "folder" and not name.startswith(".")]
    # Also if the manifest is a link: the bundle is then reported as refused.
    if MANIFEST in entries or looks_like_bundle(folder) or not (subfolders and deeper):
        yield folder
    else:
        yield from chain.from_iterable(_walk(folder / name, root, deeper - 1) for name in subfolders)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401  # check that it is installed
    except ImportError as error:
        raise ConfigError(f"a lake needs pyarrow: {install_command('pyarrow')}") from error


def summary(outcomes: Iterable[IngestOutcome]) -> str:
    """Return the number of bundles by state, in one line."""
    result = IngestResult(tuple(outcomes))
    words = [f"{result.count(state)} {state}" for state in ("added", "replaced", "present", "refused", "no bundle")]
    return ", ".join(word for word in words if not word.startswith("0 ")) or "no bundles"


def add_listed_bundles(root: Path, options: IngestOptions) -> None:
    """Add the bundles that standard input lists, until its end."""
    lake = Lake(str(root), LocalFiles(root, options.shared))
    present = lake.runs()
    for line in sys.stdin:
        outcomes = [add_bundle(lake, BundleRef(**bundle), present, options) for bundle in json.loads(line)]
        sys.stdout.write(json.dumps([asdict(outcome) for outcome in outcomes]) + "\n")
        sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Run the worker; the arguments are the lake's folder and the options of the ingest as JSON."""
    add_listed_bundles(Path(arguments[0]), IngestOptions(**json.loads(arguments[1])))
