"""The chain that a bundle is in, and the signature under its statement."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from torchwatt.audit.bundle_limits import MAX_MANIFEST_BYTES, is_plain_file, read_bundle_file
from torchwatt.audit.seal import (
    FIRST_CHAIN_HASH,
    MANIFEST,
    NAMESPACE,
    SIGNATURE,
    STATEMENT,
    ChainLink,
    SshKeygenMissingError,
    read_chain,
    ssh_keygen,
)
from torchwatt.audit.verification.file_checks import digest
from torchwatt.audit.verification.finding import Findings, SealStatus
from torchwatt.core.errors import BundleError

SHORTEST_HEAD = 16  # hexadecimal digits
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


def check_chain(
    chain: Path | None,
    predicate: Mapping[str, Any],
    manifest_sha256: str,
    runs: Path | None,
    findings: Findings,
    required: str | None = None,
) -> SealStatus:
    """Check a chain from its first line, that this bundle is where its statement says; return its place.

    Args:
        chain: The file; without it there is only a note, if the statement names a chain.
        predicate: The predicate of the bundle's statement.
        manifest_sha256: The hash that the manifest really has.
        runs: The folder that should hold every bundle of the chain.
        findings: The findings are added here.
        required: A head that was kept elsewhere: it must be a line of the chain, which may have grown since.
    """
    if chain is None:
        if predicate.get("chain_sha256"):
            findings.notes.append("the bundle is in a chain, which was not checked: give --chain FILE")
        if required is not None:
            findings.add(
                "CHAIN", "chain", "no chain was given to look for the head in: give --chain FILE", expected=required
            )
        return SealStatus(states_chain=bool(predicate.get("chain_sha256")))
    try:
        links = read_chain(chain)
    except BundleError as error:
        findings.add("CHAIN", chain.name, str(error))
        return SealStatus()
    _links(links, chain.name, findings)
    if required is not None:
        _head(links, chain.name, required, findings)
    mine = _line_of(links, chain.name, predicate, manifest_sha256, findings)
    if runs is not None:
        _runs(links, chain.name, runs, findings)
        _strangers(links, chain.name, runs, findings)
    if mine is None:
        return SealStatus()
    return SealStatus(chain=chain.name, place=mine.index + 1, length=len(links), head=links[-1].chain_sha256)


def _line_of(
    links: tuple[ChainLink, ...], file: str, predicate: Mapping[str, Any], manifest_sha256: str, findings: Findings
) -> ChainLink | None:
    """Return the line of this bundle, which must be about its manifest."""
    mine = [link for link in links if link.chain_sha256 == predicate.get("chain_sha256")]
    if not mine:
        findings.add("CHAIN", file, "has no line for this bundle", expected=predicate.get("chain_sha256") or "a line")
    for link in mine:
        expected = (predicate.get("run_id"), predicate.get("prev_chain_sha256"), manifest_sha256)
        if (link.run_id, link.prev_chain_sha256, link.manifest_sha256) != expected:
            findings.add(
                "CHAIN", file, "its line for this bundle is about other files", row=link.index + 1,
                column="manifest_sha256", expected=manifest_sha256, found=link.manifest_sha256,
            )  # fmt: skip
    return mine[-1] if mine else None


def _head(links: tuple[ChainLink, ...], file: str, required: str, findings: Findings) -> None:
    """Look for a head that was kept elsewhere."""
    head = required.strip().lower()
    if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_HEAD},64}}", head):
        findings.add("CHAIN", file, f"a head has {SHORTEST_HEAD} to 64 hexadecimal digits", found=required)
    elif not any(link.chain_sha256.startswith(head) for link in links):
        actual = links[-1].chain_sha256 if links else "an empty chain"
        findings.add(
            "CHAIN", file, "was shortened or written anew: the head that was kept elsewhere is not in it",
            expected=head, found=actual,
        )  # fmt: skip


def _strangers(links: tuple[ChainLink, ...], file: str, runs: Path, findings: Findings) -> None:
    """Report the bundles of a folder that the chain lacks: a finding if their statement names a chain."""
    hashes = {link.manifest_sha256 for link in links}
    for folder in sorted(path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()):
        if not is_plain_file(folder / MANIFEST) or digest(folder / MANIFEST) in hashes:
            continue
        reason = f"has no line for the run in {folder.name}"
        if _says_chained(folder):
            findings.add("CHAIN", file, f"{reason}, which says that it is in a chain", expected="a line")
        else:
            findings.notes.append(f"{file} {reason}: it was not written with a chain")


def _says_chained(folder: Path) -> bool:
    try:
        document = json.loads(read_bundle_file(folder / STATEMENT, MAX_MANIFEST_BYTES))
        return document["predicate"]["chain_sha256"] is not None
    except (BundleError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _links(links: tuple[ChainLink, ...], file: str, findings: Findings) -> None:
    before = FIRST_CHAIN_HASH
    for number, link in enumerate(links, 1):
        if link.index != number - 1:
            findings.add(
                "CHAIN", file, "a line was removed, added or moved", row=number, column="index", expected=number - 1,
                found=link.index,
            )  # fmt: skip
        if link.prev_chain_sha256 != before:
            findings.add(
                "CHAIN", file, "does not follow the line before", row=number, column="prev_chain_sha256",
                expected=before, found=link.prev_chain_sha256,
            )  # fmt: skip
        if not link.holds:
            findings.add(
                "CHAIN", file, "is not the hash of the line before and the manifest", row=number,
                column="chain_sha256", found=link.chain_sha256,
            )  # fmt: skip
        before = link.chain_sha256


def _runs(links: tuple[ChainLink, ...], file: str, runs: Path, findings: Findings) -> None:
    for number, link in enumerate(links, 1):
        try:
            actual = digest(runs / Path(link.bundle).name / MANIFEST, runs)
        except OSError:
            actual = "no such bundle"
        if actual != link.manifest_sha256:
            findings.add(
                "CHAIN", file, f"run {link.run_id} ({link.bundle}) is not in {runs.name}, or was replaced", row=number,
                column="bundle", expected=link.manifest_sha256, found=actual,
            )  # fmt: skip


def check_signature(
    folder: Path, allowed_signers: Path | None, findings: Findings, required: str | None = None
) -> SealStatus:
    """Check the signature; who signed is known only with the file of allowed signers, or the key that is required.

    Args:
        folder: The bundle.
        allowed_signers: OpenSSH's file of allowed signers.
        findings: The findings are added here.
        required: A key that must have signed: its fingerprint (`SHA256:...`), or a file with public keys.
    """
    signature = folder / SIGNATURE
    if not is_plain_file(signature):
        if allowed_signers is not None or required is not None:
            findings.add("SIGNATURE", SIGNATURE, "is missing; a signature was asked for")
        return SealStatus()
    content = b""
    before = findings.count
    try:
        if is_plain_file(folder / STATEMENT):
            content = read_bundle_file(folder / STATEMENT, MAX_MANIFEST_BYTES)
        output = ssh_keygen("check-novalidate", "-n", NAMESPACE, "-s", str(signature), stdin=content)
        key = match[0] if (match := _FINGERPRINT.search(output)) else "unknown"
        if required is not None:
            _require(key, required, findings)
        if allowed_signers is None:
            if required is None:
                findings.notes.append(f"{output}; whose key that is was not checked: give --allowed-signers FILE")
            return SealStatus(key=key, required=required is not None and findings.count == before)
        names = ssh_keygen("find-principals", "-f", str(allowed_signers), "-s", str(signature)).splitlines()
        files = ("-f", str(allowed_signers), "-n", NAMESPACE, "-s", str(signature))
        output = ssh_keygen("verify", "-I", names[0], *files, stdin=content)
        findings.notes.append(output)
        return SealStatus(key=key, signer=names[0])
    except BundleError as error:
        if isinstance(error, SshKeygenMissingError) and required is None:
            findings.notes.append(f"{SIGNATURE} was not checked: {error}")
        else:
            findings.add("SIGNATURE", SIGNATURE, f"is not good: {error}")
        return SealStatus()


def _require(key: str, required: str, findings: Findings) -> None:
    keys = [required] if required.startswith("SHA256:") else fingerprints(Path(required))
    if key not in keys:
        findings.add(
            "SIGNATURE", SIGNATURE, "was made with another key than the one that is required",
            expected=" or ".join(keys) or "a public key", found=key,
        )  # fmt: skip


def fingerprints(path: Path) -> list[str]:
    """Return the fingerprints of the public keys in a file, as `ssh-keygen -l` shows them.

    Raises:
        BundleError: The file cannot be read, or has no public key.
    """
    prints = []
    for line in read_bundle_file(path, MAX_MANIFEST_BYTES).decode(errors="replace").splitlines():
        for word in line.split():
            if word.startswith("AAAA") and not line.lstrip().startswith("#"):
                try:
                    blob = b64decode(word, validate=True)
                except ValueError:
                    continue
                prints.append("SHA256:" + b64encode(sha256(blob).digest()).decode().rstrip("="))
                break
    if not prints:
        raise BundleError(f"{path} has no public key of OpenSSH: give the .pub file, or a fingerprint SHA256:...")
    return prints
