"""Seals a bundle: manifest, in-toto statement about it, and a signature if a key is given.

A seal shows who sealed the files and that they were not altered since. It does not show that a sensor was correct.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from torchwatt.audit.schema import SCHEMA_VERSION
from torchwatt.core import __version__
from torchwatt.core.errors import BundleError
from torchwatt.disk.path_safety import read_user_path
from torchwatt.disk.private_files import FILE_MODE, make_private_folder, open_for_append
from torchwatt.helper_process import system_program

FIRST_CHAIN_HASH = "0" * 64
_MAX_INDEX = 2**53
_MAX_CHAIN_BYTES = 1 << 28  # half a million bundles
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ChainLink:
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
        return self.chain_sha256 == chain_hash(self.prev_chain_sha256, self.manifest_sha256)


def chain_hash(prev_chain_sha256: str, manifest_sha256: str) -> str:
    """Return the next hash of a chain."""
    return sha256(bytes.fromhex(prev_chain_sha256) + bytes.fromhex(manifest_sha256)).hexdigest()


def read_chain(path: Path) -> tuple[ChainLink, ...]:
    """Return the lines of a chain, () if the file does not exist; the hashes are not checked.

    Raises:
        BundleError: A line is malformed, or the file cannot be read.
    """
    try:
        return tuple(_links(path, read_user_path(path, _MAX_CHAIN_BYTES).decode()))
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError as error:
        raise BundleError(f"cannot read the chain {path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise BundleError(f"cannot read the chain {path}: {error.strerror}") from error


def _links(path: Path, text: str) -> Iterator[ChainLink]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            link = ChainLink(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise BundleError(f"{path} line {number}: not a line of a chain: {error}") from error
        digests = (link.manifest_sha256, link.prev_chain_sha256, link.chain_sha256)
        if not all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in digests):
            raise BundleError(f"{path} line {number}: not a line of a chain: a hash is not a SHA-256")
        is_index = isinstance(link.index, int) and not isinstance(link.index, bool) and 0 <= link.index < _MAX_INDEX
        if not is_index or not isinstance(link.run_id, str) or not isinstance(link.bundle, str):
            raise BundleError(f"{path} line {number}: not a line of a chain: its index or a name has the wrong type")
        yield link


@contextmanager
def lock_chain(path: Path) -> Iterator[IO[bytes]]:
    """Open a chain for appending, with an exclusive lock against other processes.

    Raises:
        BundleError: The file cannot be written.
    """
    try:
        make_private_folder(path.parent)
        with open_for_append(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
    except OSError as error:
        raise BundleError(f"cannot write the chain {path}: {error.strerror or error}") from error


def next_link(path: Path, run_id: str, bundle: str, manifest_sha256: str) -> ChainLink:
    """Return the line for a new bundle.

    Raises:
        BundleError: The hash of the last line is wrong.
    """
    links = read_chain(path)
    if links and not links[-1].holds:
        raise BundleError(f"{path} line {len(links)}: its hash does not match its content; see `torchwatt verify`")
    before = links[-1].chain_sha256 if links else FIRST_CHAIN_HASH
    return ChainLink(len(links), run_id, bundle, manifest_sha256, before, chain_hash(before, manifest_sha256))


def append_link(file: IO[bytes], link: ChainLink) -> None:
    """Append a line to a locked chain and flush it to the disk.

    Raises:
        OSError: The line cannot be written; the chain is as before.
    """
    line, descriptor = (json.dumps(asdict(link)) + "\n").encode(), file.fileno()
    end = os.fstat(descriptor).st_size
    try:
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise


MANIFEST = "MANIFEST.sha256"
STATEMENT = "statement.json"
SIGNATURE = "statement.json.sig"
ORIGINAL_MANIFEST = "original.MANIFEST.sha256"  # of the bundle as measured, before any repricing
# Keeps Git from changing line ends, which would break the hashes: https://git-scm.com/docs/gitattributes. The file is
# not in the manifest, because copying often omits hidden files.
GIT_ATTRIBUTES, KEEP_BYTES = ".gitattributes", b"* -text\n"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://github.com/torchwatt/torchwatt/blob/main/docs/audit.md#statement-v1"
_SIGN_TIMEOUT_S = 60  # timeout; a key on a hardware token may wait for a touch
NAMESPACE = "torchwatt-bundle"  # of the signature: signatures made for another purpose are not accepted


@dataclass(frozen=True, slots=True)
class Seal:
    """Optional parts of a seal: the chain file to append to, the SSH key to sign with."""

    chain: Path | None = None
    key: Path | None = None


NO_SEAL = Seal()
TOOL = f"torchwatt {__version__}"


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file, in hexadecimal."""
    return {name: sha256(content).hexdigest() for name, content in files.items()}


def manifest(sha256_of: Mapping[str, str]) -> bytes:
    """Return the manifest, in the format of `sha256sum -c`."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sha256_of.items())).encode()


def statement(
    sha256_of: Mapping[str, str], run_id: str, link: ChainLink | None, tool: str = TOOL, version: str = SCHEMA_VERSION
) -> bytes:
    """Return an in-toto Statement v1 about the manifest and every file in it; without a time, so it is reproducible."""
    manifest_sha256 = sha256(manifest(sha256_of)).hexdigest()
    everything = dict(sha256_of) | {MANIFEST: manifest_sha256}
    content = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(everything.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "schema_version": version,
            "tool": tool,
            "run_id": run_id,
            "manifest_sha256": manifest_sha256,
            "chain_index": link.index if link else None,
            "prev_chain_sha256": link.prev_chain_sha256 if link else None,
            "chain_sha256": link.chain_sha256 if link else None,
        },
    }
    return (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode()


class SshKeygenMissingError(BundleError):
    """Signatures can neither be made nor checked here: ssh-keygen is not installed."""


def sign(path: Path, key: Path) -> None:
    """Sign a file with `ssh-keygen -Y`; the signature is written to `<file>.sig`.

    Raises:
        BundleError: ssh-keygen is not installed, or cannot use the key.
    """
    ssh_keygen("sign", "-f", str(key), "-n", NAMESPACE, str(path))
    path.with_name(f"{path.name}.sig").chmod(FILE_MODE)


def ssh_keygen(action: str, *arguments: str, stdin: bytes = b"") -> str:
    """Run `ssh-keygen -Y` without prompts and return its output.

    Raises:
        BundleError: It is not installed, timed out, or failed; the message contains its output.
    """
    env = {**os.environ, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
    try:
        command = [system_program("ssh-keygen"), "-Y", action, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, env=env, check=False, timeout=_SIGN_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"ssh-keygen -Y {action}: no answer in {_SIGN_TIMEOUT_S} s") from error
    except FileNotFoundError as error:
        message = "signatures need ssh-keygen (OpenSSH 8.0 or newer): install openssh-client"
        raise SshKeygenMissingError(message) from error
    output = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode != 0:
        raise BundleError(f"ssh-keygen -Y {action}: {output or f'exit code {done.returncode}'}")
    return output
