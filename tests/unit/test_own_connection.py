"""The batcher's own connection: when it is used, when it is not, and that it comes and goes with the ordinary one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasette import hookimpl
from datasette.plugins import pm
from own_way import NEEDS_SETCONFIG, Served, allow

from datasette_pubsub import compat
from datasette_pubsub.broker import own_connection
from datasette_pubsub.broker.own_connection import ORDINARY_BATCHES, OwnConnection
from datasette_pubsub.broker.own_writes import OwnWrites
from datasette_pubsub.compat import connections
from datasette_pubsub.core.errors import PayloadTooLarge
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.core.validation import check_item
from datasette_pubsub.core.values import Item
from datasette_pubsub.storage import schema
from datasette_pubsub.storage.append_batch import Batch
from datasette_pubsub.storage.objects import LOG_OBJECTS, guard_sql
from datasette_pubsub.storage.only_ours import NUMBER_BYTES, only_ours
from datasette_pubsub.storage.subscriptions import Save

ONE = Item("a", "x")

#: An owner's trigger, which notes each message.
NOTES = "CREATE TRIGGER notes AFTER INSERT ON {} BEGIN INSERT INTO seen VALUES (NEW.id, NEW.channel, NEW.payload); END"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    allow(monkeypatch)

    @contextlib.asynccontextmanager
    async def begin(**options: Any) -> AsyncIterator[Served]:
        async with Served(tmp_path / "data.db", **options) as found:
            yield found

    yield begin
    gc.collect()


def pragma(conn: sqlite3.Connection, name: str) -> Any:
    return conn.execute(f"PRAGMA {name}").fetchone()[0]


@pytest.mark.asyncio
@pytest.mark.parametrize("threads", [3, 0])
async def test_plain_messages_go_this_way(served: Any, threads: int) -> None:
    async with served(threads=threads) as found:
        assert await found.publish(ONE, Item("b", b"y")) == [1, 2]
        assert found.changes == 2
        assert found.execute("SELECT id, channel, payload, key FROM vpubsub") == [
            (1, "a", "x", None),
            (2, "b", b"y", None),
        ]


@pytest.mark.asyncio
async def test_keys_and_conditions_go_the_ordinary_way_and_some_batches_after_them(served: Any) -> None:
    async with served() as found:
        assert await found.went_own(ONE)
        for item in (Item("a", "x", key="k"), Item("a", "x", expected_last_id=ORDINARY_BATCHES + 3)):
            assert not await found.went_own(item)
            for _ in range(ORDINARY_BATCHES):
                assert not await found.went_own(ONE)
            assert await found.went_own(ONE)
        assert await found.publish(Item("a", "z", key="k")) == [2], "it is there already"


@pytest.mark.asyncio
async def test_a_commit_is_as_durable_as_on_the_ordinary_connection(served: Any) -> None:
    async with served() as found:
        await found.db.execute_write_fn(lambda conn: conn.execute("PRAGMA busy_timeout = 321"), transaction=False)
        assert await found.went_own(ONE)
        theirs = await found.db.execute_write_fn(lambda conn: conn, transaction=False)
        for name in own_connection._COPIED:
            assert pragma(found.own._conn, name) == pragma(theirs, name), name
        assert pragma(found.own._conn, "synchronous") == 2
        assert pragma(found.own._conn, "busy_timeout") == 321
        assert pragma(found.own._conn, "cache_size") == -32_000
        assert pragma(found.own._conn, "journal_mode") == "wal"
        await found.db.execute_write_fn(lambda conn: conn.execute("PRAGMA synchronous = EXTRA"), transaction=False)
        assert await found.went_own(ONE)
        assert pragma(found.own._conn, "synchronous") == 3


@pytest.mark.asyncio
async def test_another_programs_lock_is_told_in_time(served: Any) -> None:
    async with served() as found:
        await found.db.execute_write_fn(lambda conn: conn.execute("PRAGMA busy_timeout = 50"), transaction=False)
        assert await found.went_own(ONE)
        with contextlib.closing(sqlite3.connect(found.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            error = await found.publish(ONE)
            assert error[:2] == (
                "Unavailable",
                "database data is locked by another writer; nothing was stored, try again",
            )
        assert await found.went_own(ONE)


def in_file(*statements: str) -> Any:
    async def change(found: Served) -> None:
        found.execute(*statements)

    return change


def in_datasette(sql: str) -> Any:
    async def change(found: Served) -> None:
        await found.db.execute_write(sql)

    return change


ALTERED = LOG_OBJECTS["vpubsub"][1].replace("key TEXT", "key TEXT, more TEXT UNIQUE ON CONFLICT REPLACE")

#: What somebody does to the file or the connection, how it is undone, and what the owner's trigger then sees.
DONE = {
    "a trigger": (in_file(NOTES.format("vpubsub")), in_file("DROP TRIGGER notes"), 1),
    "a trigger on the table in capitals": (in_file(NOTES.format("VPUBSUB")), in_file("DROP TRIGGER notes"), 1),
    "a TEMP trigger": (
        in_datasette(NOTES.format("main.vpubsub").replace("TRIGGER", "TEMP TRIGGER", 1)),
        in_datasette("DROP TRIGGER notes"),
        1,
    ),
    "a trigger on subscriptions": (
        in_file("CREATE TRIGGER notes AFTER UPDATE ON pubsub_subscriptions BEGIN SELECT 1; END"),
        in_file("DROP TRIGGER notes"),
        0,
    ),
    "no guard": (
        in_file("DROP TRIGGER vpubsub_guard"),
        in_file(guard_sql(Settings().max_payload_bytes)),
        0,
    ),
    "a guard with a smaller limit": (
        in_file("DROP TRIGGER vpubsub_guard", guard_sql(100)),
        in_file("DROP TRIGGER vpubsub_guard", guard_sql(Settings().max_payload_bytes)),
        0,
    ),
    "another text of the guard": (
        in_file("DROP TRIGGER vpubsub_guard", guard_sql(1 << 20).replace("WHEN", "WHEN /* mine */")),
        in_file("DROP TRIGGER vpubsub_guard", guard_sql(Settings().max_payload_bytes)),
        0,
    ),
    "a further column": (
        in_file("ALTER TABLE vpubsub ADD COLUMN more"),
        in_file("ALTER TABLE vpubsub DROP COLUMN more"),
        0,
    ),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("what", DONE)
async def test_what_is_not_exactly_ours_is_left_to_the_ordinary_connection(served: Any, what: str) -> None:
    do, undo, seen = DONE[what]
    async with served() as found:
        assert await found.went_own(ONE)
        await do(found)
        for number in (2, 3):
            assert not await found.went_own(ONE), "from the next transaction on"
            assert found.execute("SELECT count(*) FROM seen") == [(seen * (number - 1),)]
        await undo(found)
        await found.next_session()
        assert await found.went_own(ONE), "from the next session on"
        assert found.execute("SELECT count(*) FROM seen") == [(seen * 2,)]


@pytest.mark.asyncio
async def test_a_guard_with_a_larger_limit_has_nothing_to_find(served: Any) -> None:
    async with served() as found:
        assert await found.went_own(ONE)
        found.execute("DROP TRIGGER vpubsub_guard", guard_sql(1 << 24))
        assert await found.went_own(ONE)


@pytest.mark.asyncio
async def test_an_index_of_the_owner_refuses_as_before(served: Any) -> None:
    async with served() as found:
        assert await found.went_own(ONE)
        found.execute("CREATE UNIQUE INDEX one ON vpubsub (payload)")
        first, second, third = await asyncio.gather(
            found.publish(Item("a", "y")), found.publish(Item("b", "y")), found.publish(Item("b", "z"))
        )
        assert (first, third) == ([2], [3])
        assert second[:2] == ("InvalidArgument", "a constraint of the database refuses this; nothing was stored")


@pytest.mark.asyncio
async def test_another_plugin_that_wraps_writes_finds_the_ordinary_connection(served: Any) -> None:
    class Wraps:
        @hookimpl
        def write_wrapper(self, database: str) -> Any:
            def wrapper(conn: sqlite3.Connection) -> Iterator[None]:
                conn.set_authorizer(lambda what, name, *_: sqlite3.SQLITE_OK)
                yield

            return wrapper

    async with served() as found:
        assert await found.went_own(ONE)
        pm.register(Wraps(), name="wraps")
        try:
            await found.next_session()
            assert not await found.went_own(ONE)
        finally:
            pm.unregister(name="wraps")
        await found.next_session()
        assert await found.went_own(ONE)


@pytest.mark.asyncio
async def test_a_transaction_that_somebody_left_open_is_not_waited_for(served: Any) -> None:
    async with served() as found:
        assert await found.went_own(ONE)
        insert = "INSERT INTO seen VALUES (0, '', '')"
        await found.db.execute_write_fn(lambda conn: conn.execute(insert).rowcount, transaction=False)
        async with asyncio.timeout(3):
            assert (await found.publish(ONE))[0] == "Unavailable", "as it was without an own connection"
        await found.db.execute_write_fn(lambda conn: conn.rollback(), transaction=False)
        assert await found.went_own(ONE)


@pytest.mark.asyncio
async def test_where_triggers_cannot_be_disabled(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "disable_triggers", lambda conn: False)
    async with served() as found:
        assert await found.publish(ONE) == [1]
        assert (found.own.is_open, found.own._given_up) == (False, True)
        monkeypatch.setattr(connections, "can_disable_triggers", lambda: False)
        assert await found.publish(ONE) == [2]
        assert [conn for conn in found.db._all_connections if conn.isolation_level == "IMMEDIATE"] != []


@pytest.mark.asyncio
async def test_a_plugin_whose_hook_fails_for_it(served: Any) -> None:
    class Once:
        calls = 0

        @hookimpl
        def prepare_connection(self, conn: sqlite3.Connection) -> None:
            if conn.isolation_level == "IMMEDIATE":
                self.calls += 1
                if self.calls > 1:
                    raise ValueError("only one")

    once = Once()
    pm.register(once, name="once")
    try:
        async with served() as found:
            assert await found.publish(ONE) == [1]
            assert await found.publish(ONE) == [2]
            assert once.calls == 2, "it is not tried again with every session"
            assert not found.own.is_open
    finally:
        pm.unregister(name="once")


@pytest.mark.asyncio
async def test_it_is_opened_anew_with_the_write_thread(served: Any) -> None:
    async with served() as found:
        assert await found.went_own(ONE)
        first = found.own._conn
        compat.end_write_thread(found.db)
        async with asyncio.timeout(10):
            while compat.write_thread_lives(found.db):  # noqa: ASYNC110 - a thread's end cannot be awaited
                await asyncio.sleep(0.01)
        found.broker.store.revive()
        assert await found.publish(ONE) == [2]
        assert found.own._conn is not first
        assert found.changes == 1
        with pytest.raises(sqlite3.ProgrammingError):
            first.execute("SELECT 1")


@pytest.mark.asyncio
async def test_a_file_that_was_replaced(served: Any, tmp_path: Path) -> None:
    async with served() as found:
        assert await found.went_own(ONE)
        first = found.own._conn
        found.path.rename(tmp_path / "kept.db")
        async with Served(tmp_path / "new.db", own=False) as other:
            assert await other.publish(ONE, ONE, ONE) == [1, 2, 3]
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (tmp_path / "new.db").rename(found.path)
        async with asyncio.timeout(10):
            while not isinstance(ids := await found.publish(ONE), list):  # noqa: ASYNC110 - until it is noticed
                await asyncio.sleep(0.01)
        assert ids == [4]
        assert found.own._conn is not first
        assert found.changes == 1
        with pytest.raises(sqlite3.ProgrammingError):
            first.execute("SELECT 1")
        assert found.execute("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.asyncio
async def test_it_is_closed_with_the_server(served: Any) -> None:
    async with served() as found:
        assert await found.went_own(ONE)
        conn = found.own._conn
        await found.datasette.invoke_shutdown()
        assert not found.own.is_open
        assert conn not in found.db._all_connections
        with pytest.raises(sqlite3.ProgrammingError):
            conn.execute("SELECT 1")


class Stuck:
    """A connection that cannot be rolled back."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    def rollback(self) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    def commit(self) -> None:
        raise sqlite3.OperationalError("something")


