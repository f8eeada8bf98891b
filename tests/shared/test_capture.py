"""Captured output: whole lines to the sink, everything else to the terminal."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farpool.shared.capture import Capture


class Terminal:
    """What a process has for its terminal."""

    def __init__(self) -> None:
        self.out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        self.err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)

    @property
    def shown(self) -> tuple[str, str]:
        streams = (self.out.buffer, self.err.buffer)
        out, err = (s.getvalue().decode() for s in streams if isinstance(s, io.BytesIO))
        return out, err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal.out)
        patch.setattr(sys, "stderr", terminal.err)
        yield terminal


@pytest.fixture
def capture(terminal: Terminal) -> Capture:
    capture = Capture()
    capture.install()
    return capture


def test_output_goes_to_the_terminal_unless_there_is_a_sink(
    terminal: Terminal, capture: Capture
) -> None:
    lines: list[str] = []
    print("before")
    capture.start(lines.append)
    print("during")
    print("an error", file=sys.stderr)
    capture.stop()
    print("after")
    sys.stderr.writelines(["one ", "two"])
    assert lines == ["during\n", "an error\n"]
    assert terminal.shown == ("before\nafter\n", "one two")


@given(st.lists(st.text("ab\nü", max_size=5)))
def test_nothing_is_lost_and_only_whole_lines_are_sent(texts: list[str]) -> None:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        terminal = Terminal()
        patch.setattr(sys, "stdout", terminal.out)
        patch.setattr(sys, "stderr", terminal.err)
        capture = Capture()
        capture.install()
        capture.start(lines.append)
        for text in texts:
            assert sys.stdout.write(text) == len(text)
        capture.stop()
    assert all(line.endswith("\n") for line in lines)
    written = "".join(texts)
    sent = "".join(lines)
    assert sent in (written, written + "\n")
    assert terminal.shown == ("", "")


def test_a_line_without_an_end_is_sent_with_its_task_and_not_the_next(capture: Capture) -> None:
    first: list[str] = []
    second: list[str] = []
    capture.start(first.append)
    print("half a line", end="")
    assert first == []
    capture.stop()
    capture.start(second.append)
    print("another")
    capture.stop()
    assert (first, second) == (["half a line\n"], ["another\n"])


def test_stop_without_start_does_nothing(terminal: Terminal, capture: Capture) -> None:
    capture.stop()
    print("shown")
    assert terminal.shown == ("shown\n", "")


def test_threads_of_a_task_lose_nothing(capture: Capture) -> None:
    lines: list[str] = []
    capture.start(lines.append)

    def chatter(letter: str) -> None:
        for _ in range(2000):
            sys.stdout.write(f"{letter}\n")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=chatter, args=(letter,)) for letter in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    capture.stop()
    text = "".join(lines)
    assert {letter: text.count(letter) for letter in "abcd"} == dict.fromkeys("abcd", 2000)


def test_a_captured_stream_can_do_what_tasks_expect_of_one(
    terminal: Terminal, capture: Capture
) -> None:
    assert sys.stdout.writable()
    assert not sys.stdout.readable()
    assert not sys.stdout.closed
    assert not sys.stdout.isatty()
    assert sys.stdout.encoding == "utf-8"
    assert sys.stdout.errors == "strict"
    sys.stdout.buffer.write(b"bytes\n")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.stdout.flush()
    assert terminal.shown == ("bytes\n", "")
