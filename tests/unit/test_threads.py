"""What several threads share is right whatever they do at the same time. docs/architecture.md has the list.

With the interpreter lock most of this happens seldom, so some tests arrange the bad moment. The others let threads
hammer, and find most in a free-threaded Python.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

import pytest
from datasette.app import Datasette
from datasette.permissions import SkipPermissions
from datasette.utils.asgi import Request
from servers import DEADLINE

from datasette_pubsub.broker import batcher, database
from datasette_pubsub.broker.batcher import Batcher, Transaction
from datasette_pubsub.broker.own_writes import in_batcher
from datasette_pubsub.broker.registry import registry
from datasette_pubsub.core.errors import FailedPrecondition, PubsubError
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.core.values import Item, Message
from datasette_pubsub.live.line import Line
from datasette_pubsub.live_query import queries
from datasette_pubsub.live_query.query import LiveQuery
from datasette_pubsub.pages import runs
from datasette_pubsub.publish_batch import bridge
from datasette_pubsub.storage import schema
from datasette_pubsub.storage.append_batch import CommitResult
from datasette_pubsub.storage.filters import Filters
from datasette_pubsub.storage.query import Limits, Question
from datasette_pubsub.storage.subscriptions import Save

T = TypeVar("T")

THREADS = 8
ITEM = Item("a", "one")


def together(functions: Sequence[Callable[[], T]]) -> list[T]:
    """Call each of these in a thread of its own, all at the same time; what they have returned."""
    barrier = threading.Barrier(len(functions))

    def call(function: Callable[[], T]) -> T:
        barrier.wait(DEADLINE)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(call, functions, timeout=DEADLINE))


def made(path: Path, **config: Any) -> Datasette:
    """A Datasette of a new file with a small table."""
    conn = sqlite3.connect(path)
    conn.executescript("CREATE TABLE t (x); INSERT INTO t VALUES ('one'), ('two')")
    conn.close()
    return Datasette([str(path)], config=config)


# -- the batcher -----------------------------------------------------------------


class World:
    """A batcher whose sessions run in a thread, as on the write thread, and the log that they write to."""

    def __init__(self) -> None:
        self.conn = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        schema.install(self.conn, Settings())
        self.sessions = 0
        self.batcher = Batcher("data", Settings(), self._write, lambda result: None, "me")
        self._pool = ThreadPoolExecutor(1)

    async def _write(self, session: Callable[[Transaction], None], since: float) -> None:
        self.sessions += 1
        await asyncio.get_running_loop().run_in_executor(self._pool, session, self._transaction)

    def _transaction(self, fn: Callable[[sqlite3.Connection], CommitResult], since: float) -> CommitResult:
        self.conn.execute("BEGIN IMMEDIATE")
        result = fn(self.conn)
        self.conn.execute("COMMIT")
        return result

    def payloads(self) -> list[str]:
        return [row[0] for row in self.conn.execute("SELECT payload FROM vpubsub ORDER BY id")]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.conn.close()


@asynccontextmanager
async def running(world: World) -> AsyncIterator[Batcher]:
    task = asyncio.ensure_future(world.batcher.run())
    try:
        async with asyncio.timeout(DEADLINE):
            yield world.batcher
            assert await world.batcher.drain(DEADLINE)
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.asyncio
async def test_no_publish_is_lost_or_written_twice_and_none_waits_for_a_session_that_lingers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A publish that did not wake the session would wait for an hour.
    monkeypatch.setattr(batcher, "SESSION_SECONDS", 3600.0)
    monkeypatch.setattr(batcher, "LINGER_SECONDS", 3600.0)
    async with running(world) as written:

        async def publish(name: str) -> None:
            for number in range(500):
                written.move_cursor(int(name), Save(1, number))
                await written.publish([Item("a", f"{name} {number}")])

        await asyncio.gather(*(publish(str(name)) for name in range(THREADS)))
    assert sorted(world.payloads()) == sorted(f"{name} {number}" for name in range(THREADS) for number in range(500))
    assert world.sessions == 1


def test_a_session_that_is_woken_as_it_stops_lingering_lingers_the_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "LINGER_SECONDS", 0.1)
    session = world.batcher

    class Late(SimpleQueue[None]):
        """Is woken when the time of the first call has just ended."""

        times = 0

        def get(self, block: bool = True, timeout: float | None = None) -> None:
            try:
                super().get(block, timeout)
            except Empty:
                self.times += 1
                if self.times == 1:
                    session.make_way()
                raise

    session._wake_session = Late()
    assert not session._linger()
    session._others = False
    began = time.monotonic()
    assert not session._linger()
    assert time.monotonic() - began > 0.05, "it was woken by what woke it the last time"


@pytest.mark.asyncio
async def test_a_transaction_counts_the_publishes_that_it_has_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "COMMIT_MESSAGES", 10)

    class Emptied(deque[Any]):
        """The event loop takes the first publish back just as the write thread has looked at it."""

        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            if found.messages == 1 and len(self) == 3:
                self.popleft()
            return found

    for count in (1, 10, 1):
        world.batcher.submit([[ITEM] * count], count, 3 * count)
    world.batcher._waiting = Emptied(world.batcher._waiting)
    assert [submission.messages for submission in world.batcher._take()] == [10]


# -- the file --------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_conflict_stays_known_while_the_log_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasette = made(tmp_path / "data.db")
    await datasette.invoke_startup()
    broker = registry(datasette).of("data")
    seen: list[PubsubError | None] = []

    def check(conn: sqlite3.Connection) -> None:
        seen.append(broker.store.conflict)
        raise FailedPrecondition("this log is of a newer version")

    monkeypatch.setattr(schema, "check", check)
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="newer version"):
            await broker.change(lambda conn: None)
    assert seen[0] is None
    assert seen[1:]
    assert all(seen[1:]), "somebody who looked just then would have been told that all is well"
    await datasette.invoke_shutdown()


@pytest.mark.asyncio
async def test_a_connection_is_not_closed_while_a_thread_reads_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_MS", 100)
    datasette = made(tmp_path / "data.db")
    await datasette.invoke_startup()
    broker = registry(datasette).of("data")
    reads, go_on = threading.Event(), threading.Event()

    def read(conn: sqlite3.Connection) -> list[Any]:
        rows = conn.execute("SELECT x FROM t ORDER BY x")
        first = rows.fetchone()
        reads.set()
        assert go_on.wait(DEADLINE)
        return [first[0], *(row[0] for row in rows)]

    reading = asyncio.ensure_future(broker.store.read(read))
    assert await asyncio.to_thread(reads.wait, DEADLINE)
    assert await broker.store.reopen(lambda: None)
    go_on.set()
    assert await reading == ["one", "two"]
    await datasette.invoke_shutdown()


class Freed:
    """Notes which thread has freed it, as a cursor would be."""

    def __init__(self, by: list[int]) -> None:
        self._by = by

    def __del__(self) -> None:
        self._by.append(threading.get_ident())


@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["read", "change", "query", "datasette"])
async def test_what_an_error_has_left_behind_is_freed_by_the_thread_of_its_connection(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasette = made(tmp_path / "data.db")
    await datasette.invoke_startup()
    broker = registry(datasette).of("data")
    by: list[int] = []

    def inner(conn: sqlite3.Connection) -> None:
        cursor = Freed(by)
        conn.execute("SELECT x FROM missing")
        del cursor

    def fail(conn: sqlite3.Connection, *_: object) -> None:
        cursor = Freed(by)
        try:
            inner(conn)
        except sqlite3.Error:
            raise FailedPrecondition("not now") from None
        del cursor

    monkeypatch.setattr("datasette_pubsub.live_query.runs.run", fail)
    if way == "query":
        query = LiveQuery(Question(sql="SELECT 1"), 1000, Line())
        error = await broker.store.read(lambda conn: queries._tried(conn, query, Limits(seconds=1, rows=1, bytes=1)))
    else:
        others = datasette.get_database("data").execute_write_fn
        ways: dict[str, Callable[[Any], Awaitable[None]]] = {"read": broker.store.read, "change": broker.change}
        with pytest.raises(FailedPrecondition) as caught:
            await ways.get(way, others)(fail)
        error = caught.value
    assert isinstance(error, FailedPrecondition)
    assert error.__traceback__ is not None
    assert len(by) == 2
    assert threading.get_ident() not in by
    await datasette.invoke_shutdown()


# -- publish_batch ----------------------------------------------------------------


class Inheriting(threading.Thread):
    """A thread as with ``sys.flags.thread_inherit_context``: it runs in a copy of the context that has started it."""

    def start(self) -> None:
        self._copy = copy_context()
        super().start()

    def run(self) -> None:
        self._copy.run(super().run)


@pytest.fixture
def inheriting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasette.database.threading.Thread", Inheriting)


@pytest.mark.asyncio
@pytest.mark.usefixtures("inheriting")
# An error in an aggregate's last call: Python's sqlite3 prints it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_write_thread_asks_for_permission_whoever_has_started_it(tmp_path: Path) -> None:
    write = {"sql": "INSERT INTO t (x) SELECT publish_batch('a', x) FROM t", "write": True}
    permissions = {"publish-message": {"id": "writer"}, "execute-write-sql": True}
    datasette = made(tmp_path / "data.db", permissions=permissions, databases={"data": {"queries": {"w": write}}})
    await datasette.invoke_startup()
    with SkipPermissions():
        # This starts the write thread.
        await datasette.get_database("data").execute_write("INSERT INTO t VALUES ('three')")
    answers = {}
    for actor in ("writer", "visitor"):
        cookies = {"ds_actor": datasette.client.actor_cookie({"id": actor})}
        answers[actor] = (await datasette.client.post("/data/w.json?_json=1", cookies=cookies)).json()
    assert answers["writer"]["ok"], answers
    assert not answers["visitor"]["ok"]
    assert "permission denied" in str(answers["visitor"]), answers
    await datasette.invoke_shutdown()


@pytest.mark.asyncio
@pytest.mark.usefixtures("inheriting")
async def test_a_write_thread_does_not_keep_the_request_that_has_started_it(tmp_path: Path) -> None:
    datasette = made(tmp_path / "data.db")
    await datasette.invoke_startup()
    token = bridge.current.set(bridge.RequestContext())
    own = in_batcher.set(True)
    try:
        db = datasette.get_database("data")
        assert await db.execute_write_fn(lambda conn: bridge.current.get()) is None
        # A thread that reads has the context of each call.
        assert await db.execute_fn(lambda conn: bridge.current.get()) is bridge.current.get()
    finally:
        in_batcher.reset(own)
        bridge.current.reset(token)
    await datasette.invoke_shutdown()


def test_one_statement_of_a_request_publishes_though_several_begin_together(monkeypatch: pytest.MonkeyPatch) -> None:
    scope = {"type": "http", "method": "POST", "path": "/data/-/query", "url_route": {"kwargs": {"database": "data"}}}
    serving = bridge.RequestContext(Request({**scope, "headers": []}, None))
    met = threading.Barrier(2)

    def look(*_: object) -> None:
        # Without a lock both get here.
        with suppress(threading.BrokenBarrierError):
            met.wait(0.5)

    monkeypatch.setattr(runs, "_refusal_or_receipt", look)

    def begin() -> bool:
        bridge.current.set(serving)
        plan = runs.plan(cast(Datasette, None), "data")
        assert plan is not None
        return plan.again

    assert sorted(together([begin, begin])) == [False, True]
    assert len(serving.runs) == 1


# -- what is made once -----------------------------------------------------------


def test_threads_that_ask_together_get_one_registry_and_one_broker(tmp_path: Path) -> None:
    for number in range(20):
        datasette = made(tmp_path / f"{number}.db")
        registries = together([partial(registry, datasette)] * THREADS)
        assert len(set(map(id, registries))) == 1
        brokers = together([partial(registries[0].find, str(number))] * THREADS)
        assert len(set(map(id, brokers))) == 1
        datasette.close()


def test_threads_evaluate_filters_beside_each_other() -> None:
    filters = Filters()
    messages = [Message(number, "a", str(number), "2026-01-01", None) for number in range(1, 1001)]

    def passing(divisor: int) -> Callable[[], list[int]]:
        text = filters.check(f"id % {divisor} = 0 AND payload = id")

        def evaluate() -> list[int]:
            found = filters.passes(text, messages, DEADLINE)
            return [message.id for message, ok in zip(messages, found, strict=True) if ok]

        return evaluate

    for _ in range(10):
        found = together([passing(divisor) for divisor in range(2, 2 + THREADS)])
        assert found == [list(range(divisor, 1001, divisor)) for divisor in range(2, 2 + THREADS)]
