"""A forger who knows the schema: opens a bundle, changes cells, computes again what follows from them, and reseals."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from io import StringIO
from math import fsum, sqrt
from pathlib import Path

from torchwatt.audit import Seal, write_files
from torchwatt.audit.cell_codec import sort_value
from torchwatt.audit.formula import evaluate
from torchwatt.audit.schema import TABLE_BY_NAME
from torchwatt.audit.seal import NO_SEAL
from torchwatt.core.errors import BundleError
from torchwatt.core.factor import content_id
from torchwatt.core.terms import PROVENANCES

Z90 = 1.6448536269514722
Cells = dict[str, str]
DESCRIPTIONS = {"datapackage.json", "csvw-metadata.json", "MANIFEST.sha256", "statement.json", "statement.json.sig"}
PARTS = {"gpu": "accelerator", "cpu": "cpu", "dram": "dram", "ram": "dram"}
BANDS = ("energy_systematic_lo_j", "energy_systematic_hi_j")
DEVICE_JOULES = ("energy_j", "reading_u_j", "energy_lo_j", "energy_hi_j", "energy_u_j", "cross_check_j", *BANDS)
LAYER_JOULES = (
    "energy_self_j", "energy_self_lo_j", "energy_self_hi_j", "energy_static_j", "energy_dynamic_j", "time_share_j",
    *BANDS,
)  # fmt: skip


def num(text: str) -> float | None:
    """Read a number; an empty cell is None."""
    return float(text) if text else None


def times(row: Cells, factor: float, *columns: str) -> None:
    """Multiply the cells that are not empty."""
    for column in columns:
        if row[column]:
            row[column] = repr(float(row[column]) * factor)


class Forger:
    """The tables of one bundle as rows of text."""

    def __init__(self, folder: Path) -> None:
        self.other: dict[str, bytes] = {}
        self.tables: dict[str, list[Cells]] = {}
        self.headers: dict[str, list[str]] = {}
        for path in sorted(folder.iterdir()):
            name, _, ending = path.name.partition(".")
            if path.name in DESCRIPTIONS:
                continue
            if ending in {"csv", "csv.gz"}:
                content = path.read_bytes()
                text = (gzip.decompress(content) if ending == "csv.gz" else content).decode()
                reader = csv.DictReader(StringIO(text, newline=""))
                self.tables[name] = list(reader)
                self.headers[name] = list(reader.fieldnames or ())
            else:
                self.other[path.name] = path.read_bytes()

    @property
    def run(self) -> Cells:
        return self.tables["run"][0]

    def rows(self, table: str, **wanted: str) -> list[Cells]:
        """Return the rows with these cells."""
        return [row for row in self.tables.get(table, ()) if all(row[k] == v for k, v in wanted.items())]

    def row(self, table: str, **wanted: str) -> Cells:
        """Return the first row with these cells."""
        return self.rows(table, **wanted)[0]

    def remove(self, table: str, rows: Iterable[Cells]) -> None:
        """Remove rows, and number the rest again where they are numbered."""
        gone = [id(row) for row in rows]
        assert gone
        self.tables[table] = [row for row in self.tables[table] if id(row) not in gone]
        index = {"event": "event_index", "window": "window_id"}.get(table)
        for number, row in enumerate(self.tables[table]):
            if index:
                row[index] = str(number)

    def add_event(self, code: str, subject: str, t_ns: int = 0, severity: str = "warning") -> None:
        """Add an event at the start of the run."""
        at = {"t_ns": str(t_ns), "t": self.run["started_at"], "severity": severity, "code": code, "subject": subject}
        self.tables["event"].insert(0, dict.fromkeys(self.headers["event"], "") | at | {"run_id": self.run["run_id"]})
        for number, row in enumerate(self.tables["event"]):
            row["event_index"] = str(number)

    # Joules

    def metered(self) -> list[Cells]:
        """Return the devices that count."""
        return [row for row in self.tables["device"] if row["counted"] == "true" and row["energy_j"]]

    def scale(self, device_id: str, factor: float) -> None:
        """Multiply every joule of a device but the counter's own readings."""
        before = {row["device_id"]: float(row["energy_j"]) for row in self.metered()}
        times(self.row("device", device_id=device_id), factor, *DEVICE_JOULES)
        for row in self.rows("layer", device_id=device_id):
            times(row, factor, *LAYER_JOULES, "energy_per_call_j")
        for row in self.rows("hourly", device_id=device_id):
            times(row, factor, "energy_j", "reading_u_j")
        for row in self.rows("sample", device_id=device_id):
            times(row, factor, "power_w", "energy_j")
        for row in self.rows("rank_layer", device_id=device_id):
            times(row, factor, "energy_self_j")
        for row in self.rows("token"):
            times(row, factor, "energy_j", "energy_lo_j", "energy_hi_j")
        after = {row["device_id"]: float(row["energy_j"]) for row in self.metered()}
        for row in self.tables["window"]:
            times(row, fsum(after.values()) / fsum(before.values()), "energy_j", "energy_lo_j", "energy_hi_j", *BANDS)
        self.settle()

    def settle(self) -> None:
        """Compute everything again that follows from other cells, as a forger would."""
        for row in self.tables["device"]:
            self._device(row)
        energy = {row["device_id"]: num(row["energy_j"]) for row in self.tables["device"]}
        for row in self.tables["layer"]:
            self._layer(row, energy[row["device_id"]])
        self._ranks()
        self._totals()
        self.price()

    def _device(self, row: Cells) -> None:
        energy = num(row["energy_j"])
        if energy is None:
            return
        if row["counter_start_raw"]:
            start, end, wraps, modulus = (
                int(row[f"counter_{x}"]) for x in ("start_raw", "end_raw", "wraps", "modulus_raw")
            )
            difference = (end - start + wraps * modulus) * float(row["counter_unit_j"])
            row["counter_difference_j"], row["counter_gap_j"] = repr(difference), repr(energy - difference)
        if row["cross_check_j"] and energy > 0:
            row["cross_check_rel_diff"] = repr(float(row["cross_check_j"]) / energy - 1)
        if row["energy_hi_j"]:
            row["energy_u_j"] = repr((float(row["energy_hi_j"]) - energy) / Z90)

    def _layer(self, row: Cells, device: float | None) -> None:
        joules = float(row["energy_self_j"])
        if row["energy_static_j"]:
            row["energy_dynamic_j"] = repr(joules - float(row["energy_static_j"]))
        row["energy_share"] = repr(joules / device) if device else ""
        row["energy_per_call_j"] = repr(joules / int(row["calls"])) if row["calls"] not in {"", "0"} else ""

    def _ranks(self) -> None:
        for row in self.tables.get("rank", ()):
            if row["energy_j"]:
                mine = self.rows("rank_layer", rank=row["rank"])
                row["energy_j"] = repr(fsum(float(r["energy_self_j"]) for r in mine))
                talk = [float(r["energy_self_j"]) for r in mine if r["phase"] == "communication"]
                row["energy_communication_j"] = repr(fsum(talk))

    def _totals(self) -> None:
        run, counted = self.run, self.metered()
        if not counted:
            return
        names = {row["device_id"] for row in counted}
        total = fsum(float(row["energy_j"]) for row in counted)
        run["energy_it_j"] = repr(total)
        run["boundary"] = ";".join(sorted(names))
        for part in ("accelerator", "cpu", "dram", "other"):
            mine = [float(r["energy_j"]) for r in counted if PARTS.get(r["kind"], "other") == part]
            run[f"energy_{part}_j"] = repr(fsum(mine)) if mine else ""
        for column in ("energy_lo_j", "energy_hi_j"):
            ends = [row[column] for row in counted]
            run[column.replace("energy_", "energy_it_", 1)] = repr(fsum(map(float, ends))) if all(ends) else ""
        readings = [row["reading_u_j"] for row in counted]
        rss = sqrt(fsum(float(u or 0) ** 2 for u in readings))
        run["energy_it_reading_u_j"] = repr(rss) if all(readings) else ""
        for column, end, sign in zip(BANDS, ("lo", "hi"), (-1, 1), strict=True):
            bands = [(float(r["energy_j"]), num(r[f"sensor_accuracy_{end}_rel"]), r[column]) for r in counted]
            known = all(cell and rel is not None for _, rel, cell in bands)
            value = fsum(joules * (1 + (rel or 0.0)) for joules, rel, _ in bands) + sign * Z90 * rss
            run[column.replace("energy_", "energy_it_", 1)] = repr(max(value, 0.0)) if known else ""
        run["energy_it_u_j"] = repr((float(run["energy_it_hi_j"]) - total) / Z90) if run["energy_it_hi_j"] else ""
        run["energy_it_provenance"] = max((row["provenance"] for row in counted), key=PROVENANCES.index)
        run["coverage_ratio"] = repr(min(float(row["coverage_ratio"]) for row in counted))
        layers = [row for row in self.tables["layer"] if row["device_id"] in names]
        run["closure_residual_j"] = repr(total - fsum(float(row["energy_self_j"]) for row in layers))
        unclaimed = [float(row["energy_self_j"]) for row in layers if row["fqn"] == "(unattributed)"]
        run["energy_unattributed_j"] = repr(fsum(unclaimed))
        if run["tracing_cost_s"]:
            run["overhead_ratio"] = repr(float(run["tracing_cost_s"]) / float(run["duration_s"]))
        if run["pue"]:
            run["energy_facility_j"] = repr(total * float(run["pue"]))

    # Grams

    def price(self) -> None:
        """Evaluate every row's own formula again; its interval keeps its relative width."""
        for row in self.tables["impact"]:
            try:
                value = evaluate(row["formula"], self._names(row))
            except BundleError:
                continue
            before = float(row["value"])
            row["value"] = repr(value)
            if before:
                times(row, value / before, "lo", "hi", "u")
            if row["per_unit_value"]:
                row["per_unit_value"] = repr(value / float(self.run["functional_unit_count"]))

    def _names(self, row: Cells) -> dict[str, float]:
        subject = row["subject"]
        run = self.run
        found = {"duration_s": float(run["duration_s"]), "units": float(run["functional_unit_count"])}
        device_id = subject.removeprefix("device:")
        if subject == "run":
            joules, mine = float(run["energy_it_j"]), self.tables["hourly"]
        else:
            joules = float(self.row("device", device_id=device_id)["energy_j"])
            mine = self.rows("hourly", device_id=device_id)
        found["energy_j"] = joules
        factors = [self.row("factor", factor_id=name) for name in row["factor_ids"].split(";") if name]
        kinds = [factor["kind"] for factor in factors]
        for kind in dict.fromkeys(kinds):
            same = [factor for factor in factors if factor["kind"] == kind]
            for number, factor in enumerate(same, 1):
                found[f"{kind}_{number}"] = float(factor["value"])
            found[kind] = float(same[0]["value"])
            if len(same) > 1 and all(factor["valid_from"] for factor in same):
                at = {f["valid_from"]: float(f["value"]) for f in same}
                hours = [(float(h["energy_j"]), at.get(h["hour_utc"], 0.0)) for h in mine]
                found[kind] = fsum(j * v for j, v in hours) / (fsum(j for j, _ in hours) or 1.0)
        return found

    def identify(self, factor: Cells) -> None:
        """Give a changed factor the id of its new content, everywhere."""
        before = factor["factor_id"]
        table = TABLE_BY_NAME["factor"]
        content = {c.name: _value(factor[c.name], c.type) for c in table.columns if c.name in factor}
        factor["factor_id"] = after = content_id(factor["kind"], content)
        for row in self.tables["impact"]:
            row["factor_ids"] = ";".join(after if x == before else x for x in row["factor_ids"].split(";"))
        if self.run["pue_factor_id"] == before:
            self.run["pue_factor_id"] = after

    # The seal

    def reseal(self, folder: Path, seal: Seal = NO_SEAL) -> Path:
        """Write the tables in the order of their keys, with hashes, descriptions and statement that fit them."""
        files = dict(self.other)
        for name in self.tables:
            content = table_bytes_of(self, name)
            if name == "sample":
                files["sample.csv.gz"] = gzip.compress(content, 6, mtime=0)
            else:
                files[f"{name}.csv"] = content
        return write_files(files, folder, run_id=self.run["run_id"], seal=seal)

    def file(self, table: str) -> str:
        """Return the file of a table, or of something else in the bundle."""
        return table if "." in table else "sample.csv.gz" if table == "sample" else f"{table}.csv"

    def number(self, table: str, row: Cells) -> int:
        """Return a row's number as `verify` counts: from 1, without the header."""
        return next(n for n, each in enumerate(self.tables[table], 1) if each is row)


def table_bytes_of(forger: Forger, name: str) -> bytes:
    """Write one table in the order of its key."""
    table = TABLE_BY_NAME[name]
    types = {column.name: column.type for column in table.columns}
    rows = forger.tables[name]
    rows.sort(key=lambda row: tuple(sort_value(_value(row[part], types[part])) for part in table.key))
    out = StringIO(newline="")
    writer = csv.DictWriter(out, forger.headers[name], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _value(text: str, kind: str) -> object:
    """Read a cell far enough for its factor's id and for the order of rows."""
    if text == "":
        return None
    if kind == "boolean":
        return text == "true"
    if kind in {"integer", "number"}:
        return float(text) if kind == "number" else int(text)
    if kind == "string" and text.startswith("'"):
        return text[1:]
    return text
