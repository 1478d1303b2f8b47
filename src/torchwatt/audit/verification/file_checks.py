"""Checks the files: hashes of the manifest, descriptions of the tables, the statement."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from torchwatt.audit.bundle_limits import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, is_file_name, is_plain_file
from torchwatt.audit.schema import TABLES
from torchwatt.audit.schema.schema_versions import Schema
from torchwatt.audit.seal import GIT_ATTRIBUTES, MANIFEST, ORIGINAL_MANIFEST, SIGNATURE, STATEMENT, ChainLink, statement
from torchwatt.audit.table_descriptions import csvw_json, datapackage_json
from torchwatt.audit.verification.finding import Findings
from torchwatt.core.errors import BundleError
from torchwatt.disk.path_safety import PathKind, folder_entries, open_untrusted

_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.][A-Za-z0-9_.-]*)")
_BLOCK = 1 << 20
# What pricing again writes anew; everything else is the measurement.
REPRICED = frozenset({"factor.csv", "impact.csv", "datapackage.json", "csvw-metadata.json"})
CURE = (
    "put a file .gitattributes with the line `* -text` into the folder, then `git rm --cached -r .`, `git add .` and "
    "check the files out again, or copy the bundle from where it was written"
)


def digest(path: Path, root: Path | None = None) -> str:
    """Return the SHA-256 of a bundle's file, read in blocks; for `root` see `path_safety`.

    Raises:
        OSError: It is no plain file of the bundle's own, is larger than 4 GiB, or cannot be read.
    """
    checksum, bytes_left = sha256(), MAX_FILE_BYTES
    with open_untrusted(path, MAX_FILE_BYTES, root) as file:
        while block := file.read(_BLOCK):
            checksum.update(block)
            bytes_left -= len(block)
            if bytes_left < 0:  # a file that grows, or of /proc, where sizes are 0
                raise OSError(errno.EFBIG, f"has more than {MAX_FILE_BYTES} bytes", str(path))
    return checksum.hexdigest()


def check_manifest(folder: Path, findings: Findings) -> dict[str, str]:
    """Compare every file with the manifest, and return the files' actual hashes.

    Raises:
        BundleError: There is no manifest: the folder is no bundle.
    """
    entries = folder_entries(folder)
    # A folder without one is not read. One that is a link, or cannot be read, is none.
    digests = dict(_digests(folder, entries, findings)) if entries.get(MANIFEST) == "file" else {}
    if MANIFEST not in digests:
        raise BundleError(f"{folder} has no {MANIFEST}: it is no bundle of torchwatt, or was written by 0.0")
    listed: dict[str, str] = {}
    for number, line in enumerate(_head(folder / MANIFEST).decode("utf-8", "replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in listed or not is_file_name(match[2]):
            findings.add(
                "FORM", MANIFEST, "no line that sha256sum reads, or a file twice", row=number,
                expected="<sha256>  <file>", found=line,
            )  # fmt: skip
            continue
        listed[match[2]] = match[1]
        if match[2] not in digests:
            findings.add("FILE", match[2], f"is in {MANIFEST} line {number} and not in the folder", expected=match[1])
        elif digests[match[2]] != match[1]:
            reason = f"differs from {MANIFEST} line {number}"
            if _with_lf(folder / match[2]) == match[1]:
                reason += f": its line ends alone were changed, as git's autocrlf does; {CURE}"
            findings.add("HASH", match[2], reason, expected=match[1], found=digests[match[2]])
    needed = {f"{table.name}.csv" for table in TABLES if table.format == "csv" and not table.optional}
    needed |= {"datapackage.json", "csvw-metadata.json"}
    for name in sorted(needed - listed.keys()):
        findings.add("FILE", name, f"is not in {MANIFEST}", expected="a line")
    for name in sorted(digests.keys() - listed.keys() - needed - {MANIFEST, STATEMENT, SIGNATURE, GIT_ATTRIBUTES}):
        findings.notes.append(f"{name} is not in {MANIFEST} and was not looked at")
    return digests


def _with_lf(path: Path) -> str:
    """Return the SHA-256 that a file would have with LF for every CR LF; both are read in blocks."""
    checksum, carried = sha256(), b""
    with open_untrusted(path, MAX_FILE_BYTES) as file:
        while block := file.read(_BLOCK):
            text = carried + block
            carried = b"\r" if text.endswith(b"\r") else b""
            checksum.update(text.removesuffix(carried).replace(b"\r\n", b"\n"))
    checksum.update(carried)
    return checksum.hexdigest()


def check_original(folder: Path, digests: dict[str, str], findings: Findings) -> None:
    """Compare a repriced bundle with the manifest of its measurement: only factors and impacts may differ."""
    if not is_plain_file(folder / ORIGINAL_MANIFEST):
        return
    for number, line in enumerate(_head(folder / ORIGINAL_MANIFEST).decode("utf-8", "replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or not is_file_name(match[2]):
            findings.add("FORM", ORIGINAL_MANIFEST, "no line that sha256sum reads", row=number, found=line)
        elif match[2] not in REPRICED and digests.get(match[2]) != match[1]:
            findings.add(
                "HASH", match[2], f"differs from {ORIGINAL_MANIFEST} line {number}: the measurement was changed",
                expected=match[1], found=digests.get(match[2], "no file"),
            )  # fmt: skip


def _digests(folder: Path, entries: Mapping[str, PathKind], findings: Findings) -> Iterator[tuple[str, str]]:
    """Yield the hashes of the folder's files; links are reported and not followed."""
    for name, kind in entries.items():
        if kind == "link":
            findings.add("FILE", name, "is a link", expected="a file")
        elif kind != "folder":
            try:
                yield name, digest(folder / name)
            except OSError as error:
                findings.add("FILE", name, f"cannot be read: {error.strerror}")


