"""The chain of a project's bundles: one line a bundle, each holding the hash of all lines before it.

`chain_n = SHA-256(chain_(n-1) || manifest_sha256_n)`, both as 32 raw bytes, with 32 zero bytes before the first. A line
that was removed, changed or moved breaks every later one. What it cannot show: a whole chain that its owner wrote
anew, or lines cut off at the end. So keep its last hash where others see it: a commit, a CI log, a timestamp.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from torchwatt.core.errors import BundleError
from torchwatt.disk.path_safety import read_named
from torchwatt.disk.private import appended_file, private_folder

FIRST = "0" * 64
_MOST = 2**53
_MOST_BYTES = 1 << 28  # half a million bundles
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Link:
    """One line of a chain."""

    index: int
    run_id: str
    bundle: str  # name of the folder, without its path
    manifest_sha256: str
    prev_chain_sha256: str
    chain_sha256: str

    @property
    def holds(self) -> bool:
        """Return whether the line's own hash is that of what it names."""
        return self.chain_sha256 == chained(self.prev_chain_sha256, self.manifest_sha256)


def chained(prev_chain_sha256: str, manifest_sha256: str) -> str:
    """Return the next hash of a chain."""
    return sha256(bytes.fromhex(prev_chain_sha256) + bytes.fromhex(manifest_sha256)).hexdigest()


def read_chain(path: Path) -> tuple[Link, ...]:
    """Read a chain; none is empty. Whether it holds is for `verify` to say.

    Raises:
        BundleError: A line is no line of a chain, or the file cannot be read.
    """
    try:
        return tuple(_links(path, read_named(path, _MOST_BYTES).decode()))
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError as error:
        raise BundleError(f"cannot read the chain {path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise BundleError(f"cannot read the chain {path}: {error.strerror}") from error


def _links(path: Path, text: str) -> Iterator[Link]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            link = Link(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise BundleError(f"{path} line {number}: no line of a chain: {error}") from error
        digests = (link.manifest_sha256, link.prev_chain_sha256, link.chain_sha256)
        if not all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in digests):
            raise BundleError(f"{path} line {number}: no line of a chain: a hash is no SHA-256")
        is_index = isinstance(link.index, int) and not isinstance(link.index, bool) and 0 <= link.index < _MOST
        if not is_index or not isinstance(link.run_id, str) or not isinstance(link.bundle, str):
            raise BundleError(f"{path} line {number}: no line of a chain: its number or a name is none")
        yield link


@contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """Hold a chain alone, so that two runs that end together get two lines."""
    try:
        private_folder(path.parent)
        with appended_file(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
    except OSError as error:
        raise BundleError(f"cannot write the chain {path}: {error.strerror or error}") from error


def next_link(path: Path, run_id: str, bundle: str, manifest_sha256: str) -> Link:
    """Return the line that would come next.

    Raises:
        BundleError: The last line does not hold: nothing may be built on a broken chain.
    """
    links = read_chain(path)
    if links and not links[-1].holds:
        raise BundleError(f"{path} line {len(links)}: its hash is not that of what it names; see `torchwatt verify`")
    before = links[-1].chain_sha256 if links else FIRST
    return Link(len(links), run_id, bundle, manifest_sha256, before, chained(before, manifest_sha256))


def append(file: IO[bytes], link: Link) -> None:
    """Add a line to a locked chain, and have it on the disk."""
    file.write((json.dumps(asdict(link)) + "\n").encode())
    file.flush()
    os.fsync(file.fileno())
