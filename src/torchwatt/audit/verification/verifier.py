"""`verify`: read a bundle and compute again what follows from other cells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torchwatt.audit.bundle_limits import RUN_NAME, is_plain_file
from torchwatt.audit.schema import TABLE_BY_NAME, Row, Value
from torchwatt.audit.schema.schema_versions import CURRENT, added_since, is_newer, schema_of, version_in
from torchwatt.audit.seal import ORIGINAL_MANIFEST
from torchwatt.audit.verification.bundle_facts import BundleFacts, ExactSum, number, rows_of, text
from torchwatt.audit.verification.energy_checks import (
    HourChecks,
    LayerChecks,
    WindowChecks,
    best_provenance,
    check_interval,
)
from torchwatt.audit.verification.event_checks import EventChecks
from torchwatt.audit.verification.factor_checks import FactorChecks
from torchwatt.audit.verification.file_checks import (
    check_descriptions,
    check_manifest,
    check_original,
    check_statement,
    sample_name,
)
from torchwatt.audit.verification.finding import BEYOND_CHECKS, Findings, Verification
from torchwatt.audit.verification.impact_checks import ImpactChecks
from torchwatt.audit.verification.meter_checks import MeterChecks
from torchwatt.audit.verification.rank_checks import RankChecks
from torchwatt.audit.verification.run_checks import check_run, check_systematic
from torchwatt.audit.verification.sample_checks import SampleChecks, sample_chunks
from torchwatt.audit.verification.seal_checks import check_chain, check_signature
from torchwatt.audit.verification.share_checks import ShareChecks
from torchwatt.audit.verification.table_reader import DerivedChecks, KeyChecks, TableChunk, read_chunks
from torchwatt.audit.verification.token_checks import TokenChecks
from torchwatt.core.errors import BundleError

# Columns of version 2 that no writer of them fills: who states them has them from nowhere.
NEVER_STATED: Mapping[str, tuple[str, ...]] = {
    "device": ("partition", "memory_bytes", "share_ratio", "embodied_lifetime_s", "embodied_factor_id", "reserved_s"),
    "window": ("reading_u_j", "units", "parent_window_id", "cell_id"),
    "layer": ("module_parent", "rank"),
    "hourly": ("reading_u_j",),
}
# What bundles of older versions do not say, by the table whose columns they lack.
UNSAID = {"device": "whether other runs have the same joules", "window": "tokens of a watched server"}
Path_ = str | os.PathLike[str]


class RowChecks(Protocol):
    """Checks of one table, chunk by chunk."""

    def check(self, chunk: TableChunk) -> None: ...  # noqa: D102


def verify(
    directory: Path_,
    *,
    chain: Path_ | None = None,
    runs: Path_ | None = None,
    allowed_signers: Path_ | None = None,
    require_signature: str | None = None,
    require_chain: str | None = None,
) -> Verification:
    """Check a bundle: hashes, cells, keys, sums, every derived cell and impact, what the rows mean, chain, signature.

    It needs the standard library only; the contents of Parquet samples are read where pyarrow is installed. Tables are
    read in chunks, so that the memory it takes does not grow with the rows of `layer` and `sample`.

    Args:
        directory: The bundle.
        chain: The project's chain, to check that this run is in it and none was removed.
        runs: The folder that should hold every bundle of the chain.
        allowed_signers: OpenSSH's file of allowed signers, to check who signed.
        require_signature: A key that must have signed: its fingerprint (`SHA256:...`), or a file with public keys.
        require_chain: A head that was kept elsewhere and must be in the chain.

    Raises:
        BundleError: There is no bundle in the folder, it is of another major version, or a file of it was replaced by
            something else while it was read.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder")
    try:
        check = _Verifier(folder)
        check.tables()
    except OSError as error:
        raise BundleError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error
    run_id = text(check.facts.run, "run_id")
    predicate = check_statement(folder, run_id, check.hashes, check.schema, check.findings, newer=check.newer)
    place = check_chain(
        None if chain is None else Path(chain), predicate, check.hashes["MANIFEST.sha256"],
        None if runs is None else Path(runs), check.findings, require_chain,
    )  # fmt: skip
    signers = None if allowed_signers is None else Path(allowed_signers)
    signed = check_signature(folder, signers, check.findings, require_signature)
    findings, sealing = check.findings, replace(place, key=signed.key, signer=signed.signer, required=signed.required)
    unseen = (*BEYOND_CHECKS, *sealing.list_unseen(), *check.list_unseen())
    return Verification(
        str(folder), tuple(findings.listed), findings.count, tuple(findings.notes), check.rows, sealing, unseen
    )


