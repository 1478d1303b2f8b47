"""Many bundles into the lake: once each, by several processes, and again without harm."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torchwatt.audit.fleet.lake import Lake, LocalFiles
from torchwatt.audit.fleet.one import Found, How, Outcome, add_one, looks_like_bundle
from torchwatt.audit.fleet.workers import add_many
from torchwatt.audit.seal import MANIFEST
from torchwatt.core.errors import ConfigError
from torchwatt.disk.path_safety import folder_entries

DEFAULT_PROJECT = "default"
UPLOADS = 16  # at a time
WORTH_WORKERS = 150  # bundles; below, a process takes longer to start than it saves
DEEPEST = 4
_STRIDE = 7919  # a prime: processes with neighbouring numbers begin far apart


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of the bundles."""

    outcomes: tuple[Outcome, ...]

    def count(self, *states: str) -> int:
        """Return how many ended so."""
        return sum(outcome.state in states for outcome in self.outcomes)

    @property
    def refused(self) -> tuple[Outcome, ...]:
        """Return the bundles that are not in the lake, each with its reason."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "refused")

    @property
    def no_bundles(self) -> tuple[Outcome, ...]:
        """Return the folders that are no bundles and have none in them."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "no bundle")


def ingest(
    lake: Lake,
    places: Sequence[str | os.PathLike[str]],
    *,
    project: str | None = None,
    samples: bool = False,
    replace: bool = False,
    jobs: int | None = None,
) -> Ingested:
    """Add every bundle below some folders to a lake; a run that is in it is left as it is.

    A bundle of which a file differs from its manifest, that cannot be read, or whose run was still running is refused
    and named, and so is a folder with tables and no manifest; all others go on. Several processes and machines may add
    to one lake at the same time.

    Args:
        lake: Where to; made where there is nothing.
        places: Stores (`<store>/<project>/<run>`), folders of bundles, or bundles.
        project: For all of them; by default the store's, else `default`.
        samples: Also copy the power curves, which are most of the bytes.
        replace: A run that is there with other content is replaced, such as by a repriced bundle.
        jobs: Processes; default is one a CPU, at most 8. To an object store: uploads at a time, default 16.

    Raises:
        BundleError: The place holds something else, or cannot be written.
        ConfigError: A place is no folder, or pyarrow is not installed.
    """
    _need_pyarrow()
    shared = isinstance(lake.files, LocalFiles) and lake.files.shared
    how = How(replace=replace, samples=samples, shared=shared)
    found = list(chain.from_iterable(bundles_below(Path(place), project) for place in places))
    lake.make()
    wanted = min(jobs or min(_cpus(), 8), len(found))
    if jobs is None and len(found) < WORTH_WORKERS:
        wanted = 1
    if wanted > 1 and isinstance(lake.files, LocalFiles):
        return Ingested(add_many(lake.files.root, found, how, wanted))
    there = lake.runs()
    if isinstance(lake.files, LocalFiles):
        # Several ingests of the same bundles begin at different ones and find the rest done by the others.
        begin = os.getpid() * _STRIDE % max(len(found), 1)
        outcomes = [add_one(lake, one, there, how) for one in (*found[begin:], *found[:begin])]
        cut = len(found) - begin
        return Ingested((*outcomes[cut:], *outcomes[:cut]))
    with ThreadPoolExecutor(jobs or UPLOADS) as pool:  # an object store answers late and many at once
        return Ingested(tuple(pool.map(lambda one: add_one(lake, one, there, how), found)))


def bundles_below(place: Path, project: str | None = None) -> Iterator[Found]:
    """Find bundles: a folder's name is the project of the bundles in it, that of the folder asked for is not.

    Raises:
        ConfigError: It is no folder.
    """
    if not place.is_dir():
        raise ConfigError(f"{place} is no folder: give a store, a folder of bundles, or a bundle")
    for folder in _walk(place, place, DEEPEST):
        inner = place not in {folder, folder.parent}
        yield Found(str(folder), project or (folder.parent.name if inner else DEFAULT_PROJECT), str(place))


def _walk(folder: Path, root: Path, deeper: int) -> Iterator[Path]:
    """Yield bundles, and the folders at the ends that are none, so that each is named; in order of name.

    Hidden folders and links to folders are left out.
    """
    try:
        entries = folder_entries(folder, root)
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}") from error
    below = [name for name, kind in entries.items() if kind == "folder" and not name.startswith(".")]
    # Also where the manifest is a link: the bundle is then refused by name, and not passed over.
    if MANIFEST in entries or looks_like_bundle(folder) or not (below and deeper):
        yield folder
    else:
        yield from chain.from_iterable(_walk(folder / name, root, deeper - 1) for name in below)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _need_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401  # is it there?
    except ImportError as error:
        raise ConfigError("a lake needs pyarrow: pip install 'torchwatt[fleet]'") from error


def summary(found: Iterable[Outcome]) -> str:
    """Say in one line what became of the bundles."""
    outcomes = Ingested(tuple(found))
    words = [f"{outcomes.count(state)} {state}" for state in ("added", "replaced", "present", "refused", "no bundle")]
    return ", ".join(word for word in words if not word.startswith("0 ")) or "no bundles"
