"""publish_batch for clients that are no browser, and in SQL that Datasette analyses first: once for each request."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from auth import actor_cookies
from batch_page import SELECT, install, published
from publish_batch_callers import SAME_ORIGIN
from servers import Server

GRANT: dict[str, Any] = {"permissions": {"publish-message": {"id": ["writer", "root"]}}}

GROUPS = "SELECT g, publish_batch('g', x) AS n FROM t GROUP BY g"

GET = functools.partial(httpx.get, timeout=60)
POST = functools.partial(httpx.post, timeout=60)
HEAD = functools.partial(httpx.head, timeout=60)

#: What Chromium sends with a link, a reload, a picture, and what is fetched in advance; and browsers on plain HTTP.
OPENED: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-User": "?1"},
    {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {
        "Sec-Fetch-Site": "same-origin",
        "Sec-Fetch-Mode": "no-cors",
        "Sec-Fetch-Dest": "empty",
        "Sec-Purpose": "prefetch",
    },
    {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
    {"Upgrade-Insecure-Requests": "1"},
]


@pytest.fixture
def server(serve: Callable[..., Server], tmp_path: Path) -> Server:
    install(tmp_path / "data.db")
    queries: dict[str, Any] = {
        "read": {"sql": SELECT},
        "plain": {"sql": "INSERT INTO vpubsub (channel, payload) VALUES (:channel, :payload)", "write": True},
        "select": {"sql": "SELECT publish_batch('w', x) FROM t", "write": True},
        "insert": {"sql": "INSERT INTO t (x) SELECT publish_batch('w', x) FROM t", "write": True},
    }
    return serve(config={**GRANT, "databases": {"data": {"queries": queries}}}, options=["--root"])


def get(server: Server, path: str, sql: str = SELECT, actor: str = "writer", **headers: str) -> httpx.Response:
    return GET(
        f"{server.url}/data/{path}",
        params={"sql": sql} if "query" in path else {},
        cookies=actor_cookies(actor),
        headers={**SAME_ORIGIN, **headers},
    )


def test_a_request_publishes_once_in_every_format(server: Server) -> None:
    count = 0
    for path in ("-/query.json", "-/query.csv", "-/query", "read.json", "read.csv", "read"):
        answer = get(server, path)
        count += 3
        assert answer.status_code == 200, answer.text
        assert published(server) == count, path
        if path.endswith("csv"):
            assert answer.text.split() == ["n", "3"]
    for extra in ("&_stream=1", "&_trace=1", "&_size=max&_dl=1"):
        answer = GET(
            f"{server.url}/data/-/query.csv?sql={SELECT}{extra}", cookies=actor_cookies("writer"), headers=SAME_ORIGIN
        )
        count += 3
        assert (answer.status_code, published(server)) == (200, count), extra
    assert get(server, "-/query.csv", GROUPS).text.split() == ["g,n", "1,2", "2,1"]
    assert published(server) == count + 3
    assert get(server, "-/query.json", GROUPS).json()["rows"] == [{"g": 1, "n": 2}, {"g": 2, "n": 1}]


def test_the_csv_of_a_command_line_client(serve: Callable[..., Server], tmp_path: Path) -> None:
    install(tmp_path / "data.db")
    server = serve()
    answer = GET(f"{server.url}/data/-/query.csv", params={"sql": "SELECT publish_batch('c','x') AS n"})
    assert (answer.text.split(), published(server)) == (["n", "1"], 1)


def test_csv_that_fails_publishes_its_full_batches_once(server: Server) -> None:
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)"
    answer = get(server, "-/query.csv", f"{many} SELECT publish_batch('c', CASE WHEN i < 1400 THEN i END) FROM n")
    assert (answer.status_code, answer.text) == (400, "publish_batch: payload is NULL")
    assert published(server) == 1000
    answer = get(
        server,
        "-/query.csv",
        f"{many} SELECT publish_batch('c', i), sum(json_extract(iif(i=1400, '{{', 1), '$')) FROM n",
    )
    assert (answer.status_code, answer.text) == (400, "malformed JSON")
    assert published(server) == 2000


def test_csv_that_takes_longer_than_a_query_may(serve: Callable[..., Server], tmp_path: Path) -> None:
    install(tmp_path / "data.db")
    server = serve(options=["--setting", "sql_time_limit_ms", "60"])
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000)"
    sql = f"{many} SELECT publish_batch('c', i) AS n FROM n"
    answer = GET(f"{server.url}/data/-/query.csv", params={"sql": sql})
    assert (answer.text.split(), published(server)) == (["n", "300000"], 300_000)


@pytest.mark.parametrize("headers", OPENED)
def test_what_a_browser_opens_by_itself_publishes_nothing(server: Server, headers: dict[str, str]) -> None:
    for path in ("-/query", "-/query.json", "-/query.csv", "read", "read.csv"):
        answer = GET(
            f"{server.url}/data/{path}",
            params={"sql": SELECT} if "query" in path else {},
            cookies=actor_cookies("writer"),
            headers=headers,
        )
        assert "opening or reloading a page publishes nothing" in answer.text, path
        assert answer.status_code == (200 if "." not in path else 400)
    assert published(server) == 0


def test_head_publishes_nothing(server: Server) -> None:
    for path in ("-/query", "-/query.json", "-/query.csv"):
        HEAD(f"{server.url}/data/{path}", params={"sql": SELECT}, cookies=actor_cookies("writer"), headers=SAME_ORIGIN)
    assert published(server) == 0


def test_the_page_of_a_table_or_view_publishes_nothing(server: Server) -> None:
    """Datasette runs its SQL for the rows, their count, facets and what it suggests as facets."""
    with closing(sqlite3.connect(server.path)) as conn:
        conn.execute("CREATE VIEW v AS SELECT publish_batch('v', x) AS n FROM t GROUP BY g")
    for path in (
        "v",
        "v.json",
        "v.csv",
        "t.json?_where=(select publish_batch('c','x'))",
        "v.json?_facet=n",
        "v.json?n__gt=0",
    ):
        answer = GET(f"{server.url}/data/{path}", cookies=actor_cookies("writer"), headers=SAME_ORIGIN)
        assert "runs its SQL several times" in answer.text, (path, answer.text)
    assert published(server) == 0
    assert get(server, "-/query.json", "SELECT sum(n) AS n FROM v").json()["rows"] == [{"n": 3}]


def run(server: Server, data: dict[str, str], query: str = "", **headers: str) -> httpx.Response:
    return POST(
        f"{server.pubsub}/-/run",
        params={"query": query} if query else {},
        data=data,
        cookies=actor_cookies(headers.pop("actor", "writer")),
        headers={**SAME_ORIGIN, **headers},
    )


def test_a_post_runs_a_query_once(server: Server) -> None:
    answer = run(server, {"sql": GROUPS})
    assert (answer.status_code, published(server)) == (200, 3)
    assert answer.json()["rows"] == [{"g": 1, "n": 2}, {"g": 2, "n": 1}]
    answer = run(server, {"sql": "SELECT publish_batch(:c, :x) AS n", "c": "a/b", "x": "1 & 2", "_shape": "array"})
    assert answer.json() == [{"n": 1}]
    assert server.rows("SELECT channel, payload FROM vpubsub WHERE id = 4") == [("a/b", "1 & 2")]
    assert run(server, {}, "read").json()["rows"] == [{"n": 3}]
    # Datasette's own rules hold.
    for answer, status, reason in (
        (run(server, {"sql": SELECT}, actor="other"), 400, "permission denied: publish-message on channel 'c'"),
        (run(server, {"sql": "DELETE FROM t"}), 400, "Statement must be a SELECT"),
        (run(server, {}, "select"), 409, "query 'select' writes"),
        (run(server, {}, "nothing"), 404, ""),
        (run(server, {}, "../../-/versions"), 404, ""),
        (run(server, {"sql": SELECT}, **{"Sec-Fetch-Site": "cross-site"}), 403, ""),
        (GET(f"{server.pubsub}/-/run"), 405, "this address is used with POST"),
    ):
        assert answer.status_code == status, answer.text
        assert reason in answer.text
    assert published(server) == 7


def test_a_failure_is_told_where_its_result_is_a_condition(server: Server) -> None:
    for condition in ("(SELECT publish_batch('', 'x'))", "(SELECT publish_batch('', x) FROM t) = 3"):
        for path in ("-/query.json", "-/query.csv"):
            answer = get(server, path, f"SELECT 1 WHERE {condition}")
            assert (answer.status_code, published(server)) == (400, 0)
            assert "publish_batch: channel is empty" in answer.text
    assert get(server, "-/query.json", "SELECT 1 AS one WHERE (SELECT publish_batch('c', 'x')) = 1").json()["rows"]
    assert published(server) == 1


def test_over_no_rows(server: Server) -> None:
    """SQLite never begins the call then, and Python's sqlite3 makes NULL of that."""
    answer = get(server, "-/query.json", "SELECT publish_batch('c', x) AS n FROM t WHERE 0")
    assert answer.json()["rows"] == [{"n": None}]
    answer = get(server, "-/query.json", "SELECT coalesce(publish_batch('c', x), 0) AS n FROM t WHERE 0")
    assert answer.json()["rows"] == [{"n": 0}]
    assert get(server, "-/query.json", f"{SELECT} WHERE 0 GROUP BY g").json()["rows"] == []
    assert published(server) == 0


