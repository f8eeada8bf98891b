"""Ctrl-C at bad moments."""

from __future__ import annotations

import _thread
import gc
import signal
import sys
import threading

import pytest

from farpool.producer import interrupts


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
