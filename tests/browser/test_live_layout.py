"""How the live page is laid out: messages first on every screen, nothing jumps, and it says what it shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import browsers as chromium
import httpx
import pytest
from auth import cookie
from browsers import Watched, first, payloads, status
from every_page import CONFIG, fill, log_in, show
from playwright.sync_api import Browser, FloatRect, Page, expect
from servers import Server, sqlite_shell, wait_for

pytestmark = chromium.NEEDED

PHONE = {"width": 390, "height": 800}
DESKTOP = {"width": 1280, "height": 900}

#: One moment on any page: a day, a time, and milliseconds.
MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


def box(page: Page, selector: str) -> FloatRect:
    found = page.locator(selector).first.bounding_box()
    assert found is not None, selector
    return found


# -- messages first ------------------------------------------------------------


@pytest.mark.parametrize(("size", "most"), [(PHONE, 340), (DESKTOP, 340)], ids=["phone", "desktop"])
def test_the_newest_message_is_above_the_fold(
    serve: Callable[..., Server], browser: Browser, size: Any, most: int
) -> None:
    """However many channels there are: they stand beside the messages, or are folded."""
    server = serve()
    server.publish(*[{"channel": f"sensors/room-{n}/temperature", "payload": {"n": n}} for n in range(60)])
    context = browser.new_context(viewport=size)
    for path in ("", "?pattern=sensors/*", "/sensors~2Froom-1~2Ftemperature"):
        page = context.new_page()
        page.goto(server.pubsub + path)
        expect(page.locator("pubsub-viewer")).to_have_attribute("data-status", "live")
        assert box(page, ".pubsub-messages tbody tr")["y"] <= most, path
        if not path.startswith("/"):
            channels = page.locator(".pubsub-channels tbody tr")
            if size is PHONE:
                expect(channels.first).to_be_hidden()
                page.locator(".pubsub-channel-list summary").press("Enter")
            else:
                aside, log = box(page, ".pubsub-channel-list"), box(page, ".pubsub-log")
                assert aside["x"] + aside["width"] < log["x"]
                assert box(page, ".pubsub-channels")["y"] < log["y"] + 40
            expect(channels).to_have_count(60)
            expect(channels.last).to_be_visible()
            # Each row is as wide as the list: nothing of it is under the messages.
            ends = "(row) => Math.max(...[...row.querySelectorAll('*')].map((at) => at.getBoundingClientRect().right))"
            whole = box(page, ".pubsub-channel-list")
            assert channels.first.evaluate(ends) <= whole["x"] + whole["width"]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
    for (const { value, sources } of list.getEntries())
        shifts.push([value, ...sources.map(({ node }) => node?.outerHTML?.slice(0, 120) ?? String(node?.textContent))]);
}).observe({ type: "layout-shift", buffered: true });
"""


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_jumps_while_messages_arrive(serve: Callable[..., Server], browser: Browser, size: Any) -> None:
    """By the browser's own measure: also with new channels, larger numbers and longer texts."""
    server = serve(config=CONFIG)
    fill(server)
    context = browser.new_context(viewport=size)
    context.add_init_script(SHIFTS)
    log_in(context, server)
    for name in ("channel", "live", "panel", "query"):
        page = show(context, server, name)
        expect(page.locator("[data-status]").first).to_have_attribute("data-status", "live")
        if name == "live" and size is PHONE:
            page.locator(".pubsub-channel-list summary").click()
            expect(page.locator(".pubsub-channels tbody tr").first).to_be_visible()
        # A click excuses what moves within half a second of it; and the page has settled.
        page.wait_for_timeout(1_000)
        page.evaluate("shifts.length = 0")
        for n in range(12):
            many = [{"channel": "orders", "payload": {"n": n, "text": "x" * 40 * n}}] * (1 + 4 * (n % 3))
            server.publish(*many, {"channel": f"new/{name}/{n // 4}", "payload": n})
            sqlite_shell(server.path, f"UPDATE orders SET total = total + {10**n} WHERE id = 2")
            page.wait_for_timeout(250)
        if name in ("live", "channel"):
            newest = server.rows("SELECT max(id) FROM vpubsub" + " WHERE channel = 'orders'" * (name == "channel"))
            row = page.locator(".pubsub-messages tbody tr").first
            expect(row).to_have_attribute("data-id", str(newest[0][0]))
        page.wait_for_timeout(400)
        assert page.evaluate("shifts") == [], name
        page.close()
    context.close()


