"""The live channel viewer, in a real Chromium against a real server."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable

import browsers as chromium
import httpx
import pytest
from browsers import Watched, first, payloads, status
from playwright.sync_api import Browser, Route, expect
from servers import OPEN, Server, sqlite_shell, wait_for

pytestmark = chromium.NEEDED


# -- the page without scripts ------------------------------------------------


def test_without_scripts_the_newest_rows_are_a_table(serve: Callable[..., Server], browser: Browser) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": f"message {n}"} for n in range(250)])
    server.publish({"channel": "b/c", "payload": {"big": 12345678901234567890}}, {"channel": "b/c", "blob": "AAEC"})
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server.pubsub)
    rows = page.locator(".pubsub-messages tbody tr")
    expect(rows).to_have_count(100)
    assert payloads(page)[0] == "3 bytes"
    assert payloads(page)[2:4] == ["message 249", "message 248"]
    page.locator(".pubsub-messages summary").first.click()
    expect(page.locator(".pubsub-messages pre").first).to_have_text('{\n  "big": 12345678901234567890\n}')
    expect(page.locator(".pubsub-channels tbody tr")).to_have_text([re.compile("^b/c2"), re.compile("^a250")])

    page.get_by_role("link", name="b/c").first.click()
    expect(rows).to_have_count(2)
    expect(page.get_by_role("heading", name="b/c")).to_be_visible()
    expect(page.get_by_role("link", name="Older messages")).to_be_hidden()
    context.close()


def test_older_messages_are_pages_of_their_own(serve: Callable[..., Server], browser: Browser) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(250)])
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server.pubsub}/a")
    found = payloads(page)
    while (older := page.get_by_role("link", name="Older messages")).is_visible():
        older.click()
        page.wait_for_url("**before=*")
        found += payloads(page)
    assert found == [str(n) for n in reversed(range(250))]
    page.get_by_role("link", name="Newest messages").click()
    first(page, "249")
    context.close()


@pytest.mark.parametrize("before", ["x", "-1", "1e3"])
def test_before_must_be_a_message_id(serve: Callable[..., Server], before: str) -> None:
    server = serve()
    response = httpx.get(server.pubsub, params={"before": before})
    assert (response.status_code, "before must be a message id" in response.text) == (400, True)


# -- live --------------------------------------------------------------------


def test_messages_arrive_live_from_every_entrance(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    page = watched.open(server.pubsub)
    status(page, "Live")
    expect(page.locator(".zero-results")).to_be_visible()
    server.publish(channel="a", payload="by HTTP")
    first(page, "by HTTP")
    expect(page.locator(".zero-results")).to_be_hidden()
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('b/c', 'by the shell')")
    first(page, "by the shell")
    server.publish(channel="a", payload={"order": 12345678901234567890, "lines": [1.10, {}]})
    page.locator(".pubsub-messages summary").first.click()
    indented = '{\n  "order": 12345678901234567890,\n  "lines": [\n    1.1,\n    {}\n  ]\n}'
    expect(page.locator(".pubsub-messages pre").first).to_have_text(indented)
    expect(page.locator(".pubsub-channels tbody tr")).to_have_text([re.compile("^b/c1"), re.compile("^a2")])
    page.get_by_role("link", name="b/c").first.click()
    expect(page.locator("pubsub-viewer")).to_have_attribute("data-status", "live")
    server.publish({"channel": "a", "payload": "for others"}, {"channel": "b/c", "payload": "again"})
    first(page, "again")
    assert payloads(page) == ["again", "by the shell"]


def test_what_was_published_between_page_and_stream_is_shown_and_counted_once(
    serve: Callable[..., Server], watched: Watched
) -> None:
    server = serve()
    server.publish(channel="a", payload="before")

    def late(route: Route) -> None:
        server.publish(channel="a", payload="between")
        route.continue_()

    watched.context.route("**/pages/viewer.js*", late)
    page = watched.open(server.pubsub)
    first(page, "between")
    assert payloads(page) == ["between", "before"]
    expect(page.locator(".pubsub-channels tbody tr")).to_have_text([re.compile("^a2")])


def test_pause_holds_and_resume_shows_all(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    page = watched.open(f"{server.pubsub}/a")
    server.publish(channel="a", payload="seen")
    first(page, "seen")
    page.get_by_role("button", name="Pause").click()
    status(page, "Paused")
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(37)])
    expect(page.get_by_role("button", name="37 new")).to_be_visible()
    assert payloads(page) == ["seen"]
    page.get_by_role("button", name="Resume").click()
    first(page, "36")
    assert payloads(page) == [str(n) for n in reversed(range(37))] + ["seen"]
    expect(page.get_by_role("button", name="new")).to_be_hidden()
    server.publish(channel="a", payload="live again")
    first(page, "live again")


def test_rows_stay_while_the_reader_is_further_down(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(100)])
    page = watched.open(f"{server.pubsub}/a")
    page.locator(".pubsub-messages tbody tr").nth(80).scroll_into_view_if_needed()
    server.publish(channel="a", payload="new")
    expect(page.get_by_role("button", name="1 new")).to_be_in_viewport()
    assert payloads(page)[0] == "99"
    page.get_by_role("button", name="1 new").click()
    first(page, "new")
    expect(page.locator(".pubsub-messages tbody tr").first).to_be_in_viewport()
    # And by scrolling up, without the button.
    page.locator(".pubsub-messages tbody tr").nth(80).scroll_into_view_if_needed()
    server.publish(channel="a", payload="newer")
    expect(page.get_by_role("button", name="1 new")).to_be_in_viewport()
    page.evaluate("scrollTo(0, 0)")
    first(page, "newer")


def test_the_page_is_bounded_and_the_rest_is_older(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    page = watched.open(server.pubsub)
    for begin in range(0, 1200, 300):
        server.publish(*[{"channel": f"c{n}", "payload": str(n)} for n in range(begin, begin + 300)])
        first(page, str(begin + 299))
    # While they come faster than anybody reads, only the newest are kept; the rest is older.
    count = len(payloads(page))
    assert 20 < count <= 200
    page.get_by_role("link", name="Older messages").click()
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(count + 100)
    assert payloads(page) == [str(n) for n in range(1199, 1099 - count, -1)]
    page.evaluate("scrollTo(0, 0)")
    assert page.locator(".pubsub-channels tbody tr").count() <= 100
    page.get_by_role("button", name="Pause").click()
    server.publish(*[{"channel": "a", "payload": f"held {n}"} for n in range(700)])
    expect(page.get_by_role("button", name="700 new")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    first(page, "held 699")
    assert payloads(page) == [f"held {n}" for n in range(699, 499, -1)]
    page.get_by_role("link", name="Older messages").click()
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(300)
    assert payloads(page) == [f"held {n}" for n in range(699, 399, -1)]


def test_filter_shows_rows_that_contain_a_text(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish({"channel": "fruit", "payload": "apple"}, {"channel": "fruit", "payload": "pear"})
    page = watched.open(server.pubsub)
    page.get_by_role("searchbox", name="Text").fill("APP")
    shown = page.locator(".pubsub-messages tbody tr:visible td.col-payload")
    expect(shown).to_have_text(["apple"])
    server.publish({"channel": "fruit", "payload": "plum"}, {"channel": "fruit", "payload": "pineapple"})
    expect(shown).to_have_text(["pineapple", "apple"])
    page.get_by_role("searchbox", name="Text").fill("")
    expect(shown).to_have_text(["pineapple", "plum", "pear", "apple"])


def test_times_are_in_the_readers_zone(serve: Callable[..., Server], browser: Browser) -> None:
    server = serve()
    server.publish(channel="a", payload="x")
    [(utc,)] = server.rows("SELECT created_at FROM vpubsub")
    [(local,)] = server.rows("SELECT strftime('%Y-%m-%d %H:%M:%f', created_at, '+9 hours') FROM vpubsub")
    context = browser.new_context(timezone_id="Asia/Tokyo")
    page = context.new_page()
    page.goto(f"{server.pubsub}/a")
    time = page.locator(".pubsub-messages time")
    expect(time).to_have_text(local)
    expect(time).to_have_attribute("title", utc.replace("T", " ").replace("Z", " UTC"))
    context.close()


# -- hostile texts -----------------------------------------------------------

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}</td></table>"
TURNED = "\u202egnp.exe \u2066\x1b[31m\x07\x00 \u05d0\u05d1"
TURNED_SHOWN = "⟨U+202E⟩gnp.exe ⟨U+2066⟩␛[31m␇␀ \u05d0\u05d1"
LONG = "<b>" + "x" * (1024 * 1024 - 3)
DEEP = "[" * 4000 + "]" * 4000


def test_hostile_texts_are_texts(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    channel = '"><img src=x onerror=alert(3)>\u202e/~?#%2F'
    items = [
        {"channel": channel, "payload": text}
        for text in (MARKUP, TURNED, LONG, DEEP, json.dumps({MARKUP: LONG[:5000]}))
    ]
    page = watched.open(server.pubsub)
    for load in ("live", "from the server"):
        if load == "live":
            server.publish(*items)
        else:
            page.reload()
        expect(page.locator(".pubsub-messages tbody tr")).to_have_count(5)
        texts = page.locator("td.col-payload").all_text_contents()
        assert texts[4] == MARKUP
        assert texts[3] == TURNED_SHOWN
        assert "the first 10,000 of 1,048,576 characters" in texts[2]
        assert len(texts[2]) < 11_000
        assert len(texts[1]) < 21_000
        assert MARKUP in texts[0]
        shown = channel.replace("\u202e", "⟨U+202E⟩")
        expect(page.locator("td.col-channel").first).to_have_text(shown)
        assert page.locator("pubsub-viewer img, pubsub-viewer script").count() == 0
        expect(page.locator(".pubsub-channels td").first).to_have_text(shown)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("td.col-channel a").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(shown)
    expect(page.locator("pubsub-viewer")).to_have_attribute("data-status", "live")
    server.publish(channel=channel, payload="and live")
    first(page, "and live")


def test_a_strict_content_security_policy_is_kept(serve: Callable[..., Server], watched: Watched) -> None:
    """Datasette's own inline scripts break it; nothing of ours may."""
    server = serve()
    server.publish(channel="a", payload="before")
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
    policy += "; require-trusted-types-for 'script'"

    def strict(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, headers={**response.headers, "content-security-policy": policy})

    watched.context.route(re.compile(r"/-/pubsub$"), strict)
    broken: list[str] = []
    page = watched.context.new_page()
    page.add_init_script(
        "addEventListener('securitypolicyviolation', (event) => (window.broken ??= []).push(event.sourceFile))"
    )
    page.goto(server.pubsub)
    status(page, "Live")
    server.publish(channel="a", payload={"a": 1})
    expect(page.locator(".pubsub-messages summary").first).to_have_text('{"a":1}')
    broken = [entry for entry in page.evaluate("window.broken ?? []") if "datasette_pubsub" in entry]
    source = httpx.get(server.pubsub).text
    ours = source[source.index("<pubsub-viewer") : source.index("</pubsub-viewer>")]
    assert (broken, "<script" in ours, "style=" in ours) == ([], False, False)
    watched.errors.clear()  # of Datasette's own scripts