# -- SQL that Datasette analyses ---------------------------------------------


def test_a_configured_write_query_publishes_without_the_right_to(server: Server) -> None:
    """By Datasette's design: a query in the configuration is the owner's, who decides by it what visitors do."""
    refused = POST(f"{server.pubsub}/-/publish", json={"channel": "x", "payload": "y"})
    assert refused.status_code == 403
    answer = POST(f"{server.url}/data/plain?_json=1", json={"channel": "secret/alerts", "payload": "from a visitor"})
    assert answer.json()["ok"], answer.text
    assert server.rows("SELECT channel, payload FROM vpubsub") == [("secret/alerts", "from a visitor")]


def test_a_configured_write_query_with_publish_batch(server: Server) -> None:
    """It runs in the query's transaction, for those who may publish: the function asks who runs it."""
    for name in ("select", "insert"):
        answer = POST(f"{server.url}/data/{name}?_json=1", json={})
        assert answer.status_code == 400
        assert (
            answer.json()["error"]
            == "publish_batch: permission denied: publish-message on channel 'w' of database data"
        )
        assert published(server) == 0
    answer = POST(f"{server.url}/data/select?_json=1", json={}, cookies=actor_cookies("writer"))
    assert (answer.json()["ok"], published(server)) == (True, 3)
    answer = POST(f"{server.url}/data/insert?_json=1", json={}, cookies=actor_cookies("writer"))
    assert (answer.json()["ok"], published(server)) == (True, 6)
    assert server.rows("SELECT x FROM t ORDER BY id DESC LIMIT 1") == [(3,)]
    assert server.rows("SELECT DISTINCT channel FROM vpubsub") == [("w",)]
    # Opened, it shows its form.
    assert GET(f"{server.url}/data/select").status_code == 200
    assert published(server) == 6


