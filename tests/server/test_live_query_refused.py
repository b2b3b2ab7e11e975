"""Live queries that are refused, and who may follow one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_queries import TABLES, Serve, live, refused, started
from servers import OPEN, Server, Sse, sqlite_shell

# -- what is refused -----------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "status", "field", "text"),
    [
        ({}, 400, "sql", "give one of sql, table and query"),
        ({"sql": "SELECT 1", "table": "orders"}, 400, "sql", "give one of"),
        ({"sql": "SELEC 1"}, 400, "sql", "must be a SELECT"),
        ({"sql": "SELECT FROM orders"}, 400, "sql", "syntax error"),
        ({"sql": "SELECT 1; SELECT 2"}, 400, "sql", "give one SELECT"),
        ({"sql": "DELETE FROM orders"}, 400, "sql", "must be a SELECT"),
        ({"sql": "WITH x AS (SELECT 1) DELETE FROM orders"}, 400, "sql", "only reads"),
        ({"sql": "ATTACH 'x.db' AS x"}, 400, "sql", "must be a SELECT"),
        ({"sql": "EXPLAIN SELECT 1"}, 400, "sql", "syntax error"),
        ({"sql": "SELECT * FROM nowhere"}, 400, "sql", "no such table: nowhere"),
        ({"sql": "SELECT :who"}, 400, "who", "parameter who"),
        ({"sql": "SELECT ?"}, 400, "sql", "each parameter in it a name"),
        ({"sql": "SELECT publish_batch('a', 'b')"}, 400, "sql", "publish_batch cannot be used in a live query"),
        ({"sql": "SELECT 1 AS a", "key": "b"}, 400, "key", "no column b"),
        ({"sql": "SELECT 1 -- " + "x" * 50_000}, 400, "sql", "limit of 50000 bytes"),
        ({"table": "nothing"}, 404, None, "table not found: nothing"),
        ({"table": "orders", "_size": "x"}, 400, "table", "_size"),
        ({"query": "nothing"}, 404, None, "query not found: nothing"),
        (
            {"sql": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c LIMIT 1001"},
            413, None, "more than 1000 rows (Datasette's max_returned_rows)",
        ),
        (
            {"sql": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c"},
            400, "sql", "longer than 1 seconds (Datasette's sql_time_limit_ms)",
        ),
        ({"sql": "SELECT zeroblob(9000)"}, 413, None, "max_live_query_bytes"),
        ({"sql": "SELECT hex(zeroblob(4000)) UNION ALL SELECT 1"}, 413, None, "max_live_query_bytes"),
    ],
)  # fmt: skip
def test_what_is_refused(
    module_server: Server, asked: dict[str, Any], status: int, field: str | None, text: str
) -> None:
    found, error = refused(module_server, **asked)
    assert (found, error.get("field")) == (status, field), error
    assert text in error["error"]


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("refused")
    path = folder / "data.db"
    sqlite_shell(path, TABLES)
    server = Server([path], {**OPEN, "plugins": {"datasette-pubsub": {"max_live_query_bytes": 7000}}}, folder)
    yield server.start()
    server.kill()


def test_the_numbers_of_live_queries_are_limited(serve: Serve) -> None:
    server = started(serve, max_live_queries=3, max_live_queries_per_actor=2)
    cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in server.root_cookie().items())}
    with (
        live(server, sql="SELECT 1") as one,
        live(server, sql="SELECT 2") as two,
        live(server, sql="SELECT 2") as again,
    ):
        assert [stream.event()["event"] for stream in (one, two, again)] == ["snapshot"] * 3
        status, error = refused(server, sql="SELECT 3")
        assert (status, error["limit"]) == (429, "max_live_queries_per_actor")
        with Sse(f"{server.pubsub}/-/live", headers=cookies, sql="SELECT 3") as three:
            three.event()
            status, error = refused(server, headers=cookies, sql="SELECT 4")
            assert (status, error["limit"]) == (429, "max_live_queries")
    with live(server, sql="SELECT 4") as stream:
        assert stream.event()["event"] == "snapshot"


# -- who may, and for how long ---------------------------------------------------


def test_the_permissions_are_those_of_datasette(serve: Serve) -> None:
    queries = {"q": {"sql": "SELECT 1", "allow": {"id": "root"}}}
    config = {
        "databases": {
            "data": {"allow_sql": {"id": "root"}, "queries": queries, "tables": {"orders": {"allow": {"id": "root"}}}}
        }
    }
    server = started(serve, config=config)
    needs: list[tuple[dict[str, Any], str]] = [
        ({"sql": "SELECT 1"}, "execute-sql"),
        ({"table": "orders"}, "view-table"),
        ({"query": "q"}, "view-query"),
    ]
    for asked, what in needs:
        status, error = refused(server, **asked)
        assert (status, what in error["error"]) == (403, True), error
    headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in server.root_cookie().items())}
    for asked, _ in needs:
        with Sse(f"{server.pubsub}/-/live", headers=headers, **asked) as stream:
            assert stream.event()["event"] == "snapshot"


def test_a_permission_that_ends_ends_the_stream(serve: Serve, tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    gate = tmp_path / "open"
    gate.touch()
    (plugins / "gate.py").write_text(
        "import os\nfrom datasette import hookimpl\nfrom datasette.permissions import PermissionSQL\n\n"
        "@hookimpl\ndef permission_resources_sql(actor, action):\n"
        f"    if action == 'execute-sql' and not os.path.exists({str(gate)!r}):\n"
        "        return PermissionSQL.deny(reason='closed')\n"
    )
    server = started(serve, options=["--plugins-dir", str(plugins)], permission_recheck_seconds=0.1)
    with live(server, sql="SELECT 1") as stream:
        assert stream.event()["event"] == "snapshot"
        gate.unlink()
        bye = stream.until("bye")["data"]
        assert (bye["code"], bye["reconnect"]) == ("revoked", True)
        with pytest.raises(EOFError):
            stream.event()
    assert refused(server, sql="SELECT 1")[0] == 403
