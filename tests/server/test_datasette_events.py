"""``events_channel``: what Datasette tells of itself, as messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from auth import headers
from servers import Server, Sse

from datasette_pubsub.core.configuration import read_settings
from datasette_pubsub.core.settings import ConfigError

EVENTS = {"events_channel": "datasette/events", "channel_permissions": {"datasette/*": {"view": {"id": "root"}}}}

CONFIG: dict[str, Any] = {
    "permissions": {name: {"id": "ada"} for name in ("insert-row", "update-row", "delete-row", "create-table")},
    "databases": {"data": {"plugins": {"datasette-pubsub": EVENTS}}},
}


def events(server: Server) -> list[dict[str, Any]]:
    return [json.loads(row[0]) for row in server.rows("SELECT payload FROM vpubsub WHERE channel = 'datasette/events'")]


def insert(server: Server, database: str = "data") -> None:
    answer = httpx.post(
        f"{server.url}/{database}/existing/-/insert", json={"rows": [{"id": 1}, {"id": 2}]}, headers=headers("ada")
    )
    assert answer.status_code == 201, answer.text


def test_an_insert_is_told_when_it_is_answered(serve: Callable[..., Server]) -> None:
    server = serve(config=CONFIG)
    insert(server)
    (found,) = events(server)
    assert (found["event"], found["actor"], found["database"], found["table"]) == (
        "insert-rows",
        "ada",
        "data",
        "existing",
    )
    assert found["num_rows"] == 2
    assert found["created"].startswith("20")
    stream = f"{server.pubsub}/-/stream"
    with Sse(stream, headers("root"), channel="datasette/events", start="earliest") as reader:
        assert json.loads(reader.messages(1)[0]["payload"]) == found


def test_each_database_tells_of_itself(serve: Callable[..., Server]) -> None:
    server = serve(databases=["data", "other"], config=CONFIG)
    insert(server, "other")
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name = 'vpubsub'") == [(0,)] or events(server) == []
    insert(server)
    assert [found["event"] for found in events(server)] == ["insert-rows"]


def test_a_login_is_about_all(serve: Callable[..., Server]) -> None:
    server = serve(config=CONFIG, options=["--root"])
    server.root_cookie()
    (found,) = events(server)
    assert (found["event"], found["actor"]) == ("login", "root")


def test_others_may_not_view_them(serve: Callable[..., Server]) -> None:
    server = serve(config=CONFIG)
    insert(server)
    for actor in (None, "ada"):
        answer = httpx.get(f"{server.pubsub}/-/messages.json?channel=datasette/events", headers=headers(actor))
        assert answer.status_code == 403
        assert "insert-rows" not in httpx.get(f"{server.url}/data/vpubsub.json", headers=headers(actor)).text


def test_a_message_makes_no_event(serve: Callable[..., Server]) -> None:
    """Or events would cause events."""
    config = {**CONFIG, "permissions": {**CONFIG["permissions"], "publish-message": {"id": "ada"}}}
    server = serve(config=config)
    answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "c", "payload": "x"}, headers=headers("ada"))
    assert answer.status_code == 200
    assert events(server) == []


def test_a_change_goes_on_if_its_event_cannot_be_published(serve: Callable[..., Server]) -> None:
    plugin = {"datasette-pubsub": {**EVENTS, "max_payload_bytes": 10}}
    server = serve(config={**CONFIG, "databases": {"data": {"plugins": plugin}}})
    insert(server)
    assert server.rows("SELECT count(*) FROM existing") == [(2,)]
    assert "database data: the event insert-rows was not published: " in server.log
    assert "(max_payload_bytes)" in server.log


@pytest.mark.parametrize(
    ("instance", "database", "said"),
    [
        (EVENTS, None, "option 'events_channel' belongs to a database, not to the instance"),
        (None, {"events_channel": "e"}, "say who may view 'e', with a pattern that matches it"),
        (None, {**EVENTS, "events_channel": "elsewhere"}, "say who may view 'elsewhere'"),
        (None, {"events_channel": "e", "channel_permissions": {"e": {"publish": True}}}, "say who may view 'e'"),
        (None, {"events_channel": "x" * 256}, "option 'events_channel': channel has 256 bytes; the limit is 255"),
        (None, {"events_channel": 7}, "option 'events_channel' must be text: channel"),
    ],
)
def test_what_is_wrong_is_named(instance: Any, database: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(instance, database)
    assert said in str(caught.value)
