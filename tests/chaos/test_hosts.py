"""Hosts reach each other until a cable is pulled, and leave nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.hosts import Hosts, NoHostsError

ANSWERS = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]))
except OSError:
    sys.exit(1)
"""


def namespaces() -> list[str]:
    return [p.name for p in Path("/run/netns").glob(f"farpool-chaos-{os.getpid()}-*")]


@pytest.mark.usefixtures("processes")
def test_a_cable_is_pulled_and_plugged_in() -> None:
    here = Path("/proc/thread-self/ns/net")
    before = here.readlink() if here.exists() else None
    try:
        with Hosts(2) as hosts, socket.create_server((hosts.address(0), 0)) as server:
            port = str(server.getsockname()[1])

            def answers(patience: str) -> bool:
                ask = [sys.executable, "-c", ANSWERS, hosts.address(0), port, patience]
                return subprocess.run([*hosts.command(1), *ask]).returncode == 0

            assert answers("20")
            hosts.cut(1)
            assert not answers("0.3")
            hosts.heal(1)
            assert answers("20")
            assert here.readlink() != before
    except NoHostsError as error:
        pytest.skip(str(error))
    assert here.readlink() == before
    assert namespaces() == []


def test_without_the_right_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NoHostsError, match="takes root on Linux"), Hosts(1):
        pass
    assert namespaces() == []
