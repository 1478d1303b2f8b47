"""The oracle must see what it is there for: a test of parsers that cannot fail says nothing."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.cases import smallest
from tests.fuzz.files import joined, parts_of, unpack
from tests.fuzz.watch import Trespass, watched


@pytest.mark.parametrize(
    "act",
    [
        lambda outside: eval("1 + 1"),  # noqa: S307
        lambda outside: exec("pass"),  # noqa: S102
        lambda outside: pickle.loads(pickle.dumps(os.getcwd)),  # noqa: S301
        lambda outside: subprocess.run(["true"], check=False),
        lambda outside: os.system("true"),  # noqa: S605
        lambda outside: socket.socket().connect(("127.0.0.1", 9)),
        lambda outside: (outside / "new").write_text("x"),
        lambda outside: (outside / "there").read_text(),
        lambda outside: (outside / "there").unlink(),
        lambda outside: (outside / "folder").mkdir(),
    ],
)
def test_a_trespass_is_seen_even_where_it_is_swallowed(tmp_path, act):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "there").write_text("x")
    with pytest.raises(Trespass), watched(inside):
        try:
            act(outside)
        except BaseException:
            (inside / "swallowed").write_text("x")
    assert (outside / "there").is_file()
    assert not (outside / "new").exists()


def test_a_link_out_of_the_folder_is_outside(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret").write_text("x")
    (inside / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(Trespass, match="reads"), watched(inside):
        (inside / "link").read_text()


def test_the_folder_itself_and_lazy_imports_are_free(tmp_path):
    with watched(tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").write_text("x")
        import colorsys  # noqa: F401
        import xml.sax.saxutils  # noqa: F401


def test_an_input_is_unpacked_into_its_folder_only(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    parts = [
        ("file", "a/b.csv", b"x\n%% no mark"), ("file", "../out", b"y"), ("link", "l", b"a/b.csv"), ("gone", "a", b""),
    ]  # fmt: skip
    data = joined(parts)
    assert parts_of(data) == parts
    unpack(data, folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b.csv", "in", "l"]


def test_a_case_is_made_small():
    assert smallest(b"a" * 500 + b"!" + b"b" * 300, lambda data: b"!" in data) == b"!"


def test_mutations_stay_small_and_differ(tmp_path: Path):
    import random

    from tests.fuzz.mutate import LARGEST, mutate
    from tests.fuzz.targets import TARGETS

    for name in ("kineto", "power_csv", "recording_gz", "bundle_verify", "formula"):
        start = TARGETS[name].seeds()[0]
        made = {mutate(TARGETS[name].form, start, random.Random(seed)) for seed in range(40)}
        assert len(made) > 30
        assert max(map(len, made)) <= LARGEST
