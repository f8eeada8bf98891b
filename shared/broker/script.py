"""A Lua script that runs on a server whether or not that knows it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError


class Script:
    """Called by its hash, and sent whole to a server that has forgotten it.

    Args:
        client: the server.
        text: its source.
    """

    def __init__(self, client: Redis, text: str) -> None:
        self._client = client
        self._text = text
        self.sha = hashlib.sha1(text.encode()).hexdigest()

    def __call__(self, names: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run it with these keys and arguments; returns the server's reply."""
        try:
            return self._client.evalsha(self.sha, len(names), *names, *args)
        except NoScriptError:
            # If it were loaded first, it could be forgotten again before it is called.
            return self._client.eval(self._text, len(names), *names, *args)
