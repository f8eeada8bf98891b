"""The scheduler's decisions: nothing lost, nothing doubled, no task behind a long one."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from farpool.shared.pipe.frames import Task
from farpool.shared.processes.scheduler import BUNDLE_SECONDS, MAX_BUNDLE, Scheduler

children_counts = st.integers(1, 8)


def make(count: int, label: str = "f", first: int = 0) -> list[Task]:
    return [Task(0, 0, 0.0, str(n), b"", str(n), label) for n in range(first, first + count)]


def with_backlog(count: int, seconds: float | None = None) -> Scheduler:
    """A scheduler with that many tasks of one label, which is known to take `seconds`."""
    scheduler = Scheduler()
    if seconds is not None:
        scheduler.learn("f", seconds)
    scheduler.add(make(count))
    return scheduler


@given(st.integers(0, 600), children_counts, st.none() | st.integers(0, 300))
def test_a_bundle_is_the_head_of_the_backlog(count: int, children: int, limit: int | None) -> None:
    scheduler = with_backlog(count, 1e-6)
    expected = list(scheduler.backlog)
    bundle = scheduler.bundle([], children, limit)
    assert bundle + list(scheduler.backlog) == expected
    assert len(bundle) <= MAX_BUNDLE
    if limit is not None:
        assert len(bundle) <= limit


@given(st.integers(1, 600), children_counts)
def test_every_idle_child_gets_its_fair_share_and_no_more(count: int, children: int) -> None:
    scheduler = with_backlog(count, 1e-6)
    sizes = [len(scheduler.bundle([], children - n, None)) for n in range(children)]
    assert sum(sizes) == min(count, children * MAX_BUNDLE)
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 50), children_counts)
def test_tasks_of_unknown_length_go_singly(count: int, children: int) -> None:
    scheduler = with_backlog(count)
    first = scheduler.bundle([], children, None)
    assert len(first) == 1
    assert scheduler.bundle(first, children, None) == []


@given(st.floats(BUNDLE_SECONDS, 1e6), st.integers(1, 50), children_counts)
def test_long_tasks_go_singly(seconds: float, count: int, children: int) -> None:
    scheduler = with_backlog(count, seconds)
    first = scheduler.bundle([], children, None)
    assert len(first) == 1
    assert scheduler.bundle(first, children, None) == []


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 0.1)), min_size=1, max_size=60))
def test_a_bundle_of_several_holds_little_work(lengths: list[tuple[str, float]]) -> None:
    scheduler = Scheduler()
    known: dict[str, float] = {}
    for label, seconds in lengths:
        if label not in known:
            known[label] = seconds
            scheduler.learn(label, seconds)
        scheduler.add(make(1, label))
    while bundle := scheduler.bundle([], 1, None):
        work = sum(known[task.label] for task in bundle)
        assert len(bundle) == 1 or work <= BUNDLE_SECONDS * (1 + 1e-9)
    assert not scheduler.backlog


@given(st.integers(0, 300), st.integers(0, 300))
def test_what_a_child_has_counts_towards_its_bundle(waiting: int, count: int) -> None:
    scheduler = with_backlog(waiting + count, 0.0)
    held = [scheduler.backlog.popleft() for _ in range(waiting)]
    bundle = scheduler.bundle(held, 1, None)
    assert len(bundle) == max(0, min(count, MAX_BUNDLE - waiting))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_child_that_is_about_to_retire_gets_nothing(limit: int) -> None:
    scheduler = with_backlog(3, 1e-6)
    assert scheduler.bundle([], 1, limit) == []
    assert len(scheduler.backlog) == 3


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_what_was_learned_lies_among_what_was_measured(measured: list[float]) -> None:
    scheduler = Scheduler()
    for seconds in measured:
        scheduler.learn("f", seconds)
    scheduler.add(make(1))
    [task] = scheduler.bundle([], 1, None)
    assert min(measured) * (1 - 1e-9) <= task.cost <= max(measured) * (1 + 1e-9)


def test_a_label_that_became_slow_is_soon_known_to_be_slow() -> None:
    scheduler = with_backlog(0, 1e-6)
    for _ in range(3):
        scheduler.learn("f", 1.0)
    scheduler.add(make(10))
    assert len(scheduler.bundle([], 1, None)) == 1


def test_labels_without_end_do_not_fill_the_memory() -> None:
    scheduler = Scheduler()
    for number in range(5000):
        scheduler.learn(f"f{number}", 1.0)
    assert len(vars(scheduler)["_seconds"]) <= 1024


@given(children_counts, st.integers(0, 3000), st.floats(0, 100) | st.none())
def test_what_is_wanted_fills_up_and_then_stops(
    children: int, sent: int, seconds: float | None
) -> None:
    scheduler = with_backlog(0, seconds)
    wanted = scheduler.wanted(children, sent)
    assert wanted >= 0
    # With what was wanted there, nothing is missing.
    scheduler.add(make(wanted))
    assert scheduler.wanted(children, sent) == 0
    if sent == 0:
        assert wanted >= children, "an idle child would stay idle"
    if sent == 0 and (seconds is None or seconds >= 1):
        assert wanted == children, "a long task would wait here while another node is idle"


class Scheduling(RuleBasedStateMachine):
    """Tasks move between a backlog and children in any order of events."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.out: set[str] = set()
        self.taken: set[str] = set()
        self.count = 0

    @rule(count=st.integers(0, 20), label=st.sampled_from("abc"))
    def add(self, count: int, label: str) -> None:
        self.scheduler.add(make(count, label, self.count))
        self.count += count

    @rule(label=st.sampled_from("abc"), seconds=st.floats(0, 1))
    def learn(self, label: str, seconds: float) -> None:
        self.scheduler.learn(label, seconds)

    @rule(target=held, children=children_counts, limit=st.none() | st.integers(-1, 10))
    def send(self, children: int, limit: int | None) -> list[Task]:
        bundle = self.scheduler.bundle([], children, limit)
        assert limit is None or len(bundle) <= max(0, limit)
        keys = {task.key for task in bundle}
        assert not keys & self.out
        self.out |= keys
        return bundle

    @rule(bundle=consumes(held), done=st.integers(0, 10))
    def put_back(self, bundle: list[Task], done: int) -> None:
        self.taken |= {task.key for task in bundle[:done]}
        rest = bundle[done:]
        self.scheduler.put_back(rest)
        self.out -= {task.key for task in bundle}
        assert list(self.scheduler.backlog)[: len(rest)] == rest

    @rule()
    def take_all(self) -> None:
        before = list(self.scheduler.backlog)
        assert self.scheduler.take_all() == before
        self.taken |= {task.key for task in before}

    @invariant()
    def every_task_is_in_one_place(self) -> None:
        backlog = [task.key for task in self.scheduler.backlog]
        assert len(backlog) == len(set(backlog))
        assert not self.out & set(backlog)
        assert not self.taken & (set(backlog) | self.out)
        assert len(backlog) + len(self.out) + len(self.taken) == self.count


TestScheduling = Scheduling.TestCase


@given(st.integers(1, 40), st.data())
def test_tasks_that_were_put_back_go_first_and_in_order(count: int, data: st.DataObject) -> None:
    scheduler = with_backlog(count, 1e-6)
    expected = list(scheduler.backlog)
    bundle = scheduler.bundle([], 1, None)
    begun = data.draw(st.integers(0, len(bundle)))
    assume(begun < len(bundle))
    scheduler.put_back(bundle[begun:])
    assert list(scheduler.backlog) == expected[begun:]


def test_without_a_free_child_all_but_errands_is_surplus() -> None:
    scheduler = with_backlog(0, 1e-6)
    housekeeping = Task(0, 0, 0.0, "", b"", "", "f")
    unknown, fast = make(2, "g"), make(3, "f", first=2)
    scheduler.add([*unknown, housekeeping, *fast])
    assert scheduler.surplus(0) == unknown + fast
    assert list(scheduler.backlog) == [housekeeping]
