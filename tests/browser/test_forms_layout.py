"""How the forms look and what they say: one loud button, nothing cut off, and the scheme of Datasette."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import browsers as chromium
import pytest
from browsers import Watched
from every_page import CONFIG, PAGES, dark_config, fill, log_in, show
from playwright.sync_api import Browser, Locator, Page, expect
from servers import OPEN, Server, sqlite_shell

from datasette_pubsub.core.settings import PLUGIN

pytestmark = chromium.NEEDED

SIZES = [{"width": 390, "height": 800}, {"width": 1280, "height": 900}]

#: The buttons of a page of ours that can be seen, with their names and the colours of their faces and texts.
BUTTONS = """() => [...document.querySelectorAll("section.content :is(button, input[type=submit])")]
    .filter((button) => button.checkVisibility())
    .map((button) => [button.value || button.textContent, getComputedStyle(button).backgroundColor,
                      getComputedStyle(button).color])"""

BLUE, RED, NONE, WHITE = "rgb(0, 98, 204)", "rgb(176, 0, 32)", "rgba(0, 0, 0, 0)", "rgb(255, 255, 255)"


def loud(page: Page) -> list[str]:
    """The names of the buttons with a face of a colour."""
    return [name for name, face, _ in page.evaluate(BUTTONS) if face not in (NONE, WHITE)]


def is_whole(block: Locator) -> bool:
    """Whether all of a text can be seen: nothing of it is in a part that scrolls."""
    return bool(
        block.evaluate("({ scrollWidth, clientWidth, scrollHeight, clientHeight }) =>"
                       " scrollWidth <= clientWidth && scrollHeight <= clientHeight")
    )  # fmt: skip


def edges(page: Page, selector: str) -> set[tuple[int, int]]:
    """Where the elements begin and end, across."""
    boxes = [found.bounding_box() for found in page.locator(selector).all() if found.is_visible()]
    return {(round(box["x"]), round(box["x"] + box["width"])) for box in boxes if box}


@pytest.mark.parametrize("size", SIZES, ids=["phone", "desktop"])
def test_broadcasting_is_a_form_like_the_others(serve: Callable[..., Server], browser: Browser, size: Any) -> None:
    server = serve(config=CONFIG)
    fill(server)
    columns = ", ".join(f"column_{n}" for n in range(40))
    sqlite_shell(server.path, f"CREATE TABLE wide (id INTEGER PRIMARY KEY, {columns})")
    context = browser.new_context(viewport=size)
    log_in(context, server)
    page = context.new_page()
    # Another table of the same page: what is not broadcast yet.
    for table, has in (("wide", False), ("orders", True)):
        page.goto(f"{server.url}/data/{table}/-/broadcast")
        nav = page.locator(".pubsub-nav")
        for name in ("Live messages", "Publish", "Subscriptions", "Standing queries"):
            expect(nav.get_by_role("link", name=name)).to_be_visible()
        # Labels above their fields, and the fields under each other.
        ((left, right),) = edges(page, ".pubsub-form > p > input[type=text]")
        assert len(edges(page, ".pubsub-change input[type=text]")) == 1
        assert {end for _, end in edges(page, ".pubsub-form input[type=text]")} == {right}
        assert {begin for begin, _ in edges(page, ".pubsub-form :is(legend, label[for])")} == {left}
        assert loud(page) == ["Show the triggers"]
        if has:
            ((_, face, text),) = [each for each in page.evaluate(BUTTONS) if each[0] == "Remove the triggers"]
            assert (face, text) == (NONE, RED)
        page.get_by_role("button", name="Show the triggers").click()
        expect(page.get_by_role("heading", level=2).first).to_have_text("Look at the triggers before you create them")
        assert loud(page) == ["Create these triggers"]
        expect(page.get_by_role("button", name="Create these triggers")).to_be_in_viewport()
        sql = page.get_by_role("region", name="Their SQL")
        assert sql.inner_text().count("CREATE TRIGGER") == 3
        assert is_whole(sql)
        assert edges(page, "#pubsub-sql")
        page.get_by_role("link", name="Change the choices").click()
        expect(page.get_by_role("heading", name="Change the choices")).to_be_in_viewport()
        if has:
            page.get_by_text("The triggers", exact=True).click()
            assert is_whole(page.get_by_role("region", name="The triggers", exact=True))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


@pytest.mark.parametrize("size", SIZES, ids=["phone", "desktop"])
def test_what_was_published_can_be_copied_and_nothing_is_cut_off(
    serve: Callable[..., Server], browser: Browser, size: Any
) -> None:
    server = serve()
    context = browser.new_context(viewport=size, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{server.pubsub}/-/publish-form?channel=alerts")
    payload = json.dumps({"text": "it's " + "long " * 60, "word": "x" * 300})
    page.get_by_label("Payload").fill(payload)
    assert loud(page) == ["Publish"]
    copies = page.get_by_role("button", name=re.compile("^Copy"))
    expect(copies).to_have_count(3)
    assert len(edges(page, ".pubsub-statement button")) == 1
    # In the column at the end of the blocks.
    ((_, end),) = edges(page, ".pubsub-statements pre")
    assert {right for _, right in edges(page, ".pubsub-statement button")} == {end}
    for block in page.locator(".pubsub-statements pre").all():
        assert is_whole(block)
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.locator(".pubsub-done")).to_have_text("Published message 1 to alerts")
    expect(page.get_by_label("Payload")).to_have_value("")
    expect(page.get_by_text("The message that was just published")).to_be_visible()
    page.get_by_role("button", name="Copy SQL").click()
    statement = page.evaluate("navigator.clipboard.readText()")
    sqlite_shell(server.path, statement)
    assert server.rows("SELECT channel, payload FROM vpubsub") == [("alerts", payload)] * 2
    # What is typed next is what they say next.
    page.get_by_label("Payload").fill("next")
    expect(page.get_by_role("region", name="SQL")).to_contain_text("'next'")
    expect(page.get_by_text("The message that was just published")).to_be_hidden()
    context.close()


@pytest.mark.parametrize("size", SIZES, ids=["phone", "desktop"])
def test_the_sql_of_queries_is_whole_or_folded(serve: Callable[..., Server], browser: Browser, size: Any) -> None:
    long = "SELECT 1 AS one" + "".join(f",\n    {n} AS column_{n}_{'x' * 60}" for n in range(2, 40))
    standing = {"long": {"sql": long, "channel": "long"}}
    server = serve(config={"databases": {"data": {"plugins": {PLUGIN: {"standing_queries": standing}}}}})
    context = browser.new_context(viewport=size)
    page = context.new_page()
    page.goto(f"{server.pubsub}/-/queries")
    assert is_whole(page.locator(".pubsub-standing pre"))
    page.goto(f"{server.url}/data/-/query.live?{urlencode({'sql': long})}")
    sql = page.get_by_role("region", name="SQL")
    # The rows are what the page is for: a long query is folded, and a short one is there.
    expect(page.locator(".pubsub-sql")).to_be_hidden()
    expect(page.locator(".pubsub-result td").first).to_be_in_viewport()
    page.locator("summary", has_text="SQL").press("Enter")
    assert sql.inner_text() == long
    assert is_whole(sql)
    page.goto(f"{server.url}/data/-/query.live?sql=select+1")
    assert is_whole(sql)
    context.close()


# -- the scheme ----------------------------------------------------------------

#: A colour of the page as it is seen, from the element up to one that has a face.
FACE = """(element) => {
    for (let at = element; at; at = at.parentElement) {
        const face = getComputedStyle(at).backgroundColor;
        if (face !== "rgba(0, 0, 0, 0)") return face;
    }
    return "rgb(255, 255, 255)";
}"""


def is_dark(page: Page) -> bool:
    """Whether the content is light text on a dark ground."""
    content = page.locator("section.content")
    colours = (content.evaluate(FACE), content.evaluate("(element) => getComputedStyle(element).color"))
    ground, text = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert abs(ground - text) > 300, colours
    return ground < text


@pytest.mark.parametrize("wanted", [False, True], ids=["light", "dark"])
def test_pages_are_light_as_datasettes_unless_the_option_says_dark(
    serve: Callable[..., Server], browser: Browser, wanted: bool
) -> None:
    server = serve(config=dark_config() if wanted else CONFIG)
    fill(server)
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
        log_in(context, server)
        for name in PAGES:
            page = show(context, server, name)
            ours = name not in ("panel", "table", "log")
            assert is_dark(page) == (wanted and ours and scheme == "dark"), (name, scheme)
            # Datasette's own header is as it always is.
            assert page.locator("header.hd").evaluate("(header) => getComputedStyle(header).colorScheme") in (
                "normal",
                "light",
            )
            page.close()
        context.close()


def test_pages_follow_a_datasette_that_is_dark(serve: Callable[..., Server], watched: Watched) -> None:
    """Datasette has no dark scheme yet: one that will have it says so by ``color-scheme``, as a theme can today."""
    server = serve(config={**OPEN})
    server.publish(channel="a", payload="x")
    page = watched.context.new_page()
    page.emulate_media(color_scheme="dark")
    page.goto(server.pubsub)
    link = page.locator("td.col-channel a").first
    colour = "(element) => getComputedStyle(element).color"
    assert link.evaluate(colour) == "rgb(39, 104, 144)"
    page.add_style_tag(content=":root { color-scheme: light dark; } body { background: #111; }")
    assert link.evaluate(colour) == "rgb(142, 193, 234)"
    assert is_dark(page)
