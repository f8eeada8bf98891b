"""Every role does its work with the rights that docs/security.md gives it, and has no others."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import rq
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError
from rq.cli.cli import main as rq_cli
from rq.group import Group
from rq.rate_limit import RateLimit

import farpool
from farpool import NoResultError, Pool, Queue, WorkerLostError
from farpool.commands import cli
from farpool.shared.child import rq_lifecycle
from farpool.shared.child.current_job import connection as connection_of_child
from farpool.shared.errors import ServerUnavailableError
from farpool.shared.redis.connection import connect
from farpool.shared.redis.producers import ProducerBroker
from farpool.shared.redis.trouble import Trouble, classify
from farpool.shared.server.embedded import EmbeddedServer
from tests.support import tasks
from tests.support.acl import documented, refused, set_users, url_of
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

# What a server allows does not depend on the Python.
pytestmark = [pytest.mark.server, pytest.mark.usefixtures("processes")]

RIGHTS = "Users with no more rights than they need"
Url = Callable[[str], str]
StartNode = Callable[..., NodeProcess]
FEW = RateLimit("few", 1)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Url of a server that has the documented users and no other."""
    with EmbeddedServer() as server:
        with contextlib.closing(connect(server.url)) as client:
            set_users(client, documented(RIGHTS))
        yield server.url


@pytest.fixture
def admin(server: str) -> Iterator[Redis]:
    with contextlib.closing(connect(url_of("admin", server))) as client:
        client.flushall()
        client.acl_log_reset()
        yield client


@pytest.fixture
def url(server: str, admin: Redis) -> Iterator[Url]:
    """Urls of the roles; nothing that these do may be refused."""
    yield lambda role: url_of(role, server)
    assert refused(admin) == []


@pytest.fixture
def start_node(server: str, url: Url) -> Iterator[StartNode]:
    with contextlib.ExitStack() as stack:

        def start(*queues: str, **options: Any) -> NodeProcess:
            options.setdefault("seen_from", url_of("admin", server))
            return stack.enter_context(NodeProcess(url("node"), *queues, **options))

        yield start


def test_calls_of_a_pool(url: Url, start_node: StartNode, tmp_path: Path) -> None:
    start_node()
    with Pool(url=url("producer")) as pool:
        assert pool.map(tasks.square, range(50)) == [n * n for n in range(50)]
        assert list(pool.imap(tasks.square, range(9))) == [n * n for n in range(9)]
        assert pool.apply(tasks.say, ("hello",)) == "hello"
        large = tasks.Heavy(str(tmp_path / "loads"), 100_000)
        assert pool.map(large, range(3)) == [0, 1, 4]
        # What a task starts runs with the rights of its node.
        assert pool.apply(tasks.map_squares, (url("node"),)) == 5
        assert pool.apply(tasks.enqueue_squares, (url("node"),)) == [9, 0, 1, 4]
        with pytest.raises(WorkerLostError):
            pool.apply(tasks.die)
        running = pool.apply_async(tasks.block, (str(tmp_path / "running"),))
        wait_for((tmp_path / "running").exists)
        assert running.cancel()


def test_detached_calls(url: Url, start_node: StartNode, tmp_path: Path) -> None:
    start_node()
    with Pool(url=url("producer")) as pool:
        first: Any = pool.map_async(tasks.square, range(5), detached=True)
        second: Any = pool.map_async(tasks.block, [str(tmp_path / "running")], detached=True)
    assert farpool.attach(first.id, url=url("producer")).get(20) == [0, 1, 4, 9, 16]
    wait_for((tmp_path / "running").exists)
    assert farpool.attach(second.id, url=url("producer")).cancel()


@pytest.fixture
def queue(url: Url) -> Iterator[Queue]:
    queue = Queue(url=url("producer"))
    yield queue
    queue.connection.close()