def test_a_new_row_does_not_take_the_focus_from_an_old_one(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": {"n": n}} for n in range(100)])
    page = watched.open(f"{server.pubsub}/a")
    server.publish(*[{"channel": "a", "payload": {"n": n}} for n in range(100, 200)])
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(200)
    summary = page.locator(".pubsub-messages summary").nth(3)
    summary.press("Enter")
    server.publish(channel="a", payload="new")
    first(page, "new")
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(200)
    expect(page.locator(".pubsub-messages summary:focus")).to_have_text('{"n":196}')
    expect(page.locator(".pubsub-messages details[open]")).to_have_count(1)


# -- channels ------------------------------------------------------------------


def test_channels_are_in_the_order_of_their_newest_messages(serve: Callable[..., Server], watched: Watched) -> None:
    """As in the panel: a busy channel keeps its place, a quiet one and a new one come to the top."""
    server = serve()
    server.publish(*[{"channel": name, "payload": "x"} for name in ("a", "c", "b")])
    panel = httpx.get(f"{server.url}/data").text
    assert re.findall(r'<tr data-channel="(\w+)"', panel) == ["b", "c", "a"]
    page = watched.open(server.pubsub)
    names = page.locator(".pubsub-channels td.col-channel")
    expect(names).to_have_text(["b", "c", "a"])
    server.publish({"channel": "d", "payload": "x"}, {"channel": "a", "payload": "busy"})
    expect(names).to_have_text(["d", "b", "c", "a"])
    # The timers go on; only what time it is changes.
    page.clock.set_fixed_time(datetime.now(UTC) + timedelta(seconds=61))
    server.publish(channel="c", payload="after a while")
    expect(names).to_have_text(["c", "d", "b", "a"])
    counts = page.locator(".pubsub-channels td.col-count")
    expect(counts).to_have_text(["2", "1", "1", "2"])


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_number_has_its_heading_and_every_sparkline_its_maximum(
    serve: Callable[..., Server], browser: Browser, size: Any
) -> None:
    server = serve()
    server.publish(*[{"channel": "busy", "payload": "x"}] * 1_500, {"channel": "quiet", "payload": "x"})
    said = "(cell) => JSON.parse(getComputedStyle(cell, '::before').content) + cell.textContent"
    context = browser.new_context(viewport=size)
    page = context.new_page()
    page.goto(server.pubsub)
    expect(page.locator("pubsub-viewer")).to_have_attribute("data-status", "live")
    if size is PHONE:
        page.locator(".pubsub-channel-list summary").click()
    for name, number in (("busy", "1,500"), ("quiet", "1")):
        row = page.locator(f'.pubsub-channels tr[data-channel="{name}"]')
        expect(row.locator(".pubsub-max")).to_be_visible()
        expect(row.locator(".pubsub-max")).to_have_text(f"max {number}")
        assert row.locator(".col-count").evaluate(said) == f"messages {number}"
        assert row.locator(".col-rate").evaluate(said) == f"per minute {number}"
    # The maximum follows; it is less than all if a span of ten seconds has ended in between.
    server.publish(*[{"channel": "quiet", "payload": "x"}] * 70, {"channel": "new", "payload": "x"})
    expect(page.locator('tr[data-channel="quiet"] .pubsub-max')).to_have_text(re.compile("^max 7[01]$"))
    expect(page.locator('tr[data-channel="new"] .pubsub-max')).to_have_text("max 1")
    page.goto(f"{server.url}/data")
    expect(page.locator("pubsub-panel")).to_have_attribute("data-status", "live")
    expect(page.locator('pubsub-panel tr[data-channel="quiet"] .pubsub-max')).to_have_text(re.compile("^max 7[01]$"))
    rate = page.locator('pubsub-panel tr[data-channel="busy"] .col-rate')
    if size is PHONE:
        assert rate.evaluate(said) == "per minute 1,500"
    else:
        expect(page.get_by_role("columnheader", name="per minute")).to_be_in_viewport()
    context.close()


# -- what it says --------------------------------------------------------------


def test_a_filter_without_a_hit_says_so(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(channel="orders/1", payload="x")
    page = watched.open(f"{server.pubsub}?pattern=nix*")
    zero = page.locator(".zero-results")
    expect(zero).to_have_text("No messages in channels that match nix*", use_inner_text=True)
    expect(page.locator(".pubsub-no-channels")).to_have_text("No channel matches nix*")
    for table in (".pubsub-messages", ".pubsub-channels"):
        expect(page.locator(table)).to_be_hidden()
    page.get_by_role("searchbox", name="Text").fill("text")
    expect(zero).to_contain_text("No messages that contain this text")
    page.get_by_role("searchbox", name="Text").fill("")
    expect(zero.locator(".pubsub-none-at-all")).to_be_visible()
    server.publish(channel="nixie", payload="found")
    first(page, "found")
    expect(zero).to_be_hidden()
    expect(page.locator(".pubsub-no-channels")).to_be_hidden()
    expect(page.locator(".pubsub-channels tbody tr")).to_have_count(1)


def test_paused_is_not_shown_as_live(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    sqlite_shell(server.path, "CREATE TABLE t (a)")
    dot = "() => getComputedStyle(document.querySelector('.pubsub-status'), '::before').backgroundColor"
    for address in (server.pubsub, f"{server.url}/data/t.live"):
        page = watched.open(address)
        status(page, re.compile("^Live"))
        live = page.evaluate(dot)
        assert live == "rgb(43, 122, 75)"
        page.get_by_role("button", name="Pause").click()
        status(page, re.compile("^Paused"))
        assert page.evaluate(dot) == "rgba(0, 0, 0, 0)"
        page.get_by_role("button", name="Resume").click()
        status(page, re.compile("^Live"))
        assert page.evaluate(dot) == live


def test_an_empty_page_says_what_is_true_of_its_channel_and_database(serve: Callable[..., Server]) -> None:
    server = serve(options=["--memory"])
    fixed = server.folder / "fixed.db"
    sqlite_shell(fixed, "CREATE TABLE t (a)")
    server.stop()
    server.options += ["--immutable", str(fixed)]
    server.start()

    def said(path: str, actor: str | None = None) -> str:
        headers = cookie(actor) if actor else {}
        answer = httpx.get(f"{server.url}/{path}", headers=headers)
        assert answer.status_code == 200, answer.text
        (zero,) = re.findall(r'<p class="zero-results">(.*?)</p>', answer.text, re.DOTALL)
        shown = re.sub(r"<span[^>]*hidden>.*?</span>", "", zero)
        return " ".join(re.sub(r"<[^>]*>", "", shown).split()).replace("&#39;", "'")

    def links() -> set[str]:
        return set(re.findall(r'data-link="(\w+)"', httpx.get(server.pubsub).text))

    # Before the log is there, SQL and a link to its table would fail.
    assert httpx.get(f"{server.url}/data/vpubsub").status_code == 404
    assert links() == {"json", "csv"}
    assert said("data/-/pubsub") == "No messages yet. Publish the first one"
    server.publish(channel="other", payload="x")
    assert links() == {"sql", "table", "json", "csv"}
    assert said("data/-/pubsub/it's~2Fhere") == (
        "No messages in the channel it's/here yet. Publish the first one, or in SQL: "
        "INSERT INTO vpubsub (channel, payload) VALUES ('it''s/here', 'world')"
    )
    sqlite_shell(server.path, said("data/-/pubsub/it's~2Fhere").split("SQL: ")[1])
    assert server.rows("SELECT channel FROM vpubsub ORDER BY id") == [("other",), ("it's/here",)]
    in_memory = "Database _memory is in memory: it cannot keep messages"
    immutable = "Database fixed is immutable: nothing can be published to it"
    assert said("_memory/-/pubsub") == f"No messages. {in_memory}"
    assert said("fixed/-/pubsub/a") == f"No messages in the channel a. {immutable}"
    # Nothing can have a subscription or a standing query there, either.
    for database, reason in (("_memory", in_memory), ("fixed", immutable)):
        assert said(f"{database}/-/pubsub/-/subscriptions") == f"No subscriptions. {reason}"
        assert said(f"{database}/-/pubsub/-/queries") == f"No standing queries. {reason}"
    assert said("data/-/pubsub/-/subscriptions").startswith("No subscriptions yet. A subscriber creates one")


# -- the way back --------------------------------------------------------------


def test_back_undoes_one_filter_at_a_time(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(
        *[{"channel": f"{kind}/1", "payload": f"{kind} {text}"} for kind in "ab" for text in ("red", "blue")]
    )
    page = watched.open(server.pubsub)
    box = page.get_by_role("combobox", name="Channels")
    text = page.get_by_role("searchbox", name="Text")
    box.fill("a/*")
    box.press("Enter")
    page.wait_for_url("**?pattern=a*")
    status(page, "Live")
    # Typed with pauses, it is one filter.
    for typed in ("r", "re", "red"):
        text.fill(typed)
        page.wait_for_url(f"**q={typed}")
    text.press("Tab")
    text.fill("blue")
    page.wait_for_url("**q=blue")
    wait_for(lambda: payloads(page) == ["a blue"], "the rows")
    for expected, pattern, rows in (
        ("red", "a/*", ["a red"]),
        ("", "a/*", ["a blue", "a red"]),
        ("", "", ["b blue", "b red", "a blue", "a red"]),
    ):
        page.go_back()
        expect(text).to_have_value(expected)
        expect(box).to_have_value(pattern)
        wait_for(lambda rows=rows: payloads(page) == rows, "the rows")
        status(page, "Live")
    page.go_forward()
    expect(box).to_have_value("a/*")
    page.go_forward()
    expect(text).to_have_value("red")
    wait_for(lambda: payloads(page) == ["a red"], "the rows")
    server.publish({"channel": "a/1", "payload": "blue again"}, {"channel": "a/1", "payload": "red again"})
    first(page, "red again")
    assert payloads(page) == ["red again", "a red"]


@pytest.mark.parametrize("scripts", [True, False])
def test_every_page_of_a_database_leads_back_to_live_messages(
    serve: Callable[..., Server], browser: Browser, scripts: bool
) -> None:
    server = serve()
    server.publish(channel="a", payload="x")
    context = browser.new_context(java_script_enabled=scripts)
    page = context.new_page()
    for path in ("/a", "?before=1", "/-/publish-form", "/-/subscriptions", "/-/queries"):
        page.goto(server.pubsub + path)
        page.locator("header").get_by_role("link", name="Live messages").click()
        expect(page).to_have_url(server.pubsub)
        expect(page.get_by_role("heading", level=1)).to_have_text("Live messages")
    # The page itself is not among its own crumbs.
    expect(page.locator("header").get_by_role("link", name="Live messages")).to_have_count(0)
    context.close()


def test_a_page_has_one_format_of_times(serve: Callable[..., Server], browser: Browser) -> None:
    server = serve(config=CONFIG)
    fill(server)
    context = browser.new_context()
    log_in(context, server)
    for name in ("panel", "live", "channel", "subscriptions", "queries", "query"):
        page = show(context, server, name)
        times = [*page.locator("section.content time").all_text_contents()]
        if name == "query":
            times.append(page.locator(".pubsub-time").inner_text().removeprefix("last change "))
            title = page.locator("tr.pubsub-changed").get_attribute("title") or ""
            times.append(title.removeprefix("Changed at "))
        assert times, name
        assert [time for time in times if not MOMENT.fullmatch(time)] == [], name
        page.close()
    context.close()
