"""A right that begins or ends, the roles and tokens that carry it, and how many streams one actor may have."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from auth import headers
from commands import datasette
from entrances import view_sse
from servers import DEADLINE, Server, Sse, sqlite_shell, wait_for


def test_a_stream_ends_when_its_right_ends(serve: Callable[..., Server], tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    revoked = tmp_path / "revoked"
    (plugins / "rule.py").write_text(
        "import os\nfrom datasette import hookimpl\nfrom datasette.permissions import PermissionSQL\n"
        "@hookimpl\ndef permission_resources_sql(datasette, actor, action):\n"
        f"    if action == 'view-channel' and os.path.exists({str(revoked)!r}):\n"
        "        return PermissionSQL(sql=\"SELECT 'data' AS parent, 'a' AS child, 0 AS allow, 'r' AS reason\")\n"
    )
    config = {
        "permissions": {"publish-message": True},
        "plugins": {"datasette-pubsub": {"permission_recheck_seconds": 0.2}},
    }
    server = serve(config=config, options=["--plugins-dir", str(plugins)])
    server.publish(channel="a", payload="x")
    url = f"{server.pubsub}/-/stream"
    with Sse(url, channel="a", start="earliest") as reader, Sse(url, pattern="*") as by_pattern:
        reader.until("ready")
        by_pattern.until("ready")
        server.publish(channel="a", payload="y")
        assert reader.messages(1)[0]["payload"] == by_pattern.messages(1)[0]["payload"] == "y"
        revoked.touch()
        for one in (reader, by_pattern):
            end = one.until("bye")["data"]
            assert ("right" in end["reason"], end["code"], end["reconnect"]) == (True, "revoked", True)
            with pytest.raises(EOFError):
                one.event()
    assert httpx.get(url, params={"channel": "a"}).status_code == 403


def test_who_may_publish_is_asked_about_once_a_moment(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A right that has ended is soon gone; one that is new is there at once."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    granted, asked = tmp_path / "granted", tmp_path / "asked"
    (plugins / "rule.py").write_text(
        "import os\nfrom datasette import hookimpl\nfrom datasette.permissions import PermissionSQL\n"
        "@hookimpl\ndef permission_resources_sql(datasette, actor, action):\n"
        "    if action == 'publish-message':\n"
        f"        open({str(asked)!r}, 'a').write('.')\n"
        f"        if os.path.exists({str(granted)!r}):\n"
        "            return PermissionSQL(sql=\"SELECT NULL AS parent, NULL AS child, 1 AS allow, 'r' AS reason\")\n"
    )
    server = serve(config={}, options=["--plugins-dir", str(plugins)])

    def status(*channels: str) -> int:
        body = {"items": [{"channel": channel, "payload": "x"} for channel in channels]}
        return httpx.post(f"{server.pubsub}/-/publish", json=body).status_code

    for channels in (["a"], ["a", "b"]):
        granted.unlink(missing_ok=True)
        wait_for(lambda channels=channels: status(*channels) == 403, "the right has ended")
        granted.touch()
        before = asked.stat().st_size
        assert [status(*channels) for _ in range(50)] == [200] * 50
        assert asked.stat().st_size - before < 50


def test_a_stream_ends_when_its_actor_loses_a_role(serve: Callable[..., Server], tmp_path: Path) -> None:
    """What a plugin says of the actor now is what counts, not what it said when the stream began."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    roles = tmp_path / "roles"
    roles.write_text("reader")
    (plugins / "roles.py").write_text(
        "from pathlib import Path\nfrom datasette import hookimpl\n@hookimpl\ndef actor_from_request(request):\n"
        "    if request.headers.get('authorization') == 'Basic ada':\n"
        f"        return {{'id': 'ada', 'role': Path({str(roles)!r}).read_text()}}\n"
    )
    rules = {"*": {"view": {"role": "reader"}, "publish": True}}
    config = {"plugins": {"datasette-pubsub": {"permission_recheck_seconds": 0.2, "channel_permissions": rules}}}
    server = serve(config=config, options=["--plugins-dir", str(plugins)])
    server.publish(channel="a", payload="x")
    ada = {"Authorization": "Basic ada"}
    with Sse(f"{server.pubsub}/-/stream", headers=ada, channel="a", start="earliest") as reader:
        assert reader.messages(1)[0]["payload"] == "x"
        roles.write_text("guest")
        assert "right" in reader.until("bye")["data"]["reason"]


