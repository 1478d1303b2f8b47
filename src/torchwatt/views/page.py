"""The report as a self-contained HTML page, for light and dark mode."""

from __future__ import annotations

from torchwatt.core.report import Report
from torchwatt.views.html import to_html_fragment
from torchwatt.views.markup import text

_CSS = """
:root { color-scheme: light dark; --page: #fbfbfc; --ink: #1d2329; --rule: rgba(128,128,128,.22); }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --ink: #dde3ea; } }
body { margin: 0; padding: 28px 24px 60px; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-variant-numeric: tabular-nums; }
body > div { margin: 0 auto; }
table { border-collapse: collapse; }
td, th { border-bottom: 1px solid var(--rule); }
th { font-weight: 500; opacity: .7; }
summary:hover, tr:hover { background: rgba(128,128,128,.09); }
@media print { body { padding: 0; } details:not([open]) > *:not(summary) { display: block; } }
"""


def to_html_page(report: Report) -> str:
    """Return a complete page without external resources."""
    title = text(f"{report.name or 'run'} · torchwatt")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{to_html_fragment(report)}\n</body>\n</html>\n"
    )
