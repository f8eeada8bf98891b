"""Signatures of pickled jobs, functions and results, made with a shared secret.

Unpickling runs code. So without a secret, whoever can write to the server can run code on every
node. With one, only data of its holders is unpickled, and only for its purpose: a signature also
covers the kind of data and its id.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from farpool.shared.errors import ConfigError, SignatureError
from farpool.shared.pickling import outcome

SECRET_VARIABLE = "FARPOOL_SECRET"
FILE_VARIABLE = "FARPOOL_SECRET_FILE"
MINIMUM_CHARACTERS = 16

JOB_FIELD = "farpool_signature"
"""Field of a job's hash: the signature of its data and its `COVERED_FIELDS`."""
RESULT_FIELD = "farpool_result_signature"
"""Field of a job's hash: the signature of its latest result in RQ's stream."""
COVERED_FIELDS = (
    "farpool", "success_callback_name", "failure_callback_name", "stopped_callback_name",
    "webhooks",
)  # fmt: skip
"""Fields of a job's hash that its signature covers besides the data: farpool's tag, and the
callbacks that RQ's code would call."""

Kind = Literal[b"sealed", b"failure", b"retry"]
"""An outcome; a traceback, encoded as in RQ's stream of results; a job's last `Retry`, pickled."""
_SEALED = b"S"
_SIZE = 32
_BLOCK = 64


class Key:
    """Makes HMAC-SHA256 codes (RFC 2104), twice as fast as copies of `hmac.new(key)`.

    Args:
        secret: of any length.
    """

    def __init__(self, secret: bytes) -> None:
        block = secret if len(secret) <= _BLOCK else hashlib.sha256(secret).digest()
        block = block.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def code(self, head: bytes, data: bytes) -> bytes:
        """Return the code (32 bytes) of `head + data`."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(head)
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()


class Signer:
    """Signs with the first key, and accepts signatures of all keys.

    Args:
        keys: the secrets, of any length.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.count = len(keys)
        self._keys = [Key(key) for key in keys]
        self._sign = self._keys[0].code

    def _accepts(self, signature: bytes | None, head: bytes, data: bytes) -> bool:
        if signature is not None:
            for key in self._keys:
                if hmac.compare_digest(key.code(head, data), signature):
                    return True
        return False

    def sign(self, kind: Kind, job_id: str, data: bytes) -> bytes:
        """Return the signature of one kind of data of a job."""
        return self._sign(_head(kind, job_id), data)

    def seal(self, name: str, data: bytes) -> bytes:
        """Return bytes with their signature under this name."""
        return b"".join((_SEALED, self._sign(_head(b"sealed", name), data), data))

    def open(self, name: str, sealed: bytes) -> bytes:
        """Return the bytes that `seal` was given.

        Raises:
            SignatureError: no holder of the secret sealed them under this name.
        """
        signature = self.signature_of(sealed) if sealed[:1] == _SEALED else None
        data = sealed[1 + _SIZE :]
        if not self._accepts(signature, _head(b"sealed", name), data):
            raise SignatureError(refusal(name, signed=signature is not None))
        return data

    def sign_job(self, job_id: str, tag: str, data: bytes) -> bytes:
        """Return the signature of a job without callbacks."""
        return self._sign(_job(job_id, (tag.encode(),)), data)

    def check_job(
        self, job_id: str, signature: bytes | None, covered: Sequence[bytes | None], data: bytes
    ) -> None:
        """Check the signature of a job.

        Args:
            job_id: its id.
            signature: the signature in its hash, if any.
            covered: the values of the COVERED_FIELDS, None for missing ones.
            data: its data, decompressed.

        Raises:
            SignatureError: no holder of the secret signed it.
        """
        if not self._accepts(signature, _job(job_id, covered), data):
            raise SignatureError(refusal(f"job {job_id}", signed=signature is not None))

    def sign_covered(self, job_id: str, covered: Sequence[bytes | None], data: bytes) -> bytes:
        """Return the signature that `check_job` expects."""
        return self._sign(_job(job_id, covered), data)

    @staticmethod
    def signature_of(sealed: bytes) -> bytes:
        """Return the signature in sealed bytes."""
        return sealed[1 : 1 + _SIZE]

    def check_record(
        self, job_id: str, fields: Mapping[bytes, bytes], signature: bytes | None
    ) -> None:
        """Check the signature of an entry in RQ's stream of a job's results.

        Raises:
            SignatureError: no holder of the secret signed it.
        """
        signed = signature is not None
        failed, returned = fields.get(b"exc_string"), fields.get(b"return_value")
        # RQ's Result reads both fields, whatever its type is.
        match fields.get(b"type"):
            case b"1" if failed is None:
                head, data = _head(b"sealed", job_id), _outcome(returned)
            case b"5" if failed is None:
                head, data = _head(b"retry", job_id), _decoded(returned)
            case b"2" if returned is None:
                head, data = _head(b"failure", job_id), failed or b""
            case _:
                head, data, signature = b"", b"", None
        if not self._accepts(signature, head, data):
            raise SignatureError(refusal(f"the result of job {job_id}", signed=signed))


def _outcome(value: bytes | None) -> bytes:
    return outcome.NONE if value is None else outcome.RESULT + _decoded(value)


def _decoded(value: bytes | None) -> bytes:
    try:
        return base64.b64decode(value or b"")
    except ValueError:
        return b""


def refusal(what: str, *, signed: bool) -> str:
    """Return the message for refused data: the reason, and the remedy."""
    why = "was signed with another secret, or altered" if signed else "is not signed"
    return (
        f"{what} {why}: it is refused; give whoever wrote it the same secret "
        f"({SECRET_VARIABLE} or {FILE_VARIABLE})"
    )


def unsealed(data: bytes) -> bytes:
    """Return the bytes that `Signer.seal` was given, unchecked, for readers without a secret."""
    return data[1 + _SIZE :] if data[:1] == _SEALED else data


def _head(kind: bytes, job_id: str) -> bytes:
    """Return the prefix of signed bytes, so that their signature holds for one purpose only."""
    return kind + _part(job_id.encode())


def _job(job_id: str, covered: Sequence[bytes | None]) -> bytes:
    # RQ's code reads the callbacks of every job; those of farpool's own never have any.
    if len(covered) > 1 and any(covered[1:]):
        return _head(b"rq", job_id) + b"".join(_part(value or b"") for value in covered)
    return _head(b"job", job_id) + _part(covered[0] or b"")


def _part(data: bytes) -> bytes:
    # The length goes first, so that different lists of parts never give the same bytes.
    return b" %d %b" % (len(data), data)


def digest(data: bytes) -> bytes:
    """Return a digest that stands for bytes within signed data."""
    return hashlib.sha256(data).digest()


_kept: Signer | None = None


def keep() -> None:
    """Keep the current secret in this process, whatever its tasks do to the environment."""
    global _kept
    # Raised again for the first caller that needs the signer.
    with contextlib.suppress(ConfigError):
        _kept = from_environment()


def from_environment() -> Signer | None:
    """Return the signer of FARPOOL_SECRET or FARPOOL_SECRET_FILE; None if neither is set.

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
        raise ConfigError(f"{where} holds no secret; write one into it, or unset the variable")
    if any(len(word) < MINIMUM_CHARACTERS for word in words):
        raise ConfigError(
            f"a secret in {where} has fewer than {MINIMUM_CHARACTERS} characters; make one with: "
            'python -c "import secrets; print(secrets.token_hex(32))"'
        )
    return words
