"""One function per parser: takes any bytes, and raises only if the parser has a bug.

None of them unpickles its input, because unpickling runs code by design.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
from collections.abc import Callable, Iterable

from farpool.producer.calls.call import read
from farpool.producer.detached import read_call
from farpool.shared.errors import PayloadError
from farpool.shared.pickling import outcome, payload
from farpool.shared.pipe import frames
from farpool.shared.records import Tag, claim_of
from farpool.shared.redis.viewers import number


def _pieces(data: bytes) -> Iterable[bytes]:
    """Cut bytes in two; the first byte says where."""
    cut = data[0] if data else 0
    return data[1 : 1 + cut], data[1 + cut :]


def replies(data: bytes) -> None:
    """Read replies, which come from a child."""
    reader = frames.ReplyReader()
    read: list[frames.Reply] = []
    with contextlib.suppress(PayloadError):
        for piece in _pieces(data):
            read.extend(reader.feed(piece))
    whole = b"".join(itertools.chain(*map(frames.encode_reply, read)))
    # Compare bytes, because NaN does not equal itself.
    assert data[1:].startswith(whole)


def tasks(data: bytes) -> None:
    """Read tasks, which come from a parent."""
    reader = frames.TaskReader()
    read: list[frames.Task] = []
    with contextlib.suppress(PayloadError):
        for piece in _pieces(data):
            read.extend(reader.feed(piece))
    whole = b"".join(itertools.chain(*map(frames.encode_task, read)))
    assert data[1:].startswith(whole)


def tag(data: bytes) -> None:
    """Read the tag that a producer adds to a job."""
    found = Tag.decode(data)
    assert found == Tag() or Tag.decode(found.encode().encode()) == found


def job(data: bytes) -> None:
    """Read a job as claim.lua returns it."""
    fields = [part or None for part in [*data.split(b"|"), *[b""] * 6][:6]]
    claim = claim_of([b"id", b"x1", b"low", b"", fields])
    assert claim.data == fields[0]


def compressed(data: bytes) -> None:
    """Decompress a call."""
    for each in (data, b"\x78\x9c" + data):
        with contextlib.suppress(PayloadError):
            payload.decompress(each)


def record(data: bytes) -> None:
    """Read the record of a detached call."""
    with contextlib.suppress(PayloadError):
        found = read_call("5e55", data)
        assert found.chunksize > 0 <= found.total


def count(data: bytes) -> None:
    """Read a count in a worker's record."""
    assert number(data.decode("utf-8", "replace")) >= 0


def shapes(data: bytes) -> None:
    """Check the shape of unpickled outcomes and calls, here of values built from the bytes."""
    value = _value(list(data))
    pickled = pickle.dumps(value)
    with contextlib.suppress(PayloadError):
        outcome.error(outcome.ERROR + pickled)
    with contextlib.suppress(PayloadError):
        values, failures, _ = read(outcome.RESULT + pickled, 2)
        assert len(values) == 2
        assert set(failures) <= {0, 1}
    with contextlib.suppress(PayloadError):
        payload.call_of(pickled)


def _value(data: list[int]) -> object:
    """Build a value; each byte says what comes next."""
    kind = data.pop(0) % 10 if data else 0
    several = data.pop(0) % 5 if data and kind > 6 else 0
    match kind:
        case 0 | 1 | 2:
            return (None, True, 0.5)[kind]
        case 3 | 4:
            return len(data) % 4 - kind
        case 5:
            return "text"[: len(data) % 5]
        case 6:
            return b"data"[: len(data) % 5]
        case 7:
            return [_value(data) for _ in range(several)]
        case 8:
            return tuple(_value(data) for _ in range(several))
    return {n: _value(data) for n in range(several)}


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (replies, tasks, tag, job, compressed, record, count, shapes)
}
SEEDS: dict[str, list[bytes]] = {
    "replies": [
        b"\x10" + b"".join(frames.encode_reply(frames.Reply(1, 1, 1.0, 0.5, b"R", b"text"))) * 2
    ],
    "tasks": [b"\x10" + b"".join(frames.encode_task(frames.Task(1, 0, 1.0, "id", b"data"))) * 2],
    "tag": [Tag("5e55", announce=True, chunk=True, limit=1.5).encode().encode()],
    "job": [b"data|180|500|-1|f()|1 5e55 dc 0 0.0"],
    "record": [b'["low", 7, 3, false]'],
}
