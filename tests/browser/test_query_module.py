"""`query` of the JavaScript module, and how it compares results, in a real Chromium."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import browsers as chromium
import pytest
from browsers import Watched
from module_page import MODULE, seen, until
from places import ROOT
from playwright.sync_api import Page
from servers import Server, sqlite_shell, wait_for

from datasette_pubsub.core import result
from datasette_pubsub.protocol.query_frames import change_json

TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'a'), (2, 80.0), (9007199254740993, NULL)"

#: Begins to follow a query in a page, and keeps what was called back in `window.seen[name]`.
QUERY = """async ([module, name, options, abort]) => {
    const { query } = await import(module);
    window.seen ??= {};
    const seen = window.seen[name] = { snapshots: [], changes: [], rows: null, errors: [], statuses: [], reasons: [] };
    const ending = new AbortController();
    seen.abort = () => ending.abort();
    seen.query = query({
        ...options,
        signal: ending.signal,
        onsnapshot: (result) => seen.snapshots.push(result),
        onchange: (change) => seen.changes.push(change),
        onrows: (rows) => { seen.rows = rows; },
        onerror: (error) => seen.errors.push(error),
        onstatus: (status, detail) => { seen.statuses.push(status); seen.reasons.push(detail.reason ?? null); },
    });
}"""


def follow(page: Page, server: Server, name: str = "it", **options: Any) -> None:
    page.evaluate(QUERY, [MODULE, name, {"base": f"/{server.database}/-/pubsub"} | options])


def blank(watched: Watched, server: Server) -> Page:
    return watched.open(f"{server.url}/-/versions", status="")


@chromium.needed
@pytest.mark.parametrize("share", [False, True])
def test_a_result_and_its_changes(serve: Callable[..., Server], watched: Watched, share: bool) -> None:
    server = serve()
    sqlite_shell(server.path, TABLE)
    page = blank(watched, server)
    follow(page, server, table="t", params={"_sort": "id"}, share=share)
    until(page, "seen.query.status === 'live'")
    (first,) = seen(page, "snapshots")
    assert (first["columns"], first["key"], first["count"]) == (["id", "v"], ["id"], 3)
    # Whole numbers beyond 2^53 are text.
    assert first["rows"] == [[1, "a"], [2, 80], ["9007199254740993", None]]
    assert seen(page, "rows") == [{"id": 1, "v": "a"}, {"id": 2, "v": 80}, {"id": "9007199254740993", "v": None}]
    sqlite_shell(server.path, "UPDATE t SET v = 'b' WHERE id = 1; DELETE FROM t WHERE id = 2")
    sqlite_shell(server.path, "INSERT INTO t VALUES (3, x'00ff')")
    until(page, "seen.query.result.rows.length === 3 && seen.query.result.rows[1][0] === 3")
    kinds = ("removed", "inserted", "changed")
    placed = [entry for change in seen(page, "changes") for kind in kinds for entry in change[kind]]
    blob = {"$base64": True, "encoded": "AP8="}
    assert {"at": 0, "row": [1, "b"], "was": [1, "a"]} in placed
    assert {"at": 1, "row": [3, blob]} in placed
    assert seen(page, "rows")[:2] == [{"id": 1, "v": "b"}, {"id": 3, "v": blob}]
    assert (len(seen(page, "snapshots")), seen(page, "errors")) == (1, [])
    page.evaluate("window.seen.it.abort()")
    assert seen(page, "statuses") == ["connecting", "live", "closed"]


@chromium.needed
def test_after_a_lost_connection_only_differences_are_seen(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    sqlite_shell(server.path, TABLE)
    page = blank(watched, server)
    follow(page, server, sql="SELECT id, v FROM t WHERE id < :below ORDER BY id", params={"below": "100"}, key=["id"])
    until(page, "seen.query.status === 'live'")
    server.kill()
    until(page, "seen.query.status === 'reconnecting'")
    sqlite_shell(server.path, "UPDATE t SET v = 'b' WHERE id = 1")
    server.start()
    until(page, "seen.changes.length > 0")
    (change,) = seen(page, "changes")
    changed = [{"at": 0, "row": [1, "b"], "was": [1, "a"]}]
    assert (change["removed"], change["inserted"], change["changed"]) == ([], [], changed)
    assert len(seen(page, "snapshots")) == 1
    # An error, and the end of it.
    sqlite_shell(server.path, "ALTER TABLE t RENAME TO u")
    until(page, "seen.query.status === 'broken'")
    (error,) = seen(page, "errors")
    assert (error["code"], error["message"]) == ("invalid_argument", "sql: no such table: t")
    assert seen(page, "reasons")[-1] == "sql: no such table: t"
    sqlite_shell(server.path, "ALTER TABLE u RENAME TO t")
    until(page, "seen.query.status === 'live'")
    assert (len(seen(page, "changes")), len(seen(page, "snapshots"))) == (1, 1)
    # A refusal is a reason.
    follow(page, server, "refused", sql="DELETE FROM t")
    until(page, "seen.reasons.some((reason) => reason?.includes('Statement must be a SELECT'))", "refused")


@chromium.needed
def test_tabs_hand_the_connection_over(serve: Callable[..., Server], watched: Watched) -> None:
    """While another process writes: each tab that stays has, in the end, what the query returns."""
    server = serve()
    sqlite_shell(server.path, TABLE)
    tabs = [blank(watched, server) for _ in range(5)]
    for page in tabs:
        follow(page, server, sql="SELECT count(*) AS n FROM t", share=True)
        until(page, "seen.query.status === 'live'")
    other = blank(watched, server)
    follow(other, server, sql="SELECT max(id) AS n FROM t", share=True)
    until(other, "seen.query.status === 'live'")
    assert len(watched.streams) == 2
    count = 3
    while tabs:
        for _ in range(3):
            sqlite_shell(server.path, f"INSERT INTO t VALUES ({count + 100}, 1)")
            count += 1
        for page in tabs:
            until(page, f"seen.rows[0].n === {count}")
            assert len(seen(page, "snapshots")) == 1
            assert set(seen(page, "statuses")) == {"connecting", "live"}
        tabs.pop(0).close()
    assert len(watched.streams) == 6
    wait_for(lambda: other.evaluate("1") and len(watched.open_streams) == 1, "one connection is left")


# -- how results are compared ---------------------------------------------------

COMPARE = """
import { apply, difference, parse, plain } from "./static/client/result.js";
let text = "";
for await (const part of process.stdin) text += part;
const { cases, numbers } = JSON.parse(text);
const found = cases.map(({ before, after, places }) => {
  const change = difference(before, after, places);
  return { change, applied: apply(before, change) };
});
const values = numbers.map((number) => parse(number)).map((value) => [value, plain(value)]);
console.log(JSON.stringify({ found, values }));
"""


def results(seed: int) -> list[dict[str, Any]]:
    """Pairs of lists of rows, with duplicates and without, with a key and without."""
    chance = random.Random(seed)
    cases = []
    for _ in range(400):
        keyed = chance.random() < 0.5
        lists = []
        for _ in range(2):
            ids = [chance.randint(0, 6) for _ in range(chance.randint(0, 8))]
            lists.append([[each, chance.choice("ab")] for each in (dict.fromkeys(ids) if keyed else ids)])
        cases.append({"before": lists[0], "after": lists[1], "places": [0] if keyed else []})
    return cases


@pytest.mark.node
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_results_are_compared_as_the_server_compares_them(tmp_path: Path) -> None:
    cases, numbers = results(18), ["80.0", "1", "9007199254740993", "-9007199254740993", "1e16", "0.5", "1e400"]
    done = subprocess.run(
        ["node", "--input-type=module", "-e", COMPARE],
        input=json.dumps({"cases": cases, "numbers": numbers}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert len(answer["found"]) == len(cases)
    for case, found in zip(cases, answer["found"], strict=True):
        assert found["applied"] == case["after"], case
        old, new = (result_of(case[name], case["places"]) for name in ("before", "after"))
        expected = json.loads(change_json(result.difference(old, new)))
        assert found["change"] == {name: expected[name] for name in ("removed", "inserted", "changed")}, case
    exact = [value for value, _ in answer["values"]]
    if exact[0] == {"number": "80.0"}:
        # The JavaScript engine tells how numbers were written.
        assert exact[:3] == [{"number": "80.0"}, 1, {"number": "9007199254740993"}]
        assert [value for _, value in answer["values"]][:6] == [80, 1, numbers[2], numbers[3], 10**16, 0.5]


def result_of(rows: list[list[Any]], places: list[int]) -> result.Result:
    def encoded(values: list[Any]) -> bytes:
        return json.dumps(values, separators=(",", ":")).encode()

    keys = [encoded([row[place] for place in places]) for row in rows] if places else None
    return result.Result(("id", "v"), [encoded(row) for row in rows], 1, keys)
