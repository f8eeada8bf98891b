"""Signatures under what is unpickled: jobs, functions and results, made with a shared secret.

Without a secret whoever can write to the server can run code on every node, because whoever may
choose what is unpickled may run code. With one, only what a holder of the secret wrote is
unpickled, and only as what it was written for: a signature covers the id as well.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import hmac
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from farpool.shared import outcome
from farpool.shared.errors import ConfigError, SignatureError

SECRET_VARIABLE = "FARPOOL_SECRET"
FILE_VARIABLE = "FARPOOL_SECRET_FILE"
MINIMUM_CHARACTERS = 16

JOB_FIELD = "farpool_signature"
"""Field of a job's hash: the signature of its data, and of what is called around it."""
RESULT_FIELD = "farpool_result_signature"
"""Field of a job's hash: the signature of its latest result in RQ's stream."""
COVERED_FIELDS = (
    "farpool", "success_callback_name", "failure_callback_name", "stopped_callback_name",
    "webhooks",
)  # fmt: skip
"""Fields of a job's hash that its signature covers besides the data: our tag, and what else RQ's
code would call."""

_RECORD_KINDS = {b"1": b"sealed", b"2": b"failure"}
"""What is signed of an entry in RQ's stream of results, by its type: successful, failed."""
_SEALED = b"S"
_SIZE = 32
_INLINE_BYTES = 1 << 16
_LENGTHS = [struct.Struct(f"<{count}Q") for count in range(8)]


class Signer:
    """Signs with the first key, and accepts what any of the keys has signed.

    Args:
        keys: the secrets, of any length.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.count = len(keys)
        # Copying one that knows its key takes half the time of a new one.
        self._blank = [hmac.new(key, digestmod="sha256") for key in keys]

    def sign(self, kind: bytes, parts: Sequence[bytes]) -> bytes:
        """Return the signature (32 bytes) of byte strings that together are a `kind` of thing."""
        return _digest(self._blank[0], kind, parts)

    def accepts(self, signature: bytes | None, kind: bytes, parts: Sequence[bytes]) -> bool:
        """Return whether a holder of one of the keys has signed this."""
        if signature is not None:
            for blank in self._blank:
                if hmac.compare_digest(_digest(blank, kind, parts), signature):
                    return True
        return False

    def seal(self, name: str, data: bytes) -> bytes:
        """Return bytes with their signature as what goes by this name."""
        return b"".join((_SEALED, self.sign_outcome(name, data), data))

    def open(self, name: str, sealed: bytes) -> bytes:
        """Return what `seal` was given.

        Raises:
            SignatureError: nobody with the secret has sealed it under this name.
        """
        signature, data = self.signature_of(sealed), sealed[1 + _SIZE :]
        parts = (name.encode(), data)
        if sealed[:1] != _SEALED or not self.accepts(signature, b"sealed", parts):
            raise SignatureError(refusal(name, signed=sealed[:1] == _SEALED))
        return data

    def sign_job(self, job_id: str, tag: str, data: bytes) -> bytes:
        """Return the signature of a job around which nothing else is called."""
        return self.sign(b"job", (job_id.encode(), tag.encode(), data))

    def check_job(
        self, job_id: str, signature: bytes | None, covered: Sequence[bytes | None], data: bytes
    ) -> None:
        """Make sure that a job is as its producer wrote it.

        Args:
            covered: the values of the COVERED_FIELDS, as far as there are any.
            data: its data, not compressed.

        Raises:
            SignatureError: it is not.
        """
        if not self.accepts(signature, *_job(job_id, covered, data)):
            raise SignatureError(refusal(f"job {job_id}", signed=signature is not None))

    def sign_covered(self, job_id: str, covered: Sequence[bytes | None], data: bytes) -> bytes:
        """Return the signature of a job as `check_job` looks at it."""
        return self.sign(*_job(job_id, covered, data))

    def sign_failure(self, job_id: str, record: bytes) -> bytes:
        """Return the signature of a failure's traceback, encoded as in RQ's stream of results."""
        return self.sign(b"failure", (job_id.encode(), record))

    @staticmethod
    def signature_of(sealed: bytes) -> bytes:
        """Return the signature in what `seal` returned."""
        return sealed[1 : 1 + _SIZE]

    def sign_outcome(self, job_id: str, data: bytes) -> bytes:
        """Return the signature that `seal` gives a job's outcome."""
        return self.sign(b"sealed", (job_id.encode(), data))

    def check_record(
        self, job_id: str, fields: Mapping[bytes, bytes], signature: bytes | None
    ) -> None:
        """Make sure that an entry in RQ's stream of a job's results is as a node wrote it.

        Raises:
            SignatureError: it is not.
        """
        kind = _RECORD_KINDS.get(fields.get(b"type", b""), b"")
        failed, returned = fields.get(b"exc_string"), fields.get(b"return_value")
        if kind == b"failure":
            other, data = returned, failed or b""
        else:
            other, data = failed, _outcome(returned)
        # RQ's Result reads both fields, whatever its type is.
        if other is not None or not self.accepts(signature, kind, (job_id.encode(), data)):
            what = f"the result of job {job_id}"
            raise SignatureError(refusal(what, signed=signature is not None))


