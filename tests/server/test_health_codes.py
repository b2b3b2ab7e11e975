"""Errors are told by SQLite's codes: no word in a text decides a status."""

from __future__ import annotations

import ast
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import Server, sqlite_shell

import datasette_pubsub
from datasette_pubsub.broker.sqlite_errors import explain
from datasette_pubsub.core.errors import Unavailable
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import log, sqlite_codes
from datasette_pubsub.storage.catchup import Reader
from datasette_pubsub.storage.schema import install

PACKAGE = Path(datasette_pubsub.__file__).parent

#: Words that SQLite's own messages have, in the mouth of an owner.
WORDS = [
    "the period is closed",
    "the period is locked",
    "the quota is full",
    "permission is needed from Ada",
    "this table is readonly",
    "no such table is open on sundays",
    "the office is busy",
    "unable to open the books",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("words")
    path = folder / "data.db"
    with closing(sqlite3.connect(path)) as conn:
        install(conn, Settings())
    found = Server([path], {"permissions": {"publish-message": True}}, folder)
    yield found.start()
    found.kill()


@pytest.mark.parametrize("raises", ["ABORT", "FAIL", "ROLLBACK"])
@pytest.mark.parametrize("words", WORDS)
def test_an_owner_may_say_anything(server: Server, words: str, raises: str) -> None:
    server.publish({"channel": "a", "payload": "x"}, {"channel": "a", "payload": "y"})
    cursor = server.rows("SELECT max(id) FROM vpubsub")[0][0]
    sqlite_shell(
        server.path,
        f"""
        DROP TRIGGER IF EXISTS own_cursor; DROP TRIGGER IF EXISTS own_publish;
        INSERT OR IGNORE INTO pubsub_subscriptions (owner, name, reads) VALUES ('', 's', '{{"channels": ["a"]}}');
        CREATE TRIGGER own_cursor BEFORE UPDATE OF cursor ON pubsub_subscriptions WHEN NEW.cursor > OLD.cursor
        BEGIN SELECT RAISE({raises}, '{words}'); END;
        CREATE TRIGGER own_publish BEFORE INSERT ON vpubsub WHEN NEW.channel = 'closed'
        BEGIN SELECT RAISE({raises}, '{words}'); END;""",
    )
    url = f"{server.pubsub}/-/publish"
    answers: list[Any] = [
        httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": cursor}),
        httpx.post(url, json={"channel": "closed", "payload": "x"}),
        httpx.post(url, json={"channel": "closed", "payload": "x", "key": words}),
        httpx.post(url, json={"items": [{"channel": "a", "payload": "x"}, {"channel": "closed", "payload": "x"}]}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]) == (400, words)
        assert "retry-after" not in answer.headers
    assert server.rows("SELECT max(id), count(*) FROM vpubsub WHERE channel = 'closed'") == [(None, 0)]
    assert server.publish({"channel": "a", "payload": "goes on"}) == [cursor + 1]


def failing(code: int, text: str = "a text that says nothing") -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        (sqlite3.SQLITE_BUSY, 503, "locked by another writer"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, 503, "locked by another writer"),
        (sqlite3.SQLITE_BUSY_RECOVERY, 503, "locked by another writer"),
        (sqlite3.SQLITE_LOCKED, 503, "locked by another writer"),
        (sqlite3.SQLITE_FULL, 503, "the disk of database data is full"),
        (sqlite3.SQLITE_IOERR_WRITE, 503, "could not be written"),
        (sqlite3.SQLITE_IOERR_FSYNC, 503, "could not be written"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, 409, "cannot be written"),
        (sqlite3.SQLITE_CANTOPEN, 409, "cannot be written"),
        (sqlite3.SQLITE_ERROR, 503, "could not be written"),
        (0, 503, "could not be written"),
    ],
)
def test_what_a_code_means(code: int, status: int, told: str) -> None:
    for text in ("a text that says nothing", *WORDS):
        found = explain(failing(code, text), "data")
        assert (found.status, told in found.message) == (status, True), found.message
        assert text not in found.message


def test_a_lost_part_is_found_in_the_schema(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="a", payload="x")
    sqlite_shell(server.path, "DROP TABLE pubsub_subscriptions")
    answer = httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": 1})
    assert (answer.status_code, answer.json()["error"]) == (
        409,
        "database data has lost a part of its log; restart Datasette, or run: datasette pubsub install",
    )
    answer = httpx.get(f"{server.pubsub}/-/subscriptions.json")
    assert (answer.status_code, "lost a part" in answer.json()["error"]) == (409, True)
    # What is missing beside a trigger of the owner's is the owner's.
    sqlite_shell(
        server.path,
        "CREATE TRIGGER own AFTER INSERT ON vpubsub BEGIN INSERT INTO nowhere VALUES (1); END;",
    )
    server.restart()
    answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "x"})
    assert (answer.status_code, "lost a part" in answer.text, "nowhere" in answer.text) == (503, False, False)


def test_the_head_of_a_file_without_a_log() -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        assert log.head(conn) == 0
        conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT)")
        assert log.head(conn) == 0
        install(conn, Settings())
        assert log.head(conn) == 0


def test_a_text_that_is_not_utf8_is_read_and_an_error_of_sqlite_is_raised(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "data.db")) as conn:
        install(conn, Settings())
        conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', CAST(x'e4' AS TEXT))")
        conn.commit()
        conn.text_factory = lambda data: data.decode(errors="replace")
        reader = Reader(Selector.of(["a"]))
        assert [message.payload for message in reader.page(conn, 0, 1000).messages] == ["\ufffd"]
        conn.execute("DROP TABLE vpubsub")
        conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('vpubsub', 9)")
        with pytest.raises(sqlite3.OperationalError) as caught:
            reader.page(conn, 0, 1000)
        assert sqlite_codes.primary(caught.value) == sqlite3.SQLITE_ERROR


def test_a_full_disk_is_no_fault_of_the_sql(tmp_path: Path) -> None:
    """Errors of the file are not told as errors in what the caller sent."""
    assert sqlite_codes.is_of_the_file(failing(sqlite3.SQLITE_FULL))
    assert sqlite_codes.is_of_the_file(failing(sqlite3.SQLITE_IOERR_READ))
    assert not sqlite_codes.is_of_the_file(failing(sqlite3.SQLITE_ERROR, "database is locked"))
    assert not sqlite_codes.is_of_the_file(failing(sqlite3.SQLITE_INTERRUPT))
    assert isinstance(explain(failing(sqlite3.SQLITE_FULL), "data"), Unavailable)


def test_no_text_of_an_error_is_compared() -> None:
    """`"locked" in str(error)` and its like decide nothing in the package."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        handlers = {h.name for h in ast.walk(tree) if isinstance(h, ast.ExceptHandler) and h.name}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Compare):
                continue
            for part in ast.walk(node):
                if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in ("str", "repr"):
                    named = [n.id for n in ast.walk(part) if isinstance(n, ast.Name)]
                    assert not handlers & set(named), f"{path.name}:{node.lineno}"
                if isinstance(part, ast.Attribute) and part.attr == "args" and isinstance(part.value, ast.Name):
                    assert part.value.id not in handlers, f"{path.name}:{node.lineno}"
