"""``start=last``: the newest message of each channel, then live; over SSE, Connect and for durable subscriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from connect_streams import connect_messages, options
from servers import Server, Sse, wait_for


def ids(messages: list[dict[str, Any]]) -> list[int]:
    return [int(message["messageId"]) for message in messages]


def fill(server: Server) -> None:
    """1 a, 2 b, 3 a, 4 c, 5 b, 6 x, 7 c: the newest are 3 a, 5 b, 6 x, 7 c."""
    for channel in "abacbxc":
        server.publish(channel=channel, payload={"of": channel})


def test_the_newest_of_each_channel_and_then_live(serve: Callable[..., Server]) -> None:
    server = serve()
    url = f"{server.pubsub}/-/stream"
    with Sse(url, channel="a", start="last") as reader:
        assert reader.event() == {"event": "ready", "id": None, "data": {"head": "0"}}
        fill(server)
        assert ids(reader.messages(2)) == [1, 3]
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"pattern": "*"}, [3, 5, 6, 7]),
        ({"pattern": "[abc]"}, [3, 5, 7]),
        ({"channel": ["a", "c", "none"]}, [3, 7]),
        ({"channel": "none"}, []),
        ({"pattern": "*", "after": "6"}, [7]),
        ({"pattern": "*", "filter": "id < 6 AND channel <> 'x'"}, [3, 4, 5]),
        ({"pattern": "*", "filter": "payload ->> '$.of' = 'b'"}, [5]),
    ]
    for asked, wanted in cases:
        with Sse(url, start="last", **asked) as reader:
            assert ids(reader.messages(len(wanted))) == wanted, asked
            assert reader.event()["event"] == "ready", asked
    with Sse(url, pattern="*", start="last") as reader:
        assert ids(reader.messages(4)) == [3, 5, 6, 7]
        reader.until("ready")
        server.publish({"channel": "b", "payload": "1"}, {"channel": "b", "payload": "2"})
        assert ids(reader.messages(2)) == [8, 9]
    # A stream that was lost goes on where it was, and gets what else there is.
    with Sse(url, headers={"Last-Event-ID": "5"}, pattern="*", start="last") as reader:
        assert ids(reader.messages(4)) == [6, 7, 8, 9]
    found = connect_messages(server, 4, patterns=["*"], start="START_LAST")
    assert [int(each["messageId"]) for each in found] == [3, 6, 7, 9]


def test_a_retained_value_with_retention_of_one_message(serve: Callable[..., Server]) -> None:
    server = serve(config=options(channel_retention={"state/*": {"messages": 1}}, trim_interval_seconds=0.05))
    for number in range(5):
        server.publish({"channel": "state/a", "payload": number}, {"channel": "state/b", "payload": -number})
    wait_for(lambda: server.rows("SELECT count(*) FROM vpubsub") == [(2,)], "trimmed")
    with Sse(f"{server.pubsub}/-/stream", pattern="state/*", start="last") as reader:
        assert [(each["channel"], each["payload"]) for each in reader.messages(2)] == [
            ("state/a", "4"),
            ("state/b", "-4"),
        ]
        assert reader.event()["event"] == "ready", "and no gap"


def test_many_channels_and_large_messages(serve: Callable[..., Server]) -> None:
    server = serve(config=options(max_send_bytes=1024, max_last_channels=300))
    server.publish(*({"channel": f"c{number}", "payload": "x" * 700} for number in range(300)))
    server.publish(*({"channel": f"c{number}", "payload": "y" * 700} for number in range(0, 300, 3)))
    url = f"{server.pubsub}/-/stream"
    wanted = [number + 1 for number in range(300) if number % 3] + list(range(301, 401))
    with Sse(url, pattern="*", start="last") as reader:
        assert ids(reader.messages(300)) == wanted
        reader.until("ready")
        server.publish(channel="one more", payload="x")
        assert ids(reader.messages(1)) == [401]
    answer = httpx.get(url, params={"pattern": "*", "start": "last"})
    assert (answer.status_code, answer.json()["field"], answer.json()["limit"]) == (400, "start", "max_last_channels")
    assert "300" in answer.json()["error"]
    assert httpx.get(url, params={"pattern": "c*", "start": "last"}, headers={"Last-Event-ID": "x"}).status_code == 400


def test_hidden_channels_have_no_state(serve: Callable[..., Server]) -> None:
    server = serve(config=options(channel_permissions={"b": {"view": {"id": "ada"}}}))
    fill(server)
    with Sse(f"{server.pubsub}/-/stream", pattern="*", start="last") as reader:
        assert ids(reader.messages(3)) == [3, 6, 7]
        assert reader.event()["event"] == "ready"


@pytest.mark.parametrize("ack", ["auto", "explicit"])
def test_a_new_durable_subscription_begins_with_the_state_and_loses_none_of_it(
    serve: Callable[..., Server], ack: str
) -> None:
    server = serve(config=options(cursor_save_interval_seconds=0.05, max_unacked_messages=1))
    fill(server)
    url = f"{server.pubsub}/-/stream"
    asked: dict[str, Any] = {"pattern": "*", "start": "last", "subscription": "s", "ack": ack}

    def cursor() -> int:
        return int(server.rows("SELECT cursor FROM pubsub_subscriptions WHERE name = 's'")[0][0])

    if ack == "explicit":
        with Sse(url, **asked) as reader:
            assert ids(reader.messages(1)) == [3]
            assert cursor() == 2, "before the first of them"
            httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": 3})
            assert ids(reader.messages(1)) == [5], "4 is not the newest of its channel"
        # What was not acknowledged comes again; it exists now, so that it begins at its cursor.
        with Sse(url, **asked) as reader:
            assert ids(reader.messages(1)) == [4]
    else:
        with Sse(url, **asked) as reader:
            assert ids(reader.messages(4)) == [3, 5, 6, 7]
            reader.until("ready")
        wait_for(lambda: cursor() == 7, "the cursor at the head")
        server.publish(channel="a", payload="later")
        with Sse(url, **asked) as reader:
            assert ids(reader.messages(1)) == [8]


def test_a_filter_decides_which_message_is_the_newest(serve: Callable[..., Server]) -> None:
    server = serve()
    for number in range(100):
        server.publish(
            *({"channel": channel, "payload": {"n": number, "up": number < 3}} for channel in ("a", "b", "c"))
        )
    asked: dict[str, Any] = {"pattern": "*", "start": "last", "filter": "payload ->> '$.up' AND channel <> 'b'"}
    with Sse(f"{server.pubsub}/-/stream", **asked) as reader:
        assert ids(reader.messages(2)) == [7, 9]
        assert reader.event()["event"] == "ready"
    with Sse(f"{server.pubsub}/-/stream", **asked, subscription="s") as reader:
        assert ids(reader.messages(2)) == [7, 9]
        reader.until("ready")
