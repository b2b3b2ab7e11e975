"""A follower's log takes no message but the next one of its stream; every way in says so, and where to publish."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import failure, run
from followers import REFUSAL, STREAM, copy, follow, promote
from publish_batch_callers import SAME_ORIGIN
from servers import OPEN, Server, wait_for

MESSAGE = {"channel": "a", "payload": "x"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A follower's file with three messages."""
    found = tmp_path / "data.db"
    follow(found)
    copy(found, [1, 2, 3])
    return found


def ids(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as conn:
        return [row[0] for row in conn.execute("SELECT id FROM vpubsub ORDER BY id")]


def opened(**more: Any) -> dict[str, Any]:
    return {"permissions": {"publish-message": True, "insert-row": True, "alter-table": True}, **more}


def test_over_http(serve: Callable[..., Server], path: Path) -> None:
    server = serve()
    for body in (
        MESSAGE,
        {"items": [MESSAGE, MESSAGE]},
        {**MESSAGE, "key": "new"},
        # An ordinary log would answer with the ids that it has.
        {"items": [{**MESSAGE, "key": "key-1"}, {**MESSAGE, "key": "key-2"}]},
        {**MESSAGE, "expected_last_id": 3},
        {**MESSAGE, "expected_last_id": 1},
        {**MESSAGE, "expected_last_id": 1, "key": "key-1"},
    ):
        answer = httpx.post(f"{server.pubsub}/-/publish", json=body)
        assert (answer.status_code, answer.json()["error"]) == (409, REFUSAL), body
    assert ids(path) == [1, 2, 3]


def test_what_is_wrong_with_a_message_is_told_first(serve: Callable[..., Server], path: Path) -> None:
    answer = httpx.post(f"{serve().pubsub}/-/publish", json={"channel": "", "payload": "x"})
    assert (answer.status_code, answer.json()["error"]) == (400, "channel is empty")


def test_over_connect(serve: Callable[..., Server], path: Path) -> None:
    server = serve()
    answer = httpx.post(
        f"{server.url}/db.v1.DbService/PublishBatch",
        json={"dbName": "data", "items": [{"channel": "a", "payload": "x"}]},
    )
    assert answer.json()["code"] == "failed_precondition"
    assert answer.json()["message"] == REFUSAL


def test_a_publish_stream(serve: Callable[..., Server], path: Path) -> None:
    lines = "".join(json.dumps(MESSAGE) + "\n" for _ in range(3))
    answer = httpx.post(
        f"{serve().pubsub}/-/publish", content=lines, headers={"Content-Type": "application/x-ndjson"}, timeout=30
    )
    assert answer.status_code == 200
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert [(each["line"], each["status"], each["error"]) for each in found] == [(n, 409, REFUSAL) for n in (1, 2, 3)]


def test_a_publisher_beside_one_whose_message_is_refused_for_another_reason(
    serve: Callable[..., Server], path: Path
) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(
            "CREATE TRIGGER mine BEFORE INSERT ON vpubsub WHEN NEW.channel = 'mine' "
            "BEGIN SELECT RAISE(ABORT, 'mine refuses'); END"
        )
    answer = httpx.post(f"{serve().pubsub}/-/publish", json={"channel": "mine", "payload": "x"})
    # Nothing reads the meaning of an error in its text: whatever refuses, this log takes no message.
    assert (answer.status_code, answer.json()["error"]) == (409, REFUSAL)


def test_the_function_publish_batch(serve: Callable[..., Server], path: Path) -> None:
    server = serve(config=opened())
    sql = "SELECT publish_batch('a', 'x') AS n"
    answer = httpx.get(f"{server.url}/data/-/query.json", params={"sql": sql}, headers=SAME_ORIGIN)
    assert answer.status_code == 400
    assert answer.json()["error"] == f"publish_batch: {REFUSAL}"
    assert ids(path) == [1, 2, 3]


# Datasette has SQLite's callbacks print what they raise, which pytest takes for a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.asyncio
async def test_the_function_publish_batch_on_the_write_connection(path: Path) -> None:
    from datasette.app import Datasette

    datasette = Datasette([str(path)])
    await datasette.invoke_startup()
    with pytest.raises(sqlite3.OperationalError) as caught:
        await datasette.get_database("data").execute_write("SELECT publish_batch('a', 'x', 'key-1')")
    assert str(caught.value) == f"publish_batch: {REFUSAL}"
    await datasette.get_database("data").execute_write("CREATE TABLE still_works (id INTEGER PRIMARY KEY)")
    datasette.close()


def test_datasettes_own_write_api(serve: Callable[..., Server], path: Path) -> None:
    """The status is Datasette's, the text is ours."""
    server = serve(config=opened())
    answer = httpx.post(f"{server.url}/data/vpubsub/-/insert", json={"row": MESSAGE})
    assert (answer.status_code, answer.json()["errors"]) == (400, [REFUSAL])
    assert ids(path) == [1, 2, 3]


def test_a_table_cannot_begin_to_be_broadcast(serve: Callable[..., Server], path: Path) -> None:
    """Its writes would all be refused."""
    server = serve(config=opened())
    form = {"action": "preview", "channel": "changes", "on": ["insert"]}
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE existing (id INTEGER PRIMARY KEY)")
    answer = httpx.post(f"{server.url}/data/existing/-/broadcast", data=form)
    assert answer.status_code == 409
    assert REFUSAL in answer.text
    assert failure("broadcast", path, "existing") == REFUSAL


def test_a_table_that_was_broadcast_before(serve: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    run("install", path, "--create")
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE existing (id INTEGER PRIMARY KEY)")
    run("broadcast", path, "existing")
    follow(path)
    server = serve(config=opened())
    answer = httpx.post(f"{server.url}/data/existing/-/insert", json={"row": {"id": 1}})
    assert (answer.status_code, answer.json()["errors"]) == (400, [REFUSAL])
    assert server.rows("SELECT count(*) FROM existing") == [(0,)]


def test_a_standing_query(serve: Callable[..., Server], path: Path) -> None:
    queries = {"rows": {"sql": "SELECT id FROM mine", "channel": "rows", "initial": True}}
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE mine (id INTEGER PRIMARY KEY)")
        conn.execute("INSERT INTO mine VALUES (1)")
        conn.commit()
    plugins = {"datasette-pubsub": {"standing_queries": queries, "live_query_interval_seconds": 0.05}}
    server = serve(config={**OPEN, "databases": {"data": {"plugins": plugins}}})

    def state() -> dict[str, Any]:
        return dict(httpx.get(f"{server.pubsub}/-/queries.json").json()["queries"][0])

    assert wait_for(lambda: state()["error"], "the error") == REFUSAL
    assert server.log.count(REFUSAL) == 1
    assert ids(path) == [1, 2, 3]
    # It is tried again, and publishes when the file has become an ordinary log.
    promote(path)
    wait_for(lambda: ids(path) == [1, 2, 3, 4], "its message")
    wait_for(lambda: state()["error"] is None, "no error")


def test_the_commands(path: Path) -> None:
    assert failure("publish", path, "a", "x") == REFUSAL
    assert failure("publish", path, "a", "x", "--key", "key-1") == REFUSAL
    assert failure("publish", path, "a", text="one\ntwo\n") == f"{REFUSAL}. Published 0 messages"
    line = json.dumps({**MESSAGE, "expected_last_id": 1})
    assert failure("publish", path, "--json-lines", text=line) == f"{REFUSAL}. Published 0 messages"
    assert failure("watch", path, "q", "SELECT 1", "--channel", "c", "--once") == REFUSAL
    assert ids(path) == [1, 2, 3]


def test_an_origin_that_has_told_no_address(serve: Callable[..., Server], tmp_path: Path) -> None:
    follow(tmp_path / "data.db", publish_at=None)
    answer = httpx.post(f"{serve().pubsub}/-/publish", json=MESSAGE)
    assert answer.status_code == 409
    assert answer.json()["error"] == f"this log follows the stream {STREAM}: publish to the log that it copies"


def test_a_promoted_file_takes_messages(serve: Callable[..., Server], path: Path) -> None:
    server = serve()
    assert httpx.post(f"{server.pubsub}/-/publish", json=MESSAGE).status_code == 409
    promote(path)
    assert server.publish(**MESSAGE) == [4]
