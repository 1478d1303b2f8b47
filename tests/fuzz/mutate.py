"""Mutations that know a format: what reaches a parser is nearly right, which is where parsers are wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from tests.fuzz.files import joined, parts_of


class Chance(Protocol):
    """As much of `random.Random` as is used: hypothesis draws the same choices, and shrinks them."""

    def randrange(self, start: int, stop: int) -> int: ...


LARGEST = 200_000  # bytes of an input
_WIDEST = 20_000  # cells of a row
# Written into JSON as they are: what `json.dumps` would never write.
RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e308", "1e308", "1.7976931348623157e308", "5e-324", "-0.0", "0",
    "-1", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" + "0" * 400, "9" * 5000, "2.5",
    "18446744073709551616", "null", "true", '""', "[]", "{}", '"\\ud800"', '"\\u0000"', "[[]]", "nan(ind)", "inf",
    "01", "+1", "1_000", '"1"', "[" * 1200 + "]" * 1200, '{"a":' * 1200 + "1" + "}" * 1200,
)  # fmt: skip
WORDS = (
    "", " ", "../../x", "/etc/hostname", "..", ".", "a/b", "a\x00b", "\ufeff", "\u202e", "<script>", "=1+1", "'",
    "gpu:0", "gpu:-1", "gpu:99999999999999999999", "gpu:x", "cpu:0", ":", "forward", "X", "kernel", "cpu_op", "inf",
    "nan", "-inf", "1e308", "-1e308", "1e309", "1e-400", "0", "-0", "-1", "1", "1_000", "٣", "1e5", "0x10", "9" * 400,
    "9" * 5000, "0." + "9" * 400, "9223372036854775808", "-9223372036854775808", "true", "false", "null",
    "0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z", "2026-02-30T00:00:00.000000Z", "2023/13/45 99:99:99",
    "0001/01/01 00:00:00", "9999/12/31 23:59:59", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00", "NA",
    '"', ",", ";", "a;b;;", "\\", "%s%n", "{0}", "x" * 3000, "(" * 400, "1" * 200_000,
)  # fmt: skip
BLOBS = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",",
    b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"SQLite format 3\x00", b'"traceEvents": [', b"},{", b"nan(ind)", b"\\x",
    b"\xed\xa0\x80", b"\xc0\xaf", b"\x1b[31m", b"\xe2\x80\xa8", b"1e999", b"[" * 3000, b"{" * 3000, b"(" * 3000,
    b"a," * 3000, b"-" * 300,
)  # fmt: skip


def mutate(form: str, data: bytes, chance: Chance) -> bytes:
    """Return the input changed in one to three places."""
    for _ in range(chance.randrange(1, 4)):
        data = _once(form, data, chance)[:LARGEST]
    return data


def _once(form: str, data: bytes, chance: Chance) -> bytes:
    if chance.randrange(0, 5) == 0:
        return of_bytes(data, chance)
    try:
        return _FORMS.get(form, of_bytes)(data, chance)
    except (ValueError, ArithmeticError, RecursionError):  # it has become something that Python cannot hold
        return of_bytes(data, chance)


def pick(items: Any, chance: Chance) -> Any:
    """Return one of several."""
    return items[chance.randrange(0, len(items))]


def of_bytes(data: bytes, chance: Chance) -> bytes:  # noqa: PLR0911  # a line each
    """Cut, flip, insert, repeat or move bytes."""
    at, end = sorted(chance.randrange(0, len(data) + 1) for _ in range(2))
    kind = chance.randrange(0, 7)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:at] + pick(BLOBS, chance) + data[at:]
    if kind == 3:
        return data[:end] + data[at:]
    if kind == 4:
        return data[:at] + bytes([chance.randrange(0, 256)]) + data[at + 1 :]
    if kind == 5:
        return data[:at] + data[at:end] * chance.randrange(2, 5) + data[end:]
    return data[:at] + str(pick(WORDS, chance)).encode("utf-8", "replace") + data[end:]


# JSON, and JSON in lines


def of_json(data: bytes, chance: Chance) -> bytes:
    """Change one node of a document, or of one line."""
    lines = data.split(b"\n")
    at = chance.randrange(0, len(lines))
    try:
        whole, rest = (data, None) if len(lines) < 2 else (lines[at], lines)
        tree = [json.loads(whole)]
    except (ValueError, RecursionError):
        try:
            tree, rest = [json.loads(data)], None
        except (ValueError, RecursionError):
            return of_bytes(data, chance)
    holes: list[str] = []
    _change(tree, chance, holes)
    try:
        text = ",".join(json.dumps(node, ensure_ascii=bool(chance.randrange(0, 2))) for node in tree)
    except (ValueError, RecursionError):
        return of_bytes(data, chance)
    for number, raw in enumerate(holes):
        text = text.replace(f'"@@{number}@@"', raw)
    new = text.encode("utf-8", "replace")
    if rest is None:
        return new
    move = chance.randrange(0, 8)
    lines[at : at + 1] = [new, new] if move == 0 else [] if move == 1 else [new]
    return b"\n".join(lines)


def _change(tree: list[Any], chance: Chance, holes: list[str]) -> None:
    """Change the tree in place, at a node some way down."""
    box: Any = tree
    key: Any = 0
    for _ in range(chance.randrange(0, 7)):
        node = box[key]
        if isinstance(node, dict) and node:
            box, key = node, pick(list(node), chance)
        elif isinstance(node, list) and node:
            box, key = node, chance.randrange(0, len(node))
        else:
            break
    kind = chance.randrange(0, 7)
    if kind in {0, 1}:
        holes.append(pick(RAW, chance))
        box[key] = f"@@{len(holes) - 1}@@"
    elif kind == 2:
        box[key] = pick(WORDS, chance)
    elif kind == 3:
        del box[key]
    elif kind == 4:
        box[key] = [box[key]] * chance.randrange(1, 4)
    elif kind == 5 and isinstance(box, dict):
        box[pick((*WORDS, *box), chance)] = box.pop(key)
    elif isinstance(box[key], int | float):
        box[key] = box[key] * pick((-1, 0, 10**6, 1e-9, 1e300), chance) + pick((0, 1, -1), chance)
    else:
        box[key] = {"a": box[key]}


# CSV


def of_csv(data: bytes, chance: Chance) -> bytes:
    """Change a cell, a row, a column, or how the file is written."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    except (UnicodeDecodeError, csv.Error):
        return of_bytes(data, chance)
    rows = [row for row in rows if row]
    if not rows:
        return of_bytes(data, chance)
    at = chance.randrange(0, len(rows))
    column = chance.randrange(0, len(rows[at]))
    kind = chance.randrange(0, 10)
    if kind <= 3:
        rows[at][column] = pick(WORDS, chance)
    elif kind == 4:
        rows[at : at + 1] = [rows[at]] * chance.randrange(0, 4)
    elif kind == 5:
        for row in rows:
            del row[column : column + 1]
    elif kind == 6:
        for row in rows:
            row.insert(column, row[min(column, len(row) - 1)] if row else "")
    elif kind == 7:
        rows[at] = (rows[at] * chance.randrange(2, 200))[:_WIDEST]
    elif kind == 8:
        other = pick(rows, chance)
        rows[at][column] = pick(other, chance) if other else ""
    ending = "\r\n" if kind == 9 else "\n"
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=ending).writerows(rows)
    return (b"\xef\xbb\xbf" if kind == 9 else b"") + out.getvalue().encode("utf-8", "replace")


