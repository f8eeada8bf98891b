"""What is kept once for all chunks of a call, which only refer to it: large functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from farpool.shared import current_job, keys, signing
from farpool.shared.errors import PayloadError, SignatureError


@dataclass(frozen=True)
class InFile:
    """Kept in a file, for processes of the same machine."""

    path: str

    def read(self) -> bytes:
        """Return what is kept.

        Raises:
            PayloadError: it is there no more, because its call has ended.
        """
        try:
            return Path(self.path).read_bytes()
        except FileNotFoundError:
            raise _gone() from None


@dataclass(frozen=True)
class InSession:
    """Kept in the session's hash on the server, for the nodes."""

    session: str
    field: str
    digest: bytes = b""
    """Of what is kept, if there is a secret; whoever refers to it is signed."""

    def read(self) -> bytes:
        """Return what is kept; only in a task.

        Raises:
            PayloadError: it is there no more, because its call has ended.
            SignatureError: it is not what was put there.
            RedisError: the server did not answer.
        """
        found = current_job.client().hget(keys.session(self.session), self.field)
        if found is None:
            raise _gone()
        data = cast(bytes, found)
        if self.digest and self.digest != signing.digest(data):
            raise SignatureError(
                "the function of the call was altered on the server: it is refused"
            )
        return data


Stored = InFile | InSession


def _gone() -> PayloadError:
    return PayloadError("the function of the call is kept no more, because the call has ended")
