"""The table of a pool's chunks, when the pool ends while it is being filled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

from farpool.producer.calls.call import InFlightChunk
from farpool.producer.calls.in_flight import InFlight
from farpool.shared.errors import FarpoolError
from tests.support.waiting import wait_for


def test_the_end_reaches_chunks_that_are_added_meanwhile() -> None:
    in_flight = InFlight(Mock(shared=False))
    call: Any = Mock(all_sent=False)
    in_flight.feed(call)
    in_flight.add("a", InFlightChunk(call, 0, [1]))
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(in_flight.end, FarpoolError("terminated"))
        wait_for(lambda: call.fail.called)
        # A feeder may have just taken its next items.
        in_flight.add("b", InFlightChunk(call, 1, [2]))
        call.all_sent = True
        in_flight.changed()
        assert ended.result(10) == ["a", "b"]
    assert not in_flight._chunks
