"""Found cases: small inputs that once broke a parser, kept so that none breaks it again."""

from __future__ import annotations

import gzip
import traceback
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

LONG_BYTES = 2000
CORPUS = Path(__file__).parent / "corpus"


def kept(name: str) -> Iterator[Path]:
    """Yield the found cases of a target."""
    folder = CORPUS / name
    yield from sorted(folder.glob("*.bin*")) if folder.is_dir() else ()


def content(path: Path) -> bytes:
    """Return the input of a case; long ones are kept zipped."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def signature(error: BaseException) -> str:
    """Say what broke and where, so that one defect is one case: the error's type and the last line of our own."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if "torchwatt" in Path(frame.filename).parts[:-1] and "tests" not in frame.filename
    ]
    last = (ours or list(frames))[-1]
    return f"{type(error).__name__} {Path(last.filename).name}:{last.name}:{last.lineno}"


def keep(folder: Path, name: str, data: bytes) -> Path:
    """Write a case under its hash."""
    long = len(data) > LONG_BYTES
    path = folder / name / (sha256(data).hexdigest()[:12] + (".bin.gz" if long else ".bin"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if long else data)
    return path


def smallest(data: bytes, breaks: Callable[[bytes], bool], tries: int = 150) -> bytes:
    """Return a part of the input that still breaks, by leaving out ever smaller pieces (ddmin, Zeller 2002)."""
    piece = max(len(data) // 2, 1)
    while piece and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            shorter = data[:at] + data[at + piece :]
            tries -= 1
            if breaks(shorter):
                data = shorter
            else:
                at += piece
        piece //= 2
    return data
