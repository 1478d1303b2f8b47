"""The report as HTML that also untrusted notebooks display unchanged (see `markup`)."""

from __future__ import annotations

from torchwatt.core.meter import Event
from torchwatt.core.report import Report
from torchwatt.views import summary
from torchwatt.views.curve import to_image
from torchwatt.views.layer_html import MAX_MODULES, layers_block
from torchwatt.views.markup import RULE, chip, muted, tag, text
from torchwatt.views.numbers import DASH, format_energy, format_power, format_time, format_wh
from torchwatt.views.rank_table import rank_block
from torchwatt.views.tree import books

_CARD = (
    f"box-sizing:border-box;border:{RULE};border-radius:8px;background:rgba(128,128,128,0.06);padding:10px 14px;"
    "margin:0 10px 10px 0;flex:1 1 210px;max-width:480px"
)
_CARDS = "display:flex;flex-wrap:wrap"
_CAPS = (MAX_MODULES, 200, 100, 50, 20, 5, 1)  # modules of the tree, tried in turn
_MAX_EVENTS = 50
_MAX_TEXT = 400


def to_html_fragment(report: Report, max_bytes: int | None = None) -> str:
    """Return the report as one `<div>`: no style sheet, no script, nothing fetched, every number as text.

    Args:
        report: The report to show.
        max_bytes: Fold layers into their parents until the result is smaller.
    """
    upper = _head(report) + _domains(report) + _missing(report) + _curve(report)
    lower = rank_block(report) + _events(report) + _foot(report)
    booked, fragment = books(report), ""
    for max_modules in _CAPS:
        blocks = upper + layers_block(booked, report.energy_j, max_modules) + lower
        fragment = tag("div", blocks, "max-width:980px;line-height:1.45;text-align:left;font-size:13px")
        if max_bytes is None or len(fragment.encode()) < max_bytes:
            break
    return fragment


def heading(content: str) -> str:
    """Return the title of a block."""
    return tag("div", content, "font-size:15px;font-weight:600;margin:14px 0 6px 0")


def _head(report: Report) -> str:
    title = tag("span", text(report.name or "torchwatt run"), "font-size:20px;font-weight:600")
    words = [format_time(report.duration_s), report.exit_reason]
    status = muted(text(report.status), "13px") if report.status == "complete" else tag("b", chip(report.status))
    details = muted(text(" · ".join(w for w in words if w)), "13px")
    line = tag("div", f"{title} &nbsp;{status} {muted('·', '13px')} {details}", "margin:4px 0 10px 0")
    notes = "".join(tag("div", text(note)) for note in summary.head_notes(report))
    return line + tag("div", "".join(_figures(report)), _CARDS) + notes


def _figures(report: Report) -> list[str]:
    provenance = report.provenance
    energy = format_wh(report.energy_j) if provenance else "nothing was metered"
    repeat = summary.bounds_text(report.energy_j, report.interval_j)
    repeat = f"{summary.REPEAT}: {repeat}" if repeat else ""
    words = (energy, summary.coverage_text(report), repeat, summary.systematic_text(report))
    energy = " · ".join(word for word in words if word)
    carbon = summary.carbon(report)
    basis = " ".join((carbon.basis, *carbon.notes)) if carbon.grams == DASH else carbon.basis
    part = "metered part of the run" if summary.coverage_text(report) else "run"
    power = f"over the {part}, all counted domains together" if provenance else "nothing was metered"
    cards = [
        _figure("energy", format_energy(report.energy_j), energy, provenance),
        _figure("mean power", format_power(report.mean_power_w), power, provenance and "derived"),
        _figure("carbon", carbon.grams, basis, None if carbon.grams == DASH else "derived"),
    ]  # fmt: skip
    cards += [_figure(rate.label, rate.value, rate.detail, None) for rate in summary.rates(report)]
    return cards


def _figure(label: str, value: str, detail: str, provenance: str | None) -> str:
    pill = f" &nbsp;{chip(provenance)}" if provenance else ""
    body = tag("div", muted(text(label)) + pill)
    body += tag("div", text(value), "font-size:22px;font-weight:600;white-space:nowrap;margin:2px 0")
    return tag("div", body + tag("div", muted(text(detail))), _CARD)


def _domains(report: Report) -> str:
    shown, remainder = summary.shown_domains(report)
    cards = "".join(_domain(item) for item in shown)
    return (
        heading("Domains") + tag("div", cards, _CARDS) + tag("div", muted(text(remainder))) * bool(remainder)
        if cards
        else ""
    )


