"""A table of actors, actions and entrances, with the expected outcome; run as one."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from auth import headers
from commands import run
from entrances import CONFIG, view_sse
from servers import Server, Sse, sqlite_shell

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema


@pytest.fixture
def server(serve: Callable[..., Server], tmp_path: Path) -> Server:
    path = tmp_path / "data.db"
    conn = sqlite3.connect(path)
    schema.set_durability(conn, Settings())
    schema.install(conn, Settings())
    conn.execute("CREATE TABLE existing (id INTEGER PRIMARY KEY)")
    conn.close()
    sqlite_shell(path, "INSERT INTO vpubsub (channel, payload) VALUES ('open/1', 'for all'), ('secret', 'hidden text')")
    return serve(config=CONFIG)


def view_pattern(server: Server, actor: str | None, channel: str) -> bool:
    try:
        with Sse(f"{server.pubsub}/-/stream", headers=headers(actor), pattern="*", start="earliest") as reader:
            seen = set()
            while (event := reader.event())["event"] == "message":
                seen.add(event["data"]["channel"])
            return channel in seen
    except AssertionError:
        return False


def view_connect(server: Server, actor: str | None, channel: str) -> bool:
    message = json.dumps({"dbName": "data", "channel": channel, "start": "START_EARLIEST"}).encode()
    body = struct.pack(">BI", 0, len(message)) + message
    with httpx.stream(
        "POST",
        f"{server.url}/db.v1.DbService/Subscribe",
        content=body,
        headers={**headers(actor), "Content-Type": "application/connect+json"},
    ) as response:
        first = next(response.iter_bytes())
    return b"permission_denied" not in first


def view_listing(server: Server, actor: str | None, channel: str) -> bool:
    rows = httpx.get(f"{server.pubsub}/-/channels.json", headers=headers(actor)).json()["channels"]
    return channel in [row["channel"] for row in rows]


def view_viewer(server: Server, actor: str | None, channel: str) -> bool:
    page = httpx.get(server.pubsub, headers=headers(actor)).text
    own = httpx.get(f"{server.pubsub}/{channel}", headers=headers(actor)).status_code == 200
    payload = {"open/1": "for all", "secret": "hidden text"}[channel]
    assert (payload in page) == own
    return own


def view_messages(server: Server, actor: str | None, channel: str) -> bool:
    """As JSON and as CSV, and in neither when all are asked for."""
    payload = {"open/1": "for all", "secret": "hidden text"}[channel]
    found = set()
    for name in ("messages.json", "messages.csv"):
        url = f"{server.pubsub}/-/{name}"
        own = httpx.get(url, params={"channel": channel}, headers=headers(actor))
        found.add(own.status_code == 200)
        for params in ({}, {"pattern": "*"}, {"q": payload[2:]}):
            assert (payload in httpx.get(url, params=params, headers=headers(actor)).text) == (own.status_code == 200)
    assert len(found) == 1
    return found.pop()


def view_database_page(server: Server, actor: str | None, channel: str) -> bool:
    """The panel on Datasette's page, and what it asks for."""
    payload = {"open/1": "for all", "secret": "hidden text"}[channel]
    page = httpx.get(f"{server.url}/data", headers=headers(actor)).text
    rows = httpx.get(f"{server.pubsub}/-/activity.json", headers=headers(actor)).json()["channels"]
    assert (payload in page) == (channel in [row["channel"] for row in rows])
    return payload in page


def view_jump(server: Server, actor: str | None, channel: str) -> bool:
    return f"data: {channel}" in httpx.get(f"{server.url}/-/jump.json?q={channel}", headers=headers(actor)).text


def view_check(server: Server, actor: str | None, channel: str) -> bool:
    rows = httpx.get(f"{server.url}/-/allowed.json", params={"action": "view-channel"}, headers=headers(actor)).json()
    return ("data", channel) in {(row["parent"], row["child"]) for row in rows["items"]}


def view_table(server: Server, actor: str | None, channel: str) -> bool:
    """The log as Datasette shows tables: a side door to every channel at once."""
    outcomes = set()
    for table in ("vpubsub", "pubsub_subscriptions", "_pubsub_trims", "_pubsub_released"):
        for address in (table, f"{table}.json"):
            answer = httpx.get(f"{server.url}/data/{address}", headers=headers(actor))
            outcomes.add(answer.status_code == 200)
            if answer.status_code != 200:
                assert "hidden text" not in answer.text
    answer = httpx.get(f"{server.pubsub}/-/snapshot.json", params={"table": "vpubsub"}, headers=headers(actor))
    outcomes.add(answer.status_code == 200)
    assert len(outcomes) == 1, "all of them alike"
    return outcomes.pop()


