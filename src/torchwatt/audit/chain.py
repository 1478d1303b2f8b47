"""The hash chain of a project's bundles: one line per bundle, each with a hash of itself and all lines before it.

`chain_n = SHA-256(chain_(n-1) || manifest_sha256_n)`, both as 32 raw bytes, with 32 zero bytes before the first. A
line that is removed, changed or moved invalidates all later ones. The chain cannot show that its owner rewrote all of
it or removed lines at the end: for that, publish its last hash, such as in a commit, a CI log or a timestamp.
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
    bundle: str  # name of the folder
    manifest_sha256: str
    prev_chain_sha256: str
    chain_sha256: str

    @property
    def holds(self) -> bool:
        """Return whether the line's hash is that of the previous hash and the manifest."""
        return self.chain_sha256 == chained(self.prev_chain_sha256, self.manifest_sha256)


def chained(prev_chain_sha256: str, manifest_sha256: str) -> str:
    """Return the next hash of a chain."""
    return sha256(bytes.fromhex(prev_chain_sha256) + bytes.fromhex(manifest_sha256)).hexdigest()


def read_chain(path: Path) -> tuple[Link, ...]:
    """Return the lines of a chain, () if the file does not exist; the hashes are not checked.

    Raises:
        BundleError: A line is malformed, or the file cannot be read.
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
            raise BundleError(f"{path} line {number}: not a line of a chain: {error}") from error
        digests = (link.manifest_sha256, link.prev_chain_sha256, link.chain_sha256)
        if not all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in digests):
            raise BundleError(f"{path} line {number}: not a line of a chain: a hash is not a SHA-256")
        is_index = isinstance(link.index, int) and not isinstance(link.index, bool) and 0 <= link.index < _MOST
        if not is_index or not isinstance(link.run_id, str) or not isinstance(link.bundle, str):
            raise BundleError(f"{path} line {number}: not a line of a chain: its index or a name has the wrong type")
        yield link


@contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """Open a chain for appending, with an exclusive lock against other processes.

    Raises:
        BundleError: The file cannot be written.
    """
    try:
        private_folder(path.parent)
        with appended_file(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
    except OSError as error:
        raise BundleError(f"cannot write the chain {path}: {error.strerror or error}") from error


def next_link(path: Path, run_id: str, bundle: str, manifest_sha256: str) -> Link:
    """Return the line for a new bundle.

    Raises:
        BundleError: The hash of the last line is wrong.
    """
    links = read_chain(path)
    if links and not links[-1].holds:
        raise BundleError(f"{path} line {len(links)}: its hash does not match its content; see `torchwatt verify`")
    before = links[-1].chain_sha256 if links else FIRST
    return Link(len(links), run_id, bundle, manifest_sha256, before, chained(before, manifest_sha256))


def append(file: IO[bytes], link: Link) -> None:
    """Append a line to a locked chain and flush it to the disk."""
    file.write((json.dumps(asdict(link)) + "\n").encode())
    file.flush()
    os.fsync(file.fileno())
