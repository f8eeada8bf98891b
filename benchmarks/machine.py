"""Describes the machine, and measures the memory and time that processes use."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from redis import Redis


def describe(client: Redis) -> str:
    """Describe the machine, the interpreter and the server in one line."""
    info = client.info("server")
    name = info.get("server_name", "redis")
    server = f"{name} {info.get(f'{name}_version', info['redis_version'])}"
    kernel = ".".join(platform.release().split(".")[:2])
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {kernel}, "
        f"Python {platform.python_version()}, {server}, rq {version('rq')}"
    )


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == "model name"), "?")


def memory(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    listed = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    return int(listed.stdout)


def processor_seconds(session: int) -> float:
    """Return the processor time that the processes of a session have used (Linux only).

    Args:
        session: process id of the session's leader.
    """
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
