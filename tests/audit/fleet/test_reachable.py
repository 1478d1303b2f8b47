"""An object store that does not answer is one clear error within seconds, whatever its client does."""

import socket
import sys
import time

import pytest

from torchwatt.audit.fleet import lake as lake_module
from torchwatt.audit.fleet import open_lake
from torchwatt.cli.command_parser import run_command
from torchwatt.core.errors import ConfigError


@pytest.fixture
def silent(monkeypatch):
    """Return the address of a server that accepts connections and says nothing; nobody waits long for it."""
    monkeypatch.setattr(lake_module, "ANSWER_S", 1.5)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1%3A{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "address",
    [
        "gs://anonymous@bucket/lake?scheme=http&endpoint_override={}",
        "s3://bucket/lake?endpoint_override=http%3A%2F%2F{}",
    ],
    ids=["gs", "s3"],
)
@pytest.mark.parametrize("command", ["ingest", "sql"])
def test_a_store_that_does_not_answer_is_one_error(command, address, silent, tmp_path, capsys):
    begin = time.monotonic()
    more = [str(tmp_path)] if command == "ingest" else []
    assert run_command(["fleet", command, address.format(silent), *more]) == 2
    assert time.monotonic() - begin < 60  # the clients themselves retry for 15 minutes
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "no answer within 1.5 s" in told.err


@pytest.mark.parametrize(
    ("client", "said"),
    [
        ("import os; os.abort()", "its client ended by -6"),
        ("import sys; sys.exit('noise\\n' * 50 + 'no credentials ' + 'x' * 9999)", "no credentials xxx"),
    ],
    ids=["abort", "noise"],
)
def test_a_client_that_fails_is_one_error(client, said, monkeypatch):
    monkeypatch.setattr(lake_module, "helper_command", lambda *_: [sys.executable, "-I", "-S", "-c", client])
    with pytest.raises(ConfigError, match=said) as caught:
        open_lake("abfs://container@account/lake")
    assert len(str(caught.value)) < 2 * lake_module.LONGEST


def test_a_folder_by_its_address_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(lake_module, "helper_command", None)
    assert open_lake(f"file://{tmp_path}/lake").name.startswith("file://")