@pytest.mark.asyncio
async def test_a_transaction_that_cannot_be_ended_holds_no_lock(served: Any) -> None:
    async with served() as found:
        assert await found.went_own(ONE)
        found.own._conn = Stuck(found.own._conn)
        assert await found.publish(ONE) == [2], "the ordinary connection writes it"
        assert not found.own.is_open
        assert await found.publish(ONE) == [3]


# -- what the file must have --------------------------------------------------


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    found = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    schema.install(found, Settings())
    yield found
    found.close()


def test_a_new_file_has_only_ours(conn: sqlite3.Connection) -> None:
    limit = Settings().max_payload_bytes
    assert only_ours(conn, limit)
    assert only_ours(conn, limit - 1)
    assert not only_ours(conn, limit + 1)
    conn.execute("CREATE TABLE other (a)")
    conn.execute("CREATE TRIGGER elsewhere AFTER INSERT ON other BEGIN SELECT 1; END")
    conn.execute("CREATE INDEX mine ON vpubsub (created_at)")
    assert only_ours(conn, limit)


def test_a_guard_may_refuse_numbers_that_were_counted_as_eight_bytes(tmp_path: Path) -> None:
    for limit, ours in ((NUMBER_BYTES - 1, False), (NUMBER_BYTES, True)):
        conn = sqlite3.connect(tmp_path / f"{limit}.db", isolation_level=None)
        schema.install(conn, Settings(max_payload_bytes=limit))
        assert only_ours(conn, limit) == ours
        conn.close()
    longest = [-(2**63), -1.7976931348623157e308, -2.2250738585072014e-308]
    with contextlib.closing(sqlite3.connect(":memory:")) as conn:
        sizes = [conn.execute("SELECT length(CAST(? AS BLOB))", [number]).fetchone()[0] for number in longest]
    assert max(sizes) < NUMBER_BYTES


