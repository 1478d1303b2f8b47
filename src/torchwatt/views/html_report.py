"""The report as HTML that also untrusted notebooks display unchanged (see `markup`)."""

from __future__ import annotations

from functools import cache, partial

from torchwatt.core.meter import Event
from torchwatt.core.report import Report
from torchwatt.views import report_summary
from torchwatt.views.answer import answer
from torchwatt.views.energy_rates import energy_rates
from torchwatt.views.layer_groups import flat_views
from torchwatt.views.layer_html import (
    MAX_MODULES,
    MAX_ROWS,
    build_group_tables,
    build_tree_block,
    provenance_chip,
)
from torchwatt.views.layer_sums import PROVENANCE_MEANING
from torchwatt.views.module_tree import build_layer_tree
from torchwatt.views.number_format import (
    BORDER,
    DASH,
    FORWARD,
    bar_style,
    escape_text,
    format_count,
    format_energy,
    format_power,
    format_time,
    format_wh,
    html_tag,
    keep_units,
    muted_text,
    text_chip,
)
from torchwatt.views.power_chart import render_chart
from torchwatt.views.rank_table import rank_block

_CARD = (
    f"box-sizing:border-box;border:{BORDER};border-radius:8px;background:rgba(128,128,128,0.06);padding:10px 14px;"
    "margin:0 10px 10px 0;flex:1 1 210px;max-width:480px"
)
_CARDS = "display:flex;flex-wrap:wrap"
_REPORT = "max-width:980px;line-height:1.45;text-align:left;font-size:13px;overflow-wrap:break-word"
# (modules of the tree, rows of the other views), tried in turn: rows tell more, and take less room.
_CAPS = (
    *((modules, MAX_ROWS) for modules in (MAX_MODULES, 200, 100, 50, 20, 10, 5)),
    (5, 10), (5, 5), (1, 1),
)  # fmt: skip
_EVENTS = "font-size:12px;margin:4px 0;border-collapse:separate"  # the page's style sheet finds the table by it
_MAX_EVENTS = 50
_MAX_TEXT = 400


def to_html_fragment(report: Report, max_bytes: int | None = None) -> str:
    """Return the report as one `<div>`: no style sheet, no script, nothing fetched, every number as text.

    Args:
        report: The report to show.
        max_bytes: Fold layers into their parents until the result is smaller.
    """
    return _build_report(report, max_bytes, _TITLE_DIV)


def _build_report(report: Report, max_bytes: int | None, title: str) -> str:
    head, curve = _head_block(report, title), _curve_block(report) + _position_block(report)
    lower = rank_block(report) + _measurement_block(report)
    booked, views, fragment = build_layer_tree(report), flat_views(report), ""
    tables = cache(partial(build_group_tables, report, views))
    for max_modules, max_rows in _CAPS:
        blocks = head + tables(max_rows) + curve + build_tree_block(booked, report.energy_j, max_modules) + lower
        fragment = html_tag("div", blocks, _REPORT)
        if max_bytes is None or len(fragment.encode()) < max_bytes:
            break
    return fragment


def _measurement_block(report: Report) -> str:
    """Return how the numbers were obtained, in one fold: sentences, meters, missing meters, events, software."""
    sentences = report_summary.measurement_notes(report)
    notes = "".join(html_tag("div", keep_units(escape_text(sentence)), "margin:3px 0") for sentence in sentences)
    warnings = len(report_summary.select_warnings(report))
    count = f" ({warnings} warning{'s' * (warnings > 1)})" if warnings else ""
    title = html_tag("summary", f"How this was measured{count}", "font-size:15px;font-weight:600;cursor:pointer")
    content = html_tag("div", notes, "margin:6px 0") * bool(notes) + _domain_block(report) + _missing_block(report)
    opened = "" if report.ledgers else " open"
    content += _event_block(report) + _foot_block(report)
    return f'<details{opened} style="margin-top:14px">{title}{content}</details>'


