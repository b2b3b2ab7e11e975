"""Filters over a real server: SSE by GET, POST and QUERY, Connect, durable subscriptions, lags, permissions."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode

import httpx
import pytest
from connect_streams import connect_messages, options
from servers import Server, Sse, wait_for

ERRORS = "payload ->> '$.level' = 'error'"


def levels(server: Server, *levels: str, channel: str = "logs") -> list[int]:
    return server.publish(*({"channel": channel, "payload": {"level": level}} for level in levels))


def ids(messages: list[dict[str, Any]]) -> list[int]:
    return [int(message["messageId"]) for message in messages]


class Posted(Sse):
    """A stream whose parameters are a form in the body."""

    def __init__(self, url: str, method: str, content: str) -> None:
        self._client = httpx.Client(timeout=30)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        request = self._client.build_request(method, url, content=content, headers=headers)
        self.response = self._client.send(request, stream=True)
        assert self.response.status_code == 200, self.response.read()
        self._lines = self.response.iter_lines()


def test_only_what_passes_is_sent_live_and_from_the_log(serve: Callable[..., Server]) -> None:
    server = serve()
    levels(server, "info", "error", "info", "error")
    server.publish(channel="logs", payload="not json")
    server.publish(channel="logs", payload={"level": "error"}, key="k")
    url = f"{server.pubsub}/-/stream"
    with (
        Sse(url, channel="logs", start="earliest", filter=ERRORS) as reader,
        Sse(url, channel="logs", start="earliest", filter="key = 'k'") as by_key,
        Sse(url, channel="logs", filter="channel = 'logs' OR payload ->> '$.x'") as everything,
    ):
        assert ids(reader.messages(3)) == [2, 4, 6]
        assert reader.until("ready")["data"]["head"] == "6"
        assert ids(by_key.messages(1)) == [6]
        by_key.until("ready")
        everything.until("ready")
        levels(server, *["info"] * 50, "error", "debug", "error")
        assert ids(reader.messages(2)) == [57, 59]
        assert ids(everything.messages(53)) == list(range(7, 60))
        # A key comes with a message whichever program has written it.
        server.publish(channel="logs", payload="a", key="k2")
        assert server.publish(channel="logs", payload="a", key="k") == [6]
    with Sse(url, channel="logs", filter="key IS NOT NULL") as reader:
        reader.until("ready")
        server.publish({"channel": "logs", "payload": "a"}, {"channel": "logs", "payload": "b", "key": "k3"})
        assert ids(reader.messages(1)) == [62]
    # A filter has no part in where a stream goes on.
    with Sse(url, headers={"Last-Event-ID": "4"}, channel="logs", filter=ERRORS) as reader:
        assert ids(reader.messages(3)) == [6, 57, 59]


def test_heartbeats_pass_what_is_filtered_out(serve: Callable[..., Server]) -> None:
    server = serve(config=options(heartbeat_seconds=0.2))
    levels(server, "info")
    with Sse(f"{server.pubsub}/-/stream", channel="logs", filter=ERRORS) as reader:
        reader.until("ready")
        levels(server, "info", "info")
        wait_for(lambda: reader.until("heartbeat")["data"]["head"] == "3", "a heartbeat at the head")


def test_datasettes_form_and_several_filters(serve: Callable[..., Server]) -> None:
    server = serve()
    levels(server, "info", "error", "error")
    levels(server, "error", channel="other")
    asked: dict[str, Any] = {"channel": ["logs", "other"], "start": "earliest"}
    for query, wanted in [
        ("payload.level__exact=error", [2, 3, 4]),
        ("payload.level=error&id__gt=2", [3, 4]),
        ("payload.level__in=info,debug", [1]),
        ("payload.level__exact=error&filter=channel%3D'other'&_=1", [4]),
        ("filter=id>1&filter=id<3 OR id=4", [2, 4]),
        ("filter=&id__lte=2", [1, 2]),
    ]:
        with Sse(f"{server.pubsub}/-/stream", **{**asked, **parse_qs(query)}) as reader:
            assert ids(reader.messages(len(wanted))) == wanted, query
            assert reader.event()["event"] == "ready", query


@pytest.mark.parametrize(
    ("query", "field", "word"),
    [
        ("filter=random()", "filter", "random"),
        ("filter=(SELECT 1 FROM vpubsub)", "filter", "SELECT"),
        ("filter=channel%3D", "filter", "syntax"),
        ("filter=count(*)>1", "filter", "count"),
        ("filter=channel%3D%3F", "filter", "parameters"),
        ("filter=" + "1%20OR%20" * 2000 + "1", "filter", "max_filter_bytes"),
        ("payload.level__matches=x", "payload.level__matches", "matches is not an operator"),
        ("level__exact=x", "level__exact", "not a parameter"),
        ("start=newest", "start", "earliest, latest or last"),
    ],
)
def test_wrong_filters_are_refused(serve: Callable[..., Server], query: str, field: str, word: str) -> None:
    server = serve()
    for answer in (
        httpx.get(f"{server.pubsub}/-/stream?channel=a&{query}"),
        httpx.post(
            f"{server.pubsub}/-/stream",
            content=f"channel=a&{query}".replace(" ", "+"),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        ),
    ):
        assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
        assert word in answer.json()["error"]
        assert ("limit" in answer.json()) == ("max_filter_bytes" in word)


def test_post_and_query_for_what_a_url_has_no_room_for(serve: Callable[..., Server]) -> None:
    server = serve(config=options(max_channels_per_stream=1000))
    names = [f"a-channel-with-a-long-name/{number}" for number in range(500)]
    server.publish(*({"channel": name, "payload": {"n": number}} for number, name in enumerate(names)))
    form = "&".join([*(f"channel={name.replace('/', '%2F')}" for name in names), "start=earliest"])
    wanted = ", ".join(str(number) for number in range(0, 500, 50))
    form += "&" + urlencode({"filter": f"payload ->> '$.n' IN ({wanted}) OR payload ->> '$.n' < 0"})
    for method in ("POST", "QUERY"):
        with Posted(f"{server.pubsub}/-/stream", method, form) as reader:
            assert ids(reader.messages(10)) == list(range(1, 501, 50)), method
            reader.until("ready")
            server.publish(channel=names[4], payload={"n": 1})
            [number] = server.publish(channel=names[3], payload={"n": -50})
            assert ids(reader.messages(1)) == [number], method
        # What is in the address counts as well.
        with Posted(f"{server.pubsub}/-/stream?after=450", method, form.replace("&start=earliest", "")) as reader:
            assert ids(reader.messages(1)) == [451], method
    url = f"{server.pubsub}/-/stream"
    for content, kind, status in [
        (b"{}", "application/json", 415),
        (b"channel=%FF", "application/x-www-form-urlencoded", 400),
        (b"channel=\xff", "application/x-www-form-urlencoded", 400),
        (b"nonsense=1", "application/x-www-form-urlencoded", 400),
        (b"channel=a&x=" + b"x" * 70_000, "application/x-www-form-urlencoded", 413),
    ]:
        answer = httpx.request("QUERY", url, content=content, headers={"Content-Type": kind})
        assert answer.status_code == status, (content[:20], answer.text)
    # A page of another origin cannot send a cookie with either, as with every POST.
    for method in ("POST", "QUERY"):
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "https://elsewhere.example"}
        answer = httpx.request(method, url, content="channel=a&subscription=s", headers={**headers, "Cookie": "a=b"})
        assert answer.status_code == 403, method


def test_connect_has_the_same_filters(serve: Callable[..., Server]) -> None:
    server = serve()
    levels(server, "info", "error", "info", "error")
    asked = {"channel": "logs", "start": "START_EARLIEST", "filter": ERRORS}
    assert [int(found["messageId"]) for found in connect_messages(server, 2, **asked)] == [2, 4]
    for filter, word in (("random()", "random"), ("1 OR " * 2000 + "1", "max_filter_bytes"), ("(", "brackets")):
        body = json.dumps({**asked, "dbName": "data", "filter": filter}).encode()
        answer = httpx.post(
            f"{server.url}/db.v1.DbService/Subscribe",
            content=struct.pack(">BI", 0, len(body)) + body,
            headers={"Content-Type": "application/connect+json"},
        )
        error = json.loads(answer.content[5:])["error"]
        assert error["code"] == "invalid_argument", filter
        assert word in error["message"]


def row(server: Server, name: str = "s") -> tuple[dict[str, Any], int]:
    [(reads, cursor)] = server.rows("SELECT reads, cursor FROM pubsub_subscriptions WHERE name = ?", name)
    return json.loads(reads), cursor


def listed(server: Server, name: str = "s") -> dict[str, Any]:
    found = httpx.get(f"{server.pubsub}/-/subscriptions.json").json()["subscriptions"]
    return next(each for each in found if each["subscription"] == name)


@pytest.mark.parametrize("ack", ["auto", "explicit"])
def test_a_durable_subscription_keeps_its_filter_and_passes_what_is_filtered_out(
    serve: Callable[..., Server], ack: str
) -> None:
    server = serve(config=options(cursor_save_interval_seconds=0.05))
    levels(server, "info", "error", "info", "info")
    url = f"{server.pubsub}/-/stream"
    with Sse(url, channel="logs", subscription="s", filter=f" {ERRORS.replace(' ', '  ')}", ack=ack) as reader:
        assert ids(reader.messages(1)) == [2]
        assert row(server)[0] == {"channels": ["logs"], "patterns": [], "filter": ERRORS}
        assert listed(server)["filter"] == ERRORS
        if ack == "explicit":
            assert listed(server)["lag"] == 1
            httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": 2})
        # Nobody acknowledges the two after it, which are not sent.
        wait_for(lambda: row(server)[1] == 4, "the cursor at the head")
        reader.until("ready")
        levels(server, "info", "info")
        wait_for(lambda: row(server)[1] == 6 or ack == "auto", "and at the next head")
    wait_for(lambda: not listed(server)["connected"], "disconnected")
    wait_for(lambda: row(server)[1] == 6, "the cursor at the head")
    levels(server, "info", "error", "info", "error", "info")
    assert (listed(server)["lag"], listed(server)["lag_is_more"]) == (2, False)
    # Without channels and filter it reads what it read.
    with Sse(url, subscription="s", ack=ack) as reader:
        assert ids(reader.messages(2)) == [8, 10]
    assert row(server)[0]["filter"] == ERRORS
    # A filter alone replaces the filter, and channels all of it.
    with Sse(url, subscription="s", filter="id % 2 = 1", ack=ack) as reader:
        reader.until("ready")
        assert row(server)[0] == {"channels": ["logs"], "patterns": [], "filter": "id % 2 = 1"}
    with Sse(url, subscription="s", channel="logs", ack=ack) as reader:
        reader.until("ready")
        assert row(server)[0] == {"channels": ["logs"], "patterns": []}


def test_with_explicit_acks_what_was_sent_waits_for_its_ack(serve: Callable[..., Server]) -> None:
    server = serve(config=options(cursor_save_interval_seconds=0.05, max_unacked_messages=1))
    levels(server, "info", "error", "info", "error", "info")
    url = f"{server.pubsub}/-/stream"
    with Sse(url, channel="logs", subscription="s", filter=ERRORS, ack="explicit") as reader:
        assert ids(reader.messages(1)) == [2]
        with Sse(url, channel="logs", subscription="other", filter="id = 1", ack="auto") as other:
            # A cursor that could be saved is saved meanwhile.
            assert ids(other.messages(1)) == [1]
            wait_for(lambda: row(server, "other")[1] == 5, "the other's cursor")
        assert row(server)[1] <= 1
        httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": 2})
        assert ids(reader.messages(1)) == [4]
        assert row(server)[1] in (2, 3)
        httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": 4})
        wait_for(lambda: row(server)[1] == 5, "the cursor at the head")
    with Sse(url, subscription="s", ack="explicit") as reader:
        assert reader.event()["event"] == "ready"


def test_a_stored_filter_that_is_none(serve: Callable[..., Server]) -> None:
    server = serve()
    levels(server, "error")
    with Sse(f"{server.pubsub}/-/stream", channel="logs", subscription="s", filter=ERRORS):
        pass
    conn = sqlite3.connect(server.path, timeout=20)
    reads = {"channels": ["logs"], "patterns": [], "filter": "random() > 0"}
    conn.execute("UPDATE pubsub_subscriptions SET reads = ?", [json.dumps(reads)])
    conn.commit()
    conn.close()
    answer = httpx.get(f"{server.pubsub}/-/stream", params={"subscription": "s"})
    assert (answer.status_code, answer.json()["field"]) == (400, "filter")
    assert listed(server)["lag"] == 0


def test_a_filter_sees_only_what_its_subscriber_may_view(serve: Callable[..., Server]) -> None:
    """What a filter says of a hidden message shows in no message, no lag and no error."""
    server = serve(config=options(channel_permissions={"secret/*": {"view": {"id": "ada"}}}))
    levels(server, "error", channel="secret/a")
    levels(server, "error", channel="open/a")
    url = f"{server.pubsub}/-/stream"
    with Sse(url, pattern="*", start="earliest", filter=ERRORS, subscription="s") as reader:
        assert ids(reader.messages(1)) == [2]
        reader.until("ready")
        levels(server, "error", channel="secret/a")
        levels(server, "error", channel="open/b")
        assert ids(reader.messages(1)) == [4]
    levels(server, "error", "error", channel="secret/b")
    wait_for(lambda: row(server)[1] >= 4, "the cursor")
    assert listed(server)["lag"] == 0
    assert httpx.get(url, params={"channel": "secret/a", "filter": "random()"}).status_code == 403


def test_a_costly_filter_is_evaluated_off_the_event_loop(serve: Callable[..., Server]) -> None:
    server = serve()
    costly = " OR ".join(["payload LIKE '%abc%'"] * 100)
    url = f"{server.pubsub}/-/stream"
    with Sse(url, channel="a", filter=costly) as reader:
        reader.until("ready")
        server.publish(channel="a", payload="x" * 5_000)
        server.publish(channel="a", payload="x" * 5_000 + "abc")
        server.publish(channel="a", payload="abc")
        assert ids(reader.messages(2)) == [2, 3]
