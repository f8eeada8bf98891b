"""What an error means is the same for producers and nodes."""

from __future__ import annotations

import contextlib

import pytest
from redis import exceptions

from farpool.producer.session.outage import Outage
from farpool.shared.redis.connection import NoHandshakeError
from farpool.shared.redis.trouble import Trouble, classify
from farpool.worker.backoff import Backoff

MEANINGS = [
    (exceptions.ConnectionError("closed"), Trouble.AWAY),
    (exceptions.BusyLoadingError("LOADING"), Trouble.AWAY),
    (exceptions.TimeoutError("slow"), Trouble.AWAY),
    (exceptions.ReadOnlyError("READONLY"), Trouble.AWAY),
    (exceptions.MasterDownError("MASTERDOWN"), Trouble.AWAY),
    (NoHandshakeError("no answer"), Trouble.AWAY),
    (OSError("unreachable"), Trouble.AWAY),
    (exceptions.ResponseError("MISCONF cannot save"), Trouble.AWAY),
    (exceptions.ResponseError("Command # 1 of pipeline caused error: UNBLOCKED x"), Trouble.AWAY),
    (exceptions.ResponseError("BUSY a script runs"), Trouble.AWAY),
    (exceptions.OutOfMemoryError("OOM"), Trouble.FULL),
    (exceptions.AuthenticationError("WRONGPASS"), Trouble.LOGIN),
    (exceptions.NoPermissionError("NOPERM"), Trouble.REFUSED),
    (exceptions.ResponseError("ACL failure in script: x"), Trouble.REFUSED),
    (exceptions.ResponseError("The user executing the script can't run x"), Trouble.REFUSED),
    (exceptions.ResponseError("WRONGTYPE not a list"), Trouble.BUG),
]


@pytest.mark.parametrize(("error", "meaning"), MEANINGS, ids=lambda case: str(case))
def test_what_an_error_means(error: Exception, meaning: Trouble) -> None:
    assert classify(error) is meaning


@pytest.mark.parametrize(("error", "meaning"), MEANINGS, ids=lambda case: str(case))
def test_who_tries_again(error: Exception, meaning: Trouble) -> None:
    def fail() -> None:
        raise error

    passes = meaning in (Trouble.AWAY, Trouble.FULL)
    refuses = contextlib.nullcontext() if passes else pytest.raises(type(error))
    with refuses, Outage().retrying(0.0):
        fail()
    # A node's login and its keys may be mended while it waits.
    with pytest.raises(type(error)) if meaning is Trouble.REFUSED else contextlib.nullcontext():
        Backoff(10).note(error)