def test_a_stream_ends_when_its_token_expires(serve: Callable[..., Server]) -> None:
    """At its end, however long it is until rights are looked at again."""
    config = {
        "allow": {"id": "root"},
        "plugins": {"datasette-pubsub": {"permission_recheck_seconds": 3600, "heartbeat_seconds": 3600}},
    }
    server = serve(config=config, options=["--root"])
    token = datasette("create-token", "root", "--secret", "tests", "--expires-after", "10").strip()
    with Sse(f"{server.pubsub}/-/stream", headers={"Authorization": f"Bearer {token}"}, channel="a") as reader:
        reader.until("ready")
        reader.until("bye")


def test_anonymous_subscriptions_can_be_turned_off(serve: Callable[..., Server]) -> None:
    server = serve(config={"plugins": {"datasette-pubsub": {"allow_anonymous_subscriptions": False}}})
    url = f"{server.pubsub}/-/stream"
    refused = httpx.get(url, params={"channel": "a", "subscription": "s"})
    assert (refused.status_code, "allow_anonymous_subscriptions" in refused.json()["error"]) == (403, True)
    with Sse(url, channel="a") as reader:
        reader.until("ready")
    with Sse(url, headers=headers("ada"), channel="a", subscription="s") as reader:
        reader.until("ready")
    # Nor those that were there before.
    sqlite_shell(server.path, "INSERT INTO pubsub_subscriptions (owner, name) VALUES ('', 'old')")
    rpc = {"dbName": "data", "subscriptionName": "old", "messageId": "1"}
    for path, body in (
        ("data/-/pubsub/-/ack", {"subscription": "old", "message_id": 1}),
        ("data/-/pubsub/-/subscriptions/delete", {"subscription": "old"}),
        ("db.v1.DbService/Ack", rpc),
    ):
        answer = httpx.post(f"{server.url}/{path}", json=body)
        assert (answer.status_code, "allow_anonymous_subscriptions" in answer.text) == (403, True), path


def test_streams_per_actor_are_bounded(serve: Callable[..., Server]) -> None:
    server = serve(config={"plugins": {"datasette-pubsub": {"max_streams_per_actor": 2, "max_streams": 4}}})
    url = f"{server.pubsub}/-/stream"

    def full(actor: str | None) -> httpx.Response:
        return httpx.get(url, params={"channel": "a"}, headers=headers(actor))

    with Sse(url, headers=headers("ada"), channel="a"), Sse(url, headers=headers("ada"), channel="a"):
        refused = full("ada")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "limit is 2 (max_streams_per_actor)" in refused.json()["error"]
        with Sse(url, channel="a"), Sse(url, headers=headers("bob"), channel="a"):
            assert "limit is 4 (max_streams)" in full("eve").json()["error"]
    wait_for(lambda: view_sse(server, "ada", "a"), "a place is free again")


@pytest.mark.parametrize("named", [True, False])
def test_a_crowd_that_comes_at_once_is_counted(serve: Callable[..., Server], named: bool) -> None:
    """All are let in, or not, before the first of them is answered."""
    server = serve(config={"plugins": {"datasette-pubsub": {"max_streams": 5}}})
    path = f"/{server.database}/-/pubsub/-/stream?channel=a"
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(40)]
        for number, sock in enumerate(crowd):
            sock.settimeout(DEADLINE)
            target = path + f"&subscription=s{number}" * named
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answers = [sock.recv(12).decode() for sock in crowd]
        assert Counter(answers) == {"HTTP/1.1 200": 5, "HTTP/1.1 429": 35}


def test_tokens_with_restrictions(serve: Callable[..., Server]) -> None:
    server = serve(config={}, options=["--root"])
    server_publish = f"{server.pubsub}/-/publish"

    def token(*options: str) -> dict[str, str]:
        made = datasette("create-token", "root", "--secret", "tests", *options).strip()
        return {"Authorization": f"Bearer {made}"}

    def publish(head: dict[str, str], channel: str) -> int:
        return httpx.post(server_publish, json={"channel": channel, "payload": "x"}, headers=head).status_code

    assert publish(token(), "a") == 200
    assert publish(token("--all", "view-channel"), "a") == 403
    assert publish(token("--all", "publish-message"), "a") == 200
    assert publish(token("--database", "data", "publish-message"), "a") == 200
    assert publish(token("--resource", "data", "a", "publish-message"), "a") == 200
    assert publish(token("--resource", "data", "a", "publish-message"), "b") == 403