# Archives and folders


def of_gz(data: bytes, chance: Chance) -> bytes:
    """Change what is inside, or the archive itself: cut, followed by another, full of nothing."""
    try:
        inside = zlib.decompressobj(31).decompress(data, LARGEST)
    except zlib.error:
        return of_bytes(data, chance)
    kind = chance.randrange(0, 8)
    if kind == 0:
        return data + data
    if kind == 1:
        at = chance.randrange(0, len(inside) + 1)
        return gzip.compress(inside[:at] + pick((b" ", b"0", b"[", b"{"), chance) * 10**6 + inside[at:], mtime=0)
    if kind == 2:
        return of_bytes(data, chance)
    return gzip.compress(of_json(inside, chance) if inside[:1] in b"[{" else of_csv(inside, chance), mtime=0)


def of_files(data: bytes, chance: Chance) -> bytes:
    """Change one of the files, or which files there are."""
    parts = parts_of(data)
    if not parts:
        return of_bytes(data, chance)
    at = chance.randrange(0, len(parts))
    kind, name, content = parts[at]
    what = chance.randrange(0, 12)
    if what == 0:
        parts[at] = ("gone", name, b"")
    elif what == 1:
        parts[at] = (
            "link",
            name,
            pick((b"/etc/hostname", b"..", b"run.csv", b"/dev/zero", b"none", name.encode()), chance),
        )
    elif what == 2:
        del parts[at]
    elif what == 3:
        parts.append((kind, pick([other for _, other, _ in parts], chance), content))
    elif kind == "file":
        parts[at] = (kind, name, _FORMS[_form_of(name)](content, chance))
    return joined(parts)


def _form_of(name: str) -> str:
    endings = {".csv": "csv", ".json": "json", ".jsonl": "json", ".gz": "gz"}
    return next((form for ending, form in endings.items() if name.endswith(ending)), "bytes")


_FORMS: dict[str, Callable[[bytes, Chance], bytes]] = {
    "json": of_json, "csv": of_csv, "gz": of_gz, "files": of_files, "bytes": of_bytes,
}  # fmt: skip