def test_the_write_page(server: Server) -> None:
    root = server.root_cookie()

    def write(sql: str) -> httpx.Response:
        return POST(f"{server.url}/data/-/execute-write", json={"sql": sql}, cookies=root)

    answer = write(SELECT)
    assert (answer.status_code, published(server)) == (400, 0)
    assert answer.json()["error"] == "Use /-/query for read-only SQL; this endpoint only executes writes"
    answer = write("INSERT INTO t (x) SELECT publish_batch('w', x) FROM t")
    assert (answer.status_code, published(server)) == (200, 3), answer.text
    answer = write("INSERT INTO t (x) SELECT publish_batch('', x) FROM t")
    assert (answer.status_code, answer.json()["error"]) == (400, "publish_batch: channel is empty")
    assert (published(server), server.rows("SELECT count(*) FROM t")) == (3, [(4,)])
    page = GET(
        f"{server.url}/data/-/execute-write",
        params={"sql": "INSERT INTO t (x) SELECT publish_batch('w', 1)"},
        cookies=root,
    )
    assert (page.status_code, published(server)) == (200, 3)
    assert "no such function" not in page.text


def test_a_query_that_an_actor_has_stored(server: Server) -> None:
    root = server.root_cookie()
    for name, sql in (("mine", SELECT), ("mine_too", "INSERT INTO t (x) SELECT publish_batch('w', x) FROM t")):
        answer = POST(f"{server.url}/data/-/queries/store", json={"query": {"name": name, "sql": sql}}, cookies=root)
        assert answer.status_code == 201, answer.text
    assert published(server) == 0
    assert GET(f"{server.url}/data/mine.csv", cookies=root, headers=SAME_ORIGIN).text.split() == ["n", "3"]
    assert published(server) == 3
    answer = POST(f"{server.url}/data/mine_too?_json=1", json={}, cookies=root)
    assert (answer.json()["ok"], published(server)) == (True, 6), answer.text


def test_a_view_with_it_is_analysed_and_not_run(server: Server) -> None:
    root = server.root_cookie()
    answer = POST(
        f"{server.url}/data/-/execute-write",
        json={"sql": "CREATE VIEW v AS SELECT publish_batch('v', x) AS n FROM t"},
        cookies=root,
    )
    assert (answer.status_code, published(server)) == (200, 0), answer.text