def publish_http(server: Server, actor: str | None, channel: str) -> bool:
    url, message = f"{server.pubsub}/-/publish", {"channel": channel, "payload": "x"}
    return httpx.post(url, json=message, headers=headers(actor)).status_code == 200


def publish_form(server: Server, actor: str | None, channel: str) -> bool:
    message = {"channel": channel, "payload": "x"}
    return httpx.post(f"{server.pubsub}/-/publish-form", data=message, headers=headers(actor)).status_code == 302


def publish_by_broadcast(server: Server, actor: str | None, channel: str) -> bool:
    """Triggers that would publish for others: shown, as they would be made, to who may publish himself."""
    form = {"action": "preview", "channel": channel, "on": "insert", "new": "1", "column": "id", "when_insert": ""}
    answer = httpx.post(f"{server.url}/data/existing/-/broadcast", data=form, headers=headers(actor))
    return answer.status_code == 200 and "CREATE TRIGGER" in answer.text


def publish_connect(server: Server, actor: str | None, channel: str) -> bool:
    message = {"dbName": "data", "items": [{"channel": channel, "payload": "x"}]}
    url = f"{server.url}/db.v1.DbService/PublishBatch"
    return httpx.post(url, json=message, headers=headers(actor)).status_code == 200


def publish_sql_page(server: Server, actor: str | None, channel: str) -> bool:
    answer = httpx.get(
        f"{server.url}/data/-/query.json",
        params={"sql": "SELECT publish_batch(:channel, 'x')", "channel": channel},
        headers=headers(actor),
    )
    return answer.status_code == 200


def publish_run(server: Server, actor: str | None, channel: str) -> bool:
    answer = httpx.post(
        f"{server.pubsub}/-/run",
        data={"sql": "SELECT publish_batch(:channel, 'x')", "channel": channel},
        headers=headers(actor),
    )
    return answer.status_code == 200


def publish_write_page(server: Server, actor: str | None, channel: str) -> bool:
    answer = httpx.post(
        f"{server.url}/data/-/execute-write",
        data={"sql": f"INSERT INTO vpubsub (channel, payload) VALUES ('{channel}', 'x')"},
        headers={**headers(actor), "Accept": "application/json"},
    )
    return answer.status_code == 200


def publish_write_api(server: Server, actor: str | None, channel: str) -> bool:
    answer = httpx.post(
        f"{server.url}/data/vpubsub/-/insert",
        json={"row": {"channel": channel, "payload": "x"}},
        headers=headers(actor),
    )
    return answer.status_code in (200, 201)


def alter_row(server: Server, actor: str | None, channel: str) -> bool:
    done = [
        httpx.post(f"{server.url}/data/vpubsub/1/-/update", json={"update": {"payload": "y"}}, headers=headers(actor)),
        httpx.post(f"{server.url}/data/vpubsub/1/-/delete", json={}, headers=headers(actor)),
        httpx.post(
            f"{server.url}/data/-/execute-write",
            data={"sql": "DELETE FROM vpubsub"},
            headers={**headers(actor), "Accept": "application/json"},
        ),
    ]
    return any(answer.status_code == 200 for answer in done)


EVERYONE = ("ada", "bob", "eve", None)
WHO: dict[Callable[[Server, str | None, str], bool], dict[str, set[str | None]]] = {
    view_sse: {"open/1": set(EVERYONE), "secret": {"ada"}},
    view_pattern: {"open/1": set(EVERYONE), "secret": {"ada"}},
    view_connect: {"open/1": set(EVERYONE), "secret": {"ada"}},
    view_listing: {"open/1": set(EVERYONE), "secret": {"ada"}},
    view_viewer: {"open/1": set(EVERYONE), "secret": {"ada"}},
    view_messages: {"open/1": set(EVERYONE), "secret": {"ada"}},
    view_database_page: {"open/1": set(EVERYONE), "secret": {"ada"}},
    view_jump: {"open/1": set(EVERYONE), "secret": {"ada"}},
    view_check: {"open/1": set(EVERYONE), "secret": {"ada"}},
    view_table: {"open/1": {"ada"}, "secret": {"ada"}},
    publish_http: {"open/1": {"ada", "bob"}, "open/new": {"ada", "bob"}, "secret": {"ada"}, "new": {"ada"}},
    publish_form: {"open/1": {"ada", "bob"}, "open/x": {"ada", "bob"}, "secret": {"ada"}, "x": {"ada"}},
    publish_by_broadcast: {"open/1": {"ada", "bob"}, "secret": {"ada"}},
    publish_connect: {"open/1": {"ada", "bob"}, "open/new too": {"ada", "bob"}, "secret": {"ada"}},
    # These pages need execute-sql, or the right to insert any message.
    publish_sql_page: {"open/1": {"ada"}, "secret": {"ada"}},
    publish_run: {"open/1": {"ada"}, "secret": {"ada"}},
    publish_write_page: {"open/1": {"ada"}, "secret": {"ada"}},
    publish_write_api: {"open/1": {"ada"}, "secret": {"ada"}},
    alter_row: {"open/1": set()},
}


