"""The live pages in Debian's Firefox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import firefox
import pytest
from servers import Server, sqlite_shell

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(firefox.binary() is None, reason=f"none of {', '.join(firefox.NAMES)} is installed"),
]

PAYLOADS = "[...document.querySelectorAll('.pubsub-messages td.col-payload')].map((cell) => cell.innerText.trim())"
LIVE = "document.querySelector('[data-status]')?.dataset.status === 'live'"


def test_live_in_two_tabs_on_one_connection_paused_and_over_a_crash(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    server.publish(channel="a", payload="before")
    with firefox.running(tmp_path) as browser:
        tabs = [browser.open(f"{server.pubsub}/a") for _ in range(2)]
        for tab in tabs:
            tab.until(LIVE)
        sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'by the shell')")
        shown = tabs[-1]
        for tab in tabs:
            # Firefox hides the tab that is not in front, and a hidden page does not draw.
            if not tab.evaluate("document.hidden"):
                shown = tab
        shown.until(f"{PAYLOADS}.join() === 'by the shell,before'")
        assert server.log.count("/-/stream?") == 1
        shown.evaluate("document.querySelector('.pubsub-pause').click()")
        server.publish(*[{"channel": "a", "payload": str(n)} for n in range(37)])
        shown.until("document.querySelector('.pubsub-new').innerText === '37 new'")
        server.kill()
        shown.until("document.querySelector('[role=status]').innerText.startsWith('Reconnecting')")
        sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'while it was down')")
        server.start()
        shown.until(LIVE)
        shown.evaluate("document.querySelector('.pubsub-pause').click()")
        expected = ["while it was down", *[str(n) for n in reversed(range(37))], "by the shell", "before"]
        shown.until(f"{PAYLOADS}.length === {len(expected)}")
        assert shown.evaluate(PAYLOADS) == expected
        panel = browser.open(f"{server.url}/data")
        panel.until(LIVE)
        server.publish(channel="b", payload="to the panel")
        panel.until("document.querySelector('pubsub-panel tbody').innerText.includes('to the panel')")
        picture = panel.evaluate("document.querySelector('pubsub-panel svg').getAttribute('aria-label')")
        assert picture.startswith("40 messages in the last 10 minutes")


def test_the_layout_and_colours_are_those_of_chromium(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Channels beside the messages or folded, and colours of the page's scheme."""
    server = serve()
    server.publish({"channel": "a", "payload": "x"}, {"channel": "b", "payload": "y"})
    with firefox.running(tmp_path) as browser:
        tab = browser.open(server.pubsub)
        tab.until(LIVE)
        edge = "document.querySelector('{}').getBoundingClientRect().{}"
        wide = tab.evaluate("innerWidth >= 1100")
        assert tab.evaluate("document.querySelector('.pubsub-channel-list').open") == wide
        if wide:
            list_ends = tab.evaluate(edge.format(".pubsub-channel-list", "right"))
            assert list_ends < tab.evaluate(edge.format(".pubsub-log", "left"))
        assert tab.evaluate(edge.format(".pubsub-messages tbody tr", "top")) < 340
        colour = "getComputedStyle(document.querySelector('td.col-channel a')).color"
        assert tab.evaluate(colour) == "rgb(39, 104, 144)"
        tab.evaluate("document.documentElement.style.colorScheme = 'dark'")
        assert tab.evaluate(colour) == "rgb(142, 193, 234)"
        # A new row comes to rest in its place.
        server.publish(channel="a", payload="new")
        tab.until("document.querySelector('td.col-payload').innerText.trim() === 'new'")
        tab.until("getComputedStyle(document.querySelector('.pubsub-messages tbody')).transform.endsWith(', 0, 0)')")
