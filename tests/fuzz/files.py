r"""Several files as one string of bytes, so that one input can be a whole folder: `\n%% <kind> <name>\n<content>`.

Kinds: `file` (written as it is), `link` (a symbolic link to the content), `gone` (removed from what is there).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_MARK = re.compile(rb"(?:\A|\n)%% (file|link|gone) ([A-Za-z0-9_.:\-]+(?:/[A-Za-z0-9_.:\-]+){0,4})\n")
Part = tuple[str, str, bytes]  # kind, name, content


def packed(files: Mapping[str, bytes]) -> bytes:
    """Write files as one input."""
    return b"".join(b"\n%% file " + name.encode() + b"\n" + content for name, content in files.items())


def joined(parts: list[Part]) -> bytes:
    """Write parts as one input."""
    return b"".join(f"\n%% {kind} {name}\n".encode() + content for kind, name, content in parts)


def parts_of(data: bytes) -> list[Part]:
    """Read an input back; what stands before the first mark is nothing."""
    marks = list(_MARK.finditer(data))
    ends = [*(mark.start() for mark in marks[1:]), len(data)][: len(marks)]
    return [(m[1].decode(), m[2].decode(), data[m.end() : end]) for m, end in zip(marks, ends, strict=True)]


def unpack(data: bytes, folder: Path, *, links: bool = True) -> None:
    """Write the files into a folder, over what is there; names never lead out of it."""
    for kind, name, content in parts_of(data):
        if any(part in {".", ".."} for part in name.split("/")):
            continue
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if kind == "file":
                path.write_bytes(content)
            elif kind == "link" and links:
                path.symlink_to(os.fsdecode(content.split(b"\0")[0][:200] or b"x"))
        except OSError:  # a file where a folder should be: this input has one of the two
            continue