class _Verifier:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.findings = Findings()
        version = version_in(folder)
        schema = schema_of(version)
        if schema is None:
            raise BundleError(f"{folder}: schema {version}; this torchwatt checks {CURRENT.version} and older")
        self.schema = schema
        self.newer = is_newer(version)
        self.facts = BundleFacts(schema)
        self.rows: dict[str, int] = {}
        self.known_values: dict[str, frozenset[Value]] = {}
        self.hashes = check_manifest(folder, self.findings)

    def list_unseen(self) -> Iterator[str]:
        """Yield what cannot be checked in a bundle of this version."""
        if self.facts.old:
            yield f"whether factors have the ids of their contents: version {self.schema.version} had no rule"
        for lacks in added_since(self.schema):
            yield f"what version {self.schema.version} did not write ({lacks}): {UNSAID[lacks.partition('.')[0]]}"
        if self.newer:
            yield f"what is new in {text(self.facts.run, 'schema_version')}: this torchwatt knows {CURRENT.version}"

    def tables(self) -> None:
        """Read the tables, small ones first: the large ones refer to them."""
        facts, findings = self.facts, self.findings
        self._run()
        for table, column in (("device", "device_id"), ("factor", "factor_id")):
            rows = {text(cells, column): (row, cells) for row, cells in self._all(table)}
            if table not in facts.broken:
                self.known_values[f"{table}.{column}"] = frozenset(rows)
            if table == "device":
                facts.devices = {name: cells for name, (_, cells) in rows.items()}
                facts.device_rows = {name: row for name, (row, _) in rows.items()}
            else:
                facts.factors = {name: cells for name, (_, cells) in rows.items()}
                facts.factor_rows = {name: row for name, (row, _) in rows.items()}
        self._devices()
        self._late_references()
        facts.impacts = list(self._all("impact"))
        subjects = [text(cells, "subject") for _, cells in facts.impacts]
        facts.fqn_j = {name.removeprefix("layer:"): ExactSum() for name in subjects if name.startswith("layer:")}
        facts.merged = is_plain_file(self.folder / "rank.csv")
        facts.repriced = is_plain_file(self.folder / ORIGINAL_MANIFEST)
        ranks = RankChecks(facts, findings, has_ranks=facts.merged)
        layers, hours = LayerChecks("layer.csv", facts, findings), HourChecks("hourly.csv", facts, findings)
        events, tokens = EventChecks(facts, findings), TokenChecks("token.csv", facts, findings)
        self._stream("window", WindowChecks("window.csv", facts, findings))
        samples = self._samples()
        shares = ShareChecks(facts, findings)
        for table, laws in (
            ("layer", _CheckGroup(layers, shares, ranks.books)), ("hourly", hours), ("event", events), ("rank", ranks),
            ("rank_layer", ranks.layers), ("token", tokens),
        ):  # fmt: skip
            self._stream(table, laws)
        if samples is not None:
            samples.hours()
        for checks in (
            layers,
            shares,
            hours,
            events,
            ranks,
            tokens,
            MeterChecks(facts, findings),
            FactorChecks(facts, findings),
        ):
            checks.finish()
        check_run(facts, "run.csv", findings)
        check_systematic(facts, "device.csv", findings)
        ImpactChecks("impact.csv", facts, findings).finish()
        check_original(self.folder, self.hashes, findings)
        check_descriptions(self.folder, text(facts.run, "run_id"), self.hashes, self.schema, findings, newer=self.newer)

    def _run(self) -> None:
        rows = list(self._all("run"))
        self.facts.run = rows[0][1] if rows else {}
        if "run" not in self.facts.broken:
            self.known_values["run.run_id"] = frozenset(cells["run_id"] for _, cells in rows)
            if len(rows) != 1:
                self.findings.add("KEY", "run.csv", "one row", expected=1, found=len(rows))
            if not rows:
                self.facts.broken.add("run")  # no law can look at it
        run_id = text(self.facts.run, "run_id")
        if run_id and not RUN_NAME.fullmatch(run_id):
            self.findings.add(
                "LAW", "run.csv", "could not be a folder's name", row=1, column="run_id",
                expected="letters, digits, . _ and -", found=run_id,
            )  # fmt: skip
        self._check_derived("run", rows)

    def _check_derived(self, table: str, rows: list[tuple[int, Row]]) -> None:
        names = TABLE_BY_NAME[table].header
        columns = {name: [cells[name] for _, cells in rows] for name in names}
        chunk = TableChunk([row for row, _ in rows], columns, set())
        DerivedChecks(self.schema.table(table), f"{table}.csv", self.findings).check(chunk)

    def _devices(self) -> None:
        self._check_derived(
            "device", [(self.facts.device_rows[name], cells) for name, cells in self.facts.devices.items()]
        )
        for name, cells in self.facts.devices.items():
            best = best_provenance(text(cells, "method"), text(cells, "provenance"))
            if best is not None:
                self.findings.add(
                    "KNOWN", "device.csv", f"better known than {cells['method']} can be",
                    row=self.facts.device_rows[name], column="provenance", expected=f"{best} or weaker",
                    found=cells["provenance"],
                )  # fmt: skip
            for basis in ("", "systematic_"):
                lo, joules, hi = (number(cells, f"energy_{end}j") for end in (f"{basis}lo_", "", f"{basis}hi_"))
                row = self.facts.device_rows[name]
                check_interval(self.findings, "device.csv", row, "energy_j", (lo, joules, hi))
        for name, cells in self.facts.counted.items():
            for column in ("energy_j", "method", "provenance"):
                if cells[column] is None:
                    self.findings.add(
                        "LAW", "device.csv", "is empty and counts toward the total",
                        row=self.facts.device_rows[name], column=column,
                    )  # fmt: skip

    def _late_references(self) -> None:
        """Check references of `run` and `device` to tables read later."""
        for table, rows in (
            ("run", [(1, self.facts.run)] if self.facts.run else []),
            ("device", [(self.facts.device_rows[name], cells) for name, cells in self.facts.devices.items()]),
        ):
            columns = {name: [cells[name] for _, cells in rows] for name in TABLE_BY_NAME[table].header}
            known_values = {name: values for name, values in self.known_values.items() if name != "run.run_id"}
            keys = KeyChecks(self.schema.table(table), f"{table}.csv", known_values, self.findings)
            keys.references(TableChunk([row for row, _ in rows], columns, set()))

    def _all(self, table: str) -> Iterator[tuple[int, Row]]:
        for chunk in self._chunks(table):
            yield from rows_of(chunk)

    def _stream(self, table: str, laws: RowChecks) -> None:
        for chunk in self._chunks(table):
            laws.check(chunk)

    def _chunks(self, table: str) -> Iterator[TableChunk]:
        file = f"{table}.csv"
        path = self.folder / file
        if not is_plain_file(path):
            if not TABLE_BY_NAME[table].optional:
                self.facts.broken.add(table)
            return iter(())
        return self._check_keys(table, file, read_chunks(path, self.schema.table(table), self.findings, self.newer))

    def _check_keys(self, table: str, file: str, chunks: Iterator[TableChunk]) -> Iterator[TableChunk]:
        """Pass chunks on with their keys checked, and note tables that could not be read whole."""
        before = self._unreadable()
        keys = KeyChecks(self.schema.table(table), file, self.known_values, self.findings)
        self.rows[file] = 0
        for read in chunks:
            chunk = replace(read, columns=self.schema.current(table, read.columns, [None] * len(read.rows)))
            if self._unreadable() > before:
                self.facts.broken.add(table)
            self.rows[file] += len(chunk.rows)
            keys.check(chunk)
            self._check_never_stated(table, file, chunk)
            yield chunk
        if self._unreadable() > before:
            self.facts.broken.add(table)

    def _check_never_stated(self, table: str, file: str, chunk: TableChunk) -> None:
        for column in () if self.facts.old or self.newer else NEVER_STATED.get(table, ()):
            if not any(value is not None for value in chunk.columns[column]):
                continue
            for row, value in zip(chunk.rows, chunk.columns[column], strict=True):
                if value is not None and row not in chunk.bad:
                    reason = "is stated, and nothing that torchwatt reads says it"
                    self.findings.add("LAW", file, reason, row=row, column=column, expected="nothing", found=value)

    def _unreadable(self) -> int:
        return self.findings.unreadable

    def _samples(self) -> SampleChecks | None:
        name = sample_name(self.folder, self.findings)
        if name is None:
            return None
        laws = SampleChecks(name, self.facts, self.findings)
        any_points = False
        for chunk in self._check_keys(
            "sample", name, sample_chunks(self.folder / name, self.findings, newer=self.newer)
        ):
            laws.check(chunk)
            any_points = True
        if any_points:
            laws.finish()
            return laws
        if not self.rows[name]:
            del self.rows[name]
        return None


class _CheckGroup:
    """Applies several checks to one table."""

    def __init__(self, *laws: RowChecks) -> None:
        self.laws = laws

    def check(self, chunk: TableChunk) -> None:
        for laws in self.laws:
            laws.check(chunk)