def test_every_actor_at_every_entrance(server: Server) -> None:
    wrong = []
    for entrance, expected in WHO.items():
        for channel, allowed in expected.items():
            for actor in EVERYONE:
                got_in = entrance(server, actor, channel)
                if got_in != (actor in allowed):
                    wrong.append(f"{entrance.__name__}({actor}, {channel}): {got_in}")
    assert not wrong
    assert server.rows("SELECT payload FROM vpubsub WHERE id = 1") == [("for all",)]
    # The command line works on the file: whoever may open it may do everything.
    assert "secret" in run("tail", server.path, "secret", "-n", "1").stdout
    assert "execute-sql" in server.log, "the operator is warned at start"


def test_what_is_hidden_is_not_counted(server: Server) -> None:
    """Not in the lag of a subscription by pattern, not in a gap."""
    url = f"{server.pubsub}/-/stream"
    for actor, lag in (("ada", 2), ("bob", 1)):
        with Sse(url, headers=headers(actor), pattern="*", subscription="all", ack="explicit") as reader:
            reader.messages(lag)
            listing = httpx.get(f"{server.pubsub}/-/subscriptions.json", headers=headers(actor)).json()
            assert [row["lag"] for row in listing["subscriptions"]] == [lag]
    run("trim", server.path, "--pattern", "*", "--messages", "1")
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('secret', 's2'), ('open/1', 'o2')")
    run("trim", server.path, "--pattern", "*", "--messages", "1")
    for actor, missed in (("ada", "2"), ("bob", "1")):
        with Sse(url, headers=headers(actor), pattern="*", subscription="all", ack="explicit") as reader:
            assert reader.until("gap")["data"]["missed"] == missed
    link = "/data/-/pubsub"
    assert link in httpx.get(f"{server.url}/data", headers=headers("bob")).text


def test_without_rules_a_visitor_can_do_only_what_he_could_do_before(serve: Callable[..., Server]) -> None:
    server = serve(config={})
    sqlite_shell(server.path, "INSERT INTO existing VALUES (1)")
    for page in ("", "/data", "/data/existing", "/data/existing.json", "/-/actor.json"):
        assert httpx.get(f"{server.url}{page}").status_code == 200
    assert not publish_http(server, None, "a")
    assert not publish_connect(server, None, "a")
    assert not publish_sql_page(server, None, "a")
    assert not publish_run(server, None, "a")
    assert not publish_write_page(server, None, "a")
    assert not publish_write_api(server, None, "a")
    assert server.rows("SELECT name FROM sqlite_master WHERE name LIKE '%pubsub%'") == [], "nothing was even prepared"


@pytest.mark.asyncio
async def test_many_who_begin_at_once_are_asked_about_together(serve: Callable[..., Server], tmp_path: Path) -> None:
    """As after a restart of the server; each actor by itself."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    asked = tmp_path / "asked"
    asked.touch()
    (plugins / "rule.py").write_text(
        "from datasette import hookimpl\nfrom datasette.permissions import PermissionSQL\n"
        "@hookimpl\ndef permission_resources_sql(datasette, actor, action):\n"
        "    if action == 'view-channel':\n"
        f"        open({str(asked)!r}, 'a').write('.')\n"
        "        if actor is None:\n"
        "            return PermissionSQL(sql=\"SELECT 'data' AS parent, 'a' AS child, 0 AS allow, 'r' AS reason\")\n"
        "@hookimpl\ndef actor_from_request(request):\n"
        "    if request.headers.get('authorization'):\n"
        "        return {'id': request.headers['authorization']}\n"
    )
    config = {"permissions": {"publish-message": True}}
    server = serve(config=config, options=["--plugins-dir", str(plugins)])
    server.publish(channel="a", payload="before")
    answers: list[int] = []

    async def read(client: httpx.AsyncClient, actor: str) -> None:
        headers = {"Authorization": actor} if actor else {}
        async with client.stream("GET", f"{server.pubsub}/-/stream?channel=a&format=raw", headers=headers) as response:
            answers.append(response.status_code)
            if response.status_code == 200:
                async for line in response.aiter_lines():
                    if line == "data: after":
                        return

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=30, limits=limits) as client:
        readers = [asyncio.ensure_future(read(client, actor)) for actor in 60 * ["ada", "bob", ""]]
        while len(answers) < len(readers):  # noqa: ASYNC110 - the server decides
            await asyncio.sleep(0.01)
        assert sorted(answers) == [200] * 120 + [403] * 60
        # By itself, each would have asked at least once.
        assert 3 <= asked.stat().st_size < len(readers)
        server.publish(channel="a", payload="after")
        await asyncio.gather(*readers)
