"""``pubsub.js`` with ``filter`` and ``start: "last"``, alone and with one connection for all tabs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import browsers as chromium
from browsers import Watched
from module_page import follow, seen, until
from servers import Server, wait_for

pytestmark = chromium.NEEDED

ERRORS = "payload ->> '$.level' = 'error'"


def levels(server: Server, *levels: str, channel: str = "logs") -> None:
    server.publish(*({"channel": channel, "payload": {"level": level}} for level in levels))


def test_the_newest_and_only_what_passes(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    levels(server, "info", "error", "info")
    levels(server, "info", "debug", channel="other")
    page = watched.open(f"{server.url}/-/versions", status="")
    follow(page, server, "errors", channels=["logs"], start="last", filter=ERRORS)
    follow(page, server, "newest", patterns=["*"], start="last")
    until(page, "seen.connection.status === 'live'", "errors")
    until(page, "seen.connection.status === 'live'", "newest")
    levels(server, "info", "error")
    until(page, "seen.messages.length === 2", "errors")
    until(page, "seen.messages.length === 4", "newest")
    assert seen(page, "messages", "errors") == ['{"level":"error"}'] * 2
    assert [text[10:-2] for text in seen(page, "messages", "newest")] == ["info", "debug", "info", "error"]
    follow(page, server, "wrong", channels=["logs"], filter="random()")
    until(page, "seen.reasons.some((reason) => reason?.startsWith('filter: the function random'))", "wrong")


def test_tabs_share_a_connection_with_tabs_that_have_the_same_filter(
    serve: Callable[..., Server], watched: Watched
) -> None:
    server = serve()
    levels(server, "info", "error")
    tabs = {}
    every: dict[str, dict[str, Any]] = {
        "errors": {"filter": ERRORS},
        "errors elsewhere": {"filter": ERRORS, "channels": ["other"]},
        "the newest error": {"filter": ERRORS, "start": "last"},
        "all": {},
    }
    for name, options in every.items():
        tabs[name] = watched.open(f"{server.url}/-/versions", status="")
        follow(tabs[name], server, share=True, **{"channels": ["logs"], **options})
        until(tabs[name], "seen.connection.status === 'live'")
    page = watched.context.pages[0]
    wait_for(lambda: page.evaluate("1") and len(watched.open_streams) == 2, "a connection for each filter")
    levels(server, "info", "error", "debug")
    levels(server, "error", "info", channel="other")
    counts = {"errors": 1, "errors elsewhere": 1, "the newest error": 2, "all": 3}
    for name, count in counts.items():
        until(tabs[name], f"seen.messages.length >= {count}")
    # One more for all: nothing came in between that should not.
    levels(server, "error")
    levels(server, "error", channel="other")
    for name, count in counts.items():
        until(tabs[name], f"seen.messages.length >= {count + 1}")
        assert len(seen(tabs[name], "messages")) == count + 1, name
    assert seen(tabs["errors"], "messages") == ['{"level":"error"}'] * 2
