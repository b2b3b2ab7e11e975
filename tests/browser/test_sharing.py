"""Tabs that follow different channels share one connection, in a real Chromium; the module's own types."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import browsers as chromium
import httpx
import pytest
from browsers import Watched
from commands import run
from module_page import MODULE, follow, seen, until
from node_packages import prepared
from places import ROOT
from playwright.sync_api import Page
from servers import DEADLINE, OPEN, Server, wait_for

pytestmark = chromium.NEEDED

STATIC = ROOT / "static"


def blank(watched: Watched, server: Server) -> Page:
    """A tab of the server's origin that follows nothing by itself."""
    return watched.open(f"{server.url}/-/versions", status="")


def live(page: Page, name: str = "it") -> None:
    until(page, "seen.connection.status === 'live'", name)


def connections(watched: Watched, count: int) -> None:
    """Wait until so many streams are open, and no more."""
    # What the browser tells arrives while it is asked something.
    page = watched.context.pages[0]
    wait_for(
        lambda: page.evaluate("1") and len(watched.open_streams) == count,
        f"{count} connections: {[request.url for request in watched.open_streams]}",
    )


def test_tabs_that_follow_different_channels_share_one_connection(
    serve: Callable[..., Server], watched: Watched
) -> None:
    """Seven tabs come while messages are published, and go again, the leader first: each sees all of its own, once."""
    server = serve()
    names = [f"c{n}" for n in range(6)]
    published: list[tuple[str, str]] = []

    def publish(count: int, enough: threading.Event) -> None:
        """So many, if there are not enough before; at most 200 a second."""
        with httpx.Client(timeout=DEADLINE) as client:
            for n in range(count):
                item = {"channel": names[n % 6], "payload": str(len(published))}
                client.post(f"{server.pubsub}/-/publish", json=item).raise_for_status()
                published.append((item["channel"], item["payload"]))
                if enough.wait(0.005):
                    return

    enough = threading.Event()
    publish(60, enough)
    reads: list[dict[str, Any]] = [*({"channels": [name]} for name in names), {"patterns": ["c[0-2]"]}]
    tabs: list[tuple[Page, dict[str, Any]]] = []
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        publishing = pool.submit(publish, 1_000_000, enough)
        # Whatever goes wrong, the publisher ends.
        stack.callback(enough.set)
        for wanted in reads:
            page = blank(watched, server)
            follow(page, server, **wanted, share=True, after=0)
            until(page, "seen.messages.length > 10")
            tabs.append((page, wanted))
        for page, _ in tabs:
            live(page)
        connections(watched, 1)
        # All tabs of a browser share six connections: in each, a seventh request is answered.
        for page, _ in tabs:
            url = f"/{server.database}/-/pubsub/-/channels.json"
            assert page.evaluate("(url) => fetch(url).then(({ status }) => status)", url) == 200
        for _ in range(3):
            tabs.pop(0)[0].close()
            page = tabs[0][0]
            before = len(seen(page, "messages"))
            until(page, f"seen.messages.length > {before}")
        enough.set()
        publishing.result(DEADLINE)
    publish(6, threading.Event())
    for page, wanted in tabs:
        matched = wanted.get("channels") or names[:3]
        expected = [payload for channel, payload in published if channel in matched]
        until(page, f"seen.messages.length >= {len(expected)}")
        assert seen(page, "messages") == expected
        assert seen(page, "gaps") == []
    connections(watched, 1)


def test_who_is_refused_goes_alone_and_the_others_stay(serve: Callable[..., Server], watched: Watched) -> None:
    options = {"channel_permissions": {"secret": {"view": False}}, "max_channels_per_stream": 3}
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": options}})
    denied = "permission denied: view-channel on channel 'secret' of database data"
    page = blank(watched, server)
    follow(page, server, "first", channels=["secret"], share=True)
    until(page, f"seen.reasons.includes({json.dumps(denied)})", "first")
    other = blank(watched, server)
    for name, channels in (("a", ["a"]), ("b", ["b"]), ("also", ["secret", "a"]), ("c", ["c"]), ("many", ["d", "e"])):
        follow(other, server, name, channels=channels, share=True)
    for name in ("a", "b", "c", "many"):
        live(other, name)
    until(other, f"seen.reasons.includes({json.dumps(denied)})", "also")
    # Three channels fit on one connection, the fourth and fifth have another. (The refused ones ask now and then.)
    wait_for(lambda: other.evaluate("1") and len(watched.open_streams) == 2, "two connections")
    for channel in "abcde":
        server.publish(channel=channel, payload=channel)
    for name, expected in (("a", ["a"]), ("b", ["b"]), ("c", ["c"]), ("many", ["d", "e"])):
        until(other, f"seen.messages.length >= {len(expected)}", name)
        assert seen(other, "messages", name) == expected
        assert seen(other, "statuses", name)[-1] == "live"
        assert set(seen(other, "reasons", name)) == {None}
    assert (seen(page, "messages", "first"), seen(other, "messages", "also")) == ([], [])