def write_heading(content: str) -> str:
    """Return the title of a block."""
    return html_tag("div", content, "font-size:15px;font-weight:600;margin:14px 0 6px 0")


_TITLE_DIV, _TITLE_H1 = "span", "h1"  # a page has a heading; in a notebook it would be one of the notebook's own


def _head_block(report: Report, tag: str) -> str:
    style = "font-size:20px;font-weight:600;display:inline;margin:0"
    title = html_tag(tag, escape_text(report.name or "torchwatt run"), style)
    words = [format_time(report.duration_s), report.exit_reason]
    status = (
        muted_text(escape_text(report.status), "13px")
        if report.status == "complete"
        else html_tag("b", text_chip(report.status))
    )
    details = muted_text(escape_text(" · ".join(w for w in words if w)), "13px")
    line = html_tag("div", f"{title} &nbsp;{status} {muted_text('·', '13px')} {details}", "margin:4px 0 10px 0")
    result = answer(report)
    style = "margin:4px 0"
    text = "".join(
        html_tag("div", keep_units(escape_text(part)), f"font-size:15px;{style}") for part in result.sentences
    )
    hint = f"{html_tag('b', 'Hint:')} {keep_units(escape_text(result.hint))}"
    text += html_tag("div", hint, style) if result.hint else ""
    return line + text + html_tag("div", "".join(_figure_cards(report)), _CARDS + ";margin-top:10px")


def _figure_cards(report: Report) -> list[str]:
    provenance = report.provenance
    energy = format_wh(report.energy_j) if provenance else "nothing was metered"
    repeat = report_summary.bounds_text(report.energy_j, report.interval_j)
    repeat = f"{report_summary.REPEAT_LABEL}: {repeat}" if repeat else ""
    words = (energy, report_summary.coverage_text(report), repeat, report_summary.systematic_text(report))
    energy = " · ".join(word for word in words if word)
    carbon = report_summary.describe_carbon(report)
    basis = " ".join((carbon.basis, *carbon.notes)) if carbon.grams == DASH else carbon.basis
    part = "metered part of the run" if report_summary.coverage_text(report) else "run"
    power = f"over the {part}, all counted domains together" if provenance else "nothing was metered"
    cards = [
        _figure_card("energy", format_energy(report.energy_j), energy, provenance),
        _figure_card("mean power", format_power(report.mean_power_w), power, provenance and "derived"),
        _figure_card("carbon", carbon.grams, basis, None if carbon.grams == DASH else "derived"),
    ]
    cards += [_figure_card(rate.label, rate.value, rate.detail, None) for rate in energy_rates(report)]
    return cards


def _figure_card(label: str, value: str, detail: str, provenance: str | None) -> str:
    pill = f" &nbsp;{provenance_chip(provenance)}" if provenance else ""
    body = html_tag("div", muted_text(escape_text(label)) + pill)
    body += html_tag("div", escape_text(value), "font-size:22px;font-weight:600;white-space:nowrap;margin:2px 0")
    return html_tag("div", body + html_tag("div", muted_text(keep_units(escape_text(detail)))), _CARD)


def _domain_block(report: Report) -> str:
    shown, remainder = report_summary.select_domain_texts(report)
    cards = "".join(_domain_card(item) for item in shown)
    return (
        write_heading("Domains")
        + html_tag("div", cards, _CARDS)
        + html_tag("div", muted_text(escape_text(remainder))) * bool(remainder)
        if cards
        else ""
    )


def _domain_card(item: report_summary.DomainText) -> str:
    name = html_tag("span", escape_text(item.domain), "font-weight:600")
    body = html_tag(
        "div", f"{name} &nbsp;{provenance_chip(item.provenance)} &nbsp;{muted_text(escape_text(item.share))}"
    )
    bounds = f" &nbsp;{muted_text(escape_text(f'{report_summary.REPEAT_LABEL}: {item.bounds}'))}" if item.bounds else ""
    body += html_tag(
        "div", html_tag("span", escape_text(item.energy), "font-size:18px;font-weight:600") + bounds, "margin:2px 0"
    )
    body += html_tag("div", muted_text(escape_text(item.sentence)))
    body += html_tag("div", muted_text(escape_text(item.meter), "11px"), "margin-top:3px")
    return html_tag("div", body, _CARD)


