"""What a pool waits for, when it ends amid its feeding."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

from farpool.producer.calls.outstanding import Outstanding
from farpool.producer.calls.sender import Sent
from farpool.shared.errors import FarpoolError
from tests.support.waiting import wait_for


def test_the_end_reaches_what_is_added_meanwhile() -> None:
    outstanding = Outstanding(Mock(shared=False))
    sender: Any = Mock()
    feeder: Any = Mock(sender=sender, finished=False)
    outstanding.feed(feeder)
    outstanding.add("a", Sent(sender, 0, [1]))
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(outstanding.end, FarpoolError("terminated"))
        wait_for(lambda: sender.sink._fail.called)
        # A feeder may have just taken its next items.
        outstanding.add("b", Sent(sender, 1, [2]))
        feeder.finished = True
        outstanding.changed()
        assert ended.result(10) == ["a", "b"]
    assert not outstanding.expects("b")
