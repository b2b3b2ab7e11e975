"""The log on Datasette's own pages of its table: channels lead to their live pages, payloads fold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import browsers as chromium
import httpx
from browsers import Watched, first
from playwright.sync_api import expect
from servers import OPEN, Server

pytestmark = chromium.NEEDED

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script></details></td>\u202e"


def test_channels_link_and_payloads_fold_by_keyboard(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve(config={**OPEN, "settings": {"base_url": "/prefix/"}})
    base = f"{server.url}/prefix/data"
    channel = 'a/b "><img src=x onerror=alert(3)>'
    items: list[dict[str, Any]] = [
        {"channel": channel, "payload": {"text": MARKUP, "n": 12345678901234567890}},
        {"channel": channel, "payload": MARKUP},
        {"channel": channel, "payload": {"long": "x" * 100_000}},
        {"channel": channel, "blob": "AAEC"},
        {"channel": channel, "payload": 1.5},
        {"channel": channel, "payload": "https://example.com/"},
    ]
    assert httpx.post(f"{base}/-/pubsub/-/publish", json={"items": items}).status_code == 200
    page = watched.context.new_page()
    page.goto(f"{base}/vpubsub")
    cells = page.locator("td.col-payload")
    # Only what is JSON, or long, is folded; all else is as Datasette shows it.
    expect(page.locator("td.col-payload details")).to_have_count(2)
    expect(cells.nth(1)).to_have_text(MARKUP)
    expect(cells.nth(3).get_by_role("link")).to_have_class("blob-download")
    expect(cells.nth(4)).to_have_text("1.5")
    expect(cells.nth(5).get_by_role("link")).to_have_attribute("href", "https://example.com/")
    pre = cells.nth(0).locator("pre")
    expect(pre).to_be_hidden()
    cells.nth(0).locator("summary").press("Enter")
    expect(pre).to_be_visible()
    assert json.loads(pre.inner_text()) == {"text": MARKUP.replace("\u202e", "⟨U+202E⟩"), "n": 12345678901234567890}
    assert pre.inner_text().count("\n") == 3
    # One line high while it is folded, and bounded in what it holds.
    assert cells.nth(2).evaluate("(cell) => cell.querySelector('details').offsetHeight") < 30
    expect(cells.nth(2)).to_contain_text("the first 2,048 of 100,011 characters")
    assert len(str(cells.nth(2).text_content())) < 2_400
    assert page.locator("section.content :is(img, script[src='x'])").count() == 0
    page.locator("td.col-channel a").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(channel)
    expect(page.locator("pubsub-viewer")).to_have_attribute("data-status", "live")
    first(page, "https://example.com/")
    # On the page of its row it is open; a text that is too long for that is there as a whole.
    page.goto(f"{base}/vpubsub/1")
    expect(page.locator("td.col-payload pre")).to_be_visible()
    page.goto(f"{base}/vpubsub/3")
    whole = page.locator("td.col-payload").evaluate("(cell) => cell.textContent.trim()")
    assert json.loads(whole) == {"long": "x" * 100_000}
