"""The JavaScript module under the live pages, in a real Chromium against a real server."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import browsers as chromium
import httpx
import pytest
from browsers import Watched, first, payloads
from module_page import MODULE, follow, seen, until
from playwright.sync_api import Browser, Route
from servers import DEADLINE, OPEN, Server, wait_for

pytestmark = chromium.NEEDED


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Many tabs at once: see ``WITH_WINDOWS``."""
    with chromium.running(chromium.WITH_WINDOWS) as found:
        yield found


# -- the network and the server fail -----------------------------------------


def test_a_silent_connection_is_given_up(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": {"heartbeat_seconds": 0.2}}})
    page = watched.open(server.pubsub)
    follow(page, server, channels=["a"], silenceSeconds=3)
    until(page, "seen.statuses.at(-1) === 'live'")
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    until(page, "seen.reasons.at(-1) === 'nothing was heard for 3 s'")
    server.process.send_signal(signal.SIGCONT)
    until(page, "seen.statuses.at(-1) === 'live'")
    server.publish(channel="a", payload="back")
    until(page, "seen.messages.length === 1")
    # Heartbeats keep a quiet connection. That nothing happens cannot be waited for: longer than the silence.
    changes = len(seen(page, "statuses"))
    page.evaluate("new Promise((done) => setTimeout(done, 4000))")
    assert len(seen(page, "statuses")) == changes


def test_a_refusal_is_explained(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    page = watched.open(server.pubsub)
    follow(page, server, channels=["x" * 256])
    until(page, "seen.reasons.includes('channel has 256 bytes; the limit is 255 bytes')")
    assert seen(page, "statuses")[-1] == "reconnecting"


def scripted(watched: Watched, *answers: str) -> list[str]:
    """Let streams named `/scripted` answer with these bodies, one each; returns the addresses as they are asked."""
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        body = answers[len(asked) - 1] if len(asked) <= len(answers) else None
        if body is None:
            route.abort()
        else:
            route.fulfill(status=200, headers={"content-type": "text/event-stream"}, body=body)

    watched.context.route("**/scripted*", answer)
    return asked


def frame(message_id: int, **more: str) -> str:
    fields = {"messageId": str(message_id), "channel": "a", "payload": str(message_id), "createdAt": "", **more}
    return f"id: {message_id}\ndata: {json.dumps(fields)}\n\n"


def test_events_of_a_stream_are_handed_on(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    asked = scripted(
        watched,
        frame(3) + 'event: ready\ndata: {"head":"5"}\n\n' + frame(6),
        'event: gap\ndata: {"missed":"4","resumedAt":"10"}\n\n'
        + frame(11, missed="4")
        + 'event: bye\ndata: {"reason":"r"}\n\n',
        frame(15, missed="2") + 'event: ready\ndata: {"head":"15"}\n\n',
        'event: ready\ndata: {"head":"9"}\n\n' + frame(10),
        'event: superseded\ndata: {"reason":"newer"}\n\n',
    )
    page = watched.open(server.pubsub)
    follow(page, server, url="/scripted?x=1", channels=["a"], after=2)
    until(page, "seen.connection.status === 'superseded'")
    assert seen(page, "messages") == ["3", "6", "11", "15", "10"]
    assert seen(page, "gaps") == [
        {"missed": 4, "resumedAt": "10"},
        {"missed": 2, "resumedAt": "14"},
        {"missed": None, "resumedAt": "9"},
    ]
    assert [url.partition("scripted?x=1&channel=a&")[2] for url in asked] == [
        f"last_event_id={position}" for position in (2, 6, 11, 15, 10)
    ]
    statuses = seen(page, "statuses")
    assert statuses[:4] == ["connecting", "catching up", "live", "reconnecting"]
    assert statuses[-1] == "superseded"


def test_attempts_are_spread_and_go_on_for_ever(serve: Callable[..., Server], watched: Watched) -> None:
    """Full jitter: the wait is drawn up to a ceiling that doubles from 0.5 s to 30 s."""
    server = serve()
    page = watched.open(server.pubsub)
    page.clock.install()
    page.evaluate("Math.random = () => 1")
    scripted(watched)
    page.evaluate(
        """async (module) => {
            const { connect } = await import(module);
            window.waits = [];
            const onstatus = (_, { retryInMs }) => retryInMs && window.waits.push(retryInMs);
            connect({ url: "/scripted", onstatus });
        }""",
        MODULE,
    )
    for attempt in range(1, 10):
        wait_for(functools.partial(page.evaluate, "(count) => window.waits.length >= count", attempt), "an attempt")
        page.clock.run_for(30_000)
    waits = page.evaluate("window.waits.slice(0, 9)")
    assert waits == [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]


# -- one connection for all tabs ----------------------------------------------


def test_tabs_share_one_connection_and_hand_it_over(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(channel="a", payload="before")
    tabs = [watched.open(f"{server.pubsub}/a") for _ in range(7)]
    assert len(watched.streams) == 1
    server.publish(channel="a", payload="to all")
    for page in tabs:
        first(page, "to all")
    published = ["before", "to all"]
    while len(tabs) > 1:
        tabs.pop(0).close()
        ids = [f"{len(tabs)}.{n}" for n in range(20)]
        for text in ids:
            server.publish(channel="a", payload=text)
        published += ids
        for page in tabs:
            first(page, ids[-1])
            assert payloads(page) == published[::-1]
    assert len(watched.streams) == 7


def test_a_tab_that_is_further_behind_gets_what_it_lacks(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    ids = server.publish(*[{"channel": "a", "payload": str(n)} for n in range(10)])
    page = watched.open(server.pubsub)
    follow(page, server, "head", channels=["a"], share=True)
    until(page, "seen.statuses.at(-1) === 'live'", "head")
    other = watched.open(server.pubsub)
    follow(other, server, "behind", channels=["a"], share=True, after=ids[3])
    until(other, "seen.messages.length === 6", "behind")
    follow(other, server, "begin", channels=["a"], share=True, after=0)
    until(other, "seen.messages.length === 10", "begin")
    follow(other, server, "late", channels=["a"], share=True)
    until(other, "seen.statuses.at(-1) === 'live'", "late")
    server.publish(channel="a", payload="live")
    for tab, name, expected in (
        (page, "head", ["live"]),
        (other, "behind", [*map(str, range(4, 10)), "live"]),
        (other, "begin", [*map(str, range(10)), "live"]),
        (other, "late", ["live"]),
    ):
        until(tab, "seen.messages.at(-1) === 'live'", name)
        assert seen(tab, "messages", name) == expected
    # With the viewers of both tabs: one for all.
    wait_for(lambda: page.evaluate("1") and len(watched.open_streams) == 1, "one connection")


def test_hand_over_under_load_loses_and_doubles_nothing(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    tabs = []
    for _ in range(5):
        # No live page, whose five viewers would draw each message.
        page = watched.open(f"{server.url}/-/versions", status="")
        follow(page, server, channels=["a"], share=True, after=0)
        tabs.append(page)
    expected = [str(n) for n in range(600)]

    def publish() -> None:
        with httpx.Client(timeout=DEADLINE) as client:
            for text in expected:
                client.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": text}).raise_for_status()

    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish)
        for share in (100, 200, 300, 400):
            until(tabs[0], f"seen.messages.length > {share}")
            tabs.pop(0).close()
        publishing.result(DEADLINE)
    until(tabs[0], "seen.messages.length >= 600")
    assert seen(tabs[0], "messages") == expected


def test_a_named_subscription_is_shared_without_superseding(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(channel="a", payload="1")
    pages = [watched.open(server.pubsub) for _ in range(2)]
    for page in pages:
        follow(page, server, channels=["a"], subscription="s", share=True)
        until(page, "seen.statuses.at(-1) === 'live'")
    server.publish(channel="a", payload="2")
    for page in pages:
        until(page, "seen.messages.at(-1) === '2'")
    assert seen(pages[0], "messages") == ["1", "2"]
    pages[0].close()
    server.publish(channel="a", payload="3")
    until(pages[1], "seen.messages.at(-1) === '3'")
    assert "superseded" not in seen(pages[1], "statuses")
    # Somebody else takes the subscription: it is left to them.
    with httpx.stream("GET", f"{server.pubsub}/-/stream", params={"subscription": "s"}, timeout=DEADLINE):
        until(pages[1], "seen.connection.status === 'superseded'")


def test_a_silent_leader_is_replaced(serve: Callable[..., Server], watched: Watched) -> None:
    """A tab that the browser has frozen keeps the lock, and says nothing."""
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": {"heartbeat_seconds": 0.2}}})
    server.publish(channel="a", payload="before")
    page = watched.open(f"{server.url}/-/versions", status="")
    page.evaluate(
        """(server) => {
            const url = new URL(`/${server}/-/pubsub/-/stream`, location.href).href;
            navigator.locks.request(`datasette-pubsub - ${url}`, () => new Promise(() => {})).catch(() => {});
        }""",
        server.database,
    )
    follow(page, server, channels=["a"], share=True, after=0, silenceSeconds=1)
    until(page, "seen.messages.length === 1")
    assert seen(page, "connection")["status"] == "live"


def test_leadership_that_was_taken_is_waited_for(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    page = watched.open(server.pubsub)
    follow(page, server, "first", channels=["a"], share=True, after=0)
    follow(page, server, "second", channels=["a"], share=True, after=0)
    until(page, "seen.statuses.at(-1) === 'live'", "second")
    page.evaluate(
        """async () => {
            const { held } = await navigator.locks.query();
            const { name } = held.find((lock) => lock.name.endsWith("/-/stream"));
            await navigator.locks.request(name, { steal: true }, () => {});
        }"""
    )
    server.publish(channel="a", payload="x")
    for name in ("first", "second"):
        until(page, "seen.messages.length === 1", name)


def test_close_ends_it(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    page = watched.open(server.pubsub)
    for name, share in (("alone", False), ("shared", True)):
        follow(page, server, name, channels=["a"], share=share)
        until(page, "seen.statuses.at(-1) === 'live'", name)
        page.evaluate("(name) => window.seen[name].connection.close()", name)
        assert seen(page, "statuses", name)[-1] == "closed"
    server.publish(channel="a", payload="unheard")
    first(page, "unheard")
    assert (seen(page, "messages", "alone"), seen(page, "messages", "shared")) == ([], [])
    locks = page.evaluate("navigator.locks.query().then(({ held }) => held.map((lock) => lock.name))")
    # What is left is the viewer's: it leads, and is there.
    assert len(locks) == 2
