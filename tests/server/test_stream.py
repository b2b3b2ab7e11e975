"""Live and missed messages over SSE, against a real server."""

from __future__ import annotations

from collections.abc import Callable

from servers import Server, Sse, sqlite_shell


def test_live_messages_from_every_entrance(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="a", payload="before")
    with Sse(f"{server.pubsub}/-/stream", channel="a") as reader:
        assert reader.event()["event"] == "ready"
        server.publish(channel="a", payload="http")
        server.publish(channel="b", payload="for others")
        sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'shell')")
        assert [message["payload"] for message in reader.messages(2)] == ["http", "shell"]


def test_a_named_subscription_gets_what_it_missed(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish({"channel": "a", "payload": "1"}, {"channel": "a", "payload": "2"})
    with Sse(f"{server.pubsub}/-/stream", channel="a", subscription="s") as reader:
        assert [message["payload"] for message in reader.messages(2)] == ["1", "2"]
        reader.until("ready")
    server.restart()
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', '3'), ('b', 'x'), ('a', '4')")
    with Sse(f"{server.pubsub}/-/stream", channel="a", subscription="s") as reader:
        assert [message["payload"] for message in reader.messages(2)] == ["3", "4"]