def test_a_file_in_utf_16_counts_other_bytes(tmp_path: Path) -> None:
    conn = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    conn.execute("PRAGMA encoding = 'UTF-16'")
    schema.install(conn, Settings())
    assert not only_ours(conn, 1)
    conn.close()


def test_a_log_that_follows_a_stream(conn: sqlite3.Connection) -> None:
    schema.follow(conn, Settings(), "stream", None, None)
    assert not only_ours(conn, 1)
    schema.promote(conn, Settings())
    assert only_ours(conn, 1)


def test_a_table_that_was_rebuilt(conn: sqlite3.Connection) -> None:
    sql = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'vpubsub'").fetchone()[0]
    conn.execute("DROP TABLE vpubsub")
    conn.execute(ALTERED)
    schema.install(conn, Settings())
    assert not only_ours(conn, 1)
    conn.execute("DROP TABLE vpubsub")
    conn.execute(sql)
    schema.install(conn, Settings())
    assert only_ours(conn, 1)


@NEEDS_SETCONFIG
def test_cursors_are_saved_as_with_the_trigger(tmp_path: Path) -> None:
    """A cursor never moves back or beyond the head, whatever is in its row and whatever is to be saved."""
    kinds: list[Any] = [0, 1, 3, 5, 9, 2.5, "text", "4", b"\x01"]
    results = []
    for name, way in (("a", "own"), ("b", "ordinary")):
        conn = sqlite3.connect(tmp_path / f"{name}.db", isolation_level=None)
        schema.install(conn, Settings())
        for number in range(5):
            conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', ?)", [number])
        conn.execute("UPDATE sqlite_sequence SET seq = 9 WHERE name = 'vpubsub'")
        for number, value in enumerate(kinds):
            conn.execute(
                "INSERT INTO pubsub_subscriptions (name, cursor, holder, claim, created_at, last_seen_at) "
                "VALUES (?, ?, 'me', ?, '', '')",
                [str(number), value, number + 1],
            )
        if way == "own":
            conn.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER, False)  # type: ignore[attr-defined]
        outcome = []
        for cursor in (0, 2, 4, 9, 10, 2**62, 3):
            saves = [Save(claim, cursor, claim % 2 == 0) for claim in range(1, len(kinds) + 2)]
            conn.execute("BEGIN IMMEDIATE")
            Batch([], saves, "me").append_plain(conn, [])
            conn.execute("COMMIT")
            outcome.append(
                conn.execute("SELECT name, cursor, typeof(cursor), holder FROM pubsub_subscriptions").fetchall()
            )
            conn.execute("UPDATE pubsub_subscriptions SET holder = 'me'")
        results.append(outcome)
        conn.close()
    assert results[0] == results[1]


