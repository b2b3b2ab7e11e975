"""Restricted tokens, rules for all databases, and very many channels, at the doors of Datasette's own."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import itsdangerous
from auth import headers
from entrances import CONFIG
from logs_with_views import server
from servers import Server

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

__all__ = ["server"]


def restricted(actor: str, restrictions: dict[str, Any] | None) -> dict[str, str]:
    """As who has a token with these restrictions, in Datasette's own form of them."""
    payload = {"id": actor} if restrictions is None else {"id": actor, "_r": restrictions}
    return {"Cookie": f"ds_actor={itsdangerous.URLSafeSerializer('tests', 'actor').dumps({'a': payload})}"}


def test_a_token_sees_and_publishes_what_it_is_restricted_to(server: Server) -> None:
    """With rules by pattern, for one channel, many, a pattern and in lists alike."""
    both = {"items": [{"channel": name, "payload": "x"} for name in ("open/1", "secret")]}

    def may(restrictions: dict[str, Any] | None) -> tuple[list[str], bool, bool, bool]:
        with httpx.Client(headers=restricted("ada", restrictions), timeout=30) as client:
            return tried(client)

    def tried(client: httpx.Client) -> tuple[list[str], bool, bool, bool]:
        seen = [row["channel"] for row in client.get(f"{server.pubsub}/-/channels.json").json()["channels"]]
        with client.stream("GET", f"{server.pubsub}/-/stream", params={"pattern": "*", "start": "earliest"}) as answer:
            assert (answer.status_code == 200) == bool(seen)
            found = ""
            for line in answer.iter_lines() if seen else ():
                found += line
                if line == "event: ready":
                    break
            assert ("hidden text" in found) == ("secret" in seen)
        assert (client.get(f"{server.pubsub}/secret").status_code == 200) == ("secret" in seen)
        log = client.get(f"{server.url}/data/vpubsub.json").status_code == 200
        one = client.post(f"{server.pubsub}/-/publish", json=both["items"][1]).status_code == 200
        two = client.post(f"{server.pubsub}/-/publish", json=both).status_code == 200
        return seen, log, one, two

    every = ["open/1", "secret"]
    assert may(None) == (every, True, True, True)
    assert may({"a": ["view-table"]}) == ([], False, False, False)
    assert may({"d": {"data": ["view-database"]}}) == ([], False, False, False)
    assert may({"a": ["view-channel"]}) == (every, False, False, False)
    assert may({"d": {"data": ["publish-message"]}}) == ([], False, True, True)
    assert may({"r": {"data": {"open/1": ["view-channel"]}}}) == (["open/1"], False, False, False)
    assert may({"r": {"data": {"secret": ["publish-message"]}}}) == ([], False, True, False)
    assert may({"d": {"data": ["view-channel", "view-table"]}}) == (every, True, False, False)
    assert may({"d": {"other": ["view-channel"]}}) == ([], False, False, False)


def test_a_token_for_channels_needs_no_other_right(serve: Callable[..., Server]) -> None:
    """Where a channel is seen by whoever sees the log's table, the token need not be for tables, too."""
    server = serve()
    server.publish(channel="a", payload="x")
    with httpx.Client(base_url=server.url, headers=restricted("eve", {"a": ["view-channel"]})) as client:
        assert [row["channel"] for row in client.get("/data/-/pubsub/-/channels.json").json()["channels"]] == ["a"]
        assert client.get("/data/vpubsub.json").status_code == 403


def test_a_rule_for_every_database_hides_a_channel(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A plugin may name a channel without a database."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "rule.py").write_text(
        "from datasette import hookimpl\nfrom datasette.permissions import PermissionSQL\n"
        "@hookimpl\ndef permission_resources_sql(datasette, actor, action):\n"
        "    if action == 'view-channel':\n"
        "        return PermissionSQL(sql=\"SELECT NULL AS parent, 'secret' AS child, 0 AS allow, 'r' AS reason\")\n"
    )
    server = serve(options=["--plugins-dir", str(plugins)])
    server.publish({"channel": "open", "payload": "x"}, {"channel": "secret", "payload": "hidden text"})
    assert httpx.get(f"{server.pubsub}/secret").status_code == 403
    assert "secret" not in httpx.get(f"{server.pubsub}/-/channels.json").text
    assert "hidden text" not in httpx.get(server.pubsub).text
    assert httpx.get(f"{server.url}/data/vpubsub.json").status_code == 403


def test_datasette_knows_channels_that_do_not_exist_yet(server: Server) -> None:
    """/-/check tells of a channel what publishing to it would."""

    def check(action: str, channel: str) -> bool:
        params = {"action": action, "parent": "data", "child": channel}
        answer = httpx.get(f"{server.url}/-/check.json", params=params, headers=headers("bob"))
        return bool(answer.json()["allowed"])

    assert [check("publish-message", name) for name in ("open/new", "new", "open/1", "secret")] == [True, False] * 2
    assert [check("view-channel", name) for name in ("open/new", "new", "open/1", "secret")] == [True, False] * 2


def test_many_channels_make_no_page_slow(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Whoever publishes to some channels could make millions. What is sent to Datasette's rules does not grow."""
    server = serve(config=CONFIG, options=["--plugins-dir", str(_counting_plugin(tmp_path))])
    conn = sqlite3.connect(server.path)
    schema.set_durability(conn, Settings())
    schema.install(conn, Settings())
    many = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT ?) "
    conn.execute(many + "INSERT INTO vpubsub (channel, payload) SELECT 'open/' || n, 'x' FROM n", [20_000])
    conn.commit()
    conn.close()
    eve = headers("eve")
    assert httpx.get(f"{server.url}/data/existing.json", headers=eve).status_code == 200
    assert httpx.get(f"{server.pubsub}/open~2F7", headers=eve).status_code == 200
    assert httpx.get(f"{server.pubsub}/unknown", headers=eve).status_code == 403
    listed = httpx.get(f"{server.url}/-/allowed.json?action=view-channel", headers=eve, timeout=30).json()
    assert listed["total"] == 1000
    sizes = [int(size) for size in re.findall(r"rules of (\d+) bytes", server.log)]
    assert 0 < max(sizes) < 1000 * 40


def _counting_plugin(folder: Path) -> Path:
    """Writes into the server's log how much SQL and how many values Datasette was given to decide by."""
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "counting.py").write_text(
        "import datasette.utils.actions_sql as target\n"
        "gather = target.gather_permission_sql_from_hooks\n"
        "async def counted(**asked):\n"
        "    found = await gather(**asked)\n"
        "    values = [value for rule in found for key, value in (rule.params or {}).items() if 'pubsub' in key]\n"
        "    size = sum(len(str(value)) for value in values)\n"
        "    print(f'rules of {size} bytes', flush=True)\n"
        "    return found\n"
        "target.gather_permission_sql_from_hooks = counted\n"
    )
    return plugins