def test_a_gap_is_counted_for_each_by_itself(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(channel="c", payload="makes the tables")
    page = blank(watched, server)
    for name in "ab":
        follow(page, server, name, channels=[name], share=True, after=0)
        live(page, name)
    server.kill()
    for channel, count in (("a", 7), ("b", 4)):
        run("publish", server.path, channel, text="".join(f"{n}\n" for n in range(count)))
    run("trim", server.path, "--messages", "1", "--pattern", "*")
    server.start()
    for name, missed, last in (("a", 6, "6"), ("b", 3, "3")):
        until(page, "seen.messages.length === 1", name)
        live(page, name)
        assert seen(page, "messages", name) == [last]
        assert [gap["missed"] for gap in seen(page, "gaps", name)] == [missed]
    connections(watched, 1)


def test_beginnings_of_ones_own_lead_to_the_shared_connection(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish({"channel": "a", "payload": "1"}, {"channel": "b", "payload": "2"})
    page = blank(watched, server)
    follow(page, server, "head", channels=["b"], share=True)
    follow(page, server, "earliest", channels=["a"], share=True, start="earliest")
    follow(page, server, "since", patterns=["*"], share=True, since="2020-01-01")
    for name in ("head", "earliest", "since"):
        live(page, name)
    connections(watched, 1)
    server.publish({"channel": "a", "payload": "3"}, {"channel": "b", "payload": "4"})
    for name, expected in (("head", ["4"]), ("earliest", ["1", "3"]), ("since", ["1", "2", "3", "4"])):
        until(page, f"seen.messages.length === {len(expected)}", name)
        assert seen(page, "messages", name) == expected
    # What nobody follows any more is left out of the shared connection, after a while.
    page.evaluate("() => window.seen.since.connection.close()")
    wait_for(lambda: page.evaluate("1") and "pattern" not in watched.open_streams[-1].url, "the pattern is left out")
    server.publish(channel="b", payload="5")
    until(page, "seen.messages.at(-1) === '5'", "head")


def test_patterns_match_as_in_sqlite(serve: Callable[..., Server], watched: Watched) -> None:
    generator = random.Random(5)
    # A hostile pattern costs no more than its length times the name's.
    cases = [("a*" * 100 + "b", "a" * 255)]
    for _ in range(10_000):
        pattern = "".join(generator.choices("ab**?[[]]^-🐢", k=generator.randint(1, 6)))
        cases.append((pattern, "".join(generator.choices("aab[]^-🐢", k=generator.randint(1, 4)))))
    with sqlite3.connect(":memory:") as conn:
        expected = [bool(conn.execute("SELECT ? GLOB ?", [text, pattern]).fetchone()[0]) for pattern, text in cases]
    conn.close()
    assert sum(expected) > 400
    page = blank(watched, serve())
    found = page.evaluate(
        """async ([module, cases]) => {
            const { matcher } = await import(module);
            return cases.map(([pattern, text]) => matcher({ channels: [], patterns: [pattern] })(text));
        }""",
        [MODULE.replace("pubsub.js", "client/selection.js"), cases],
    )
    assert [(case, verdict) for case, verdict in zip(cases, found, strict=True)] == list(
        zip(cases, expected, strict=True)
    )


@pytest.mark.skipif(sys.platform == "win32", reason="the packages are prepared under a POSIX lock")
def test_the_types_that_authors_see_are_right() -> None:
    """The module's JSDoc is what editors and TypeScript know of it."""
    command = [str(prepared("v2") / "node_modules" / ".bin" / "tsc"), "--noEmit", "--allowJs", "--checkJs", "--strict"]
    command += ["--noImplicitAny", "false", "--strictNullChecks", "false", "--strictPropertyInitialization", "false"]
    command += ["--target", "es2022", "--module", "es2022", "--lib", "dom,dom.iterable,es2022", "--noUnusedLocals"]
    done = subprocess.run(
        [*command, str(STATIC / "pubsub.js")], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
