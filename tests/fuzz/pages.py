"""Names that try to leave the text they are in, and a reader of HTML that sees whether one did."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "`onmouseover=alert(1)`",
    "javascript:alert(1)",
    "<a href='javascript:alert(1)'>fc1</a>",
    "<svg/onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<!--", "-->", "<![CDATA[", "]]>", "<?php", "&#x3c;script&#x3e;", "&lt;script&gt;", "<\x00script>",
    "<details open ontoggle=alert(1)>", "<iframe srcdoc='<script>alert(1)</script>'>", "<base href=//x>",
    "<math><mtext></table><mglyph><style><img src=x onerror=alert(1)>",
    "x;background:url(javascript:alert(1))", "expression(alert(1))", "{{7*7}}", "${7*7}",
    "\u202egpj.exe", "\u2066fc\u2069", "a\u0000b", "\ufeff", "\x1b]0;owned\x07", "\r\nSet-Cookie: x", "\u2028alert(1)",
    "\udcff\udc80", "x" * 5000,
)  # fmt: skip
_TAGS = frozenset({
    "html", "head", "main", "h1", "meta", "title", "style", "body", "b", "br", "details", "div", "img", "span",
    "summary",
    "table", "td", "th", "tr",
})  # fmt: skip
_ATTRIBUTES = frozenset({
    "align", "alt", "cellpadding", "cellspacing", "colspan", "open", "src", "style", "width", "lang", "charset",
    "name", "content", "http-equiv", "title",
})  # fmt: skip
_VOID = frozenset({"br", "img", "meta"})
_UNPRINTED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _Reader(HTMLParser):
    """Notes everything that is not what our own markup writes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS:
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            if name not in _ATTRIBUTES:
                self.wrong.append(f"<{tag} {name}={value!r}>")
            if name == "src" and not str(value).startswith("data:image/svg+xml;base64,"):
                self.wrong.append(f"<{tag} src={str(value)[:60]!r}>")
            if name == "style" and re.search(r"url\(|expression|javascript", str(value), re.IGNORECASE):
                self.wrong.append(f"<{tag} style={value!r}>")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_comment(self, data: str) -> None:
        self.wrong.append(f"<!--{data[:40]}")

    def handle_pi(self, data: str) -> None:
        self.wrong.append(f"<?{data[:40]}")

    def unknown_decl(self, data: str) -> None:
        self.wrong.append(f"<![{data[:40]}")


def assert_harmless(html: str) -> None:
    """Assert that a page holds our own tags and attributes only, balanced, and no character that hides others."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert not reader.wrong, reader.wrong[:5]
    assert not reader.open
    assert not (found := _UNPRINTED.search(html)), repr(found)
    html.encode()
