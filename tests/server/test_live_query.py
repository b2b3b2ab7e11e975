"""Live queries over HTTP: what is sent, when a query runs, what is refused, and who may."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import datasette
from live_queries import BY_TOWN, TABLES, Runs, Serve, live, refused, started
from servers import Sse, sqlite_shell, wait_for


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_join_that_another_program_changes(serve: Serve) -> None:
    server = started(serve)
    with live(server, sql=BY_TOWN, key="town") as stream:
        assert stream.event() == {
            "event": "snapshot",
            "id": None,
            "data": {
                "head": "0",
                "columns": ["town", "sum"],
                "key": ["town"],
                "rows": [["London", 10.0], ["Paris", 20.0]],
            },
        }
        sqlite_shell(server.path, "UPDATE orders SET total = 11 WHERE id = 1")
        assert stream.event()["data"] == {
            "head": "0",
            "removed": [],
            "inserted": [],
            "changed": [{"at": 0, "row": ["London", 11.0], "was": ["London", 10.0]}],
        }
        # A row that leaves the result, and one that comes; a commit to another table is told to nobody.
        sqlite_shell(server.path, "INSERT INTO existing VALUES (1)")
        sqlite_shell(
            server.path,
            "BEGIN; DELETE FROM orders WHERE id = 2; INSERT INTO customers VALUES ('cy', 'Rome');"
            "INSERT INTO orders VALUES (3, 'cy', 7); INSERT INTO vpubsub (channel, payload) VALUES ('a', 'b'); COMMIT",
        )
        assert stream.event()["data"] == {
            "head": "1",
            "removed": [{"at": 1, "row": ["Paris", 20.0]}],
            "inserted": [{"at": 1, "row": ["Rome", 7.0]}],
            "changed": [],
        }


def test_every_kind_of_value(serve: Serve) -> None:
    server = started(serve)
    values = "NULL, 9007199254740993, 1.0, 9e999, x'00ff', 'ä\u2028\"', ''"
    sql = f"SELECT {values} UNION ALL SELECT 1, 2, 3, 4, 5, 6, 7 ORDER BY 1"
    with live(server, sql=sql) as stream:
        first, _ = stream.event()["data"]["rows"]
    assert first == [
        None, 9007199254740993, 1.0, "Infinity", {"$base64": True, "encoded": "AP8="}, "ä\u2028\"", "",
    ]  # fmt: skip


def test_duplicates_are_counted(serve: Serve) -> None:
    server = started(serve)
    with live(server, sql="SELECT customer FROM orders ORDER BY customer") as stream:
        assert stream.event()["data"]["rows"] == [["ada"], ["bob"]]
        sqlite_shell(server.path, "INSERT INTO orders VALUES (3, 'ada', 1), (4, 'ada', 1)")
        change = stream.event()["data"]
        assert (change["removed"], change["inserted"]) == (
            [],
            [{"at": 1, "row": ["ada"]}, {"at": 2, "row": ["ada"]}],
        )
        sqlite_shell(server.path, "DELETE FROM orders WHERE id = 1")
        assert len(stream.event()["data"]["removed"]) == 1


def test_a_table_with_the_filters_of_its_page(serve: Serve) -> None:
    server = started(serve)
    with live(server, table="orders", total__gt="5", _sort_desc="total", _size=1) as stream:
        snapshot = stream.event()["data"]
        assert (snapshot["rows"], snapshot["key"], snapshot["count"]) == ([[2, "bob", 20.0]], ["id"], 2)
        sqlite_shell(server.path, "INSERT INTO orders VALUES (3, 'ada', 1)")
        sqlite_shell(server.path, "INSERT INTO orders VALUES (4, 'ada', 30)")
        change = stream.event()["data"]
        assert (change["inserted"], change["count"]) == ([{"at": 0, "row": [4, "ada", 30.0]}], 3)
        assert change["removed"] == [{"at": 0, "row": [2, "bob", 20.0]}]


def test_a_table_without_a_key_and_a_view(serve: Serve) -> None:
    server = started(serve)
    sqlite_shell(
        server.path, "CREATE TABLE bare (a); INSERT INTO bare VALUES (1); CREATE VIEW seen AS SELECT a FROM bare"
    )
    with live(server, table="bare") as table, live(server, table="seen") as view:
        snapshot = table.event()["data"]
        assert (snapshot["key"], snapshot["rows"]) == (["rowid"], [[1, 1]])
        snapshot = view.event()["data"]
        assert (snapshot["key"], snapshot["rows"], snapshot["count"]) == ([], [[1]], 1)
        sqlite_shell(server.path, "UPDATE bare SET a = 2")
        assert table.event()["data"]["changed"] == [{"at": 0, "row": [1, 2], "was": [1, 1]}]
        change = view.event()["data"]
        assert (change["removed"], change["inserted"]) == ([{"at": 0, "row": [1]}], [{"at": 0, "row": [2]}])


def test_a_stored_query_with_parameters(serve: Serve) -> None:
    queries = {
        "big": {"sql": "SELECT id, total FROM orders WHERE total > :least ORDER BY id"},
        "w": {"sql": "DELETE FROM orders", "write": True},
    }
    server = started(serve, config={"databases": {"data": {"queries": queries}}})
    with live(server, query="big", least="15", key="id") as stream:
        assert stream.event()["data"]["rows"] == [[2, 20.0]]
        sqlite_shell(server.path, "UPDATE orders SET total = 16 WHERE id = 1")
        assert stream.event()["data"]["inserted"] == [{"at": 0, "row": [1, 16.0]}]
    status, error = refused(server, query="big")
    assert (status, error["field"]) == (400, "least")
    assert refused(server, query="nothing")[0] == 404
    assert refused(server, query="w")[1]["field"] == "query"


def test_full_text_search(serve: Serve) -> None:
    server = started(serve)
    sqlite_shell(server.path, "CREATE VIRTUAL TABLE words USING fts5(text); INSERT INTO words VALUES ('red fox')")
    with live(server, sql="SELECT text FROM words WHERE words MATCH :what", what="red") as stream:
        assert stream.event()["data"]["rows"] == [["red fox"]]
        sqlite_shell(server.path, "INSERT INTO words VALUES ('blue fox'), ('red box')")
        assert stream.event()["data"]["inserted"] == [{"at": 1, "row": ["red box"]}]


def test_writes_through_datasette_are_seen(serve: Serve) -> None:
    server = started(serve, config={"permissions": {"publish-message": True, "insert-row": True}})
    with live(server, sql="SELECT count(*) FROM orders") as stream:
        assert stream.event()["data"]["rows"] == [[2]]
        cookies = server.root_cookie()
        for count in (3, 4):
            answer = httpx.post(
                f"{server.url}/data/orders/-/insert", json={"row": {"customer": "ada", "total": 1}}, cookies=cookies
            )
            assert answer.status_code == 201, answer.text
            assert stream.event()["data"]["inserted"] == [{"at": 0, "row": [count]}]


# -- when a query runs -------------------------------------------------------


def test_all_who_ask_the_same_share_one_run(serve: Serve, runs: Runs) -> None:
    server = started(serve, options=runs.options)
    sql = "SELECT (SELECT ran('q')), count(*) FROM orders"
    streams = [live(server, sql=sql) for _ in range(20)]
    try:
        assert [stream.event()["event"] for stream in streams] == ["snapshot"] * 20
        assert runs.of("q") == 1
        sqlite_shell(server.path, "INSERT INTO orders VALUES (3, 'ada', 1)")
        assert [stream.event()["event"] for stream in streams] == ["change"] * 20
        assert runs.of("q") == 2
    finally:
        for stream in streams:
            stream.close()


def test_publishing_runs_only_queries_of_the_log(serve: Serve, runs: Runs) -> None:
    server = started(serve, options=runs.options)
    with (
        live(server, sql="SELECT (SELECT ran('orders')), count(*) FROM orders") as orders,
        live(server, sql="SELECT (SELECT ran('log')), count(*) FROM vpubsub") as log,
    ):
        orders.event()
        log.event()
        # The first commit of the broker makes the query run once: whether others have committed was not known before.
        server.publish(channel="a", payload="x")
        assert log.event()["data"]["inserted"][0]["row"][1] == 1
        wait_for(lambda: runs.of("orders") == 2, "the run after which commits are told apart")
        for count in range(2, 8):
            server.publish(channel="a", payload="x")
            while log.event()["data"]["inserted"][0]["row"][1] != count:
                pass
        assert runs.of("orders") == 2
        # A commit of another program between two of the broker is not overlooked.
        server.publish(channel="a", payload="x")
        sqlite_shell(server.path, "INSERT INTO orders VALUES (3, 'ada', 1)")
        server.publish(channel="a", payload="x")
        assert orders.event()["data"]["inserted"][0]["row"][1] == 3


def test_an_owners_trigger_on_the_log_is_not_overlooked(serve: Serve) -> None:
    server = started(serve)
    sqlite_shell(
        server.path,
        "CREATE TABLE seen (channel); CREATE TRIGGER mine AFTER INSERT ON vpubsub "
        "BEGIN INSERT INTO seen VALUES (NEW.channel); END",
    )
    with live(server, sql="SELECT count(*) FROM seen") as stream:
        assert stream.event()["data"]["rows"] == [[0]]
        for count in range(1, 4):
            server.publish(channel="a", payload="x")
            assert stream.event()["data"]["inserted"] == [{"at": 0, "row": [count]}]


def test_a_query_of_broadcast_tables_runs_when_they_tell_a_change(serve: Serve, runs: Runs) -> None:
    server = started(serve, options=runs.options)
    for table in ("orders", "customers"):
        datasette("pubsub", "broadcast", server.path, table)
    with live(server, sql=f"SELECT (SELECT ran('q')), * FROM ({BY_TOWN})") as stream:
        stream.event()
        before = runs.of("q")
        for _ in range(5):
            sqlite_shell(server.path, "INSERT INTO existing DEFAULT VALUES")
            sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('other', 'x')")
        sqlite_shell(server.path, "UPDATE customers SET town = 'Oslo' WHERE name = 'ada'")
        assert stream.event()["event"] == "change"
        assert runs.of("q") == before + 1
        # Without one of its triggers, the table does not tell everything any more: every commit counts again.
        (trigger,) = server.rows("SELECT name FROM sqlite_master WHERE name LIKE 'pubsub_broadcast_update%orders'")[0]
        sqlite_shell(server.path, f'DROP TRIGGER "{trigger}"')
        sqlite_shell(server.path, "UPDATE orders SET total = 99 WHERE id = 2")
        assert stream.event()["data"]["inserted"]


def test_a_slow_query_slows_no_other(serve: Serve, runs: Runs) -> None:
    server = started(serve, options=[*runs.options, "--setting", "sql_time_limit_ms", "20000"])
    slow = (
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1500000) "
        "SELECT (SELECT ran('slow')), count(*), (SELECT count(*) FROM orders) FROM c"
    )
    with (
        live(server, sql=slow) as first,
        live(server, sql="SELECT (SELECT ran('quick')), count(*) FROM orders") as second,
    ):
        first.event()
        second.event()
        with closing(sqlite3.connect(server.path, timeout=60)) as conn:
            for number in range(40):
                conn.execute("INSERT INTO orders (customer, total) VALUES ('ada', 1)")
                conn.commit()
                # The quick one tells of each commit, whatever the slow one does.
                assert second.event()["data"]["inserted"][0]["row"][1] == 3 + number
        assert runs.of("quick") >= 2 * runs.of("slow")


def test_nothing_runs_when_nobody_follows(serve: Serve, runs: Runs) -> None:
    server = started(serve, options=runs.options)
    with live(server, sql="SELECT (SELECT ran('q')), count(*) FROM orders") as stream:
        stream.event()
    with live(server, sql="SELECT count(*) FROM orders") as other:
        other.event()

        def quiet() -> bool:
            before = runs.of("q")
            sqlite_shell(server.path, "INSERT INTO orders (total) VALUES (1)")
            assert other.event()["event"] == "change"
            return runs.of("q") == before

        # The server notices within a moment that the subscriber has gone.
        wait_for(quiet, "a commit without a run")
        assert quiet()


def test_a_table_that_is_dropped_while_it_is_followed(serve: Serve) -> None:
    queries = {"q": {"sql": "SELECT count(*) AS n FROM orders"}}
    server = started(serve, config={"databases": {"data": {"queries": queries}}})
    with (
        live(server, sql="SELECT count(*) AS n FROM orders") as own,
        live(server, query="q") as stored,
        live(server, sql="SELECT count(*) FROM customers") as other,
    ):
        for stream in (own, stored, other):
            assert stream.event()["event"] == "snapshot"
        sqlite_shell(server.path, "ALTER TABLE orders RENAME TO gone; INSERT INTO customers VALUES ('cy', 'Rome')")
        error = own.until("error")["data"]
        assert error == {"code": "invalid_argument", "message": "sql: no such table: orders", "field": "sql"}
        # Who has not sent the SQL does not see the table's name.
        assert "orders" not in json.dumps(stored.until("error")["data"])
        assert other.until("change")["data"]["inserted"] == [{"at": 0, "row": [3]}]
        sqlite_shell(server.path, "ALTER TABLE gone RENAME TO orders")
        assert own.until("snapshot")["data"]["rows"] == stored.until("snapshot")["data"]["rows"] == [[2]]


def test_columns_that_change_and_a_result_that_grows_too_large(serve: Serve) -> None:
    server = started(serve)
    with live(server, sql="SELECT * FROM orders") as stream:
        assert stream.event()["data"]["columns"] == ["id", "customer", "total"]
        sqlite_shell(server.path, "ALTER TABLE orders ADD COLUMN note")
        assert stream.until("snapshot")["data"]["columns"] == ["id", "customer", "total", "note"]
        sqlite_shell(
            server.path,
            "WITH RECURSIVE c(n) AS (SELECT 10 UNION ALL SELECT n + 1 FROM c WHERE n < 1100) "
            "INSERT INTO orders (id) SELECT n FROM c",
        )
        assert stream.until("error")["data"]["limit"] == "max_returned_rows"
        sqlite_shell(server.path, "DELETE FROM orders WHERE id > 10")
        assert len(stream.until("snapshot")["data"]["rows"]) == 3


# -- the stream ------------------------------------------------------------------


def test_heartbeats_head_and_the_end(serve: Serve) -> None:
    server = started(serve, heartbeat_seconds=0.2)
    answer = httpx.head(f"{server.pubsub}/-/live", params={"sql": "SELECT 1"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert httpx.put(f"{server.pubsub}/-/live", params={"sql": "SELECT 1"}).status_code == 405
    with live(server, sql="SELECT 1") as stream:
        assert stream.event()["event"] == "snapshot"
        assert stream.event() == {"event": "heartbeat", "id": None, "data": {"head": "0"}}
        ended = threading.Thread(target=server.stop)
        ended.start()
        assert stream.until("bye")["data"]["code"] == "shutdown"
        ended.join()


@pytest.mark.parametrize("method", ["POST", "QUERY"])
def test_sql_that_is_too_long_for_a_url(serve: Serve, method: str) -> None:
    server = started(serve)
    sql = f"SELECT :n + {' + '.join(['1'] * 400)} AS sum -- {'x' * 20_000}"
    with (
        httpx.Client(timeout=60) as client,
        client.stream(method, f"{server.pubsub}/-/live", data={"sql": sql, "n": "2"}) as answer,
    ):
        assert answer.status_code == 200
        assert any('"rows":[[402]]' in line for line in answer.iter_lines() if line.startswith("data:"))
    refused = httpx.request(method, f"{server.pubsub}/-/live", json={"sql": "SELECT 1"})
    assert (refused.status_code, "x-www-form-urlencoded" in refused.json()["error"]) == (415, True)


def test_a_file_that_is_replaced(serve: Serve, tmp_path: Path) -> None:
    server = started(serve)
    other = tmp_path / "other.db"
    sqlite_shell(other, TABLES.replace("10)", "1000)"))
    with live(server, sql="SELECT total FROM orders WHERE id = 1") as stream:
        assert stream.event()["data"]["rows"] == [[10.0]]
        for end in ("-wal", "-shm"):
            Path(f"{server.path}{end}").unlink(missing_ok=True)
        other.rename(server.path)
        assert stream.until("bye")["data"]["reconnect"] is True

    def rows() -> Any:
        answer = httpx.get(f"{server.pubsub}/-/snapshot.json", params={"sql": "SELECT total FROM orders WHERE id = 1"})
        return answer.status_code == 200 and answer.json()["rows"] == [{"total": 1000.0}]

    wait_for(rows, "the other file")
    with live(server, sql="SELECT total FROM orders WHERE id = 1") as stream:
        assert stream.event()["data"]["rows"] == [[1000.0]]
        sqlite_shell(server.path, "UPDATE orders SET total = 5")
        assert stream.event()["event"] == "change"


def test_a_slow_subscriber_gets_the_whole_result_again(serve: Serve) -> None:
    """It reads nothing while more has changed than is kept for it; then a snapshot leads it to the newest result."""
    server = started(serve, max_live_query_bytes=300_000)
    sqlite_shell(server.path, "CREATE TABLE wide (id INTEGER PRIMARY KEY, text TEXT); INSERT INTO wide VALUES (1, '')")
    with (
        live(server, sql="SELECT * FROM wide", key="id") as slow,
        live(server, sql="SELECT * FROM wide", key="id") as quick,
    ):
        slow.event()
        quick.event()
        with closing(sqlite3.connect(server.path, timeout=60)) as conn:
            for number in range(80):
                conn.execute("UPDATE wide SET text = ?", [f"{number} ".ljust(100_000, "x")])
                conn.commit()
                quick.event()
        last = ""
        events = set()
        while not last.startswith("79 "):
            event = slow.event()
            events.add(event["event"])
            rows = event["data"].get("rows") or [placed["row"] for placed in event["data"]["changed"]]
            last = rows[0][1]
        assert "snapshot" in events


def test_a_database_that_cannot_change_and_one_in_memory(serve: Serve, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.db"
    sqlite_shell(fixed, TABLES)
    server = serve(options=["--immutable", str(fixed), "--memory"])
    with Sse(f"{server.url}/fixed/-/pubsub/-/live", sql=BY_TOWN) as stream:
        assert stream.event()["data"]["rows"] == [["London", 10.0], ["Paris", 20.0]]
    answer = httpx.get(f"{server.url}/_memory/-/pubsub/-/live", params={"sql": "SELECT 1"})
    assert (answer.status_code, "in memory" in answer.json()["error"]) == (409, True)


def test_a_file_without_a_log(serve: Serve) -> None:
    """Only reading is asked of the file: nothing is installed in it."""
    server = serve()
    sqlite_shell(server.path, TABLES)
    with live(server, sql="SELECT count(*) FROM orders") as stream:
        assert stream.event()["data"] == {"head": "0", "columns": ["count(*)"], "key": [], "rows": [[2]]}
        sqlite_shell(server.path, "DELETE FROM orders")
        assert stream.event()["event"] == "change"
    assert server.rows("SELECT name FROM sqlite_master WHERE name LIKE '%pubsub%'") == []
