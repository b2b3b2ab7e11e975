"""A file that cannot be used, or not now: a clear error, nothing is lost, and the server goes on."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from servers import OPEN, Server, Sse, sqlite_shell, wait_for

from datasette_pubsub.broker.sqlite_errors import explain


def test_an_immutable_database(serve: Callable[..., Server], tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.db"
    with sqlite3.connect(fixed) as conn:
        conn.execute("CREATE TABLE t (id)")
    conn.close()
    server = serve(options=["-i", str(fixed)])
    base = f"{server.url}/fixed/-/pubsub/-"
    answer = httpx.post(f"{base}/publish", json={"channel": "a", "payload": "x"})
    assert answer.status_code == 409
    assert answer.json()["error"] == "database fixed is immutable: nothing can be published to it"
    answer = httpx.get(f"{base}/stream", params={"channel": "a", "subscription": "s"})
    assert answer.status_code == 409
    rpc = httpx.post(
        f"{server.url}/db.v1.DbService/PublishBatch",
        json={"dbName": "fixed", "items": [{"channel": "a", "payload": "x"}]},
    )
    assert rpc.json()["code"] == "failed_precondition"
    with Sse(f"{base}/stream", channel="a") as reader:
        assert reader.event() == {"event": "ready", "id": None, "data": {"head": "0"}}
    assert httpx.get(f"{server.url}/fixed/-/pubsub").status_code == 200
    assert httpx.get(f"{base}/channels.json").json()["channels"] == []
    assert server.publish(channel="a", payload="x") == [1]


def test_a_memory_database(serve: Callable[..., Server]) -> None:
    server = serve(options=["--memory"])
    answer = httpx.post(f"{server.url}/_memory/-/pubsub/-/publish", json={"channel": "a", "payload": "x"})
    assert answer.status_code == 409
    assert "in memory" in answer.json()["error"]


@pytest.mark.parametrize(
    "conflict",
    [
        "CREATE TABLE vpubsub (mine)",
        "CREATE TABLE _pubsub_released (mine)",
        "CREATE VIEW vpubsub AS SELECT 1 AS mine",
        "CREATE TABLE pubsub_subscriptions (mine)",
        "CREATE TABLE VPubSub (mine)",
        "CREATE TABLE vpubsub (id INTEGER PRIMARY KEY AUTOINCREMENT, channel, payload, created_at, key)",
        "CREATE VIEW vpubsub AS SELECT id, 'a' AS channel, 'b' AS payload, 'c' AS key, 'd' AS created_at FROM other",
        "CREATE TRIGGER vpubsub_update AFTER INSERT ON other BEGIN SELECT 1; END",
        "CREATE TRIGGER vpubsub_guard AFTER INSERT ON other BEGIN SELECT 1; END",
        "CREATE INDEX vpubsub_channel ON other (id)",
    ],
)
def test_a_name_that_is_taken(serve: Callable[..., Server], tmp_path: Path, conflict: str) -> None:
    sqlite_shell(tmp_path / "data.db", f"CREATE TABLE other (id); {conflict}")
    server = serve(options=["--root"])
    name = conflict.split()[2].lower()
    for _ in range(2):
        answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "x"})
        assert answer.status_code == 409
        assert f"{name} already exists in this database and is not datasette-pubsub's" in answer.json()["error"]
    # The rest of Datasette writes on, and what was the user's is as it was.
    written = httpx.post(
        f"{server.url}/data/-/execute-write",
        data={"sql": "INSERT INTO other VALUES (1)"},
        cookies=server.root_cookie(),
        headers={"Sec-Fetch-Site": "same-origin", "Accept": "application/json"},
    )
    assert written.status_code == 200, written.text
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name LIKE '%pubsub%'") == [(1,)]
    kind = conflict.split()[1]
    sqlite_shell(server.path, f"DROP {kind} {name}")
    assert server.publish(channel="a", payload="x") == [1], "without a restart"


def test_a_locked_database(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="a", payload="x")
    conn = sqlite3.connect(server.path, isolation_level=None)
    conn.execute("BEGIN IMMEDIATE")
    try:
        answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "y"}, timeout=30)
        assert answer.status_code == 503
        assert "locked by another writer; nothing was stored" in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"
    finally:
        conn.execute("ROLLBACK")
        conn.close()
    assert server.publish(channel="a", payload="y") == [2]


def test_a_file_that_is_locked_against_readers(serve: Callable[..., Server]) -> None:
    server = serve()
    conn = sqlite3.connect(server.path, isolation_level=None)
    conn.execute("PRAGMA locking_mode = EXCLUSIVE")
    conn.execute("INSERT INTO existing VALUES (1)")
    told = "database data is locked by another program; try again"
    answer = httpx.get(f"{server.pubsub}/-/channels.json", timeout=30)
    assert (answer.status_code, answer.json()["error"]) == (503, told)
    rpc = httpx.post(
        f"{server.url}/db.v1.DbService/PublishBatch",
        json={"dbName": "data", "items": [{"channel": "a", "payload": "x"}]},
        timeout=30,
    )
    assert rpc.json()["code"] == "unavailable"
    conn.close()
    assert server.publish(channel="a", payload="x") == [1]


def test_a_file_that_cannot_be_written(serve: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    sqlite_shell(path, "CREATE TABLE t (id); INSERT INTO t VALUES (1);")
    path.chmod(0o444)
    # Root may write every file, unless the server is started without that privilege.
    unprivileged = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if unprivileged and shutil.which("setpriv") is None:
        pytest.skip("root may write every file, and there is no setpriv")
    server = serve(prefix=unprivileged)
    said = "database data cannot be written: its file is read-only, or was when Datasette opened it; nothing was stored"
    message = {"channel": "a", "payload": "x"}
    for _ in range(2):
        answer = httpx.post(f"{server.pubsub}/-/publish", json=message)
        assert (answer.status_code, answer.json()["error"]) == (409, said)
    rpc = httpx.post(f"{server.url}/db.v1.DbService/PublishBatch", json={"dbName": "data", "items": [message]})
    assert (rpc.json()["code"], rpc.json()["message"]) == ("failed_precondition", said)
    answer = httpx.get(f"{server.url}/data/-/query.json", params={"sql": "SELECT publish_batch('a', 'x')"})
    assert (answer.status_code, answer.json()["error"]) == (400, f"publish_batch: {said}")
    answer = httpx.get(f"{server.pubsub}/-/stream", params={"channel": "a", "subscription": "s"})
    assert (answer.status_code, answer.json()["error"]) == (409, said)
    assert httpx.get(server.pubsub).status_code == 200
    path.chmod(0o644)
    assert server.restart().publish(**message) == [1]


def test_a_server_that_reads_without_locks(serve: Callable[..., Server]) -> None:
    """SQLite cannot read a file in WAL mode like that, so the file is left as it is."""
    server = serve(options=["--nolock"])
    answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "x"})
    assert answer.status_code == 409
    assert "--nolock" in answer.json()["error"]
    assert server.rows("PRAGMA journal_mode") == [("delete",)]
    assert httpx.get(f"{server.url}/data/existing.json").status_code == 200


def test_a_database_that_is_added_and_removed(serve: Callable[..., Server], tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "changing.py").write_text(
        """