def test_jobs_with_options_of_rq(queue: Queue, start_node: StartNode, tmp_path: Path) -> None:
    start_node()
    square, marker = tasks.square, str(tmp_path / "marker")
    assert queue.enqueue(square, 3).get(20) == 9
    assert queue.enqueue_map(square, range(3)).get(20) == [0, 1, 4]
    for at_once in ({"retry": rq.Retry(2)}, {"on_success": rq.Callback(tasks.note_success)},
                    {"rate_limit": FEW}, {"at_front": True, "ttl": 60},
                    {"unique": True, "job_id": "once"}, {"repeat": rq.Repeat(1)}):  # fmt: skip
        assert queue.enqueue(square, 3, **at_once).get(20) == 9
    assert queue.enqueue(tasks.fail_once, marker, retry=rq.Retry(2)).get(20)
    failed = queue.enqueue(tasks.fail, "no", on_failure=rq.Callback(tasks.note_failure))
    with pytest.raises(farpool.RemoteError):
        failed.get(20)
    first = queue.enqueue(tasks.block, marker)
    second = queue.enqueue(square, 4, depends_on=first)
    Path(f"{marker}.go").touch()
    assert second.get(20) == 16
    assert queue.enqueue(square, 5, depends_on=[first, second]).get(20) == 25
    group = Group.create(connection=queue.connection)
    member: Any
    (member,) = group.enqueue_many(queue, [Queue.prepare_data(square, (6,))])
    assert member.get(20) == 36
    assert rq.job.Job.fetch(first.id, connection=queue.connection).return_value() == "done"


def test_jobs_that_are_canceled(queue: Queue) -> None:
    waiting = queue.enqueue(tasks.square, 3)
    dependent = queue.enqueue(tasks.square, 3, depends_on=waiting)
    scheduled: Any = queue.enqueue_in(timedelta(hours=1), tasks.square, 3)
    limited = queue.enqueue(tasks.square, 3, rate_limit=FEW)
    for job in (scheduled, limited, dependent, waiting):
        job.cancel()
        with pytest.raises(NoResultError):
            job.get(5)


def test_a_lost_node_is_taken_over_from(
    queue: Queue, admin: Redis, start_node: StartNode, tmp_path: Path
) -> None:
    lost = start_node(lease=1, name="lost")
    job = queue.enqueue(tasks.block, str(tmp_path / "running"))
    wait_for((tmp_path / "running").exists)
    wait_for(lambda: job.get_status() == "started")
    lost.send(signal.SIGKILL)
    lost.wait()
    (tmp_path / "running.go").touch()
    start_node(lease=1)
    assert job.get(30) == "done"
    assert "lost" not in ProducerBroker(admin).leases()


def test_a_node_drains(queue: Queue, start_node: StartNode, tmp_path: Path) -> None:
    node = start_node(processes=1)
    running = queue.enqueue(tasks.block, str(tmp_path / "running"))
    rest = queue.enqueue_map(tasks.square, range(5))
    wait_for((tmp_path / "running").exists)
    node.send(signal.SIGTERM)
    (tmp_path / "running.go").touch()
    assert node.wait() == 0
    assert running.get(5) == "done"
    assert "permission" not in node.output
    start_node(burst=True)
    assert rest.get(20) == [0, 1, 4, 9, 16]


