"""Seals a bundle: manifest, in-toto statement about it, and a signature if a key is given.

A seal shows who sealed the files and that they were not altered since. It does not show that a sensor was correct.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from torchwatt.audit.chain import Link
from torchwatt.audit.schema import SCHEMA_VERSION
from torchwatt.core.errors import BundleError
from torchwatt.core.version import __version__
from torchwatt.disk.private import FILE
from torchwatt.helper_process import system_program

MANIFEST = "MANIFEST.sha256"
STATEMENT = "statement.json"
SIGNATURE = "statement.json.sig"
ORIGINAL_MANIFEST = "original.MANIFEST.sha256"  # of the bundle as measured, before any repricing
# Keeps Git from changing line ends, which would break the hashes: https://git-scm.com/docs/gitattributes. The file is
# not in the manifest, because copying often omits hidden files.
GIT_ATTRIBUTES, KEEP_BYTES = ".gitattributes", b"* -text\n"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://github.com/torchwatt/torchwatt/blob/main/docs/audit.md#statement-v1"
_PATIENCE_S = 60  # timeout; a key on a hardware token may wait for a touch
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
    sha256_of: Mapping[str, str], run_id: str, link: Link | None, tool: str = TOOL, version: str = SCHEMA_VERSION
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


def sign(path: Path, key: Path) -> None:
    """Sign a file with `ssh-keygen -Y`; the signature is written to `<file>.sig`.

    Raises:
        BundleError: ssh-keygen is not installed, or cannot use the key.
    """
    ssh_keygen("sign", "-f", str(key), "-n", NAMESPACE, str(path))
    path.with_name(f"{path.name}.sig").chmod(FILE)


def ssh_keygen(action: str, *arguments: str, stdin: bytes = b"") -> str:
    """Run `ssh-keygen -Y` without prompts and return its output.

    Raises:
        BundleError: It is not installed, timed out, or failed; the message contains its output.
    """
    env = {**os.environ, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
    try:
        command = [system_program("ssh-keygen"), "-Y", action, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, env=env, check=False, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"ssh-keygen -Y {action}: no answer in {_PATIENCE_S} s") from error
    except FileNotFoundError as error:
        raise BundleError("signatures need ssh-keygen (OpenSSH 8.0 or newer): install openssh-client") from error
    output = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode != 0:
        raise BundleError(f"ssh-keygen -Y {action}: {output or f'exit code {done.returncode}'}")
    return output
