"""The ACL users of docs/security.md, read from there, so that what it says is what is tested."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from redis import Redis

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
ROLES = ("admin", "producer", "node", "viewer")


def documented(heading: str) -> list[str]:
    """Return the `ACL SETUSER` lines below a heading of the document."""
    section = DOCUMENT.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^ACL SETUSER .*", section, re.MULTILINE)


def set_users(client: Redis, lines: list[str]) -> None:
    """Send the server such lines; the password of a role is `ROLE-s3cret`."""
    version: Any = client.info("server")
    # As the document says, it has to be left out there.
    unknown = " +client|setinfo" if version["redis_version"].startswith("7.0.") else ""
    for line in lines:
        told: Any = re.sub(r">([A-Z]+)_PASSWORD", lambda m: f">{m[1].lower()}-s3cret", line)
        told = told.replace(unknown, "")
        client.execute_command(*told.split())


def url_of(role: str, url: str) -> str:
    """Return the url of a server (on a unix socket, without a login) as a role uses it:
    a database that has to be selected."""
    return url.replace("unix://", f"unix://{role}:{role}-s3cret@") + "?db=1"


def refused(admin: Redis) -> list[str]:
    """Return what the server has refused, as `user: reason object`."""
    entries: Any = admin.acl_log()
    return sorted({f"{e['username']}: {e['reason']} {e['object']}" for e in map(_text, entries)})


def _text(entry: dict[Any, Any]) -> dict[str, str]:
    def text(value: object) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    return {text(name): text(value) for name, value in entry.items()}
