"""The chain that a bundle is in, and the signature under its statement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchwatt.audit.chain import FIRST, Link, read_chain
from torchwatt.audit.inside import MAX_MANIFEST_BYTES, content_of, is_own
from torchwatt.audit.seal import MANIFEST, NAMESPACE, SIGNATURE, STATEMENT, ssh_keygen
from torchwatt.audit.verification.files import digest
from torchwatt.audit.verification.finding import Findings
from torchwatt.core.errors import BundleError


def check_chain(
    chain: Path | None, said: Mapping[str, Any], manifest_sha256: str, runs: Path | None, findings: Findings
) -> None:
    """Check a chain from its first line, and that this bundle is where its statement says.

    Args:
        chain: The file; without it there is only a note, if the statement names a chain.
        said: The predicate of the bundle's statement.
        manifest_sha256: The hash that the manifest really has.
        runs: The folder that should hold every bundle of the chain.
        findings: Where to tell.
    """
    if chain is None:
        if said.get("chain_sha256"):
            findings.notes.append("the bundle is in a chain, which was not checked: give --chain FILE")
        return
    try:
        links = read_chain(chain)
    except BundleError as error:
        findings.add("CHAIN", chain.name, str(error))
        return
    _links(links, chain.name, findings)
    mine = [link for link in links if link.chain_sha256 == said.get("chain_sha256")]
    if not mine:
        findings.add(
            "CHAIN", chain.name, "has no line for this bundle", expected=said.get("chain_sha256") or "a line",
        )  # fmt: skip
    for link in mine:
        told = (said.get("run_id"), said.get("prev_chain_sha256"), manifest_sha256)
        if (link.run_id, link.prev_chain_sha256, link.manifest_sha256) != told:
            findings.add(
                "CHAIN", chain.name, "its line for this bundle is about other files", row=link.index + 1,
                column="manifest_sha256", expected=manifest_sha256, found=link.manifest_sha256,
            )  # fmt: skip
    if runs is not None:
        _runs(links, chain.name, runs, findings)


def _links(links: tuple[Link, ...], file: str, findings: Findings) -> None:
    before = FIRST
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


def _runs(links: tuple[Link, ...], file: str, runs: Path, findings: Findings) -> None:
    for number, link in enumerate(links, 1):
        try:
            found = digest(runs / Path(link.bundle).name / MANIFEST, runs)
        except OSError:
            found = "no such bundle"
        if found != link.manifest_sha256:
            findings.add(
                "CHAIN", file, f"run {link.run_id} ({link.bundle}) is not in {runs.name}, or was replaced", row=number,
                column="bundle", expected=link.manifest_sha256, found=found,
            )  # fmt: skip


def check_signature(folder: Path, allowed_signers: Path | None, findings: Findings) -> None:
    """Check the signature; who signed is known only with the file of allowed signers."""
    signature = folder / SIGNATURE
    if not is_own(signature):
        if allowed_signers is not None:
            findings.add("SIGNATURE", SIGNATURE, "is missing; a signature was asked for")
        return
    content = b""
    try:
        if is_own(folder / STATEMENT):
            content = content_of(folder / STATEMENT, MAX_MANIFEST_BYTES)
        if allowed_signers is None:
            said = ssh_keygen("check-novalidate", "-n", NAMESPACE, "-s", str(signature), stdin=content)
            findings.notes.append(f"{said}; whose key that is was not checked: give --allowed-signers FILE")
            return
        names = ssh_keygen("find-principals", "-f", str(allowed_signers), "-s", str(signature)).splitlines()
        files = ("-f", str(allowed_signers), "-n", NAMESPACE, "-s", str(signature))
        said = ssh_keygen("verify", "-I", names[0], *files, stdin=content)
        findings.notes.append(said)
    except BundleError as error:
        if "need ssh-keygen" in str(error):
            findings.notes.append(f"{SIGNATURE} was not checked: {error}")
        else:
            findings.add("SIGNATURE", SIGNATURE, f"is not good: {error}")
