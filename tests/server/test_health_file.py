"""The file is deleted, renamed or replaced while it is served."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import DEADLINE, Server, Sse, sqlite_shell, wait_for

GONE = "the file of database data was deleted or renamed"
SERVED = "the file that is at its path is served; publishing goes on"


def publish(server: Server, payload: str) -> httpx.Response:
    return httpx.post(f"{server.pubsub}/-/publish", json={"channel": "c", "payload": payload}, timeout=DEADLINE)


def make(path: Path, sql: str = "CREATE TABLE biz (x)") -> None:
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(f"PRAGMA journal_mode = WAL; {sql};")


def payloads(path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as conn:
        if not conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'vpubsub'").fetchone():
            return []
        return [row[0] for row in conn.execute("SELECT payload FROM vpubsub ORDER BY id")]


def test_a_file_that_is_renamed_and_put_back(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    server.publish(channel="c", payload="1")
    with Sse(f"{server.pubsub}/-/stream", channel="c", start="earliest") as reader:
        assert reader.messages(1)[0]["payload"] == "1"
        aside = tmp_path / "aside.db"
        server.path.rename(aside)
        answer = publish(server, "lost")
        assert (answer.status_code, GONE in answer.json()["error"]) == (503, True)
        assert answer.headers["retry-after"] == "1"
        assert reader.until("bye")["data"]
        refused = httpx.get(f"{server.pubsub}/-/stream", params={"channel": "c"}, timeout=DEADLINE)
        assert refused.status_code == 503
        wait_for(lambda: GONE in server.log, "it is told in the log")
        assert not server.path.exists(), "the server does not make a file in its place"
    aside.rename(server.path)
    wait_for(lambda: publish(server, "2").status_code == 200, "it goes on by itself")
    with Sse(f"{server.pubsub}/-/stream", channel="c", start="earliest") as reader:
        assert [message["payload"] for message in reader.messages(2)] == ["1", "2"]
    wait_for(lambda: SERVED in server.log, "that, too, is told")
    assert server.log.count(GONE) == 1, "once"
    assert payloads(server.path) == ["1", "2"]


@pytest.mark.parametrize("left", [True, False], ids=["with the old -wal and -shm", "without them"])
@pytest.mark.parametrize("published", [True, False], ids=["published before", "nothing published before"])
def test_a_file_that_is_replaced(serve: Callable[..., Server], tmp_path: Path, left: bool, published: bool) -> None:
    """Nothing is acknowledged that is not in the file at the path; and the new file is served."""
    server = serve()
    if published:
        server.publish(*({"channel": "c", "payload": f"old {number}"} for number in range(5)))
    other = tmp_path / "other.db"
    make(other)
    kept = tmp_path / "kept.db"
    kept.hardlink_to(server.path)
    if not left:
        for suffix in ("-wal", "-shm"):
            server.path.with_name(f"data.db{suffix}").unlink(missing_ok=True)
    other.rename(server.path)
    acknowledged = []
    for number in range(1000):
        answer = publish(server, f"new {number}")
        if answer.status_code == 200:
            acknowledged.append(f"new {number}")
            if len(acknowledged) == 5:
                break
        else:
            assert answer.status_code == 503, answer.text
    assert len(acknowledged) == 5
    assert payloads(server.path) == acknowledged
    assert sqlite_shell(server.path, "PRAGMA integrity_check; SELECT count(*) FROM biz;") == "ok\n0\n"
    with Sse(f"{server.pubsub}/-/stream", channel="c", start="earliest") as reader:
        assert [message["payload"] for message in reader.messages(5)] == acknowledged

    def tables() -> list[str]:
        return [table["name"] for table in httpx.get(f"{server.url}/data.json", timeout=DEADLINE).json()["tables"]]

    # Datasette looks for changed schemas once a second.
    wait_for(lambda: "biz" in tables(), "Datasette, too, reads the new file")
    if left and published:
        kept.rename(tmp_path / "moved.db")
        assert payloads(tmp_path / "moved.db") == [f"old {number}" for number in range(5)], "the old one has its own"
    assert "Traceback" not in server.log


def test_subscribers_of_a_replaced_file_are_told_and_read_the_new_one(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    server.publish(channel="c", payload="old")
    other = tmp_path / "other.db"
    make(other)
    with Sse(f"{server.pubsub}/-/stream", channel="c", start="earliest") as reader:
        assert reader.messages(1)[0]["payload"] == "old"
        other.rename(server.path)
        reader.until("bye")
    # Whoever comes back at once finds the new file.
    with Sse(f"{server.pubsub}/-/stream", channel="c") as reader:
        server.publish(channel="c", payload="new")
        assert reader.messages(1)[0]["payload"] == "new"
        sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('c', 'by another program')")
        assert reader.messages(1)[0]["payload"] == "by another program", "its commits are seen"


def test_a_file_that_is_deleted_and_made_again(serve: Callable[..., Server]) -> None:
    server = serve(config={"permissions": {"publish-message": True, "insert-row": True}})
    server.publish(channel="c", payload="old")
    with Sse(f"{server.pubsub}/-/stream", channel="c") as reader:
        for suffix in ("", "-wal", "-shm"):
            server.path.with_name(f"data.db{suffix}").unlink()
        reader.until("bye")
    assert publish(server, "lost").status_code == 503
    insert = httpx.post(f"{server.url}/data/existing/-/insert", json={"row": {"id": 1}}, timeout=DEADLINE)
    assert insert.status_code >= 400, "Datasette's own writes are refused, too: they would be lost"
    assert not server.path.exists()
    make(server.path)
    wait_for(lambda: publish(server, "new").status_code == 200, "it goes on by itself")
    assert payloads(server.path)[-1:] == ["new"]
    assert "old" not in payloads(server.path)