def _domain(item: summary.DomainText) -> str:
    name = tag("span", text(item.domain), "font-weight:600")
    body = tag("div", f"{name} &nbsp;{chip(item.provenance)} &nbsp;{muted(text(item.share))}")
    bounds = f" &nbsp;{muted(text(f'{summary.REPEAT}: {item.bounds}'))}" if item.bounds else ""
    body += tag("div", tag("span", text(item.energy), "font-size:18px;font-weight:600") + bounds, "margin:2px 0")
    body += tag("div", muted(text(item.sentence)))
    body += tag("div", muted(text(item.meter), "11px"), "margin-top:3px")
    return tag("div", body, _CARD)


def _missing(report: Report) -> str:
    """Return one line with the domains without a meter, which expands to reasons and fixes."""
    if not report.unavailable:
        return ""
    shown = {gone.domain: " (modelled instead)" if summary.modelled_instead(report, gone) else f" {DASH}"
             for gone in report.unavailable}  # fmt: skip
    names = ", ".join(f"{text(domain)}{muted(substitute)}" for domain, substitute in shown.items())
    lines = []
    for gone in report.unavailable:
        fix = f"<br>{muted(text(f'Fix: {gone.fix}'))}" if gone.fix else ""
        lines.append(tag("div", f"{tag('b', text(gone.domain))} &nbsp;{muted(text(gone.reason))}{fix}", "margin:5px 0"))
    title = tag("summary", f"{tag('b', 'Without a meter:')} {names}", "cursor:pointer")
    opened = "" if report.ledgers else " open"
    return f'<details{opened} style="margin-top:6px">{title}{tag("div", "".join(lines), "margin-left:16px")}</details>'


def _curve(report: Report) -> str:
    source = to_image(report)
    if not source:
        return ""
    names = ", ".join(str(curve.domain) for curve in report.curves)
    image = f'<img src="{source}" alt="{text(f"power over time of {names}")}" width="100%" style="max-width:980px">'
    return heading("Power") + image


def _events(report: Report) -> str:
    events = sorted(report.events, key=lambda event: (event.t_ns, event.code, event.subject))
    if not events:
        return _windows(report)
    head = tag(
        "tr", "".join(tag("th", name) for name in ("at", "severity", "code", "subject", "message")), align="left"
    )
    rows = "".join(_event(report, event) for event in events[:_MAX_EVENTS])
    table = tag("table", head + rows, "font-size:12px;margin:4px 0;border-collapse:separate", cellspacing="6")
    more = tag("div", muted(f"and {len(events) - _MAX_EVENTS} more")) if len(events) > _MAX_EVENTS else ""
    worrying = len(summary.worrying(report))
    title = tag("summary", f"Events ({len(events)}, {worrying} warnings and errors)", "font-weight:600;cursor:pointer")
    opened = " open" if worrying else ""
    return f'{_windows(report)}<details{opened} style="margin-top:14px">{title}{table}{more}</details>'


def _event(report: Report, event: Event) -> str:
    cells = (summary.when(report, event), event.severity, event.code, event.subject, event.message)
    styles = ("white-space:nowrap", "white-space:nowrap", "", "word-break:break-all", "word-break:break-all")
    styled = zip(cells, styles, strict=True)
    return tag("tr", "".join(tag("td", text(cell[:_MAX_TEXT]), f"text-align:left;{style}") for cell, style in styled))


def _windows(report: Report) -> str:
    """Return the nested sessions."""
    if not report.windows:
        return ""
    lines = [
        f"{window.name}: {format_energy(window.energy_j)} in {format_time((window.end_ns - window.start_ns) / 1e9)}"
        for window in report.windows[:_MAX_EVENTS]
    ]
    title = heading(f"Windows {muted('parts of the total, never added to it')}")
    return title + "".join(tag("div", text(line)) for line in lines)


def _foot(report: Report) -> str:
    carbon = summary.carbon(report)
    legend = " &nbsp; ".join(
        f"{chip(word)} {muted(text(meaning), '11px')}" for word, meaning in summary.PROVENANCE_MEANING.items()
    )
    lines = [*(carbon.notes if carbon.grams != DASH else ()), f"Measuring: {summary.cost(report)}."]
    versions = [
        f"{name} {report.software[name]}" for name in ("torchwatt", "python", "torch", "os") if name in report.software
    ]
    lines.append(f"Run {report.run_id}" + (f" · {' · '.join(versions)}" if versions else ""))
    footer = "".join(tag("div", muted(text(line), "11px")) for line in lines)
    return (
        tag(
            "div",
            f"{muted('Provenance of the numbers:', '11px')} {legend}",
            f"border-top:{RULE};margin-top:16px;padding-top:8px",
        )
        + footer
    )
