"""Puts back into the queues what lost nodes held."""

from __future__ import annotations

import logging

from farpool.shared.broker import Broker
from farpool.worker.fence import Fence
from farpool.worker.finisher import Finisher

log = logging.getLogger("farpool.node")


def recover(
    broker: Broker, node: str, lost: str, finisher: Finisher, max_attempts: int, fence: Fence
) -> None:
    """Take over what the node `lost` held, whatever ended its lease; or a predecessor of `node`.

    What it had not started goes back to its queue uncharged; what it had started is charged an
    attempt, and failed through `finisher` once it has had `max_attempts`.
    """
    recovered = broker.recover(node, lost, max_attempts, str(fence))
    if recovered is None:
        return
    released, exhausted = recovered
    if node != lost or released or exhausted:
        log.warning("node %s is lost: %d jobs put back, %d failed", lost, released, len(exhausted))
    for claim in exhausted:
        finisher.lost(claim, f"the node {lost} that ran the task was lost", max_attempts)
