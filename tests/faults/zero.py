"""The one law of the suite: what is not known is never shown as nothing.

Everything that the suite meters draws power all the time. So a 0 anywhere, in a value, a frame, a file or a view, is
a number that was made up.
"""

from __future__ import annotations

import csv
import gzip
import html
import io
import math
import re
from collections.abc import Iterator

from torchwatt.audit.bundle_writer import table_files
from torchwatt.core.report import Report
from torchwatt.reports import dataframes
from torchwatt.views import to_html_page, to_text

# A joule or a watt that is nothing, as a view would write it: `0 J`, `0.00 mW`.
_NOTHING = re.compile(r"(?<![\d.,+\-e])[+-]?0(?:\.0+)?\s?[nµmkMG]?(?:J|Wh|W)\b")
# Columns of the files that say joules or watts; a band or a static part may be 0, a counter's gap is a difference.
_SAYS = re.compile(r"^(energy|power|static).*_(j|w)$|_per_call_j$")
_MAY_BE_0 = {
    "energy_u_j",
    "reading_u_j",
    "energy_lo_j",
    "energy_it_lo_j",
    "energy_self_lo_j",
    "energy_static_j",
    "energy_dynamic_j",
}
# Sums over reserved rows: nothing idle and nothing unattributed is a fact about a run, where it has joules at all.
_SUMS = {"energy_unattributed_j", "energy_idle_j"}


def zeros(report: Report, *, idle_may_be_0: bool = False, files: bool = True) -> list[str]:
    """Return every place where a report, its frames, files or views show a joule or a watt that is nothing.

    `idle_may_be_0` is for models of a process that sleeps: such a model does say 0 W, and says that it is a model.
    Without `files` only the values are looked at, from which frames, files and views are made.
    """
    modelled = {str(m.domain) for m in report.meters if m.provenance == "modelled"} if idle_may_be_0 else set()
    places = [*_in_values(report, modelled)]
    if files:
        places += [*_in_frames(report, modelled), *_in_files(report, modelled)]
    if files and not modelled:
        places += _in_views(report)
    return [*places, *_unsaid(report)]


def no_silent_zero(report: Report, *, idle_may_be_0: bool = False, files: bool = True) -> None:
    """Fail where a report shows nothing for something, or keeps quiet about what is missing."""
    found = zeros(report, idle_may_be_0=idle_may_be_0, files=files)
    assert not found, "\n".join(found[:20])


def _bad(value: float | None) -> bool:
    return value is not None and (not math.isfinite(value) or value <= 0)


def _in_values(report: Report, modelled: set[str]) -> Iterator[str]:
    if _bad(report.energy_j):
        yield f"report.energy_j is {report.energy_j}"
    for ledger in (led for led in report.ledgers if str(led.domain) not in modelled):
        if _bad(ledger.energy_j):
            yield f"ledger {ledger.domain}: {ledger.energy_j} J"
        for entry in ledger.entries:
            if _bad(entry.energy_self_j) and entry.time_self_s > 0.02:
                yield f"{ledger.domain} {entry.fqn}: {entry.energy_self_j} J in {entry.time_self_s} s"
    for step in report.steps:
        for domain, energy_j in step.energy_j.items():
            if domain not in modelled and _bad(energy_j):
                yield f"step {step.index} {domain}: {energy_j} J"
    for window in report.windows:
        if _bad(window.energy_j):
            yield f"window {window.name}: {window.energy_j} J"


def _in_frames(report: Report, modelled: set[str]) -> Iterator[str]:
    samples, layers = dataframes.sample_frame(report), dataframes.layer_frame(report)
    for domain, group in samples.groupby("domain"):
        if domain in modelled:
            continue
        watts = group.power_w.dropna()
        # One repeated reading of a counter is a poll between two publications; ten in a row are a dead sensor.
        dead = watts.le(0).rolling(10).sum().ge(10).any() or (len(watts) and watts.le(0).all())
        if dead or watts.lt(0).any():
            yield f"samples {domain}: a stretch of 0 W"
    known = {str(ledger.domain) for ledger in report.ledgers}
    if set(layers.domain) - known:
        yield f"layers of domains without a ledger: {set(layers.domain) - known}"
    for row in dataframes.step_frame(report).itertuples():
        if row.energy_j == 0:
            yield f"frame of steps: step {row.step} 0 J"


def _rows(name: str, data: bytes) -> Iterator[dict[str, str]]:
    text = gzip.decompress(data).decode() if name.endswith(".gz") else data.decode()
    yield from csv.DictReader(io.StringIO(text, newline=""))


def _in_files(report: Report, modelled: set[str]) -> Iterator[str]:
    known = {str(ledger.domain) for ledger in report.ledgers}
    for name, data in table_files(report, "csv.gz").items():
        if ".csv" not in name or name.startswith("sample"):  # samples: the frame above, the same numbers
            continue
        for row in _rows(name, data):
            domain = row.get("device_id") or ""
            fine = _MAY_BE_0 | (_SUMS if known else set())
            shown = {k: v for k, v in row.items() if k and v and _SAYS.search(k) and k not in fine}
            if domain and domain not in known and any(k.startswith("energy") for k in shown):
                yield f"{name}: {domain} has no ledger and shows {shown}"
            short = "time_self_s" in row and float(row["time_self_s"] or 0) <= 0.02
            for column, text in shown.items():
                if domain not in modelled and not short and float(text) == 0:
                    yield f"{name}: {column} of {domain or 'the run'} is {text}"


def _in_views(report: Report) -> Iterator[str]:
    page = re.sub(r"<(style|script|svg).*?</\1>", " ", to_html_page(report), flags=re.DOTALL)
    for view, text in (("text", to_text(report)), ("html", html.unescape(re.sub(r"<[^>]*>", " ", page)))):
        for line in text.splitlines():
            if _NOTHING.search(line) and " 0 W, which is not valid" not in line and "repeated 0 W" not in line:
                yield f"{view}: {line.strip()[:160]}"


def _unsaid(report: Report) -> Iterator[str]:
    """A meter that was away for a part of the run is told of, by domain."""
    told = " ".join(f"{e.subject} {e.message}" for e in report.events if e.severity != "info")
    told += " ".join(item.domain for item in report.unavailable)
    for ledger in report.ledgers:
        if not ledger.is_whole and str(ledger.domain) not in told:
            yield f"{ledger.domain} was known for {ledger.coverage:.1%} of the run and nothing says so"
    if not report.ledgers and not report.unavailable and report.energy_j is None:
        yield "nothing was metered and nothing says why"
