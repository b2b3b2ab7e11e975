"""``datasette pubsub watch``: what changes in a result is published once, also over kill -9 and while nothing ran."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from commands import PUBSUB, call, failure
from places import ROOT
from servers import sqlite_shell, wait_for

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

SQL = "SELECT id, name FROM items WHERE wanted"
WATCH = ("items", SQL, "--channel", "items")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "data.db"
    with closing(sqlite3.connect(found, isolation_level=None)) as conn:
        schema.set_durability(conn, Settings())
        schema.install(conn, Settings())
        conn.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name, wanted DEFAULT 1)")
    return found


def read(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as conn:
        return conn.execute(sql).fetchall()


def messages(path: Path, channel: str = "items") -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as conn:
        rows = conn.execute("SELECT payload FROM vpubsub WHERE channel = ? ORDER BY id", [channel])
        return [json.loads(row[0]) for row in rows]


def test_rows_that_come_change_and_go(path: Path) -> None:
    sqlite_shell(path, "INSERT INTO items (id, name) VALUES (1, 'one'), (2, 'two'), (3, x'00ff');")
    assert "stored 3 rows" in call("watch", path, *WATCH, "--key", "id", "--once").stdout
    assert messages(path) == [], "the first result is not published"
    sqlite_shell(
        path,
        "INSERT INTO items (id, name) VALUES (4, 1.5); UPDATE items SET name = 'TWO' WHERE id = 2;"
        "UPDATE items SET wanted = 0 WHERE id = 1; DELETE FROM items WHERE id = 3;",
    )
    done = call("watch", path, *WATCH, "--key", "id", "--once")
    assert done.stdout.endswith("4 messages\t2 delete, 1 update, 1 insert\n")
    assert messages(path) == [
        {"query": "items", "op": "delete", "key": {"id": 1}, "old": {"id": 1, "name": "one"}},
        {
            "query": "items",
            "op": "delete",
            "key": {"id": 3},
            "old": {"id": 3, "name": {"$base64": True, "encoded": "AP8="}},
        },
        {
            "query": "items",
            "op": "update",
            "key": {"id": 2},
            "new": {"id": 2, "name": "TWO"},
            "old": {"id": 2, "name": "two"},
        },
        {"query": "items", "op": "insert", "key": {"id": 4}, "new": {"id": 4, "name": 1.5}},
    ]
    assert call("watch", path, *WATCH, "--key", "id", "--once").stdout == ""
    assert len(messages(path)) == 4, "nothing has changed"


def test_without_a_key_equal_rows_are_rows_of_their_own(path: Path) -> None:
    query = ("names", "SELECT name FROM items ORDER BY id DESC", "--channel", "items", "--once")
    sqlite_shell(path, "INSERT INTO items (id, name) VALUES (1, 'a'), (2, 'b');")
    call("watch", path, *query)
    sqlite_shell(
        path, "INSERT INTO items (id, name) VALUES (3, 'a'), (4, 'a'); UPDATE items SET name = 'c' WHERE id = 2;"
    )
    call("watch", path, *query)
    assert [(each["op"], each.get("new", each.get("old", {}))["name"], "key" in each) for each in messages(path)] == [
        ("delete", "b", False),
        ("insert", "a", False),
        ("insert", "c", False),
        ("insert", "a", False),
    ]
    # Rows that only change places have not changed.
    sqlite_shell(path, "UPDATE items SET id = id + 10 WHERE id = 1;")
    call("watch", path, *query)
    assert len(messages(path)) == 4


def test_operations_initial_and_parameters(path: Path) -> None:
    sqlite_shell(path, "INSERT INTO items (id, name) VALUES (1, 'one'), (20, 'twenty');")
    query = ("large", "SELECT id, name FROM items WHERE id > :least", "--channel", "large", "--once", "--on", "insert")
    assert failure("watch", path, *query) == "the query needs a value for its parameter least"
    call("watch", path, *query, "--param", "least", "5", "--initial")
    assert [each["new"]["id"] for each in messages(path, "large")] == [20]
    sqlite_shell(path, "DELETE FROM items; INSERT INTO items (id, name) VALUES (30, 'thirty');")
    call("watch", path, *query, "--param", "least", "5", "--initial")
    assert [each["new"]["id"] for each in messages(path, "large")] == [20, 30], "only what came"
    # With another parameter there is nothing to compare with.
    told = call("watch", path, *query, "--param", "least", "1").stderr
    assert told.startswith("The stored result was replaced, and no change was published: its SQL or its parameters")
    assert len(messages(path, "large")) == 2


def test_another_key_channel_or_column(path: Path) -> None:
    sqlite_shell(path, "INSERT INTO items (id, name) VALUES (1, 'one');")
    call("watch", path, *WATCH, "--once")
    sqlite_shell(path, "UPDATE items SET name = 'two';")
    # The stored rows are compared by the new key.
    call("watch", path, "items", SQL, "--channel", "others", "--key", "id", "--once")
    assert [each["op"] for each in messages(path, "others")] == ["update"]
    assert read(path, "SELECT channel, key, messages FROM _pubsub_standing") == [("others", '["id"]', 1)]
    sqlite_shell(path, "CREATE VIEW shown AS SELECT id FROM items;")
    query = ("shown", "SELECT * FROM shown", "--channel", "shown", "--once")
    call("watch", path, *query)
    sqlite_shell(path, "DROP VIEW shown; CREATE VIEW shown AS SELECT id, name FROM items;")
    assert "other columns" in call("watch", path, *query).stderr
    assert messages(path, "shown") == []


def test_what_is_too_large_for_a_message(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.install(conn, Settings(max_payload_bytes=200))
    call("watch", path, *WATCH, "--key", "name", "--once")
    sqlite_shell(
        path,
        f"INSERT INTO items (id, name) VALUES (1, 'a'), (2, '{'b' * 100}'), (3, '{'c' * 1000}');",
    )
    call("watch", path, *WATCH, "--key", "name", "--once")
    small, medium, large = messages(path)
    assert small["new"] == {"id": 1, "name": "a"}
    assert medium == {"query": "items", "op": "insert", "key": {"name": "b" * 100}, "too_large": True}
    assert large == {"query": "items", "op": "insert", "too_large": True}


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT * FROM nothing_there", "sql: no such table: nothing_there"),
        ("DELETE FROM items RETURNING id", "sql: a live query is a SELECT, and only reads"),
        ("SELECT id, name AS id FROM items", "sql: the result has two columns id; name one of them with AS"),
        ("SELECT publish_batch('a', 'b')", "sql: no such function: publish_batch"),
        (
            "SELECT name FROM _pubsub_standing",
            "sql: a standing query cannot read _pubsub_standing, which it changes itself",
        ),
        (
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) AS n FROM c",
            "sql: the query took longer than 0.2 seconds (--time-limit)",
        ),
        (
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 11) SELECT x FROM c",
            "the result has more than 10 rows (--max-rows): use LIMIT",
        ),
    ],
)
def test_a_query_that_cannot_be_run(path: Path, sql: str, reason: str) -> None:
    limits = ("--time-limit", "0.2", "--max-rows", "10")
    assert failure("watch", path, "bad", sql, "--channel", "bad", "--once", *limits) == reason
    ((error,),) = read(path, "SELECT error FROM _pubsub_standing")
    assert error.split(" (")[0] == reason.split(" (")[0]
    assert messages(path, "bad") == []
    # The error ends with the first run that succeeds.
    call("watch", path, "bad", "SELECT 1 AS one", "--channel", "bad", "--once")
    assert read(path, "SELECT error, row_count FROM _pubsub_standing") == [(None, 1)]


def test_usage(path: Path) -> None:
    assert "SQL is required" in call("watch", path, "items", code=2).stderr
    assert "--channel is required" in call("watch", path, "items", SQL, code=2).stderr
    assert "--forget takes" in call("watch", path, *WATCH, "--forget", code=2).stderr
    assert failure("watch", path, "", SQL, "--channel", "c") == "name is empty"
    assert failure("watch", path, "n", SQL, "--channel", "") == "channel is empty"
    assert failure("watch", path, *WATCH, "--key", "nothing", "--once") == "key: the result has no column nothing"
    call("watch", path, "items", "--forget")
    assert failure("watch", path, "items", "--forget") == "there is no standing query items"
    sqlite_shell(path.parent / "empty.db", "CREATE TABLE t (id)")
    assert "no log is installed" in failure("watch", path.parent / "empty.db", *WATCH)


def test_a_query_that_reads_the_log_comes_to_rest(path: Path) -> None:
    query = ("counts", "SELECT count(*) AS n FROM vpubsub", "--channel", "counts", "--once")
    call("watch", path, *query)
    sqlite_shell(path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'b');")
    for _ in range(3):
        call("watch", path, *query)
    assert [each["op"] for each in messages(path, "counts")] == ["delete", "insert"]


def test_a_message_that_a_trigger_refuses(path: Path) -> None:
    call("watch", path, *WATCH, "--key", "id", "--once")
    sqlite_shell(
        path,
        "CREATE TRIGGER no BEFORE INSERT ON vpubsub WHEN NEW.payload GLOB '*ugly*' "
        "BEGIN SELECT RAISE(ABORT, 'ugly'); END; INSERT INTO items (id, name) VALUES (1, 'ugly');",
    )
    assert failure("watch", path, *WATCH, "--key", "id", "--once") == "ugly"
    assert read(path, "SELECT error, row_count FROM _pubsub_standing") == [("ugly", 0)]
    sqlite_shell(path, "DROP TRIGGER no;")
    call("watch", path, *WATCH, "--key", "id", "--once")
    assert [each["new"]["name"] for each in messages(path)] == ["ugly"]


def test_it_follows_the_file(path: Path) -> None:
    sqlite_shell(path, "INSERT INTO items (id, name) VALUES (1, 'one');")
    command = [*PUBSUB, "watch", str(path), *WATCH, "--key", "id", "--interval", "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().endswith("stored 1 row\n")
        for number in (2, 3):
            sqlite_shell(path, f"INSERT INTO items (id, name) VALUES ({number}, 'next');")
            assert process.stdout.readline().endswith("1 message\t1 insert\n")
        sqlite_shell(path, "ALTER TABLE items RENAME TO away;")
        assert process.stderr.readline() == "Error: sql: no such table: items\n"
        wait_for(lambda: read(path, "SELECT error FROM _pubsub_standing") == [("sql: no such table: items",)], "stored")
        sqlite_shell(path, "ALTER TABLE away RENAME TO items; INSERT INTO items (id, name) VALUES (4, 'four');")
        assert process.stdout.readline().endswith("1 message\t1 insert\n")
        assert read(path, "SELECT error FROM _pubsub_standing") == [(None,)]
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
    assert [each["new"]["id"] for each in messages(path)] == [2, 3, 4]


def test_several_processes_publish_once(path: Path) -> None:
    command = [*PUBSUB, "watch", str(path), *WATCH, "--key", "id", "--interval", "0.02"]
    call("watch", path, *WATCH, "--key", "id", "--once")
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(3)]
    try:
        for number in range(1, 61):
            sqlite_shell(path, f"INSERT INTO items (id, name) VALUES ({number}, 'x');")
        wait_for(lambda: len(messages(path)) >= 60, "all are published")
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=30)[1] == b""
    assert [each["new"]["id"] for each in messages(path)] == list(range(1, 61))


def test_a_file_that_is_replaced_ends_it(path: Path) -> None:
    command = [*PUBSUB, "watch", str(path), *WATCH]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().endswith("stored 0 rows\n")
        os.rename(path, path.with_name("moved.db"))
        assert process.communicate(timeout=30)[1] == f"Error: {path} was deleted or replaced\n"
        assert process.returncode == 1


def kill(path: Path, kills: int) -> dict[str, int]:
    sqlite_shell(path, "DROP TABLE items; CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, wanted INTEGER);")
    script = str(ROOT / "tests" / "support" / "killed.py")
    command = [sys.executable, script, "watch", str(path), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_kill_9_at_every_step(path: Path) -> None:
    found = kill(path, 15)
    assert (found["kills"], found["inserts"]) == (15, 15)


@pytest.mark.slow
def test_kill_9_at_every_step_200_times(path: Path) -> None:
    found = kill(path, 200)
    assert (found["kills"], found["inserts"]) == (200, 200)
