"""Captured output: whole lines to the sink, everything else to the terminal."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farpool.shared.child.capture import Capture


class Terminal(io.TextIOWrapper):
    """Stands for the terminal that a process has."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding="utf-8", write_through=True)

    @property
    def shown(self) -> str:
        return self.bytes.getvalue().decode()


@contextlib.contextmanager
def installed() -> Iterator[tuple[Capture, Terminal, Terminal]]:
    """Install a capture over two terminals in place of stdout and stderr."""
    out, err = Terminal(), Terminal()
    # Not in a fixture: pytest sets the streams anew between a test's setup and its call.
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        capture = Capture()
        capture.install()
        yield capture, out, err


def test_output_goes_to_the_terminal_unless_there_is_a_sink() -> None:
    lines: list[str] = []
    with installed() as (capture, out, err):
        print("before")
        capture.start(lines.append)
        print("during")
        print("an error", file=sys.stderr)
        capture.stop()
        print("after")
        sys.stderr.writelines(["one ", "two"])
    assert "".join(lines) == "during\nan error\n"
    assert out.shown == "before\nafter\n"
    assert err.shown == "one two"


@given(st.lists(st.text("ab\nü", max_size=5)))
def test_nothing_is_lost_and_only_whole_lines_are_sent(texts: list[str]) -> None:
    lines: list[str] = []
    with installed() as (capture, out, _):
        capture.start(lines.append)
        written = [sys.stdout.write(text) for text in texts]
        capture.stop()
    assert written == list(map(len, texts))
    assert all(line.endswith("\n") for line in lines)
    text = "".join(texts)
    assert "".join(lines) == (text if text.endswith("\n") or not text else text + "\n")
    assert out.shown == ""


def test_a_line_without_an_end_is_sent_with_its_task_and_not_the_next() -> None:
    first: list[str] = []
    second: list[str] = []
    with installed() as (capture, _, _):
        capture.start(first.append)
        print("half a line", end="")
        assert first == []
        capture.stop()
        capture.start(second.append)
        print("another")
        capture.stop()
    assert (first, second) == (["half a line\n"], ["another\n"])


def test_stop_without_start_does_nothing() -> None:
    with installed() as (capture, out, _):
        capture.stop()
        print("shown")
    assert out.shown == "shown\n"


def test_threads_of_a_task_lose_nothing() -> None:
    lines: list[str] = []

    def chatter(letter: str) -> None:
        for _ in range(8000):
            print(letter)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with installed() as (capture, _, _):
            capture.start(lines.append)
            threads = [threading.Thread(target=chatter, args=(letter,)) for letter in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            capture.stop()
    finally:
        sys.setswitchinterval(interval)
    text = "".join(lines)
    assert {letter: text.count(letter) for letter in "abcd"} == dict.fromkeys("abcd", 8000)


def test_a_captured_stream_can_do_what_tasks_expect_of_one() -> None:
    lines: list[str] = []
    with installed() as (capture, out, err):
        assert sys.stdout.writable()
        assert not sys.stdout.isatty()
        assert sys.stdout.encoding == "utf-8"
        assert sys.stdout.errors == "strict"
        sys.stdout.buffer.write(b"bytes\n")
        sys.stdout.flush()
        assert not sys.stdout.closed
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        assert sys.stderr.newlines is None
        for sink in (None, lines.append):
            if sink is not None:
                capture.start(sink)
            with pytest.raises(TypeError, match="must be str, not int"):
                sys.stdout.write(5)  # type: ignore[arg-type]
            with sys.stderr:
                pass
            sys.stderr.close()
            print("goes on", file=sys.stderr)
        capture.stop()
    assert lines == ["goes on\n"]
    assert err.shown == "goes on\n"
    assert out.shown == "bytes\n"


def test_a_captured_stream_has_the_descriptor_of_its_terminal() -> None:
    with open("/dev/null", "w") as null, contextlib.redirect_stdout(null):
        Capture().install()
        assert sys.stdout.fileno() == null.fileno()
        assert (sys.stdout.name, sys.stdout.mode) == (null.name, null.mode)
