"""Standing queries of a server: what its configuration names is published, also what changed while it was down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from auth import cookie
from places import ROOT
from servers import DEADLINE, OPEN, Server, free_port, sqlite_shell, wait_for
from zygote import ENVIRONMENT

from datasette_pubsub.core.configuration import read_settings
from datasette_pubsub.core.settings import ConfigError

LARGE: dict[str, Any] = {
    "sql": "SELECT id, customer, total FROM orders WHERE total > :least",
    "channel": "alerts/large",
    "key": ["id"],
    "params": {"least": 100},
}

TABLE = "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, total REAL);"


def config(queries: dict[str, Any], **more: Any) -> dict[str, Any]:
    options = {"standing_queries": queries, "live_query_interval_seconds": 0.05}
    return {**OPEN, **more, "databases": {"data": {"plugins": {"datasette-pubsub": options}}}}


def messages(server: Server, channel: str) -> list[dict[str, Any]]:
    rows = server.rows("SELECT payload FROM vpubsub WHERE channel = ? ORDER BY id", channel)
    return [json.loads(row[0]) for row in rows]


def states(server: Server, **headers: str) -> dict[str, dict[str, Any]]:
    answer = httpx.get(f"{server.pubsub}/-/queries.json", headers=headers)
    assert answer.status_code == 200, answer.text
    return {each["name"]: each for each in answer.json()["queries"]}


def stored(server: Server, name: str) -> bool:
    """Whether its first result is stored."""
    return bool(
        server.rows("SELECT 1 FROM sqlite_master WHERE name = '_pubsub_standing'")
        and server.rows("SELECT 1 FROM _pubsub_standing WHERE name = ? AND result IS NOT NULL", name)
    )


def test_rows_of_any_program_are_published_and_a_restart_catches_up(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    path = tmp_path / "data.db"
    sqlite_shell(path, TABLE + "INSERT INTO orders VALUES (1, 'ada', 200);")
    server = serve(config=config({"large": LARGE}))
    wait_for(lambda: stored(server, "large"), "it runs when the server starts, without a request for it")
    assert messages(server, "alerts/large") == []
    sqlite_shell(path, "INSERT INTO orders VALUES (2, 'bob', 101), (3, 'eve', 5);")
    wait_for(lambda: len(messages(server, "alerts/large")) == 1, "a row came")
    sqlite_shell(path, "UPDATE orders SET total = 300 WHERE id = 2;")
    wait_for(lambda: len(messages(server, "alerts/large")) == 2, "a row changed")
    sqlite_shell(path, "UPDATE orders SET total = 7 WHERE id = 2;")
    wait_for(lambda: len(messages(server, "alerts/large")) == 3, "a row left the WHERE")
    bob = {"id": 2, "customer": "bob"}
    assert messages(server, "alerts/large") == [
        {"query": "large", "op": "insert", "key": {"id": 2}, "new": {**bob, "total": 101.0}},
        {
            "query": "large",
            "op": "update",
            "key": {"id": 2},
            "new": {**bob, "total": 300.0},
            "old": {**bob, "total": 101.0},
        },
        {"query": "large", "op": "delete", "key": {"id": 2}, "old": {**bob, "total": 300.0}},
    ]
    server.stop()
    sqlite_shell(path, "DELETE FROM orders WHERE id = 1; INSERT INTO orders VALUES (4, 'zoe', 400);")
    server.start()
    wait_for(lambda: len(messages(server, "alerts/large")) == 5, "what happened while it was down")
    assert [(each["op"], each["key"]["id"]) for each in messages(server, "alerts/large")[3:]] == [
        ("delete", 1),
        ("insert", 4),
    ]
    server.kill()
    server.start()
    sqlite_shell(path, "INSERT INTO orders VALUES (5, 'kim', 500);")
    wait_for(lambda: len(messages(server, "alerts/large")) == 6, "after a crash")
    assert [each["key"]["id"] for each in messages(server, "alerts/large")[5:]] == [5]


def test_live_subscribers_get_what_it_publishes(serve: Callable[..., Server], tmp_path: Path) -> None:
    sqlite_shell(tmp_path / "data.db", TABLE)
    server = serve(config=config({"large": LARGE}))
    wait_for(lambda: stored(server, "large"), "the first run")
    with httpx.stream("GET", f"{server.pubsub}/-/stream?channel=alerts/large&format=raw", timeout=DEADLINE) as stream:
        lines = stream.iter_lines()
        sqlite_shell(server.path, "INSERT INTO orders VALUES (1, 'ada', 200);")
        line = next(line for line in lines if "insert" in line)
        assert json.loads(line.removeprefix("data: "))["new"]["customer"] == "ada"


def test_one_that_cannot_be_run_stops_no_other(serve: Callable[..., Server], tmp_path: Path) -> None:
    sqlite_shell(tmp_path / "data.db", TABLE)
    server = serve(
        config=config(
            {
                "large": LARGE,
                "absent": {"sql": "SELECT * FROM nothing_there", "channel": "a"},
                "writes": {"sql": "DELETE FROM orders RETURNING id", "channel": "a"},
                "unbound": {"sql": "SELECT :x", "channel": "a"},
                "twins": {"sql": "SELECT id, total AS id FROM orders", "channel": "a"},
            }
        )
    )
    errors = {
        "absent": "sql: no such table: nothing_there",
        "writes": "sql: a live query is a SELECT, and only reads",
        "unbound": "the query needs a value for its parameter x",
        "twins": "sql: the result has two columns id; name one of them with AS",
        "large": None,
    }

    def told() -> bool:
        found = states(server)
        return stored(server, "large") and {name: found[name]["error"] for name in errors} == errors

    wait_for(told, "all have run")
    sqlite_shell(server.path, "INSERT INTO orders VALUES (1, 'ada', 200);")
    wait_for(lambda: len(messages(server, "alerts/large")) == 1, "the others go on")
    html = httpx.get(f"{server.pubsub}/-/queries").text
    for name, error in errors.items():
        assert (error or LARGE["sql"]).replace(">", "&gt;") in html, name
    assert 'href="/data/-/pubsub/alerts~2Flarge"' in html
    # The error ends when the query can be run.
    sqlite_shell(server.path, "CREATE TABLE nothing_there (id); INSERT INTO nothing_there VALUES (1);")
    # It may have run between the two statements.
    wait_for(lambda: states(server)["absent"]["row_count"] == 1, "it can be run")
    assert states(server)["absent"]["error"] is None
    server.stop()
    for name, error in errors.items():
        if error is not None:
            assert server.log.count(f"database data: standing query '{name}': {error}") == 1


def test_other_sql_begins_again_and_says_so(serve: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    sqlite_shell(path, TABLE + "INSERT INTO orders VALUES (1, 'ada', 200);")
    server = serve(config=config({"large": LARGE}))
    wait_for(lambda: stored(server, "large"), "the first run")
    server.stop()
    server.config = config({"large": {**LARGE, "params": {"least": 10}}})
    sqlite_shell(path, "INSERT INTO orders VALUES (2, 'bob', 50);")
    server.start()
    wait_for(lambda: states(server)["large"]["row_count"] == 2, "the result is replaced")
    wait_for(lambda: "its stored result was replaced, and no change was published" in server.log, "the log says so")
    assert messages(server, "alerts/large") == []
    # One that is not configured any more keeps its last result, and the page says that it does not run here.
    server.stop()
    server.config = config({})
    server.start()
    found = states(server)["large"]
    assert (found["configured"], found["row_count"]) == (False, 2)
    assert "not by this server" in httpx.get(f"{server.pubsub}/-/queries").text


def test_two_servers_publish_once(serve: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    sqlite_shell(path, TABLE)
    first, second = (serve(config=config({"large": LARGE})) for _ in range(2))
    for server in (first, second):
        wait_for(lambda server=server: states(server)["large"]["ran_at"], "it runs")
    wait_for(lambda: stored(first, "large"), "the first run")
    for number in range(1, 31):
        sqlite_shell(path, f"INSERT INTO orders VALUES ({number}, 'x', 200);")
    wait_for(lambda: len(messages(first, "alerts/large")) >= 30, "published")
    # By both, or by one for both: the other finds nothing to publish in what it has seen last.
    wait_for(lambda: all(states(server)["large"]["row_count"] == 30 for server in (first, second)), "stored")
    sqlite_shell(path, "INSERT INTO orders VALUES (31, 'x', 200);")
    wait_for(lambda: len(messages(first, "alerts/large")) >= 31, "published")
    assert [each["key"]["id"] for each in messages(first, "alerts/large")] == list(range(1, 32))


def test_a_query_of_the_log_comes_to_rest(serve: Callable[..., Server], tmp_path: Path) -> None:
    counts = {
        "sql": "SELECT channel, count(*) AS n FROM vpubsub GROUP BY channel",
        "channel": "counts",
        "key": ["channel"],
    }
    server = serve(config=config({"counts": counts}), options=["--root"])
    wait_for(lambda: stored(server, "counts"), "the first run")
    server.publish(channel="a", payload="x")
    wait_for(lambda: messages(server, "counts"), "published")
    (message,) = messages(server, "counts")
    assert message["new"] == {"channel": "a", "n": 1}
    server.publish(channel="a", payload="y")
    wait_for(lambda: len(messages(server, "counts")) == 2, "published")
    ((rows,),) = server.rows("SELECT result FROM _pubsub_standing")
    assert dict(json.loads(rows)) == {"a": 2, "counts": 2}, "its own messages are in the stored result, and no news"
    table = f"{server.url}/data/_pubsub_standing.json"
    assert httpx.get(table, cookies=server.root_cookie()).status_code == 200
    assert httpx.get(table).status_code == 403


def test_who_sees_what(serve: Callable[..., Server], tmp_path: Path) -> None:
    sqlite_shell(tmp_path / "data.db", TABLE)
    queries = {
        "large": LARGE,
        "secret": {**LARGE, "channel": "secret/large"},
        "bad": {**LARGE, "sql": "SELECT * FROM s"},
    }
    options = config(queries, permissions={"execute-sql": {"id": "ada"}})
    plugin = options["databases"]["data"]["plugins"]["datasette-pubsub"]
    plugin["channel_permissions"] = {"secret/*": {"view": {"id": "ada"}}}
    server = serve(config=options, options=["--root"])
    wait_for(lambda: {"large", "secret", "bad"} <= set(states(server, **cookie("ada"))), "all have run")
    wait_for(lambda: states(server, **cookie("ada"))["bad"]["error"], "an error")
    assert states(server, **cookie("ada"))["bad"]["error"] == "sql: no such table: s"
    found = states(server)
    assert set(found) == {"large", "bad"}, "only of channels that the actor may view"
    assert (found["large"]["sql"], found["large"]["params"]) == (None, None)
    assert found["bad"]["error"] == "the query cannot be run"
    html = httpx.get(f"{server.pubsub}/-/queries").text
    assert "orders" not in html
    assert "secret" not in html
    # The stored rows are those of other tables.
    for headers in ({}, cookie("ada")):
        assert httpx.get(f"{server.url}/data/_pubsub_standing.json", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("queries", "reason"),
    [
        ([], "option 'standing_queries': must be a mapping of names"),
        ({"a": "SELECT 1"}, "'a' must be a mapping with sql, channel, key, operations, params, initial"),
        ({"a": {"sql": "SELECT 1", "chanel": "c"}}, "'a' has the unknown field 'chanel'"),
        ({"a": {"sql": "SELECT 1"}}, "'a' needs channel"),
        ({"a": {"channel": "c"}}, "'a' needs sql"),
        ({"a": {"sql": "", "channel": "c"}}, "'a': sql is empty"),
        ({"a": {"sql": "SELECT 1", "channel": ""}}, "'a': channel is empty"),
        ({"a": {"sql": "SELECT 1", "channel": "c", "key": "id"}}, "'a': key must be a list of texts"),
        ({"a": {"sql": "SELECT 1", "channel": "c", "operations": ["came"]}}, "'a': operations must be some of insert"),
        ({"a": {"sql": "SELECT 1", "channel": "c", "params": [1]}}, "'a': params must be a mapping of names"),
        ({"a": {"sql": "SELECT 1", "channel": "c", "params": {"x": []}}}, "'a': params: x must be a text, a number"),
        ({"a": {"sql": "SELECT 1", "channel": "c", "initial": "yes"}}, "'a': initial must be true or false"),
        ({"": {"sql": "SELECT 1", "channel": "c"}}, "'': name is empty"),
    ],
)
def test_the_configuration_is_checked(queries: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(None, {"standing_queries": queries})
    assert reason in str(caught.value)


def test_standing_queries_belong_to_a_database() -> None:
    with pytest.raises(ConfigError, match="belongs to a database, not to the instance"):
        read_settings({"standing_queries": {}})


def test_a_wrong_one_stops_the_server_at_start(serve: Callable[..., Server]) -> None:
    with pytest.raises(AssertionError, match="'large' has the unknown field 'chanel'"):
        serve(config=config({"large": {**LARGE, "chanel": "a"}}))


def test_a_database_that_cannot_be_written(serve: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "fixed.db"
    sqlite_shell(path, TABLE)
    options = config({"large": LARGE})
    options["databases"]["fixed"] = options["databases"].pop("data")
    server = serve(config=options, options=["--immutable", str(path)])
    told = "database fixed: standing query 'large': the database cannot be written"
    wait_for(lambda: told in server.log, "the log says so")
    (found,) = httpx.get(f"{server.url}/fixed/-/pubsub/-/queries.json").json()["queries"]
    assert "cannot be written" in found["error"]


def test_a_server_killed_at_every_step_publishes_once(serve: Callable[..., Server], tmp_path: Path) -> None:
    import killed

    path = tmp_path / "data.db"
    sqlite_shell(path, TABLE)
    server = serve(config=config({"large": LARGE}))
    wait_for(lambda: stored(server, "large"), "the first run")
    server.stop()
    script = str(ROOT / "tests" / "support" / "killed.py")
    for number, step in enumerate(killed.STEPS, 1):
        sqlite_shell(path, f"INSERT INTO orders VALUES ({number}, 'x', 200);")
        command = [sys.executable, script, "serve", step, str(path), "-p", str(free_port())]
        done = subprocess.run(
            [*command, "-c", str(server.folder / "datasette.json")],
            capture_output=True,
            timeout=60,
            check=False,
            env={**os.environ, **ENVIRONMENT},
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(messages(server, "alerts/large")) == (number if step == "committed" else 0), step
    server.start()
    sqlite_shell(path, "INSERT INTO orders VALUES (99, 'last', 200);")
    wait_for(lambda: messages(server, "alerts/large")[-1]["key"]["id"] == 99, "it goes on")
    assert [each["key"]["id"] for each in messages(server, "alerts/large")] == [1, 2, 3, 4, 5, 99]
