"""Readers of Server-Sent Events of all kinds: how they resume, what they may ask, and when they come back."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from node_packages import prepared
from places import ROOT
from servers import DEADLINE, Server, Sse

from datasette_pubsub.core.events import Bye, Changed, Gap, Heartbeat, Ready, Revoked, Superseded
from datasette_pubsub.core.values import Message
from datasette_pubsub.protocol.frames import RETRY_AFTER_BYE_MS, RETRY_MS, SseEncoder

#: The parameters by which a reader may say what it has.
NAMES = ["last_event_id", "lastEventId", "lastEventID", "Last-Event-ID"]


@pytest.mark.node
def test_polyfills_resume(serve: Callable[..., Server]) -> None:
    """Real ones, whose connection is cut, and for whom a message is published meanwhile."""
    folder = prepared("eventsource")
    server = serve()
    done = subprocess.run(
        ["node", "client.mjs", server.url], cwd=folder, capture_output=True, text=True, timeout=4 * DEADLINE
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"polyfill", "lastEventID", "Last-Event-ID", "last_event_id", "header"}
    for name, run in found.items():
        assert run["got"] == ["one", "two, while away", "three"], (name, run)
        first, *again = run["asked"]
        assert "vent" not in first["url"].replace("Last-Event-ID", "", 1 if name == "Last-Event-ID" else 0).replace(
            f"channel=c/{name}", ""
        ), first
        # They said it in the way that they are here for.
        if name == "header":
            assert all(each["header"] for each in again), run
        else:
            said = "lastEventId" if name == "polyfill" else name
            assert all(f"&{said}=" in each["url"] for each in again), run


def ids_after(server: Server, query: str, count: int, headers: dict[str, str] | None = None) -> list[str]:
    with Sse(f"{server.pubsub}/-/stream", headers, channel="c", **dict(parse_qsl(query, True))) as reader:
        return [message["messageId"] for message in reader.messages(count)]


def test_names_of_the_last_event_id(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(*({"channel": "c", "payload": n} for n in range(1, 7)))
    for name in NAMES:
        assert ids_after(server, f"{name}=4", 2) == ["5", "6"], name
        # It wins over where a new reader begins, an empty one says nothing, and the header wins over it.
        assert ids_after(server, f"start=earliest&after=1&{name}=4", 2) == ["5", "6"], name
        assert ids_after(server, f"start=earliest&{name}=", 6) == list("123456"), name
        assert ids_after(server, f"{name}=4", 4, {"Last-Event-ID": "2"}) == list("3456"), name
        for wrong in ("x", "-1", "1.0", "9" * 20):
            answer = httpx.get(f"{server.pubsub}/-/stream", params={"channel": "c", name: wrong})
            assert answer.status_code == 400
            assert answer.json()["error"].startswith(f"{name} must be a message id"), answer.text
    # A polyfill adds the newer position to an address that began with an older one.
    assert ids_after(server, "last_event_id=1&lastEventId=5", 1) == ["6"]
    assert ids_after(server, "lastEventId=5&last_event_id=1", 1) == ["6"]
    # It wins over the cursor of a subscription, too.
    with Sse(f"{server.pubsub}/-/stream", channel="c", subscription="s", start="earliest") as reader:
        assert len(reader.messages(6)) == 6
    assert ids_after(server, "subscription=s&lastEventId=3", 3) == list("456")


def test_unknown_parameters(serve: Callable[..., Server]) -> None:
    server = serve()
    url = f"{server.pubsub}/-/stream"
    for wrong in ("chanel", "last-event-id", "LastEventId", "from", "offset", "Channel", "filter_"):
        for method in ("GET", "HEAD"):
            answer = httpx.request(method, url, params={"channel": "c", wrong: "1"})
            assert answer.status_code == 400, wrong
        refused = httpx.get(url, params={"channel": "c", "subscription": "s", wrong: ""}).json()
        assert (refused["field"], wrong in refused["error"]) == (wrong, True)
        assert "channel" in refused["error"], "the error says what there is"
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name = 'pubsub_subscriptions'") == [(0,)] or (
        server.rows("SELECT count(*) FROM pubsub_subscriptions") == [(0,)]
    ), "a request that is refused makes no subscription"
    with Sse(url, channel="c", _="1700000000", _cache="no") as reader:
        assert reader.until("ready")["data"] == {"head": "0"}


def test_every_parameter_is_documented() -> None:

    from datasette_pubsub.http.sse import PARAMETERS

    text = (ROOT / "docs" / "http.md").read_text()
    section = text.partition("## `GET /<database>/-/pubsub/-/stream`")[2].partition("\n## ")[0]
    table = "\n".join(re.findall(r"^\| `.*", section, re.MULTILINE))
    missing = [name for name in PARAMETERS if f"`{name}`" not in table]
    assert not missing


# -- retry ------------------------------------------------------------------------


def blocks(server: Server, query: str) -> Iterator[str]:
    """What stands between empty lines, as it comes; to the end of the stream."""
    with httpx.stream("GET", f"{server.pubsub}/-/stream?{query}", timeout=DEADLINE) as response:
        text = ""
        for part in response.iter_text():
            *complete, text = (text + part).split("\n\n")
            yield from (block + "\n" for block in complete)
    assert not text


def milliseconds(block: str) -> int:
    found = re.findall(r"^retry: ([0-9]+)$", block, re.MULTILINE)
    assert len(found) == 1, block
    return int(found[0])


@pytest.mark.parametrize("form", ["json", "raw"])
def test_a_stream_begins_with_when_to_come_back(serve: Callable[..., Server], form: str) -> None:
    server = serve()
    server.publish(channel="c", payload="x")
    times = []
    for _ in range(8):
        stream = blocks(server, f"channel=c&start=earliest&format={form}")
        first, second = next(stream), next(stream)
        assert re.fullmatch(r"retry: [0-9]+\n", first), "a block of its own, without an event"
        times.append(milliseconds(first))
        assert second.startswith("id: 1\n"), "and what has an id has nothing else"
        assert "retry" not in second
        stream.close()  # type: ignore[attr-defined]
    assert RETRY_MS[0] <= min(times) < max(times) <= RETRY_MS[1], "eight of them are not all alike"


def test_a_server_that_goes_away_says_later(serve: Callable[..., Server]) -> None:
    server = serve()
    stream = blocks(server, "channel=c")
    assert milliseconds(next(stream)) <= RETRY_MS[1]
    assert next(stream).startswith("event: ready\n")
    server.stop()
    [bye] = stream
    assert "event: bye\n" in bye
    assert "id:" not in bye
    assert RETRY_AFTER_BYE_MS[0] <= milliseconds(bye) <= RETRY_AFTER_BYE_MS[1]


def test_no_other_frame_says_when_to_come_back() -> None:
    """The ends after which a reader should come back at once, or not at all, and all that goes on."""
    encoder = SseEncoder()
    events: list[Any] = [Ready(1), Heartbeat(1), Gap(1, 2), Superseded(), Revoked(), Changed()]
    frames = [encoder.event(event) for event in events]
    frames.append(encoder.message(Message(1, "c", "x", "2030-01-31T12:00:00.125Z")))
    assert not any(b"retry" in frame for frame in frames)
    assert len({encoder.event(Bye()) for _ in range(20)}) > 1
    assert len({encoder.beginning() for _ in range(20)}) > 1
