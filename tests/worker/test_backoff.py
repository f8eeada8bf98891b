"""How long a node leaves a server alone that does not answer."""

from __future__ import annotations

import time

import pytest
from redis.exceptions import ConnectionError, NoPermissionError

from farpool.worker.backoff import Backoff


@pytest.mark.parametrize(("lease", "longest"), [(0.3, 0.1), (1.5, 0.5), (10, 1.0), (600, 1.0)])
def test_no_lease_ends_between_two_attempts(
    lease: float, longest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    outage = Backoff(lease)
    waits = []
    for _ in range(10):
        outage.note(ConnectionError("away"))
        waits.append(outage.retry_at - 1000.0)
    assert waits[0] == pytest.approx(0.05)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(longest)


def test_an_outage_begins_anew_with_a_short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    outage = Backoff(10)
    for _ in range(10):
        outage.note(ConnectionError("away"))
    assert outage
    outage.end()
    assert not outage
    outage.note(ConnectionError("away"))
    assert outage.retry_at == pytest.approx(1000.05)


def test_what_a_user_may_not_do_is_no_outage() -> None:
    with pytest.raises(NoPermissionError, match="NOPERM"):
        Backoff(10).note(NoPermissionError("NOPERM this user has no permissions"))
