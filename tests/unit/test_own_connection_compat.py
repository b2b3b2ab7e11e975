"""What the batcher's own connection needs of Python, SQLite, Datasette and pluggy is as it was, or nothing breaks."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.database import Database
from datasette.plugins import pm
from own_way import NEEDS_SETCONFIG, REAL, make_file

from datasette_pubsub.compat import connections


def test_python_can_disable_triggers_since_3_12() -> None:
    assert hasattr(sqlite3.Connection, "setconfig") == REAL


def test_where_python_cannot_it_says_so() -> None:
    if not REAL:
        conn = sqlite3.connect(":memory:")
        assert not connections.disable_triggers(conn)
        conn.close()
    assert not connections.disable_triggers(cast(sqlite3.Connection, SimpleNamespace()))


@NEEDS_SETCONFIG
def test_only_triggers_of_the_file_are_disabled(tmp_path: Path) -> None:
    conn = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    assert connections.disable_triggers(conn)
    conn.execute("CREATE TABLE t (a)")
    conn.execute("CREATE TABLE seen (a)")
    conn.execute("CREATE TRIGGER refuses BEFORE INSERT ON t BEGIN SELECT RAISE(ABORT, 'refused'); END")
    conn.execute("INSERT INTO t VALUES (1)")
    conn.execute("CREATE TEMP TRIGGER notes AFTER INSERT ON main.t BEGIN INSERT INTO seen VALUES (NEW.a); END")
    conn.execute("INSERT INTO t VALUES (2)")
    assert conn.execute("SELECT a FROM seen").fetchall() == [(2,)], "a TEMP trigger fires"
    conn.close()


def test_a_version_tells_of_temp_objects_and_a_version_of_the_others(tmp_path: Path) -> None:
    conn = sqlite3.connect(tmp_path / "a.db", isolation_level=None)

    def versions() -> list[int]:
        return [conn.execute(f"PRAGMA {name}schema_version").fetchone()[0] for name in ("temp.", "main.", "")]

    conn.execute("CREATE TABLE t (a)")
    temp, main, plain = versions()
    assert main == plain, "without a name it is the file's"
    conn.execute("CREATE TEMP TRIGGER notes AFTER INSERT ON main.t BEGIN SELECT 1; END")
    assert versions()[0] > temp
    assert versions()[1] == main
    conn.execute("CREATE TRIGGER other AFTER INSERT ON t BEGIN SELECT 1; END")
    assert versions()[1] > main
    conn.close()


@pytest.mark.asyncio
async def test_it_is_made_as_datasette_makes_its_write_connection(tmp_path: Path) -> None:
    make_file(tmp_path / "data.db")
    config = {"plugins": {"datasette-pubsub": {"enabled": False}}}
    datasette = Datasette([str(tmp_path / "data.db")], config=config, settings={"cache_size_kb": 777})
    db = datasette.get_database("data")
    conn = connections.open_write_connection(datasette, db)
    assert conn is not None
    theirs = await db.execute_write_fn(lambda conn: conn, transaction=False)
    for name in ("isolation_level", "row_factory"):
        assert getattr(conn, name) == getattr(theirs, name)
    assert conn.execute("PRAGMA cache_size").fetchone()[0] == -777
    assert {conn, theirs} <= set(db._all_connections), "Datasette closes it with the database"
    connections.close_connection(db, conn)
    assert conn not in db._all_connections
    connections.close_connection(db, conn)
    datasette.close()


def test_another_datasette_has_nothing_of_it(tmp_path: Path) -> None:
    assert connections.open_write_connection(cast(Datasette, SimpleNamespace()), cast(Database, None)) is None
    conn = sqlite3.connect(":memory:")
    connections.close_connection(cast(Database, SimpleNamespace()), conn)
    with pytest.raises(sqlite3.ProgrammingError):
        conn.execute("SELECT 1")


@pytest.mark.asyncio
async def test_a_hook_that_fails_leaves_no_connection_open(tmp_path: Path) -> None:
    class Fails:
        @hookimpl
        def prepare_connection(self, conn: sqlite3.Connection) -> None:
            raise ValueError("not this one")

    make_file(tmp_path / "data.db")
    datasette = Datasette([str(tmp_path / "data.db")])
    db = datasette.get_database("data")
    pm.register(Fails(), name="fails")
    try:
        with pytest.raises(ValueError, match="not this one"):
            connections.open_write_connection(datasette, db)
    finally:
        pm.unregister(name="fails")
    assert db._all_connections == []
    datasette.close()


def test_who_wraps_writes() -> None:
    assert len(pm.hook.write_wrapper.get_hookimpls()) == 2, "Datasette's own, which looks for renamed tables, and ours"
    assert not connections.writes_are_wrapped()

    class Wraps:
        @hookimpl
        def write_wrapper(self, datasette: Any) -> None:
            return None

    pm.register(Wraps(), name="wraps")
    try:
        assert connections.writes_are_wrapped()
    finally:
        pm.unregister(name="wraps")
    assert not connections.writes_are_wrapped()
