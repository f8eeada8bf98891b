"""Ctrl-C at bad moments."""

from __future__ import annotations

import _thread
import gc
import signal
import sys
import threading

import pytest

from farpool import Pool
from farpool.producer.session import interrupts
from farpool.shared.redis.connection import connect
from tests.support import tasks


class Slow:
    """In a cycle, so that the collector finalizes it; Ctrl-C comes meanwhile."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_a_finalizer_swallowed_is_raised_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    interrupts.insist()
    Slow()
    gc.collect()
    with pytest.raises(KeyboardInterrupt):
        threading.Event().wait(30)


def test_other_errors_of_finalizers_are_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: told.append(ignored.exc_type))
    monkeypatch.setattr(_thread, "start_new_thread", None)
    interrupts.insist()

    class Broken:
        def __del__(self) -> None:
            raise ValueError

    Broken()
    gc.collect()
    assert told == [ValueError]


def test_a_closed_connection_is_not_left_to_the_collector(url: str) -> None:
    gc.collect()
    connect(url).close()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kinds = {type(each).__name__ for each in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not {kind for kind in kinds if "Parser" in kind or "Connection" in kind}


def test_a_caller_enters_no_lock_where_an_interrupt_would_leave_it_taken(
    where: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []
    enter = threading.Condition.__enter__

    def entering(condition: threading.Condition) -> bool:
        if threading.get_ident() == threading.main_thread().ident:
            frame = sys._getframe(1)
            while frame.f_back and frame.f_code.co_filename == threading.__file__:
                frame = frame.f_back
            entered.append(frame.f_code.co_filename)
        return enter(condition)

    with Pool(2, url=where) as pool:
        monkeypatch.setattr(threading.Condition, "__enter__", entering)
        result = pool.apply_async(tasks.square, (3,))
        assert result.get(30) == 9
        assert pool.map(tasks.square, range(5000), 1) == [n * n for n in range(5000)]
        assert list(pool.imap(tasks.square, range(50))) == [n * n for n in range(50)]
        assert pool.apply_async(tasks.square, (3,)).cancel() in (True, False)
        monkeypatch.undo()
    assert [file for file in entered if "producer" in file and "interrupts" not in file] == []
