"""The client for Python against peers that break, are silent, or are something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from python_clients import Driver, Peer

from datasette_pubsub.client import Gap, NotPublished, Refused, Unreachable

#: A client that gives up soon.
SOON = 0.3


def stream(*events: tuple[str, dict[str, Any]], retry: int | None = 1) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    text = "" if retry is None else f"retry: {retry}\n\n"
    for name, data in events:
        text += f"event: {name}\n" if name else f"id: {data['messageId']}\n"
        text += f"data: {json.dumps(data)}\n\n"
    return head + text.encode()


def message(number: int) -> tuple[str, dict[str, Any]]:
    return "", {"messageId": str(number), "channel": "a", "payload": str(number), "createdAt": "2026"}


def last_event_ids(peer: Peer) -> list[str | None]:
    found = []
    for request in peer.requests:
        lines = [line for line in request.decode().split("\r\n") if line.lower().startswith("last-event-id:")]
        found.append(lines[0].split(": ")[1] if lines else None)
    return found


def test_silence_is_the_end_of_a_connection(client_of: Callable[..., Driver]) -> None:
    peer = Peer(stream(message(1)), stream(("heartbeat", {"head": "5"})), stream(message(9)), hang=True)
    reading = client_of(peer.url).subscribe("a", silence_seconds=SOON)
    assert [each.id for each in reading.take(2)] == [1, 9]
    assert last_event_ids(peer) == [None, "1", "5"]
    peer.close()


def test_with_explicit_acks_the_server_keeps_the_place(client_of: Callable[..., Driver]) -> None:
    peer = Peer(stream(message(1), message(2)), stream(message(2), message(3)))
    reading = client_of(peer.url).subscribe("a", subscription="s", ack="explicit")
    assert [each.id for each in reading.take(3)] == [1, 2, 3], "what the program has is left out"
    assert last_event_ids(peer) == [None, None]


def test_another_log_begins_anew(client_of: Callable[..., Driver]) -> None:
    gap = ("gap", {"missed": "-1", "resumedAt": "0", "ahead": True})
    peer = Peer(stream(message(7)), stream(gap, message(1)))
    gaps: list[Gap] = []
    reading = client_of(peer.url).subscribe("a", on_gap=gaps.append)
    assert [(each.id, each.missed) for each in reading.take(2)] == [(7, 0), (1, -1)]
    assert gaps == [Gap(-1, 0)]


def test_a_half_of_an_event_is_not_one(client_of: Callable[..., Driver]) -> None:
    half = stream(message(1), message(2))[:-20]
    peer = Peer(half, stream(message(2)))
    assert [each.id for each in client_of(peer.url).subscribe("a").take(2)] == [1, 2]
    assert last_event_ids(peer) == [None, "1"]


def test_it_gives_up_when_it_is_told_to(client_of: Callable[..., Driver]) -> None:
    busy = b'HTTP/1.1 503 X\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n{"error": "not yet"}'
    peer = Peer(busy, busy, stream(message(1)))
    reading = client_of(peer.url).subscribe("a", reconnect_seconds=0.6)
    assert reading.take(1)[0].id == 1
    with pytest.raises(Unreachable):
        reading.take(1)
    with pytest.raises(Unreachable):
        client_of(peer.url, retry_seconds=SOON).publish("a", "x", key="k")
    with pytest.raises(Unreachable):
        client_of(peer.url, retry_seconds=SOON).publish("a", "x")


def test_without_a_key_nothing_is_published_twice(client_of: Callable[..., Driver]) -> None:
    stored = b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 23\r\n\r\n{"message_ids": [1234]}'
    busy = b"HTTP/1.1 429 X\r\nRetry-After: 0\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    unknown = b"HTTP/1.1 503 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    for answer in (b"", unknown):
        peer = Peer(answer, stored)
        with pytest.raises(NotPublished, match="it is not known whether this was stored"):
            client_of(peer.url).publish("a", "x")
        assert len(peer.requests) == 1
        peer.close()
    peer = Peer(busy, stored)
    assert client_of(peer.url).publish("a", "x") == 1234
    peer = Peer(b"", unknown, busy, stored)
    assert client_of(peer.url).publish("a", "x", key="k") == 1234
    assert len(peer.requests) == 4
    assert len({request.partition(b"\r\n\r\n")[2] for request in peer.requests}) == 1


LOGIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 14\r\n\r\n<p>Log in</p>\r\n"
MOVED = b"HTTP/1.1 302 Found\r\nLocation: https://login.example/\r\nContent-Length: 0\r\n\r\n"


def test_a_page_is_not_an_answer(client_of: Callable[..., Driver]) -> None:
    """Of a proxy that wants a login: to ask again would not help, and to wait in silence even less."""
    with pytest.raises(Refused, match="the address answers with text/html, not with an event stream"):
        client_of(Peer(LOGIN).url).subscribe("a").take(1)
    with pytest.raises(Refused, match="the server answered with status 302"):
        client_of(Peer(MOVED).url).subscribe("a").take(1)
    for answer, said in ((LOGIN, "something else than datasette-pubsub"), (MOVED, "status 302")):
        with pytest.raises(Refused, match=said):
            client_of(Peer(answer).url).publish("a", "x", key="k")
