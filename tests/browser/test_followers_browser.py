"""A follower's pages in a browser: they go on saying how far behind it is, on a phone, too, and to everybody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import browsers as chromium
import pytest
from browsers import AXE, Watched
from every_page import CONFIG, log_in
from followers import PUBLISH_AT, copy, follow
from node_packages import prepared
from playwright.sync_api import Browser, expect
from servers import Server, sqlite_shell

from datasette_pubsub.core.settings import RELAY_OWNER

pytestmark = chromium.NEEDED

#: A relay of the follower itself: a chain of copies.
RELAY = (
    "INSERT INTO pubsub_subscriptions (owner, name, reads, cursor) "
    f"VALUES ('{RELAY_OWNER}', 'region', '{{\"patterns\": [\"*\"]}}', 1);"
)


@pytest.fixture
def server(serve: Callable[..., Server], tmp_path: Path) -> Server:
    path = tmp_path / "data.db"
    follow(path, publish_at=f"{PUBLISH_AT}/{'of-a-long-address' * 10}")
    copy(path, [1, 2, 3], newest=15)
    sqlite_shell(path, RELAY)
    return serve(config=CONFIG)


def test_the_page_of_subscriptions_goes_on_saying_it(server: Server, watched: Watched) -> None:
    log_in(watched.context, server)
    page = watched.context.new_page()
    page.goto(f"{server.pubsub}/-/subscriptions")
    line = page.locator(".pubsub-follows")
    expect(line).to_contain_text("Follows the stream orders, 12 behind; last heard from")
    row = page.locator(".pubsub-subscriptions tbody tr")
    expect(row.locator("td")).to_contain_text(["relay to the stream region", "relay", "*", "1", "2", "own process"])
    copy(server.path, range(4, 15), newest=15)
    expect(line).to_contain_text("Follows the stream orders, 1 behind; last heard from")
    copy(server.path, [15])
    expect(line).to_contain_text("Follows the stream orders, up to date; last heard from")
    # What the script has written is what the server had.
    expect(row.locator("td")).to_contain_text(["relay to the stream region", "relay", "*", "1", "14", "own process"])
    # A relay that begins while the page is open.
    sqlite_shell(server.path, RELAY.replace("region", "archive"))
    expect(row).to_have_count(2)
    expect(row.first.locator("td")).to_contain_text(["relay to the stream archive", "relay", "*", "1", "14"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_pages_are_accessible_and_fit_a_phone(server: Server, browser: Browser, scheme: Any) -> None:
    axe = (prepared("axe") / "node_modules" / "axe-core" / "axe.min.js").read_text()
    context = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 900})
    log_in(context, server)
    for path in ("", "/-/publish-form", "/-/subscriptions", f"/-/subscriptions?delete=region&owner={RELAY_OWNER}"):
        page = context.new_page()
        page.goto(f"{server.pubsub}{path}")
        expect(page.locator(".pubsub-follows")).to_be_visible()
        page.evaluate(axe)
        found = [each for each in page.evaluate(AXE, ["html", None]) if each[1] in ("serious", "critical")]
        assert not found, (path, found)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        page.close()
    context.close()
