"""RQ's Job with signatures: with a secret set, it unpickles only data of its holders."""

from __future__ import annotations

import base64
import io
import pickle
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.job import Job, Retry
from rq.serializers import DefaultSerializer, JSONSerializer, resolve_serializer
from rq.utils import decode_redis_hash

from farpool.shared.errors import FarpoolError, SignatureError
from farpool.shared.pickling import outcome, payload
from farpool.shared.signing import signer

_PLAIN = {
    "builtins": {"bytearray", "complex", "frozenset", "range", "set", "slice"},
    "collections": {"OrderedDict", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "uuid": {"UUID", "SafeUUID"},
}


class UnsignedJobError(SignatureError, NoSuchJobError):
    """No holder of the secret wrote this job; to RQ's code, it does not exist."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _PLAIN.get(module, ()):
            return super().find_class(module, name)
        raise SignatureError(
            f"{module}.{name} is refused because it is not signed: with a secret set, keep plain "
            "data in a job's meta, and read its result with get()"
        )


class PlainSerializer:
    """An RQ serializer that unpickles only plain data: numbers, texts, dates, lists, ..."""

    dumps: ClassVar[Any] = DefaultSerializer.dumps

    @staticmethod
    def loads(data: bytes) -> Any:
        """Unpickle plain data.

        Raises:
            SignatureError: it holds other data.
        """
        return _PlainUnpickler(io.BytesIO(data)).load()


class Guarded:
    """An RQ serializer that lets another one read only signed bytes.

    All other bytes must be plain data, unless the other serializer is RQ's for JSON, which is safe.

    Args:
        trusted: the other serializer, which also writes.
        vouched: bytes with a valid signature.
    """

    def __init__(self, trusted: Any, vouched: bytes | None = None) -> None:
        self.trusted = trusted
        self.written = b""
        """The bytes that `dumps` returned last."""
        self._vouched = vouched

    def dumps(self, value: Any) -> bytes:
        """Write a value."""
        self.written = self.trusted.dumps(value)
        return self.written

    def loads(self, data: bytes) -> Any:
        """Read a value.

        Raises:
            SignatureError: it is neither signed nor plain data.
        """
        safe = data == self._vouched or self.trusted is JSONSerializer
        return (self.trusted if safe else PlainSerializer).loads(data)


def guarded(serializer: Any, vouched: bytes | None = None) -> Guarded:
    """Guard a serializer, in any form that RQ takes; `vouched` replaces that of a guarded one."""
    found: Any = resolve_serializer(serializer)
    if found is PlainSerializer:
        found = DefaultSerializer
    return Guarded(found.trusted if isinstance(found, Guarded) else found, vouched)


class SignedJob(Job):
    """An RQ job that signs itself when it is saved, and checks its signature when it is read.

    Without a secret it behaves as RQ's own.
    """

    _tag = b""

    def __init__(
        self, id: Any = None, connection: Redis | None = None, serializer: Any = None
    ) -> None:
        self._signer = signer.from_environment()
        if self._signer is not None:
            serializer = guarded(serializer)
        super().__init__(id, connection, serializer)

    def restore(self, raw_data: Mapping[Any, Any]) -> None:
        """Take the fields of the job's hash.

        Raises:
            UnsignedJobError: no holder of the secret wrote them.
            NoSuchJobError: they are not those of a job.
        """
        if self._signer is not None:
            fields = decode_redis_hash(dict(raw_data))
            try:
                data = payload.decompress(fields.get("data", b""), checked=False)
                covered = [fields.get(name) for name in signer.COVERED_FIELDS]
                self._signer.check_job(self.id, fields.get(signer.JOB_FIELD), covered, data)
            except FarpoolError as error:
                raise UnsignedJobError(str(error)) from None
            self._tag = fields.get("farpool", b"")
            self.serializer = guarded(self.serializer, data)
        super().restore(raw_data)

    @property
    def _checked_serializer(self) -> Any:
        """The serializer for results with a valid signature."""
        return self.serializer if self._signer is None else guarded(self.serializer).trusted

    @classmethod
    def fetch_many(cls, job_ids: Any, connection: Redis, serializer: Any = None) -> list[Any]:
        """Find jobs by their ids; None for each one that is missing or unsigned."""
        try:
            return super().fetch_many(job_ids, connection, serializer)
        except UnsignedJobError:
            return [cls._fetched(job_id, connection, serializer) for job_id in job_ids]

    @classmethod
    def _fetched(cls, job_id: str, connection: Redis, serializer: Any) -> Any:
        try:
            return cls.fetch(job_id, connection, serializer)
        except NoSuchJobError:
            return None

    def to_dict(self, include_meta: bool = True, include_result: bool = True) -> dict[str, Any]:
        """Return the fields of the job's hash, with their signature."""
        fields: dict[str, Any] = super().to_dict(include_meta, include_result)
        if self._signer is not None:
            callbacks = (str(fields.get(name, "")).encode() for name in signer.COVERED_FIELDS[1:])
            covered = (self._tag, *callbacks)
            fields[signer.JOB_FIELD] = self._signer.sign_covered(self.id, covered, self.data)
            if len(self.data) > payload.most_unchecked(len(fields["data"])):
                fields["data"] = self.data
        return fields

    def _handle_success(self, result_ttl: Any, pipeline: Any, *args: Any, **kwargs: Any) -> None:
        super()._handle_success(result_ttl, pipeline, *args, **kwargs)
        if self._signer is not None:
            # The bytes just written: a second pickle may differ, or fail.
            written: bytes = cast(Guarded, self.serializer).written
            body = outcome.NONE if self._result is None else outcome.RESULT + written
            self._sign_result(pipeline, self._signer.sign(b"sealed", self.id, body))

    def _handle_failure(self, exc_string: str, pipeline: Any, *args: Any, **kwargs: Any) -> None:
        super()._handle_failure(exc_string, pipeline, *args, **kwargs)
        if self._signer is not None:
            record = base64.b64encode(zlib.compress(exc_string.encode()))
            self._sign_result(pipeline, self._signer.sign(b"failure", self.id, record))

    def _sign_retry(self, retry: Retry) -> None:
        """Sign the record that RQ writes if this `Retry`, which the job returned, is its last."""
        if self._signer is not None:
            written = self.serializer.dumps(retry)
            self._sign_result(self.connection, self._signer.sign(b"retry", self.id, written))

    def _sign_result(self, pipeline: Any, signature: bytes) -> None:
        pipeline.hset(self.key, signer.RESULT_FIELD, signature)
