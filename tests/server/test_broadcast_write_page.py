"""Datasette's own ways to write, on a table that is broadcast."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from datasette.app import Datasette
from datasette.utils import sql_analysis
from servers import Server

from datasette_pubsub.broadcast import tables
from datasette_pubsub.broadcast.definition import Broadcast
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

TABLES = [
    "CREATE TABLE items (id INTEGER PRIMARY KEY)",
    "CREATE TABLE items (id INTEGER PRIMARY KEY, name, price UNIQUE)",
    "CREATE TABLE items (id INTEGER PRIMARY KEY, name AS (id || 'x'))",
    f"CREATE TABLE items (id INTEGER PRIMARY KEY, {', '.join(f'c{n}' for n in range(60))})",
    "CREATE TABLE items (name, id, price)",
    "CREATE TABLE items (id TEXT PRIMARY KEY, name UNIQUE COLLATE NOCASE, price)",
    "CREATE TABLE items (id, name, price, PRIMARY KEY (name, id)) WITHOUT ROWID",
]

CHOICES: list[dict[str, Any]] = [
    {},
    {"new": False, "old": False},
    {"new": False, "columns": ("id",)},
    {"per_row": "id"},
    {"per_row": "'fixed'", "new": False, "old": False},
    {"conditions": {"insert": "1", "update": "NEW.id > 1", "delete": "OLD.id > 1"}},
]


@pytest.mark.parametrize("create", TABLES)
@pytest.mark.parametrize("choice", CHOICES)
def test_every_read_of_a_trigger_is_told_with_its_database(create: str, choice: dict[str, Any]) -> None:
    """SQLite tells no database of a table of which the rowid alone is read; Datasette refuses such write SQL."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.install(conn, Settings())
        conn.execute(create)
        tables.create(conn, "items", Broadcast("a/", **choice))
        for statement in (
            "INSERT INTO items (id) VALUES (1)",
            "UPDATE items SET id = 1 WHERE id = 2",
            "DELETE FROM items WHERE id = 1",
        ):
            operations = sql_analysis.analyze_sql_tables(conn, statement, database_name="data").operations
            reads = [each for each in operations if each.operation == "read"]
            assert reads
            assert [each for each in reads if each.database is None] == []
            written = {each.table for each in operations if each.operation in ("insert", "update", "delete")}
            assert written <= {"items", "vpubsub", "_pubsub_probe", "_pubsub_replaced"}


def prepared(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.install(conn, Settings())
        conn.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
        conn.execute("INSERT INTO people VALUES (1, 'ada'), (2, 'bob'), (3, 'eve')")
        tables.create(conn, "people", Broadcast("people"))


def execute(server: Server, sql: str, **sent: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/data/-/execute-write", json={"sql": sql}, timeout=60, **sent)


def told(server: Server) -> list[str]:
    return [json.loads(row[0])["op"] for row in server.rows("SELECT payload FROM vpubsub ORDER BY id")]


def test_root_writes_in_every_way(serve: Callable[..., Server], tmp_path: Path) -> None:
    prepared(tmp_path / "data.db")
    server = serve(config={}, options=["--root"])
    cookies = server.root_cookie()
    for sql in (
        "INSERT INTO people (name) VALUES ('new')",
        "UPDATE people SET name = 'x' WHERE id = 2",
        "UPDATE people SET id = 20 WHERE id = 3",
        "DELETE FROM people WHERE id = 20",
        "INSERT OR REPLACE INTO people (name) VALUES ('ada')",
    ):
        answer = execute(server, sql, cookies=cookies)
        assert (answer.status_code, answer.json().get("ok")) == (200, True), answer.text
    assert told(server) == ["insert", "update", "delete", "insert", "delete", "delete", "insert"]
    base = f"{server.url}/data/people"
    for path, body, op in (
        ("/-/insert", {"rows": [{"name": "row"}]}, "insert"),
        ("/-/upsert", {"rows": [{"id": 2, "name": "y"}]}, "update"),
        ("/2/-/update", {"update": {"name": "z"}}, "update"),
        ("/2/-/delete", {}, "delete"),
    ):
        answer = httpx.post(f"{base}{path}", json=body, cookies=cookies, timeout=60)
        assert answer.status_code in (200, 201), (path, answer.text)
        assert told(server)[-1] == op, path


def test_who_may_change_the_table_alone_is_told_before(serve: Callable[..., Server], tmp_path: Path) -> None:
    """The write API and row pages work; write SQL is refused by Datasette, as the broadcast's page has said."""
    prepared(tmp_path / "data.db")
    ed = {"id": "ed"}
    rights = dict.fromkeys(("insert-row", "update-row", "delete-row"), ed)
    config = {
        "databases": {
            "data": {
                "permissions": {"execute-write-sql": ed, "execute-sql": ed},
                "tables": {"people": {"permissions": rights}},
            }
        }
    }
    server = serve(config=config, options=["--root"])
    signed = Datasette(secret="tests").sign({"a": ed}, "actor")
    cookies = {"ds_actor": signed}
    base = f"{server.url}/data/people"
    for path, body, op in (
        ("/-/insert", {"rows": [{"name": "row"}]}, "insert"),
        ("/-/upsert", {"rows": [{"id": 2, "name": "y"}]}, "update"),
        ("/2/-/update", {"update": {"name": "z"}}, "update"),
        ("/2/-/delete", {}, "delete"),
    ):
        answer = httpx.post(f"{base}{path}", json=body, cookies=cookies, timeout=60)
        assert answer.status_code in (200, 201), (path, answer.text)
        assert told(server)[-1] == op, path
    before = told(server)
    for sql in ("UPDATE people SET name = 'x' WHERE id = 1", "DELETE FROM people WHERE id = 1"):
        answer = execute(server, sql, cookies=cookies)
        assert answer.status_code == 403, answer.text
        assert re.search(r"need (insert|update|delete)-row on .*pubsub", answer.text), answer.text
    assert told(server) == before
    form = {"action": "preview", "channel": "people", "on": "insert", "new": "1", "old": "1", "column": "id"}
    shown = httpx.post(f"{base}/-/broadcast", data=form, cookies=server.root_cookie(), timeout=60)
    assert shown.status_code == 200
    text = re.sub(r"<[^>]+>|\s+", " ", shown.text)
    assert "write SQL in Datasette" in text
    assert re.search(r"needs +insert-row , +update-row , +delete-row +and +view-table +on +vpubsub", text), text
