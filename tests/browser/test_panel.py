"""The panel on a database's page and channels in the jump menu: what they show, and to whom."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import browsers as chromium
import httpx
import pytest
from browsers import Watched
from commands import datasette
from playwright.sync_api import Page, expect
from servers import OPEN, Server, sqlite_shell

#: Anonymous visitors see what is public, of which there may be nothing yet.
RULES = {"channel_permissions": {"public/*": {"view": True}, "*": {"view": {"id": "root"}}}}
PARTLY = {**OPEN, "databases": {"data": {"plugins": {"datasette-pubsub": RULES}}}}
NONE: dict[str, Any] = {
    **OPEN,
    "databases": {"data": {"plugins": {"datasette-pubsub": {"channel_permissions": {"*": {"view": {"id": "root"}}}}}}},
}


def shown(page: Page) -> list[list[str]]:
    """The rows of the panel: channel, newest message, how many in a minute."""
    rows = page.locator("pubsub-panel tbody tr").all()
    return [row.locator("td").all_inner_texts()[:3] for row in rows]


def row(page: Page, text: str) -> None:
    """Wait until the panel has a row that begins like this."""
    expect(page.locator("pubsub-panel tbody tr").filter(has_text=re.compile(f"^{text}"))).to_have_count(1)


def panel_of(url: str) -> str:
    """The panel's HTML as the server makes it, empty where there is none."""
    found = re.search(r"<pubsub-panel.*</pubsub-panel>", httpx.get(url).text, re.DOTALL)
    return found[0] if found else ""


def test_nothing_where_there_is_no_log_and_one_line_where_nothing_was_published(serve: Callable[..., Server]) -> None:
    server = serve()
    assert panel_of(f"{server.url}/data") == ""
    datasette("pubsub", "install", server.path)
    found = panel_of(f"{server.url}/data")
    assert "No messages yet" in found
    assert "<td" not in found
    server.publish(channel="a", payload="x")
    assert "<td" in panel_of(f"{server.url}/data")
    closed = serve(databases=["closed"], config={"databases": {"closed": NONE["databases"]["data"]}})
    datasette("pubsub", "install", closed.path)
    assert panel_of(f"{closed.url}/closed") == ""


@pytest.mark.parametrize(("config", "sees"), [(PARTLY, ["public/a"]), (NONE, None), (OPEN, ["secret", "public/a"])])
def test_only_channels_that_the_visitor_may_see(
    serve: Callable[..., Server], config: dict[str, object], sees: list[str] | None
) -> None:
    """In the panel, in the jump menu and in what both can ask for."""
    server = serve(config=config, options=["--root"])
    server.publish({"channel": "public/a", "payload": "open"}, {"channel": "secret", "payload": "for few"})
    html = panel_of(f"{server.url}/data")
    assert re.findall(r'<td class="col-channel"><a [^>]*>([^<]*)', html) == (sees or [])
    assert (html == "") is (sees is None)
    assert ("for few" in html) is ("secret" in (sees or []))
    jump = httpx.get(f"{server.url}/-/jump.json", params={"q": ""}).json()["matches"]
    found = [match["name"] for match in jump if match["type"] == "channel"]
    assert sorted(found) == sorted(f"data: {name}" for name in sees or [])
    for name in ("activity", "messages"):
        answer = httpx.get(f"{server.pubsub}/-/{name}.json")
        if sees is None:
            assert answer.status_code == 403
        else:
            entries = answer.json()["channels" if name == "activity" else "messages"]
            assert [entry["channel"] for entry in entries] == sees
    refused = httpx.get(f"{server.pubsub}/-/messages.csv", params={"channel": "secret"})
    assert refused.status_code == (200 if sees and "secret" in sees else 403)
    as_root = httpx.get(f"{server.url}/data", cookies=server.root_cookie()).text
    assert "secret" in as_root


def test_the_jump_menu_finds_channels_and_leads_to_them(serve: Callable[..., Server]) -> None:
    server = serve(config={**OPEN, "settings": {"base_url": "/prefix/"}})
    names = ["orders/new", "orders/a b?", "ORDERS/2", "users", "\u202egnp"]
    url = f"{server.url}/prefix/data/-/pubsub"
    httpx.post(f"{url}/-/publish", json={"items": [{"channel": name, "payload": "x"} for name in names]})

    def find(words: str) -> dict[str, str]:
        matches = httpx.get(f"{server.url}/prefix/-/jump.json", params={"q": words}).json()["matches"]
        return {match["name"]: match["url"] for match in matches if match["type"] == "channel"}

    assert set(find("orders")) == {"data: orders/new", "data: orders/a b?", "data: ORDERS/2"}
    assert set(find("data a b")) == {"data: orders/a b?"}
    assert set(find("gnp")) == {"data: ⟨U+202E⟩gnp"}
    assert find("nothing") == {}
    (address,) = find("a b?").values()
    assert address.startswith("/prefix/data/-/pubsub/")
    assert "<bdi>orders/a b?</bdi>" in httpx.get(f"{server.url}{address}").text


@chromium.needed
def test_the_panel_is_live(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(channel="a", payload={"order": 1, "text": "one\ntwo"})
    page = watched.context.new_page()
    page.goto(f"{server.url}/data")
    expect(page.locator("pubsub-panel")).to_have_attribute("data-status", "live")
    assert shown(page) == [["a", '{"order":1,"text":"one\\ntwo"}', "1"]]
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'by the shell'), ('b', 'new')")
    row(page, "a.*by the shell.*2")
    row(page, "b.*new.*1")
    picture = page.locator("pubsub-panel tbody tr").first.get_by_role("img")
    expect(picture).to_have_attribute("aria-label", re.compile("^2 messages in the last 10 minutes"))
    # More channels than places: those that are busy keep theirs.
    server.publish(*[{"channel": f"c{n}", "payload": "x"} for n in range(6)])
    expect(page.locator("pubsub-panel tbody tr")).to_have_count(5)
    expect(page.get_by_role("link", name="All channels")).to_be_visible()
    assert [cells[0] for cells in shown(page)][:2] == ["a", "b"]
    server.publish(channel="a", blob="AAEC")
    row(page, "a.*3 bytes.*3")
    page.get_by_role("link", name="Live messages").click()
    expect(page.locator("pubsub-viewer")).to_have_attribute("data-status", "live")


@chromium.needed
def test_the_panel_goes_on_from_how_things_are_when_it_is_looked_at_again(
    serve: Callable[..., Server], watched: Watched
) -> None:
    server = serve()
    server.publish(channel="a", payload="seen")
    page = watched.context.new_page()
    page.clock.install()
    page.goto(f"{server.url}/data")
    panel = page.locator("pubsub-panel")
    expect(panel).to_have_attribute("data-status", "live")
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    page.clock.run_for(10_000)
    expect(panel).to_have_attribute("data-status", "closed")
    server.publish(*[{"channel": "a", "payload": "missed"}] * 40, {"channel": "b", "payload": "missed too"})
    page.evaluate(hide, False)
    expect(panel).to_have_attribute("data-status", "live")
    row(page, "a.*missed.*41")
    row(page, "b.*missed too.*1")
    server.publish(channel="b", payload="live again")
    page.clock.run_for(1_000)
    row(page, "b.*live again.*2")