def test_behind_a_base_url(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve(config={**OPEN, "settings": {"base_url": "/prefix/"}})
    server.publish(channel="a/b", payload="before")
    page = watched.open(f"{server.url}/prefix/{server.database}/-/pubsub")
    server.publish(channel="a/b", payload="live")
    first(page, "live")
    page.locator("td.col-channel a").first.click()
    page.wait_for_url("**/prefix/*/-/pubsub/a~2Fb")
    first(page, "live")
    page.locator("td.col-id a").first.click()
    page.wait_for_url("**/prefix/*/vpubsub/2")
    expect(page.get_by_text("live", exact=True)).to_be_visible()


# -- the server fails --------------------------------------------------------


def test_a_killed_server_is_told_and_what_was_missed_is_shown_once(
    serve: Callable[..., Server], watched: Watched
) -> None:
    server = serve()
    page = watched.open(f"{server.pubsub}/a")
    server.publish(channel="a", payload="1")
    first(page, "1")
    server.kill()
    status(page, re.compile("^Reconnecting: the connection was lost"))
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', '2'), ('b', 'x'), ('a', '3')")
    server.start()
    status(page, "Live")
    first(page, "3")
    server.publish(channel="a", payload="4")
    first(page, "4")
    assert payloads(page) == ["4", "3", "2", "1"]


def test_a_stopped_server_is_told_and_got_over(serve: Callable[..., Server], watched: Watched) -> None:
    """As when the network is cut: nothing ends, nothing comes."""
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": {"heartbeat_seconds": 2}}})
    page = watched.open(f"{server.pubsub}/a")
    server.publish(channel="a", payload="1")
    first(page, "1")
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', '2'), ('a', '3')")
    status(page, "Reconnecting: nothing was heard for 4 s")
    server.process.send_signal(signal.SIGCONT)
    status(page, "Live")
    server.publish(channel="a", payload="4")
    first(page, "4")
    assert payloads(page) == ["4", "3", "2", "1"]


def test_an_ending_server_says_goodbye(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    page = watched.open(f"{server.pubsub}/a")
    server.stop()
    status(page, re.compile("^Reconnecting"))
    server.start()
    status(page, "Live")
    server.publish(channel="a", payload="back")
    first(page, "back")


def test_a_burst_is_shown_and_counted(serve: Callable[..., Server], watched: Watched) -> None:
    """Many times what the page holds: the newest are shown, all are counted, buttons answer."""
    server = serve()
    page = watched.open(server.pubsub)
    for _ in range(10):
        server.publish(*[{"channel": f"c{n % 7}", "payload": {"n": n, "text": "x" * 200}} for n in range(500)])
    expect(page.locator(".pubsub-messages tbody tr").first).to_have_attribute("data-id", "5000")
    assert 20 < page.locator(".pubsub-messages tbody tr").count() <= 200
    page.get_by_role("button", name="Pause").click()
    status(page, "Paused")

    def counted() -> int:
        cells = page.locator(".pubsub-channels td.col-count").all_inner_texts()
        return sum(int(count.replace(",", "")) for count in cells)

    wait_for(lambda: counted() == 5000, "all are counted")
