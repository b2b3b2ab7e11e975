"""What the plugin leans on inside Datasette is as it was; where it is not there, nothing breaks."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from datasette.app import Datasette
from datasette.database import Database

from datasette_pubsub import compat


async def opened(tmp_path: Path, **settings: Any) -> tuple[Datasette, Database]:
    path = tmp_path / "data.db"
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE IF NOT EXISTS t (a)")
    conn.close()
    # Without a broker, which refuses to write to a file that is not the one it knows.
    config = {"plugins": {"datasette-pubsub": {"enabled": False}}}
    datasette = Datasette([str(path)], settings=settings, config=config)
    await datasette.invoke_startup()
    return datasette, datasette.get_database("data")


async def ended(db: Database) -> None:
    async with asyncio.timeout(10):
        while db._write_thread.is_alive():  # noqa: ASYNC110 - a thread's end cannot be awaited
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_a_write_thread_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasette, db = await opened(tmp_path)
    assert not compat.write_thread_died(db), "there is none yet"
    await db.execute_write_fn(lambda conn: conn.execute("INSERT INTO t VALUES (1)"))
    assert not compat.write_thread_died(db)

    class Broken:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    def fail(conn: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("to be printed")

    monkeypatch.setattr("threading.excepthook", lambda args: None)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", Broken())
        with pytest.raises(TimeoutError):
            # Datasette never answers it: that is why this module is needed.
            await asyncio.wait_for(db.execute_write_fn(fail), 1)
        await ended(db)
    assert compat.write_thread_died(db)
    compat.forget_write_thread(db)
    assert not compat.write_thread_died(db)
    assert [c for c in db._all_connections if c.isolation_level == "IMMEDIATE"] == [], "its connection is closed"
    await asyncio.wait_for(db.execute_write_fn(lambda conn: conn.execute("INSERT INTO t VALUES (2)")), 10)
    db.close()
    assert not compat.write_thread_died(db), "it was ended, and has not died"
    datasette.close()


@pytest.mark.asyncio
async def test_a_write_thread_that_was_told_to_end(tmp_path: Path) -> None:
    datasette, db = await opened(tmp_path)
    conn = await db.execute_write_fn(lambda conn: conn)
    compat.end_write_thread(db)
    await ended(db)
    assert conn in db._all_connections, "the thread has closed it, and Datasette still lists it"
    compat.forget_write_thread(db)
    assert conn not in db._all_connections
    await asyncio.wait_for(db.execute_write_fn(lambda conn: conn.execute("INSERT INTO t VALUES (2)")), 10)
    datasette.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("threads", [3, 0])
async def test_connections_are_opened_anew(tmp_path: Path, threads: int) -> None:
    datasette, db = await opened(tmp_path, num_sql_threads=threads)
    await db.execute_write_fn(lambda conn: conn.execute("INSERT INTO t VALUES (1)"))
    first = await db.execute_fn(lambda conn: conn)
    assert compat.can_reopen(db)
    compat.end_write_thread(db)
    if threads:
        await ended(db)
    old, pending = compat.leave_connections(db)
    assert first in old
    assert pending == []
    for conn in old:
        conn.close()
    # Kept elsewhere, so that the new file cannot be given the number of the old one.
    (tmp_path / "data.db").rename(tmp_path / "kept.db")
    conn = sqlite3.connect(tmp_path / "data.db")
    conn.execute("CREATE TABLE other (a)")
    conn.close()
    assert await db.execute_fn(lambda conn: conn.execute("SELECT name FROM sqlite_master").fetchone()[0]) == "other"
    await db.execute_write_fn(lambda conn: conn.execute("INSERT INTO other VALUES (1)"))
    assert await db.execute_fn(lambda conn: conn.execute("SELECT count(*) FROM other").fetchone()[0]) == 1
    datasette.close()


def test_another_datasette_has_nothing_of_it() -> None:
    db = cast(Database, SimpleNamespace())
    assert not compat.write_thread_died(db)
    assert not compat.can_reopen(db)