# -- whether others have committed --------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_stamp_changes_when_others_commit_and_not_when_the_broker_does(tmp_path: Path, seed: int) -> None:
    paths = [sqlite3.connect(tmp_path / "a.db", isolation_level=None) for _ in range(3)]
    ordinary, own, foreign = paths
    ordinary.execute("PRAGMA journal_mode = WAL")
    schema.install(ordinary, Settings())
    choose = random.Random(seed)
    writes = OwnWrites()
    last = writes.stamp(ordinary)
    others = False
    for _ in range(300):
        who = choose.choice([ordinary, own, own, own, foreign, None])
        if who is None:
            stamp = writes.stamp(ordinary)
            assert (stamp != last) == others
            last, others = stamp, False
            continue
        who.execute("BEGIN IMMEDIATE")
        if who is foreign:
            others = True
        else:
            writes.enter(who)
        who.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', 'x')")
        who.execute("COMMIT")
    own.close()
    assert writes.stamp(ordinary) is not None
    for each in (ordinary, foreign):
        each.close()


def test_an_owners_trigger_counts_however_its_table_is_written(conn: sqlite3.Connection) -> None:
    writes = OwnWrites()
    assert writes.stamp(conn) is not None
    conn.execute("CREATE TRIGGER mine AFTER INSERT ON VPUBSUB BEGIN SELECT 1; END")
    assert writes.stamp(conn) is None


def test_a_payload_is_measured_in_bytes() -> None:
    with pytest.raises(PayloadTooLarge, match="payload has 8 bytes"):
        check_item(Item("a", memoryview(bytes(8)).cast("I")), Settings(max_payload_bytes=7))


def test_it_begins_absent() -> None:
    assert not OwnConnection(None, None, 1).is_open
