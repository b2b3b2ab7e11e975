"""The watcher calls for what is not known, and for nothing else; and what the batcher wrote is not read again."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from datasette.app import Datasette

from datasette_pubsub.broker.registry import registry
from datasette_pubsub.broker.watcher import Watcher
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.values import Item
from datasette_pubsub.storage import log

POLL_SECONDS = 0.001


@pytest.mark.asyncio
async def test_a_known_commit_calls_nobody_and_a_look_calls_for_any(tmp_path: Path) -> None:
    path = tmp_path / "watched.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer, closing(sqlite3.connect(path)) as reader:
        writer.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
        asked: list[int] = []
        calls: asyncio.Queue[int] = asyncio.Queue()
        looked = asyncio.Event()

        def known(conn: sqlite3.Connection) -> bool:
            asked.append(conn.execute("SELECT coalesce(max(a), 0) FROM t").fetchone()[0])
            looked.set()
            return asked[-1] % 2 == 0

        async def changed() -> None:
            await calls.put(asked[-1] if asked else 0)

        async def look_at(number: int) -> None:
            looked.clear()
            writer.execute("INSERT INTO t VALUES (?)", [number])
            await asyncio.wait_for(looked.wait(), 10)

        watcher = Watcher(lambda: reader, known, changed, POLL_SECONDS)
        watcher.watch(True)
        task = asyncio.create_task(watcher.run())
        assert await asyncio.wait_for(calls.get(), 10) == 0, "the first look calls, whatever is known"
        await look_at(2)
        await look_at(4)
        await look_at(5)
        assert await asyncio.wait_for(calls.get(), 10) == 5
        assert calls.empty()
        await look_at(6)
        watcher.look()
        assert await asyncio.wait_for(calls.get(), 10) == 6, "known, but asked for"
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.asyncio
async def test_what_the_batcher_wrote_is_not_read_again_and_what_others_wrote_is(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    sqlite3.connect(path).close()
    datasette = Datasette(
        [str(path)], config={"plugins": {"datasette-pubsub": {"watch_interval_seconds": POLL_SECONDS}}}
    )
    await datasette.start_background_tasks()
    broker = registry(datasette).of("data")
    try:
        await broker.publish([Item("a", "installs the log")])
        waiter = broker.hub.register(Selector.of(["a"]))
        await broker.log_head()
        looks: list[bool | None] = []
        with closing(broker._db.connect()) as conn:
            for number in range(20):
                (last,) = await broker.publish([Item("a", str(number))])
                looks.append(broker._knows(conn))
            assert broker.hub.head == broker._batcher.last == last
            assert looks == [True] * 20
            with closing(sqlite3.connect(path)) as other, other:
                other.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', 'by another')")
            assert log.head(conn) == last + 1
            assert broker._knows(conn) == (broker.hub.head == last + 1)
        async with asyncio.timeout(10):
            while broker.hub.head != last + 1:  # noqa: ASYNC110 - the watcher says nothing that could be waited for
                await asyncio.sleep(POLL_SECONDS)
        broker.hub.unregister(waiter)
    finally:
        registry(datasette).close_streams()
        await datasette.invoke_shutdown()


@pytest.mark.asyncio
async def test_an_error_leaves_no_connection_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails for an hour must not take a descriptor a second."""
    path = tmp_path / "watched.db"
    made: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        made.append(sqlite3.connect(path))
        return made[-1]

    def known(conn: sqlite3.Connection) -> bool:
        raise sqlite3.DatabaseError("disk I/O error")

    async def changed() -> None:
        pass

    pauses = 0
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        await sleep(0)

    monkeypatch.setattr("datasette_pubsub.broker.watcher.asyncio.sleep", pause)
    watcher = Watcher(connect, known, changed, POLL_SECONDS)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE t (a)")
        watcher.watch(True)
        task = asyncio.create_task(watcher.run())
        number = 0
        async with asyncio.timeout(10):
            while len(made) < 4:
                number += 1
                writer.execute("INSERT INTO t VALUES (?)", [number])
                await sleep(0.002)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert pauses >= 3
    for conn in made[:-1]:
        with pytest.raises(sqlite3.ProgrammingError):
            conn.execute("SELECT 1")
    made[-1].close()
