"""Results and jobs show multiprocessing's or RQ's names, those of the README, and no others."""

from __future__ import annotations

import multiprocessing.pool
from pathlib import Path

import pytest
from rq.job import Job as RQJob
from rq.queue import Queue as RQQueue

import farpool
from farpool.producer.results.imap import IMapIterator
from tests.support.nodes import ROOT

PROGRESS = {"done", "failed", "running"}
MORE = {"cancel", "id"}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("ours", "theirs", "more"),
    [
        (farpool.AsyncResult, multiprocessing.pool.AsyncResult, MORE),
        (farpool.MapResult, multiprocessing.pool.MapResult, MORE | PROGRESS),
        (farpool.DetachedResult, multiprocessing.pool.MapResult, MORE | PROGRESS),
        (IMapIterator, multiprocessing.pool.IMapIterator, {"close"}),
        (farpool.Pool, multiprocessing.pool.Pool, {"istarmap", "processes"}),
        (farpool.Job, RQJob, {"get"}),
        (farpool.Queue, RQQueue, {"enqueue_map"}),
        (farpool.Group, object, {"as_completed", "get", "ids"}),
    ],
)
def test_classes_show_nothing_else(ours: type, theirs: type, more: set[str]) -> None:
    assert public(ours) == public(theirs) - {"Process"} | more


@pytest.mark.usefixtures("processes")
def test_a_result_shows_nothing_else() -> None:
    with farpool.Pool(1) as pool:
        result = pool.map_async(abs, [-1])
        assert public(result) == public(farpool.MapResult) | {"total"}
        assert public(pool.imap(abs, [-1])) == public(IMapIterator)
        assert result.get(30) == [1]


def test_the_readme_names_what_is_added() -> None:
    text = Path(ROOT, "README.md").read_text()
    for name in ("cancel", "as_completed", "enqueue_map", "total", *PROGRESS):
        assert name in text