def _missing_block(report: Report) -> str:
    """Return one line with the domains without a meter, which expands to reasons and fixes."""
    if not report.unavailable:
        return ""
    shown = {
        gone.domain: " (modelled instead)" if report_summary.is_modelled_instead(report, gone) else f" {DASH}"
        for gone in report.unavailable
    }
    names = ", ".join(f"{escape_text(domain)}{muted_text(substitute)}" for domain, substitute in shown.items())
    lines = []
    for gone in report.unavailable:
        fix = f"<br>{muted_text(escape_text(f'Fix: {gone.fix}'))}" if gone.fix else ""
        lines.append(
            html_tag(
                "div",
                f"{html_tag('b', escape_text(gone.domain))} &nbsp;{muted_text(escape_text(gone.reason))}{fix}",
                "margin:5px 0",
            )
        )
    title = html_tag("summary", f"{html_tag('b', 'Without a meter:')} {names}", "cursor:pointer")
    opened = "" if report.ledgers else " open"
    text = html_tag("div", "".join(lines), "margin-left:16px")
    return f'<details{opened} style="margin-top:6px">{title}{text}</details>'


_BUNDLE_CURVE = (
    "This page is from a bundle, which has no phases, utilisation or temperature over time; only the run has them."
)


def _curve_block(report: Report) -> str:
    source = render_chart(report)
    if not source:
        return ""
    names = ", ".join(str(curve.domain) for curve in report.curves)
    image = (
        f'<img src="{source}" alt="{escape_text(f"power over time of {names}")}" width="100%" style="max-width:980px">'
    )
    note = html_tag("div", muted_text(escape_text(_BUNDLE_CURVE))) if report.from_bundle else ""
    return write_heading("Power") + image + note


def _position_block(report: Report) -> str:
    """Return joules and time per output token by its position, with bars; "" without requests of known tokens."""
    if not report.positions:
        return ""
    most_j = max(group.each_j or 0.0 for group in report.positions)
    heads = ("position", "tokens", "joules a token", "time a token", "")
    rows = html_tag("tr", "".join(html_tag("th", name) for name in heads), align="left")
    for group in report.positions:
        texts = (group.label, format_count(group.tokens), format_energy(group.each_j), format_time(group.each_s))
        bar = html_tag("div", "", f"width:220px;{bar_style([(FORWARD, group.each_j or 0.0)], most_j)}")
        cells = [html_tag("td", escape_text(text), "white-space:nowrap") for text in texts]
        rows += html_tag("tr", "".join((*cells, html_tag("td", bar))))
    table = html_tag("table", rows, "font-size:12px;margin:4px 0;border-collapse:separate", cellspacing="6")
    return write_heading("Joules per output token, by position") + table


def _event_block(report: Report) -> str:
    events = sorted(report.events, key=lambda event: (event.t_ns, event.code, event.subject))
    if not events:
        return _window_block(report)
    head = html_tag(
        "tr", "".join(html_tag("th", name) for name in ("at", "severity", "code", "subject", "message")), align="left"
    )
    rows = "".join(_event_row(report, event) for event in events[:_MAX_EVENTS])
    table = html_tag("table", head + rows, _EVENTS, cellspacing="6")
    more = html_tag("div", muted_text(f"and {len(events) - _MAX_EVENTS} more")) if len(events) > _MAX_EVENTS else ""
    worrying = len(report_summary.select_warnings(report))
    title = html_tag(
        "summary", f"Events ({len(events)}, {worrying} warnings and errors)", "font-weight:600;cursor:pointer"
    )
    opened = " open" if worrying else ""
    return f'{_window_block(report)}<details{opened} style="margin-top:14px">{title}{table}{more}</details>'


