"""publish_batch on Datasette's own connections: the SQL page, the write connection, plugins' code."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from auth import actor_cookies
from datasette.app import Datasette
from places import SUPPORT
from publish_batch_callers import SAME_ORIGIN
from servers import Server, Sse, sqlite_shell, wait_for

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.publish_batch import aggregate
from datasette_pubsub.storage import log, schema

ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
PUBLISH = f"{ROWS} SELECT publish_batch('feed', 'message ' || i) AS published FROM n"
GRANT = {"permissions": {"publish-message": {"id": "writer"}}}


def query(server: Server, actor: str | None, headers: dict[str, str], statement: str = PUBLISH) -> httpx.Response:
    return httpx.get(
        f"{server.url}/{server.database}/-/query.json",
        params={"sql": statement},
        cookies=actor_cookies(actor) if actor else None,
        headers=headers,
        timeout=60,
    )


def install(path: Path) -> None:
    conn = sqlite3.connect(path)
    schema.set_durability(conn, Settings())
    schema.install(conn, Settings())
    conn.close()


def test_the_sql_page_publishes_ten_thousand_for_an_actor_with_the_grant(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    install(tmp_path / "data.db")
    server = serve(config=GRANT)
    with Sse(f"{server.pubsub}/-/stream", channel="feed") as reader:
        reader.until("ready")
        answer = query(server, "writer", SAME_ORIGIN)
        assert answer.json()["rows"] == [{"published": 10000}]
        received = reader.messages(10000)
    assert [m["payload"] for m in received] == [f"message {n}" for n in range(1, 10001)]
    ids = [int(m["messageId"]) for m in received]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("actor", ["other", None])
def test_the_sql_page_publishes_nothing_without_the_grant_and_says_why(
    serve: Callable[..., Server], tmp_path: Path, actor: str | None
) -> None:
    install(tmp_path / "data.db")
    server = serve(config=GRANT)
    answer = query(server, actor, SAME_ORIGIN)
    assert answer.status_code == 400
    assert "permission denied: publish-message on channel 'feed'" in answer.json()["error"]
    assert server.rows("SELECT count(*) FROM vpubsub") == [(0,)]
    # The connection serves on, without a trace of the failure.
    assert query(server, actor, SAME_ORIGIN, "SELECT 1 AS one").json()["rows"] == [{"one": 1}]


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "none"}, {}])
def test_a_link_from_elsewhere_publishes_nothing(
    serve: Callable[..., Server], tmp_path: Path, headers: dict[str, str]
) -> None:
    install(tmp_path / "data.db")
    server = serve(config=GRANT)
    answer = query(server, "writer", headers)
    assert answer.status_code == 400
    assert "run it from Datasette's SQL page" in answer.json()["error"]
    assert server.rows("SELECT count(*) FROM vpubsub") == [(0,)]


def test_a_database_without_a_log_is_prepared_by_the_first_query(serve: Callable[..., Server]) -> None:
    server = serve(config=GRANT)
    assert "run the query again" in query(server, "writer", SAME_ORIGIN).json()["error"]

    def again() -> dict[str, Any] | None:
        answer: dict[str, Any] = query(server, "writer", SAME_ORIGIN).json()
        return None if "run the query again" in answer.get("error", "") else answer

    assert wait_for(again, "it is prepared")["rows"] == [{"published": 10000}]


def test_the_time_limit_does_not_cut_it_in_two(serve: Callable[..., Server], tmp_path: Path) -> None:
    install(tmp_path / "data.db")
    # A hundred commits take longer than that, and Datasette's own queries at the start should not.
    server = serve(config=GRANT, options=["--setting", "sql_time_limit_ms", "100"])
    statement = PUBLISH.replace("10000", "100000")
    answer = query(server, "writer", SAME_ORIGIN, statement).json()
    stored = server.rows("SELECT count(*) FROM vpubsub")[0][0]
    assert answer["rows"] == [{"published": 100000}] if stored else not answer["ok"], answer
    assert stored in (0, 100000), "all or, where the limit comes before the first batch, nothing"


@pytest.mark.parametrize(("bad", "stored"), [(400, 0), (1400, 1000)])
def test_a_statement_that_is_broken_off_publishes_full_batches_only(
    serve: Callable[..., Server], tmp_path: Path, bad: int, stored: int
) -> None:
    """SQLite ends an aggregate in the same way, whether its statement goes on or was broken off."""
    install(tmp_path / "data.db")
    # Twenty commits on a slow disk must not take longer than a query may.
    server = serve(config=GRANT, options=["--setting", "sql_time_limit_ms", "30000"])
    failing = f"sum(json_extract(CASE WHEN i = {bad} THEN '{{' ELSE '1' END, '$'))"
    answer = query(server, "writer", SAME_ORIGIN, f"{ROWS} SELECT publish_batch('feed', i), {failing} FROM n")
    assert (answer.status_code, answer.json()["error"]) == (400, "malformed JSON")
    assert server.rows("SELECT count(*) FROM vpubsub") == [(stored,)]
    # The same in one statement of many calls: all are published, in the order of their rows.
    groups = f"{ROWS} SELECT i / 3 AS g, publish_batch('group', i) AS n, publish_batch('same', i) FROM n WHERE i < 30"
    answer = query(server, "writer", SAME_ORIGIN, f"{groups} GROUP BY g")
    assert [row["n"] for row in answer.json()["rows"]] == [2, *[3] * 9]
    published = "SELECT CAST(payload AS INTEGER) FROM vpubsub WHERE channel = ? ORDER BY id"
    for channel in ("group", "same"):
        assert server.rows(published, channel) == [(n,) for n in range(1, 30)]


def test_bad_rows_are_named(serve: Callable[..., Server], tmp_path: Path) -> None:
    install(tmp_path / "data.db")
    server = serve()
    for statement, reason in (
        ("SELECT publish_batch('', 'x')", "channel is empty"),
        ("SELECT publish_batch('a', NULL)", "payload is NULL"),
        ("SELECT publish_batch(NULL, 'x')", "channel must be text"),
        (f"SELECT publish_batch('{'c' * 256}', 'x')", "the limit is 255 bytes"),
    ):
        answer = query(server, None, {}, statement)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]
    assert server.rows("SELECT count(*) FROM vpubsub") == [(0,)]


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "w.db", isolation_level="IMMEDIATE")) as conn:
        schema.set_durability(conn, Settings())
        schema.install(conn, Settings())
        aggregate.register(conn, Settings(), lambda chunk, blocks: None, writes=True, permit=lambda chunk: None)
        yield conn


def count(conn: sqlite3.Connection) -> int:
    return int(conn.execute("SELECT count(*) FROM vpubsub").fetchone()[0])


def test_on_a_write_connection_it_is_part_of_the_transaction(writing: sqlite3.Connection) -> None:
    writing.execute("BEGIN IMMEDIATE")
    assert writing.execute(PUBLISH).fetchone() == (10000,)
    assert count(writing) == 10000
    writing.execute("ROLLBACK")
    assert count(writing) == 0
    assert writing.execute(PUBLISH).fetchone() == (10000,)
    assert not writing.in_transaction
    assert log.head(writing) == 10000


def test_it_does_not_read_its_own_messages(writing: sqlite3.Connection) -> None:
    writing.execute(PUBLISH)
    copied = writing.execute("SELECT publish_batch('copy', payload) FROM vpubsub").fetchone()
    assert copied == (10000,)
    assert count(writing) == 20000


def test_inside_another_statement(writing: sqlite3.Connection) -> None:
    writing.execute("CREATE TABLE published (n)")
    with writing:
        writing.execute(f"INSERT INTO published {PUBLISH}")
    assert writing.execute("SELECT n FROM published").fetchall() == [(10000,)]
    assert count(writing) == 10000


# Datasette has SQLite's callbacks print what they raise, which pytest takes for a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_bad_row_undoes_the_whole_call(writing: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError):
        writing.execute(f"{ROWS} SELECT publish_batch('a', CASE WHEN i = 5000 THEN NULL ELSE i END) FROM n")
    assert "payload is NULL" in str(aggregate.failure.get())
    aggregate.failure.set(None)
    assert count(writing) == 0
    assert not writing.in_transaction


def test_every_type_and_key(writing: sqlite3.Connection) -> None:
    values = [(n, v) for n, v in enumerate(["text", "NUL \0 inside", 7, 1.5, b"\x00\xff", "", b""])]
    writing.execute("CREATE TABLE v (n, v)")
    writing.executemany("INSERT INTO v VALUES (?, ?)", values * 400)
    writing.commit()
    assert writing.execute("SELECT publish_batch('c', v) FROM (SELECT v FROM v ORDER BY n)").fetchone() == (2800,)
    stored = writing.execute("SELECT DISTINCT payload FROM vpubsub ORDER BY id").fetchall()
    assert [row[0] for row in stored] == [value for _, value in values]
    for _ in range(2):
        writing.execute("SELECT publish_batch('d', n, 'key ' || n) FROM v").fetchone()
    assert writing.execute("SELECT count(*) FROM vpubsub WHERE channel = 'd'").fetchone() == (7,)


@pytest.mark.asyncio
async def test_a_plugins_code_is_trusted_and_a_request_is_not(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    install(path)
    datasette = Datasette([str(path)], config=GRANT)
    await datasette.invoke_startup()
    try:
        database = datasette.get_database("data")
        published = await database.execute_write_fn(lambda conn: conn.execute(PUBLISH).fetchone()[0])
        assert published == 10000
        refused = await datasette.client.get("/data/-/query.json", params={"sql": PUBLISH})
        assert "permission denied" in refused.json()["error"]
    finally:
        await datasette.aclose() if hasattr(datasette, "aclose") else datasette.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(("chosen", "cache"), [(0, -32_000), (700, -700)])
async def test_the_write_connection_has_room_for_many_channels(tmp_path: Path, chosen: int, cache: int) -> None:
    path = tmp_path / "data.db"
    install(path)
    datasette = Datasette([str(path)], settings={"cache_size_kb": chosen})
    await datasette.invoke_startup()
    try:
        database = datasette.get_database("data")
        found = await database.execute_write_fn(lambda conn: conn.execute("PRAGMA cache_size").fetchone()[0])
        assert found == cache, "what the owner has chosen goes before"
    finally:
        await datasette.aclose() if hasattr(datasette, "aclose") else datasette.close()


def statements(script: str) -> list[str]:
    found, statement = [], ""
    for line in script.splitlines(keepends=True):
        if statement or (line.strip() and not line.startswith("--")):
            statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement.strip())
            statement = ""
    return found


def test_the_write_page(serve: Callable[..., Server]) -> None:
    """The statements of the acceptance script that Datasette's write page admits, as root, on a file without a log."""
    server = serve(config={}, options=["--root"])
    root = server.root_cookie()

    def write(statement: str) -> httpx.Response:
        return httpx.post(
            f"{server.url}/{server.database}/-/execute-write",
            data={"sql": statement},
            cookies=root,
            headers={**SAME_ORIGIN, "Accept": "application/json"},
            timeout=60,
        )

    script = (SUPPORT / "seed.sql").read_text().partition("-- rolled back")[0]
    refused = []
    with Sse(f"{server.pubsub}/-/stream", pattern="*") as reader:
        reader.until("ready")
        for statement in statements(script):
            answer = write(statement)
            if answer.status_code == 403:
                refused.append(answer.json()["error"].removeprefix("Unsupported SQL operation: "))
                if "TRIGGER" in statement:
                    sqlite_shell(server.path, statement)
            else:
                assert answer.status_code == 200, (statement, answer.text)
        received = [message["channel"] for message in reader.messages(10_002)]
        assert write("INSERT INTO vpubsub (channel, payload) VALUES ('end', 'end')").status_code == 200
        assert reader.messages(1)[0]["payload"] == "end"
    assert received == ["logs", "security_alerts", *["metrics"] * 10_000]
    assert refused == ["create trigger", "begin transaction", "commit transaction"]
    answer = write("INSERT INTO vpubsub (channel, payload) VALUES ('', 'hi')")
    assert (answer.status_code, answer.json()["error"]) == (400, "channel is empty")
