"""Following the outcomes of one producer's jobs."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from redis import Redis

from farpool.producer.backends.cluster import show_output
from farpool.producer.results.result import _Bar
from farpool.producer.session.session import Session
from farpool.shared import keys
from farpool.shared.pickling import outcome, payload
from farpool.shared.records import NewJob, Tag
from farpool.shared.redis.connection import connect
from farpool.shared.redis.producers import ProducerBroker
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for


def test_what_a_task_printed_comes_before_its_result(node: NodeProcess, client: Redis) -> None:
    shown: list[str] = []
    session = Session(ProducerBroker(client), on_output=lambda host, pid, text: shown.append(text))
    job = NewJob(
        session.new_id(), payload.dumps(("tests.support.tasks.say", None, ("hello",), {})), "say()"
    )
    tag = Tag(session.id, announce=True, output=True)
    session.enqueue("default", [job], tag, timeout=60)
    # It ends before anyone looks.
    wait_for(lambda: client.exists(keys.done(session.id)))
    [(job_id, found)] = session.wait(0)
    assert (job_id, outcome.result(found)) == (job.id, "hello")
    assert shown == ["hello\n"]


def test_a_wake_up_before_the_first_look_is_seen(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = ProducerBroker(client)
    session = Session(broker, keep=False)
    broker.announce_nothing(session.id)
    seen: list[object] = []
    look = broker.announcements

    def spy(*args: Any) -> list[tuple[str, str, dict[bytes, bytes]]]:
        entries = look(*args)
        seen.extend(entries)
        return entries

    monkeypatch.setattr(broker, "announcements", spy)
    assert session.wait(0.5) == []
    assert len(seen) == 1
    broker.forget_session(session.id)


def test_output_does_not_run_into_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    with _Bar(total=2, file=terminal):
        before = len(terminal.getvalue())
        show_output("host", 7, "said\n")
    cleared, line, *_ = terminal.getvalue()[before:].lstrip("\r").split("\r")
    assert (cleared.strip(), line) == ("", "[host 7] said\n")


def test_output_that_cannot_be_shown_costs_no_result(node: NodeProcess, url: str) -> None:
    shown: list[int] = []

    def show(host: str, pid: int, text: str) -> None:
        shown.append(pid)
        raise BrokenPipeError

    broker = ProducerBroker(connect(url))
    session = Session(broker, keep=False, on_output=show)
    data = payload.dumps(("tests.support.tasks.say", None, ("hello",), {}))
    jobs = [NewJob(session.new_id(), data, "say()") for _ in range(2)]
    tag = Tag(session.id, announce=True, output=True)
    found: list[str] = []
    for job in jobs:
        session.enqueue("default", [job], tag, timeout=60)
        while job.id not in found:
            found += [job_id for job_id, _ in session.wait(5)]
    assert len(shown) == 1
    broker.forget_session(session.id)
    broker.client.close()