def _head(path: Path) -> bytes:
    """Read a file up to the largest size of a manifest."""
    with open_untrusted(path, MAX_FILE_BYTES) as file:
        return file.read(MAX_MANIFEST_BYTES)


def sample_name(folder: Path, findings: Findings) -> str | None:
    """Return the file of samples."""
    names = [name for name in ("sample.parquet", "sample.csv.gz") if is_plain_file(folder / name)]
    if len(names) != 1:
        findings.add(
            "FILE", names[0] if names else "sample.parquet", "one file of samples", expected="one",
            found=" and ".join(names),
        )  # fmt: skip
    return names[0] if names else None


def check_descriptions(
    folder: Path, run_id: str, digests: dict[str, str], schema: Schema, findings: Findings, *, newer: bool
) -> None:
    """Write the descriptions again and compare the bytes; those of a newer version are skipped with a note."""
    if newer:
        findings.notes.append("datapackage.json and csvw-metadata.json are of a newer version and were not compared")
        return
    tables = {
        name for table in TABLES for name in (f"{table.name}.csv", f"{table.name}.csv.gz", f"{table.name}.parquet")
    }
    facts = {name: ((folder / name).stat().st_size, digests[name]) for name in sorted(tables & digests.keys())}
    expected = {
        "datapackage.json": datapackage_json(run_id, facts, schema),
        "csvw-metadata.json": csvw_json(facts, schema),
    }
    for name, content in expected.items():
        if name in digests and _head(folder / name) != content:
            _differ(folder / name, content, findings)


def _differ(path: Path, content: bytes, findings: Findings) -> None:
    lines = zip(content.decode().splitlines(), _head(path).decode(errors="replace").splitlines(), strict=False)
    number, want, have = next(((n, a, b) for n, (a, b) in enumerate(lines, 1) if a != b), (0, "", ""))
    findings.add(
        "DESCRIPTION", path.name, f"does not describe these files: differs in line {number}",
        expected=want.strip(), found=have.strip(),
    )  # fmt: skip


def check_statement(
    folder: Path, run_id: str, digests: dict[str, str], schema: Schema, findings: Findings, *, newer: bool
) -> dict[str, Any]:
    """Check that the statement is about these files, and return its predicate."""
    if STATEMENT not in digests:
        findings.add("FILE", STATEMENT, "is missing")
        return {}
    content = _head(folder / STATEMENT)
    try:
        document = json.loads(content)
        subjects = {item["name"]: item["digest"]["sha256"] for item in document["subject"]}
        predicate: dict[str, Any] = dict(document["predicate"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        findings.add("FORM", STATEMENT, f"is no in-toto statement: {error!r}")
        return {}
    before = findings.count
    for name in sorted(subjects, key=str):
        if subjects[name] != digests.get(name):
            findings.add(
                "HASH", name, f"differs from {STATEMENT}", expected=subjects[name], found=digests.get(name, "no file")
            )
    for name, expected in (("run_id", run_id), ("manifest_sha256", digests[MANIFEST])):
        if predicate.get(name) != expected:
            findings.add("DESCRIPTION", STATEMENT, f"{name} is another", expected=expected, found=predicate.get(name))
    if findings.count == before and not newer:
        _restate(folder, run_id, digests, predicate, schema, findings)
    return predicate


def _restate(
    folder: Path, run_id: str, digests: dict[str, str], predicate: dict[str, Any], schema: Schema, findings: Findings
) -> None:
    """Write the statement again, with the tool and the place in the chain that it names, and compare the bytes."""
    text = _head(folder / MANIFEST).decode("utf-8", "replace")
    listed = {
        match[2]: digests.get(match[2], match[1]) for line in text.splitlines() if (match := _LINE.fullmatch(line))
    }
    link = None
    if predicate.get("chain_sha256") is not None:
        numbers = (predicate.get(name) for name in ("chain_index", "prev_chain_sha256", "chain_sha256"))
        index, prev_chain_sha256, chain_sha256 = numbers
        link = ChainLink(cast("int", index), run_id, "", digests[MANIFEST], str(prev_chain_sha256), str(chain_sha256))
    content = statement(listed, run_id, link, tool=str(predicate.get("tool")), version=schema.version)
    if _head(folder / STATEMENT) != content:
        _differ(folder / STATEMENT, content, findings)