def test_maintenance(url: Url, queue: Queue, admin: Redis) -> None:
    soon, later = timedelta(hours=1), timedelta(hours=2)
    noting = rq.Callback(tasks.note_failure)
    abandoned = [queue.enqueue_in(soon, tasks.square, 1, on_failure=noting),
                 queue.enqueue_in(later, tasks.square, 1, retry=rq.Retry(1))]  # fmt: skip
    limited = queue.enqueue(tasks.square, 1, rate_limit=FEW)
    for job in abandoned:
        admin.hset(f"rq:job:{job.id}", "status", "started")
        admin.zadd("rq:wip:default", {f"{job.id}:execution": 1})
    for registry in ("finished", "failed", "deferred", "ready"):
        admin.zadd(f"rq:{registry}:default", {"gone": 1})
    admin.zadd("rq:ready:default", {limited.id: 1})
    admin.rpush("rq:queue:default:intermediate", abandoned[0].id, "gone")
    admin.sadd("rq:groups", "group")
    admin.sadd("rq:group:group", "gone")
    admin.sadd("rq:workers:default", "rq:worker:gone")
    rq_lifecycle.maintain(url("node"), "node", ["default"])
    # What is between two lists is only looked at the second time.
    admin.rpush("rq:queue:default:intermediate", abandoned[1].id)
    rq_lifecycle.maintain(url("node"), "node", ["default"])
    rq_lifecycle.maintain(url("node"), "node", ["default"])
    connection_of_child(url("node")).close()
    assert admin.zcard("rq:wip:default") == 0
    assert not admin.exists("rq:group:group")


def test_a_task_may_do_on_its_node_what_a_producer_may() -> None:
    rights = {line.split()[2]: set(line.split()[3:]) for line in documented(RIGHTS)}
    commands = {right for right in rights["producer"] if right.startswith("+")}
    assert "+evalsha" in commands
    assert commands <= rights["node"]


def test_a_viewer_sees_nodes_and_queues(
    url: Url, queue: Queue, start_node: StartNode, tmp_path: Path
) -> None:
    node = start_node()
    running = queue.enqueue(tasks.block, str(tmp_path / "running"))
    wait_for(lambda: running.get_status() == "started")
    shown = CliRunner().invoke(cli.main, ["info"], env={"FARPOOL_URL": url("viewer")})
    assert shown.exit_code == 0
    assert f"{node.name}: 2 processes, busy" in shown.output
    (tmp_path / "running.go").touch()


def test_rq_info_needs_the_rights_of_its_heading(
    url: Url, admin: Redis, start_node: StartNode
) -> None:
    node = start_node()
    set_users(admin, documented("For `rq info`"))
    try:
        shown = CliRunner().invoke(rq_cli, ["info", "--url", url("viewer")])
    finally:
        set_users(admin, documented(RIGHTS))
    assert shown.exit_code == 0
    assert node.name in shown.output


@pytest.mark.parametrize("role", ["producer", "node", "viewer"])
@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "CONFIG GET requirepass", "ACL LIST", "MONITOR",
        "SHUTDOWN", "CLIENT LIST", "CLIENT KILL TYPE normal", "SCRIPT FLUSH",
        "EVAL return(redis.call('KEYS','*')) 0", "PUBLISH rq:pubsub:node stop",
        "SUBSCRIBE rq:pubsub:node",
        "HGET other field", "HGETALL rqother:job", "RENAME rq:queue:a rq:queue:b",
        "DUMP rq:job:some", "REPLICAOF NO ONE", "SLOWLOG GET", "CLIENT PAUSE 1",
    ],
)  # fmt: skip
def test_what_nobody_may(server: str, role: str, command: str) -> None:
    assert refuses(server, role, command)


@pytest.mark.parametrize(
    ("role", "command"),
    [
        ("producer", "HSET rq:worker:node state idle"),
        ("producer", "ZADD rq:farpool:nodes 1 node"),
        ("producer", "HGETALL rq:farpool:claims:node"),
        ("producer", "HSET rq:farpool:claims:node some claim"),
        ("producer", "ZADD rq:finished:default 1 some"),
        ("producer", "XADD rq:results:some * type 1"),
        ("producer", "LPOP rq:queue:default"),
        ("producer", "BLMOVE rq:queue:a rq:queue:a LEFT LEFT 1"),
        ("producer", "SET rq:suspended 1"),
        ("node", "SET other 1"),
        ("node", "EXPIRE other 1"),
        ("viewer", "RPUSH rq:queue:default some"),
        ("viewer", "LREM rq:queue:default 1 some"),
        ("viewer", "HSET rq:job:some status queued"),
        ("viewer", "HGETALL rq:job:some"),
        ("viewer", "XREAD STREAMS rq:results:some 0"),
        ("viewer", "HMGET rq:farpool:results:some some"),
        ("viewer", "DEL rq:queues"),
        ("viewer", "ZREMRANGEBYSCORE rq:finished:default 0 1"),
        ("viewer", "EVALSHA 0123 0"),
    ],
)
def test_what_a_role_may_not(server: str, role: str, command: str) -> None:
    assert refuses(server, role, command)


