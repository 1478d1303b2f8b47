"""Two machines in one: network namespaces that are joined by a cable of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.231.77.1", "10.231.77.2")


def why_not() -> str:
    """Return why there can be no namespaces here; "" where there can."""
    if shutil.which("ip") is None:
        return "no `ip` here (apt-get install iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"tw-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"`ip netns add` is not permitted: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


@contextmanager
def two_machines() -> Iterator[tuple[str, str]]:
    """Make two namespaces that reach each other by `ADDRESSES` on the interface `tw0` and nothing else."""
    pid = os.getpid()
    names = (f"tw-a-{pid}", f"tw-b-{pid}")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", f"twa{pid}", "type", "veth", "peer", "name", f"twb{pid}")
        for name, link, address in zip(names, (f"twa{pid}", f"twb{pid}"), ADDRESSES, strict=True):
            _ip("link", "set", link, "netns", name)
            _ip("-n", name, "link", "set", link, "name", "tw0")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "tw0")
            _ip("-n", name, "link", "set", "tw0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)
