"""Simulated hosts with their own addresses on this machine: network namespaces on a bridge.

This needs Linux, root and iproute2. Each set of hosts has a private network, so runs do not collide
and the machine's own network stays as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Self

_PREFIX = "farpool-chaos"
_HERE = Path("/proc/thread-self/ns/net")
_NAMED = Path("/run/netns")


class NoHostsError(Exception):
    """Hosts cannot be made here; the message gives the reason."""


class Hosts:
    """Hosts 0, 1, ... that see each other until a cable is pulled.

    The thread that enters this context moves to host 0, and so do the processes that it starts. It
    returns when the context ends.

    Args:
        count: number of hosts.

    Raises:
        NoHostsError: on entering, if hosts cannot be made; nothing is left behind.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._prefix = f"{_PREFIX}-{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self._home = -1

    def __enter__(self) -> Self:
        if sys.platform != "linux" or os.geteuid() != 0:
            raise NoHostsError("making network namespaces takes root on Linux")
        _remove_abandoned()
        try:
            self._build()
            self._home = os.open(_HERE, os.O_RDONLY)
            self._move_to(_NAMED / self._name(0))
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            said = getattr(error, "stderr", None)
            reason = said.strip().splitlines()[0] if said and said.strip() else error
            raise NoHostsError(f"no network namespaces: {reason}") from None
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        _ip("netns", "add", self._switch)
        bridge = ("bridge", "forward_delay", "0", "stp_state", "0")
        _ip("-n", self._switch, "link", "add", "br0", "type", *bridge)
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for host in range(self._count):
            name, plug = self._name(host), f"plug{host}"
            _ip("netns", "add", name)
            ends = (plug, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self._switch, "link", "add", *ends)
            _ip("-n", self._switch, "link", "set", plug, "master", "br0", "up")
            _ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")
        # Some containers may make namespaces but not run anything in them.
        _ip("netns", "exec", self._name(0), "true")

    def __exit__(self, *error: object) -> None:
        if self._home >= 0:
            _set_namespace(self._home)
            os.close(self._home)
            self._home = -1
        for name in [self._switch, *map(self._name, range(self._count))]:
            if (_NAMED / name).exists():
                _ip("netns", "delete", name)

    def _name(self, host: int) -> str:
        return f"{self._prefix}-{host}"

    def _move_to(self, namespace: Path) -> None:
        descriptor = os.open(namespace, os.O_RDONLY)
        try:
            _set_namespace(descriptor)
        finally:
            os.close(descriptor)

    def address(self, host: int) -> str:
        """Return the address of a host."""
        return f"10.77.0.{host + 1}"

    def command(self, host: int) -> list[str]:
        """Return the prefix that makes a command line run on a host, with the same pid."""
        return ["ip", "netns", "exec", self._name(host)]

    def cut(self, host: int) -> None:
        """Pull the cable of a host: packets vanish both ways, and connections notice nothing."""
        _ip("-n", self._switch, "link", "set", f"plug{host}", "down")

    def heal(self, host: int) -> None:
        """Plug the cable of a host in, if it is not already."""
        _ip("-n", self._switch, "link", "set", f"plug{host}", "up")


def _remove_abandoned() -> None:
    """Remove the hosts of runs that were killed."""
    for path in _NAMED.glob(f"{_PREFIX}-*"):
        owner = path.name.removeprefix(f"{_PREFIX}-").partition("-")[0]
        if not Path("/proc", owner).exists():
            # Another run may be doing the same.
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", path.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _set_namespace(descriptor: int) -> None:
    # os.setns came with Python 3.12.
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