from datasette import hookimpl
from datasette.database import Database
from datasette.utils.asgi import Response


async def add(request, datasette):
    datasette.add_database(Database(datasette, path=request.args["path"], is_mutable=True), name=request.args["name"])
    return Response.text("added")


async def remove(request, datasette):
    datasette.remove_database(request.args["name"])
    return Response.text("removed")


@hookimpl
def register_routes():
    return [("^/-/add$", add), ("^/-/remove$", remove)]
"""
    )
    path = tmp_path / "late.db"
    sqlite_shell(path, "CREATE TABLE t (id)")
    # Looked for often: a removed database must not be.
    often = {**OPEN, "plugins": {"datasette-pubsub": {"trim_interval_seconds": 0.1}}}
    server = serve(config=often, options=["--plugins-dir", str(plugins)])
    name = {"name": "late/and slashed"}
    base = f"{server.url}/late~2Fand+slashed/-/pubsub/-"
    for turn in range(2):
        httpx.get(f"{server.url}/-/add", params={"path": str(path), **name}).raise_for_status()
        answer = httpx.post(f"{base}/publish", json={"channel": "a", "payload": f"http {turn}"})
        assert answer.status_code == 200, answer.text
        with Sse(f"{base}/stream", channel="a", subscription="s") as reader:
            assert reader.messages(1)[0]["payload"] == f"http {turn}"
            sqlite_shell(path, f"INSERT INTO vpubsub (channel, payload) VALUES ('a', 'shell {turn}')")
            assert reader.messages(1)[0]["payload"] == f"shell {turn}"
            # Its cursor is saved every second; what is removed cannot save any more.
            wait_for(
                lambda turn=turn: sqlite_shell(path, "SELECT cursor FROM pubsub_subscriptions") == f"{2 * turn + 2}\n",
                "the cursor is saved",
            )
            httpx.get(f"{server.url}/-/remove", params=name).raise_for_status()
            reader.until("bye")
        answer = httpx.post(f"{base}/publish", json={"channel": "a", "payload": "x"})
        assert (answer.status_code, answer.json()["error"]) == (404, "database not found: late/and slashed")
    assert server.publish(channel="a", payload="x") == [1], "the others go on"
    server.stop()
    assert "Traceback" not in server.log


def test_storage_errors_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "ro.db"
    sqlite_shell(path, "CREATE TABLE t (id);")
    conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError) as caught:
        conn.execute("INSERT INTO t VALUES (1)")
    conn.close()
    shown = explain(caught.value, "ro")
    assert (shown.status, shown.code) == (409, "failed_precondition")
    assert str(tmp_path) not in shown.message
    hidden = explain(sqlite3.OperationalError(f"strange: {path}"), "ro")
    assert str(tmp_path) not in hidden.message


def test_a_constraint_of_the_owner_is_not_explained(serve: Callable[..., Server]) -> None:
    """What his trigger says is; what his tables are called is not."""
    server = serve()
    server.publish(channel="a", payload="x")
    sqlite_shell(
        server.path,
        "CREATE TABLE audit (who TEXT NOT NULL UNIQUE);"
        "CREATE TRIGGER copied AFTER INSERT ON vpubsub BEGIN INSERT INTO audit VALUES (NEW.channel);"
        "SELECT RAISE(ABORT, 'not on sundays') WHERE NEW.channel = 'sunday'; END;",
    )
    url = f"{server.pubsub}/-/publish"
    assert httpx.post(url, json={"channel": "b", "payload": "x"}).status_code == 200
    refused = httpx.post(url, json={"channel": "b", "payload": "x"})
    assert (refused.status_code, "constraint" in refused.text, "audit" in refused.text) == (400, True, False)
    assert httpx.post(url, json={"channel": "sunday", "payload": "x"}).json()["error"] == "not on sundays"
    assert server.rows("SELECT count(*) FROM vpubsub") == [(2,)]
