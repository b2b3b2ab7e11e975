"""Who may see and publish what: Datasette's rules hold at every entrance."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from auth import cookie
from servers import Server, Sse, sqlite_shell

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

RULES = '''
from datasette import hookimpl
from datasette.permissions import PermissionSQL

@hookimpl
def permission_resources_sql(datasette, actor, action):
    """Nobody but ada sees the channel secret; bob may publish to the channel open alone."""
    name = (actor or {}).get("id")
    if action == "view-channel" and name != "ada":
        return PermissionSQL(sql="SELECT 'data' AS parent, 'secret' AS child, 0 AS allow, 'secret' AS reason")
    if action == "publish-message" and name == "bob":
        return PermissionSQL(sql="SELECT 'data' AS parent, 'open' AS child, 1 AS allow, 'bob' AS reason")
'''


@pytest.fixture
def server(serve: Callable[..., Server], tmp_path: Path) -> Server:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "rules.py").write_text(RULES)
    config: dict[str, Any] = {
        "databases": {"private": {"allow": {"id": "ada"}}},
        "permissions": {"permissions-debug": {"id": ["ada", "bob"]}},
    }
    server = serve(databases=["data", "private"], config=config, options=["--root", "--plugins-dir", str(plugins)])
    for path in server.databases:
        conn = sqlite3.connect(path)
        schema.set_durability(conn, Settings())
        schema.install(conn, Settings())
        conn.close()
        sqlite_shell(path, "INSERT INTO vpubsub (channel, payload) VALUES ('secret', 's1'), ('open', 'o1')")
    return server


def publish(server: Server, actor: str | None, channel: str, database: str = "data") -> int:
    url = f"{server.url}/{database}/-/pubsub/-/publish"
    return httpx.post(url, json={"channel": channel, "payload": "x"}, headers=cookie(actor)).status_code


def test_publishing_needs_a_grant(server: Server) -> None:
    assert publish(server, None, "open") == 403
    assert publish(server, "ada", "open") == 403
    assert publish(server, "bob", "open") == 200
    assert publish(server, "bob", "secret") == 403
    both = {"items": [{"channel": name, "payload": "x"} for name in ("open", "secret")]}
    answer = httpx.post(f"{server.pubsub}/-/publish", json=both, headers=cookie("bob"))
    assert (answer.status_code, "on channel 'secret'" in answer.json()["error"]) == (403, True)
    root = httpx.post(f"{server.pubsub}/-/publish", json=both, cookies=server.root_cookie())
    assert root.status_code == 200
    rpc = httpx.post(
        f"{server.url}/db.v1.DbService/PublishBatch",
        json={"dbName": "data", "items": both["items"]},
        headers=cookie("bob"),
    )
    assert (rpc.status_code, rpc.json()["code"]) == (403, "permission_denied")
    assert server.rows("SELECT count(*) FROM vpubsub") == [(5,)]


def test_who_publishes_blindly_learns_nothing(serve: Callable[..., Server]) -> None:
    """A condition on the newest message is for those who may see it."""
    rules = {"drop/*": {"view": {"id": "ada"}, "publish": True}}
    server = serve(config={"plugins": {"datasette-pubsub": {"channel_permissions": rules}}})
    item: dict[str, Any] = {"channel": "drop/1", "payload": "x"}
    server.publish(**item)
    url, rpc = f"{server.pubsub}/-/publish", f"{server.url}/db.v1.DbService/PublishBatch"
    for expected in (0, 1, 2):
        refused = httpx.post(url, json={**item, "expected_last_id": expected})
        assert (refused.status_code, "view-channel on channel 'drop/1'" in refused.json()["error"]) == (403, True)
        refused = httpx.post(rpc, json={"dbName": "data", "items": [{**item, "expectedLastId": str(expected)}]})
        assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
        line = json.dumps({**item, "expected_last_id": expected})
        refused = httpx.post(url, content=line + "\n", headers={"Content-Type": "application/x-ndjson"})
        assert "view-channel on channel 'drop/1'" in refused.json()["error"]
    assert httpx.post(url, json={**item, "expected_last_id": 1}, headers=cookie("ada")).json()["message_ids"] == [2]


def test_a_denied_channel_is_nowhere(server: Server) -> None:
    stream = f"{server.pubsub}/-/stream"
    assert httpx.get(stream, params={"channel": "secret"}).status_code == 403
    assert httpx.get(f"{server.pubsub}/secret").status_code == 403
    assert "secret" not in httpx.get(server.pubsub).text
    assert [row["channel"] for row in httpx.get(f"{server.pubsub}/-/channels.json").json()["channels"]] == ["open"]
    for pattern in ("*", "s*t", "[a-z]*"):
        with Sse(stream, pattern=pattern, channel="open", start="earliest") as reader:
            assert reader.messages(1)[0]["channel"] == "open"
            reader.until("ready")
            sqlite_shell(
                server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('secret', 'live'), ('open', 'live')"
            )
            assert reader.messages(1)[0]["channel"] == "open"
        sqlite_shell(
            server.path,
            "INSERT INTO _pubsub_released SELECT channel, max(id) FROM vpubsub GROUP BY channel "
            "ON CONFLICT DO UPDATE SET id = excluded.id; DELETE FROM vpubsub WHERE id > 2;",
        )
    with Sse(stream, headers=cookie("ada"), pattern="*", start="earliest") as reader:
        assert [m["channel"] for m in reader.messages(2)] == ["secret", "open"]


def test_a_private_database(server: Server) -> None:
    base = f"{server.url}/private/-/pubsub"
    for path in ("", "/open", "/-/channels.json", "/-/subscriptions.json", "/-/snapshot.json?table=existing"):
        answer = httpx.get(base + path)
        shown = answer.status_code, answer.text if path.endswith("channels.json") else ""
        assert shown[0] == 403 or json.loads(shown[1])["channels"] == [], path
        assert httpx.get(base + path, headers=cookie("ada")).status_code == 200, path
    for params in ({"channel": "open"}, {"pattern": "*"}, {"channel": "open", "subscription": "s"}):
        assert httpx.get(f"{base}/-/stream", params=params).status_code == 403
    with Sse(f"{base}/-/stream", headers=cookie("ada"), channel="open", start="earliest") as reader:
        assert reader.messages(1)[0]["payload"] == "o1"


def test_subscriptions_belong_to_their_actor(server: Server) -> None:
    stream = f"{server.pubsub}/-/stream"
    for actor in ("ada", "bob", None):
        with Sse(stream, headers=cookie(actor), channel="open", subscription="s", ack="explicit") as reader:
            reader.messages(1)
    assert server.rows("SELECT owner, name FROM pubsub_subscriptions ORDER BY owner") == [
        ("", "s"), ("ada", "s"), ("bob", "s"),
    ]  # fmt: skip
    ack = {"subscription": "s", "message_id": 2}
    assert httpx.post(f"{server.pubsub}/-/ack", json=ack, headers=cookie("bob")).status_code == 200
    assert server.rows("SELECT owner FROM pubsub_subscriptions WHERE cursor = 2") == [("bob",)]
    assert httpx.post(f"{server.pubsub}/-/ack", json=ack, headers=cookie("eve")).status_code == 404
    gone = httpx.post(f"{server.pubsub}/-/subscriptions/delete", json={"subscription": "s"}, headers=cookie("eve"))
    assert gone.status_code == 404
    # To ask for the headers alone opens no stream, and moves nothing.
    asked = {"channel": "open", "subscription": "new", "last_event_id": "2"}
    head = httpx.head(stream, params=asked, headers=cookie("bob"))
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    (own,) = httpx.get(f"{server.pubsub}/-/subscriptions.json", headers=cookie("bob")).json()["subscriptions"]
    assert own["cursor"] == 2


def test_datasette_knows_the_actions(server: Server) -> None:
    def check(action: str, actor: str, child: str) -> bool:
        answer = httpx.get(
            f"{server.url}/-/check.json",
            params={"action": action, "parent": "data", "child": child},
            headers=cookie(actor),
        )
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["allowed"])

    assert check("publish-message", "bob", "open")
    assert not check("publish-message", "bob", "secret")
    assert check("view-channel", "bob", "open")
    assert not check("view-channel", "bob", "secret")
    assert check("view-channel", "ada", "secret")
    listed = httpx.get(f"{server.url}/-/allowed.json", params={"action": "view-channel"}, headers=cookie("bob")).json()
    assert {(row["parent"], row["child"]) for row in listed["items"]} == {("data", "open")}


def test_a_cross_site_page_publishes_nothing(server: Server) -> None:
    headers = {**cookie("bob"), "Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"}
    answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "open", "payload": "x"}, headers=headers)
    assert answer.status_code == 403
    assert server.rows("SELECT count(*) FROM vpubsub") == [(2,)]


def test_a_name_that_needs_encoding(serve: Callable[..., Server]) -> None:
    server = serve(databases=["my.data v1"])
    base = f"{server.url}/my~2Edata+v1/-/pubsub"
    assert httpx.post(f"{base}/-/publish", json={"channel": "a", "payload": "x"}).json()["message_ids"] == [1]
    assert httpx.get(base).status_code == 200
    with Sse(f"{base}/-/stream", channel="a", start="earliest") as reader:
        assert reader.messages(1)[0]["payload"] == "x"
