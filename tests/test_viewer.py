"""The live channel viewer and the module under it, in a real Chromium against a real server."""

from __future__ import annotations

import functools
import json
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import browser as chromium
import httpx
import pytest
from browser import Watched
from conftest import DEADLINE, OPEN, Server, sqlite_shell, wait_for
from playwright.sync_api import Browser, Page, Route, expect

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.binary() is None, reason=f"none of {', '.join(chromium.NAMES)} is installed"),
]

MODULE = "/-/static-plugins/datasette_pubsub/pubsub.js"

#: Begins to follow channels in a page, and keeps what was called back in `window.seen[name]`.
CONNECT = """async ([module, name, options]) => {
    const { connect } = await import(module);
    window.seen ??= {};
    const seen = window.seen[name] = { messages: [], gaps: [], statuses: [], reasons: [] };
    seen.connection = connect({
        ...options,
        onmessage: (message) => seen.messages.push(message.payload),
        ongap: (gap) => seen.gaps.push(gap),
        onstatus: (status, detail) => { seen.statuses.push(status); seen.reasons.push(detail.reason ?? null); },
    });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.running() as found:
        yield found


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A fresh profile; afterwards: no script has failed, no dialog was shown."""
    context = browser.new_context()
    found = Watched(context)
    yield found
    context.close()
    assert (found.errors, found.dialogs) == ([], [])


def payloads(page: Page) -> list[str]:
    """What the rows show as payload, from the top."""
    return page.locator(".pubsub-messages tbody td.col-payload").all_inner_texts()


def first(page: Page, text: str) -> None:
    """Wait until this is the newest payload."""
    expect(page.locator(".pubsub-messages tbody td.col-payload").first).to_have_text(text)


def status(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.get_by_role("status")).to_have_text(text)


def follow(page: Page, server: Server, name: str = "it", **options: Any) -> None:
    """Follow channels with the module itself."""
    base = {} if "url" in options else {"base": f"/{server.database}/-/pubsub"}
    page.evaluate(CONNECT, [MODULE, name, base | options])


def seen(page: Page, what: str, name: str = "it") -> Any:
    return page.evaluate("([name, what]) => window.seen[name][what]", [name, what])


def until(page: Page, condition: str, name: str = "it") -> None:
    """Wait until an expression about `seen` is true."""
    page.wait_for_function(f"(name) => {{ const seen = window.seen[name]; return {condition}; }}", arg=name)


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
    expect(page.locator(".pubsub-channels tbody tr")).to_have_text([re.compile("^a250"), re.compile("^b/c2")])

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
    expect(page.locator(".zero-results")).to_have_count(0)
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('b/c', 'by the shell')")
    first(page, "by the shell")
    server.publish(channel="a", payload={"order": 12345678901234567890, "lines": [1.10, {}]})
    page.locator(".pubsub-messages summary").first.click()
    indented = '{\n  "order": 12345678901234567890,\n  "lines": [\n    1.1,\n    {}\n  ]\n}'
    expect(page.locator(".pubsub-messages pre").first).to_have_text(indented)
    expect(page.locator(".pubsub-channels tbody tr")).to_have_text([re.compile("^a2"), re.compile("^b/c1")])
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

    watched.context.route("**/pubsub_viewer.js*", late)
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
    status(page, "Live, paused")
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
    assert payloads(page) == [str(n) for n in range(1199, 999, -1)]
    assert page.locator(".pubsub-channels tbody tr").count() <= 100
    page.get_by_role("button", name="Pause").click()
    server.publish(*[{"channel": "a", "payload": f"held {n}"} for n in range(700)])
    expect(page.get_by_role("button", name="700 new")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    first(page, "held 699")
    assert payloads(page) == [f"held {n}" for n in range(699, 499, -1)]
    page.get_by_role("link", name="Older messages").click()
    first(page, "held 499")


def test_filter_shows_rows_that_contain_a_text(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish({"channel": "fruit", "payload": "apple"}, {"channel": "fruit", "payload": "pear"})
    page = watched.open(server.pubsub)
    page.get_by_role("searchbox").fill("APP")
    shown = page.locator(".pubsub-messages tbody tr:visible td.col-payload")
    expect(shown).to_have_text(["apple"])
    server.publish({"channel": "fruit", "payload": "plum"}, {"channel": "fruit", "payload": "pineapple"})
    expect(shown).to_have_text(["pineapple", "apple"])
    page.get_by_role("searchbox").fill("")
    expect(shown).to_have_text(["pineapple", "plum", "pear", "apple"])


def test_times_are_in_the_readers_zone(serve: Callable[..., Server], browser: Browser) -> None:
    server = serve()
    server.publish(channel="a", payload="x")
    [(utc,)] = server.rows("SELECT created_at FROM pubsub_messages")
    [(local,)] = server.rows("SELECT strftime('%Y-%m-%d %H:%M:%f', created_at, '+9 hours') FROM pubsub_messages")
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
    page.wait_for_url("**/prefix/*/pubsub_messages/2")
    expect(page.get_by_text("live", exact=True)).to_be_visible()


# -- the network and the server fail -----------------------------------------


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


def test_an_ending_server_says_goodbye(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    page = watched.open(f"{server.pubsub}/a")
    server.stop()
    status(page, re.compile("^Reconnecting"))
    server.start()
    status(page, "Live")
    server.publish(channel="a", payload="back")
    first(page, "back")


def test_a_silent_connection_is_given_up(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": {"heartbeat_seconds": 0.2}}})
    page = watched.open(server.pubsub)
    follow(page, server, channels=["a"], silenceSeconds=2)
    until(page, "seen.statuses.at(-1) === 'live'")
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    until(page, "seen.reasons.at(-1) === 'nothing was heard for 2 s'")
    server.process.send_signal(signal.SIGCONT)
    until(page, "seen.statuses.at(-1) === 'live'")
    server.publish(channel="a", payload="back")
    until(page, "seen.messages.length === 1")
    # Heartbeats keep a quiet connection. That nothing happens cannot be waited for: longer than the silence.
    opened = len(watched.streams)
    page.evaluate("new Promise((done) => setTimeout(done, 3000))")
    assert seen(page, "statuses")[-1] == "live"
    assert len(watched.streams) == opened


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
    # The viewer's own stream of each tab is shared as well: one, and then one per beginning.
    assert len([url for url in watched.streams if "channel=a" in url]) == 3


def test_hand_over_under_load_loses_and_doubles_nothing(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    tabs = []
    for _ in range(5):
        page = watched.open(server.pubsub)
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
    page = watched.open(server.pubsub)
    page.evaluate(
        """(server) => {
            const url = new URL(`/${server}/-/pubsub/-/stream?channel=a`, location.href).href;
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
            const { name } = held.find((lock) => lock.name.includes("channel=a"));
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
    assert not [name for name in locks if "channel=a" in name]


def test_a_burst_is_shown_and_counted(serve: Callable[..., Server], watched: Watched) -> None:
    """Many times what the page holds: the newest are shown, all are counted, buttons answer."""
    server = serve()
    page = watched.open(server.pubsub)
    for _ in range(10):
        server.publish(*[{"channel": f"c{n % 7}", "payload": {"n": n, "text": "x" * 200}} for n in range(500)])
    expect(page.locator(".pubsub-messages tbody tr").first).to_have_attribute("data-id", "5000")
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(200)
    page.get_by_role("button", name="Pause").click()
    status(page, "Live, paused")

    def counted() -> int:
        cells = page.locator(".pubsub-channels td.type-int").all_inner_texts()
        return sum(int(count) for count in cells)

    wait_for(lambda: counted() == 5000, "all are counted")
