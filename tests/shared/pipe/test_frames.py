"""Frames survive any cut of the byte stream, and what is no frame is refused."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from farpool.shared.errors import PayloadError
from farpool.shared.pipe import frames
from farpool.shared.pipe.frames import Reply, ReplyReader, Task, TaskReader

tokens = st.integers(0, 2**64 - 1)
seconds = st.floats(allow_nan=False)
tasks = st.builds(
    Task,
    token=tokens,
    flags=st.integers(0, 255),
    timeout=seconds,
    job_id=st.text(max_size=50),
    data=st.binary(max_size=300),
)
replies = st.builds(
    Reply,
    kind=st.sampled_from(frames.KINDS),
    token=tokens,
    started=seconds,
    seconds=seconds,
    body=st.binary(max_size=300),
    text=st.binary(max_size=300),
)
cuts = st.lists(st.integers(0, 2000), max_size=30)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Cut a stream at the given places; pieces may be empty."""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


def on_the_wire(task: Task) -> tuple[object, ...]:
    return task.token, task.flags, task.timeout, task.job_id, task.data


@given(st.lists(tasks, max_size=8), cuts)
def test_tasks_survive_any_cut_of_the_stream(sent: list[Task], cuts: list[int]) -> None:
    reader = TaskReader()
    stream = b"".join(itertools.chain(*map(frames.encode_task, sent)))
    read = [task for piece in pieces(stream, cuts) for task in reader.feed(piece)]
    assert list(map(on_the_wire, read)) == list(map(on_the_wire, sent))


@given(st.lists(replies, max_size=8), cuts)
def test_replies_survive_any_cut_of_the_stream(sent: list[Reply], cuts: list[int]) -> None:
    reader = ReplyReader()
    stream = b"".join(itertools.chain(*map(frames.encode_reply, sent)))
    assert [reply for piece in pieces(stream, cuts) for reply in reader.feed(piece)] == sent


@given(st.lists(st.integers(0, 3)))
def test_large_parts_are_not_copied_to_be_joined(kinds: list[int]) -> None:
    large = bytes(frames.LARGE_BYTES)
    parts = [large if kind == 3 else b"x" * kind for kind in kinds]
    joined = frames.joined(parts)
    assert b"".join(joined) == b"".join(parts)
    assert sum(part is large for part in joined) == kinds.count(3)
    assert all(joined)
    assert len(joined) <= 2 * kinds.count(3) + 1


@pytest.mark.parametrize("size", [frames.LARGE_BYTES - 1, frames.LARGE_BYTES, 3_000_000])
def test_payloads_of_any_size_come_whole(size: int) -> None:
    body = random.Random(size).randbytes(size)
    reply = Reply(frames.FAILED, 1, 0.0, 0.0, body, body[1:])
    stream = b"".join(frames.encode_reply(reply)) * 2
    half = len(stream) // 3
    reader = ReplyReader()
    assert [*reader.feed(stream[:half]), *reader.feed(stream[half:])] == [reply, reply]
    task = Task(1, 0, 0.0, "id", body)
    (read,) = TaskReader().feed(b"".join(frames.encode_task(task)))
    assert on_the_wire(read) == on_the_wire(task)


@given(tasks, st.data())
def test_a_part_of_a_task_waits_for_the_rest(task: Task, data: st.DataObject) -> None:
    stream = b"".join(frames.encode_task(task))
    cut = data.draw(st.integers(0, len(stream) - 1))
    reader = TaskReader()
    assert list(reader.feed(stream[:cut])) == []
    assert list(map(on_the_wire, reader.feed(stream[cut:]))) == [on_the_wire(task)]


@given(replies, st.data())
def test_a_part_of_a_reply_waits_for_the_rest(reply: Reply, data: st.DataObject) -> None:
    stream = b"".join(frames.encode_reply(reply))
    cut = data.draw(st.integers(0, len(stream) - 1))
    reader = ReplyReader()
    assert list(reader.feed(stream[:cut])) == []
    assert list(reader.feed(stream[cut:])) == [reply]


@given(st.binary(max_size=400), cuts)
def test_garbage_is_refused_or_waits_for_more(garbage: bytes, cuts: list[int]) -> None:
    for reader in (TaskReader(), ReplyReader()):
        try:
            for piece in pieces(garbage, cuts):
                for frame in reader.feed(piece):
                    assert isinstance(frame, Task | Reply)
        except PayloadError:
            pass


@given(st.lists(replies, max_size=4), st.binary(min_size=1, max_size=400), cuts)
def test_replies_before_garbage_count_and_nothing_after(
    sent: list[Reply], garbage: bytes, cuts: list[int]
) -> None:
    whole = b"".join(itertools.chain(*map(frames.encode_reply, sent)))
    opening = frames.encode_reply(Reply(frames.OK, 1, 0.0, 0.0, b"", b""))[0][:4]
    assume(not garbage.startswith(opening[: len(garbage)]))
    reader = ReplyReader()
    read: list[Reply] = []
    *whole_pieces, last = pieces(whole, cuts)
    for piece in whole_pieces:
        read += reader.feed(piece)
    with pytest.raises(PayloadError):
        read.extend(reader.feed(last + garbage + whole))
    assert read == sent


def test_a_task_whose_id_is_no_text_is_refused() -> None:
    stream = b"".join(frames.encode_task(Task(1, 0, 0.0, "ab", b""))).replace(b"ab", b"\xff\xfe")
    with pytest.raises(PayloadError):
        list(TaskReader().feed(stream))


@pytest.mark.parametrize("kind", [0, frames.KINDS.stop, 255])
def test_a_reply_of_no_known_kind_is_refused(kind: int) -> None:
    stream = b"".join(frames.encode_reply(Reply(kind, 1, 0.0, 0.0, b"", b"")))
    with pytest.raises(PayloadError):
        list(ReplyReader().feed(stream))


def test_sizes_that_no_payload_has_are_refused_at_once() -> None:
    reply = bytearray(b"".join(frames.encode_reply(Reply(frames.OK, 1, math.nan, 0.0, b"", b""))))
    reply[-8:] = (frames.MAX_BYTES + 1).to_bytes(8, "little")
    with pytest.raises(PayloadError):
        list(ReplyReader().feed(bytes(reply)))
    task = bytearray(b"".join(frames.encode_task(Task(1, 0, 0.0, "", b""))))
    task[-8:] = (frames.MAX_BYTES + 1).to_bytes(8, "little")
    with pytest.raises(PayloadError):
        list(TaskReader().feed(bytes(task)))