def refuses(server: str, role: str, command: str) -> bool:
    with contextlib.closing(connect(url_of(role, server))) as client:
        try:
            client.execute_command(*command.split())
        except RedisError as error:
            return classify(error) is Trouble.REFUSED
    return False


def test_who_does_not_log_in_gets_nothing(server: str) -> None:
    with pytest.raises(ServerUnavailableError, match="it needs a password"):
        connect(server)


@pytest.fixture
def without(admin: Redis, server: str) -> Iterator[Callable[[str, str], str]]:
    """Takes a right from a role for the rest of the test, and returns its url."""

    def take(role: str, command: str) -> str:
        admin.execute_command("ACL", "SETUSER", role, f"-{command}")
        return url_of(role, server)

    yield take
    set_users(admin, documented(RIGHTS))


def names(line: str, command: str) -> bool:
    """Whether a line names a command; of a script's, Redis 7.0 does not say which it was."""
    return f"'{command}'" in line or "The user executing the script can't run" in line


@pytest.mark.parametrize("command", ["blmove", "lrange", "evalsha", "zscore", "sadd"])
def test_a_node_that_lacks_a_right_ends_and_names_it(
    without: Callable[[str, str], str], server: str, command: str
) -> None:
    with NodeProcess(without("node", command), seen_from=url_of("admin", server)) as node:
        assert node.wait() == 1
        last = node.output.splitlines()[-1]
    assert last.startswith("Error: the server refused")
    assert names(last, command)


def test_a_node_that_loses_a_right_leaves_its_jobs_to_others(
    without: Callable[[str, str], str], server: str, admin: Redis, tmp_path: Path
) -> None:
    url, seen_from = url_of("node", server), url_of("admin", server)
    with contextlib.closing(connect(url_of("producer", server))) as client:
        with NodeProcess(url, seen_from=seen_from, lease=1) as node:
            job = Queue(connection=client).enqueue(tasks.block, str(tmp_path / "running"))
            wait_for((tmp_path / "running").exists)
            without("node", "zadd")
            assert node.wait() == 1
        set_users(admin, documented(RIGHTS))
        (tmp_path / "running.go").touch()
        with NodeProcess(url, seen_from=seen_from, lease=1):
            assert job.get(30) == "done"


@pytest.mark.parametrize(
    ("role", "lacking", "command"),
    [
        ("producer", "evalsha", ["enqueue", "tests.support.tasks:square", "3"]),
        ("producer", "hset", ["enqueue", "tests.support.tasks:square", "3"]),
        ("viewer", "zrange", ["info"]),
        ("viewer", "info", ["info"]),
    ],
)
def test_a_command_names_what_was_refused_in_one_line(
    without: Callable[[str, str], str], role: str, lacking: str, command: list[str]
) -> None:
    shown = CliRunner().invoke(cli.main, command, env={"FARPOOL_URL": without(role, lacking)})
    assert shown.exit_code == 1
    (line,) = shown.output.splitlines()
    assert "refused" in line
    assert names(line, lacking)


def test_a_pool_names_what_was_refused(without: Callable[[str, str], str]) -> None:
    with (
        Pool(url=without("producer", "evalsha"), processes=1) as pool,
        pytest.raises(NoPermissionError, match="'evalsha'"),
    ):
        pool.map(tasks.square, range(3))