def _event_row(report: Report, event: Event) -> str:
    cells = (report_summary.event_time(report, event), event.severity, event.code, event.subject, event.message)
    styles = ("white-space:nowrap", "white-space:nowrap", "", "word-break:break-all", "word-break:break-all")
    styled = zip(cells, styles, strict=True)
    return html_tag(
        "tr",
        "".join(html_tag("td", escape_text(cell[:_MAX_TEXT]), f"text-align:left;{style}") for cell, style in styled),
    )


def _window_block(report: Report) -> str:
    """Return the nested sessions."""
    if not report.windows:
        return ""
    lines = [
        f"{window.name}: {format_energy(window.energy_j)} in {format_time((window.end_ns - window.start_ns) / 1e9)}"
        for window in report.windows[:_MAX_EVENTS]
    ]
    title = write_heading(f"Windows {muted_text('parts of the total, never added to it')}")
    return title + "".join(html_tag("div", escape_text(line)) for line in lines)


def _foot_block(report: Report) -> str:
    carbon = report_summary.describe_carbon(report)
    legend = " &nbsp; ".join(
        f"{provenance_chip(word)} {muted_text(escape_text(meaning), '11px')}"
        for word, meaning in PROVENANCE_MEANING.items()
    )
    lines = [*(carbon.notes if carbon.grams != DASH else ()), f"Measuring: {report_summary.describe_cost(report)}."]
    lines.append(f"Run {report_summary.describe_run(report)}")
    footer = "".join(html_tag("div", muted_text(escape_text(line), "11px")) for line in lines)
    return (
        html_tag(
            "div",
            f"{muted_text('Provenance of the numbers:', '11px')} {legend}",
            f"border-top:{BORDER};margin-top:16px;padding-top:8px",
        )
        + footer
    )


_CSS = """
:root { color-scheme: light dark; --page: #fbfbfc; --ink: #1d2329; --rule: rgba(128,128,128,.22); }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --ink: #dde3ea; } }
body { margin: 0; padding: 28px 24px 60px; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-variant-numeric: tabular-nums; }
main > div { margin: 0 auto; }
summary:focus-visible { outline: 2px solid #2f81d6; }
@media (max-width: 900px) {
  main table:not([cellpadding]) { display: block; overflow-x: auto; }
  [cellpadding] :is(th, td):nth-child(n+5):nth-last-child(n+3) { display: none; }
}
@media (max-width: 480px) {
  [cellpadding] :is(th, td):is(:nth-child(3), :nth-child(n+5):nth-last-child(2)) { display: none; }
}
@media (max-width: 640px) {
  body { padding: 12px 10px 40px; }
  table[cellpadding="4"] :is(td, th):nth-child(n+5):not(:last-child) { display: none; }
  table[cellpadding="4"] :is(td, th):nth-child(3) { white-space: normal !important; }
  table[style*="font-size:11px"] :is(td, th):nth-child(n+5) { display: none; }
  [style*="float:right"] { float: none !important; display: block; text-align: left !important; }
  [style*="float:right"] > span:last-child { display: none !important; }
  table[style^="font-size:12px;margin:4px"] tr:has(th) { display: none; }
  table[style^="font-size:12px;margin:4px"] :is(tbody, tr, td:last-child) { display: block; }
  table[style^="font-size:12px;margin:4px"] tr { padding: 3px 0; }
  table[style^="font-size:12px;margin:4px"] td { display: inline; padding: 0 6px 0 0; border: 0; }
}
table { border-collapse: collapse; }
td, th { border-bottom: 1px solid var(--rule); }
th { font-weight: 500; opacity: .7; }
summary:hover, tr:hover { background: rgba(128,128,128,.09); }
@media print { body { padding: 0; } details:not([open]) > *:not(summary) { display: block; } }
"""


def to_html_page(report: Report) -> str:
    """Return a complete page without external resources."""
    title = escape_text(f"{report.name or 'run'} · torchwatt")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<main>\n{_build_report(report, None, _TITLE_H1)}\n</main>\n</body>\n</html>\n"
    )