def _outcome(value: bytes | None) -> bytes:
    if value is None:
        return outcome.NONE
    try:
        return outcome.RESULT + base64.b64decode(value)
    except ValueError:
        return b""


def refusal(what: str, *, signed: bool) -> str:
    """Say why something is refused, and what to do."""
    if signed:
        return f"{what} was altered, or signed with another secret: it is refused"
    return (
        f"{what} is not signed: it is refused; give whoever wrote it the same secret "
        f"({SECRET_VARIABLE} or {FILE_VARIABLE})"
    )


def unsealed(data: bytes) -> bytes:
    """Return what `Signer.seal` was given, for those who have no secret and check nothing."""
    return data[1 + _SIZE :] if data[:1] == _SEALED else data


def _job(
    job_id: str, covered: Sequence[bytes | None], data: bytes
) -> tuple[bytes, tuple[bytes, ...]]:
    # RQ's code looks at the callbacks of our own jobs too, which never have any.
    if any(covered[1:]):
        return b"rq", (job_id.encode(), *(value or b"" for value in covered), data)
    return b"job", (job_id.encode(), covered[0] or b"", data)


def _digest(blank: hmac.HMAC, kind: bytes, parts: Sequence[bytes]) -> bytes:
    # With its length before each part, no two lists of parts read the same.
    head = _LENGTHS[len(parts)].pack(*map(len, parts))
    made = blank.copy()
    if len(parts[-1]) < _INLINE_BYTES:
        made.update(b"".join((kind, b" ", head, *parts)))
    else:
        made.update(b"".join((kind, b" ", head, *parts[:-1])))
        made.update(parts[-1])
    return made.digest()


def digest(data: bytes) -> bytes:
    """Return what stands for bytes in something that is signed itself."""
    return hashlib.sha256(data).digest()


_kept: Signer | None = None


def keep() -> None:
    """Go on with the secret of now in this process, whatever its tasks do to the environment."""
    global _kept
    # What cannot be used is told to who needs it.
    with contextlib.suppress(ConfigError):
        _kept = from_environment()


def from_environment() -> Signer | None:
    """Return the signer that FARPOOL_SECRET or FARPOOL_SECRET_FILE asks for; None without them.

    Raises:
        ConfigError: the secret cannot be used, or the file cannot be read.
    """
    return _kept or _signer(os.environ.get(SECRET_VARIABLE, ""), os.environ.get(FILE_VARIABLE, ""))


@functools.lru_cache(maxsize=4)
def _signer(secret: str, file: str) -> Signer | None:
    if secret and file:
        raise ConfigError(f"give {SECRET_VARIABLE} or {FILE_VARIABLE}, not both")
    if file:
        try:
            secret = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the secret's file: {error}") from None
    elif not secret:
        return None
    return Signer([key.encode() for key in _keys(secret.split(), file or SECRET_VARIABLE)])


def _keys(words: Sequence[str], where: str) -> Iterable[str]:
    if not words:
        raise ConfigError(f"there is no secret in {where}")
    if any(len(word) < MINIMUM_CHARACTERS for word in words):
        raise ConfigError(
            f"a secret in {where} has less than {MINIMUM_CHARACTERS} characters; make one with: "
            'python -c "import secrets; print(secrets.token_hex(32))"'
        )
    return words
