"""Finding messages: by channel, pattern and text, with and without scripts, into the past and in other forms."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import browsers as chromium
import httpx
import pytest
from browsers import Watched, first, payloads, status
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect
from servers import Server, wait_for
from witnesses import make_file

from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.validation import utc_text
from datasette_pubsub.core.values import Item
from datasette_pubsub.storage import activity, log, search

MATERIAL: list[dict[str, Any]] = [
    {"channel": "orders/1", "payload": "Ärger mit ÄPFELN"},
    {"channel": "orders/2", "payload": {"fruit": "apple", "n": 1}},
    {"channel": "users", "payload": "Apple"},
    {"channel": "users", "blob": "YXBwbGU="},
    {"channel": "users", "payload": 1.5},
]


def read(page: Page) -> tuple[list[str], str]:
    """The payloads of the rows, and the query in the address."""
    return payloads(page), urlsplit(page.url).query


# -- the search itself ---------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    published=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["x", "X1", "é", "É", b"x", 1])), max_size=40
    ),
    selector=st.sampled_from([Selector(patterns=("*",)), Selector.of(["a"]), Selector.of(["b"], ["[cd]"])]),
    text=st.sampled_from(["", "X", "é", "1"]),
    limit=st.integers(1, 7),
)
def test_pages_of_a_search_join_on_to_all_that_match(
    tmp_path_factory: pytest.TempPathFactory,
    published: list[tuple[str, str | bytes | int]],
    selector: Selector,
    text: str,
    limit: int,
) -> None:
    """Whatever is searched for, and however little each answer may read."""
    import sqlite3

    path = tmp_path_factory.mktemp("search") / "data.db"
    make_file(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        log.append(conn, [Item(channel, payload) for channel, payload in published], log.now())
        expected = [
            (channel, payload)
            for channel, payload in reversed(published)
            if selector.matches(channel)
            and (not text or (not isinstance(payload, bytes) and text.lower() in str(payload).lower()))
        ]
        found: list[tuple[str, object]] = []
        before: int | None = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "SEARCHED_MESSAGES", 5)
            patch.setattr(search, "MERGED_CHANNELS", limit % 3)
            while True:
                answer = search.newest(conn, selector, limit, before=before, text=text)
                assert len(answer.messages) <= limit
                found += [(message.channel, message.payload) for message in answer.messages]
                if answer.older is None:
                    break
                assert before is None or answer.older < before
                before = answer.older
        assert found == expected


def test_counts_are_those_of_the_log(tmp_path: Path) -> None:
    """Per channel and span, with a clock that was set back once, and messages before and after what is counted."""
    import sqlite3

    make_file(tmp_path / "data.db")
    span = 179_000_000
    with closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as conn:
        offsets = [-700, -599, -598, -300, -290, -10, -9, 0, 1, 2, 5, 30]
        for n, offset in enumerate(offsets):
            at = utc_text(datetime.fromtimestamp(span * activity.SPAN_SECONDS + offset, UTC))
            log.append(conn, [Item("ab"[n % 2], str(n))] * (n + 1), at)
        for channel in "ab":
            expected = [0] * activity.SPANS
            for n, offset in enumerate(offsets):
                place = min(activity.SPANS - 1, activity.SPANS - 1 + offset // activity.SPAN_SECONDS)
                if "ab"[n % 2] == channel and place >= 0:
                    expected[place] += n + 1
            assert list(activity.counts(conn, [channel], span)[channel]) == expected


# -- without scripts -----------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["1.5", "5 bytes", "Apple", '{"fruit":"apple","n":1}', "Ärger mit ÄPFELN"]),
        ("pattern=orders/*", ['{"fruit":"apple","n":1}', "Ärger mit ÄPFELN"]),
        ("pattern=orders/*&channel=users&q=APPLE", ["Apple", '{"fruit":"apple","n":1}']),
        ("q=%C3%A4pfel", ["Ärger mit ÄPFELN"]),
        ("channel=users&q=1.5", ["1.5"]),
        ("q=pear", []),
    ],
)
def test_the_page_json_csv_sql_and_table_have_the_same_rows(
    serve: Callable[..., Server], query: str, expected: list[str]
) -> None:
    server = serve()
    server.publish(*MATERIAL)
    html = httpx.get(f"{server.pubsub}?{query}").text
    rows = re.findall(
        r'<td class="col-payload">(?:<em>(.*?)</em>|<bdi>(.*?)</bdi>|<details><summary><bdi>(.*?)</bdi>)', html
    )
    assert [next(filter(None, row)).replace("&#34;", '"') for row in rows] == expected
    links = {kind: href.replace("&amp;", "&") for href, kind in re.findall(r'href="([^"]*)" data-link="(\w+)"', html)}
    found = httpx.get(server.url + links["json"]).json()["messages"]
    texts = [message.get("payload", "5 bytes") for message in found]
    assert texts == expected
    table = list(csv.DictReader(io.StringIO(httpx.get(server.url + links["csv"]).text)))
    assert [row["payload"] or "5 bytes" for row in table] == expected
    if "%C3" not in query:  # SQLite's lower() knows only ASCII
        address, _, asked = links["sql"].partition("?")
        answer = httpx.get(f"{server.url}{address}.json?{asked}&_shape=arrays").json()
        assert [str(row[2]) if not isinstance(row[2], dict) else "5 bytes" for row in answer["rows"]] == expected
        if "table" in links:
            address, _, asked = links["table"].partition("?")
            answer = httpx.get(f"{server.url}{address}.json?{asked}&_shape=arrays").json()
            assert [str(row[2]) if not isinstance(row[2], dict) else "5 bytes" for row in answer["rows"]] == expected


@pytest.mark.parametrize(
    ("query", "status_code", "text"),
    [
        ("pattern=" + "x" * 256, 400, "pattern has 256 bytes; the limit is 255 bytes"),
        ("q=" + "x" * 1001, 400, "q has 1001 characters; the limit is 1000 characters"),
        ("before=x", 400, "before must be a message id"),
        ("limit=1001", 400, "limit must be a number of messages from 1 to 1000"),
        ("limit=0", 400, "limit must be a number of messages from 1 to 1000"),
        ("after=-1", 400, "after must be a message id"),
    ],
)
def test_bad_queries_are_refused_by_name(serve: Callable[..., Server], query: str, status_code: int, text: str) -> None:
    server = serve()
    answer = httpx.get(f"{server.pubsub}/-/messages.json?{query}")
    assert (answer.status_code, text in answer.json()["error"]) == (status_code, True)
    if not query.startswith(("limit", "after")):
        page = httpx.get(f"{server.pubsub}?{query}")
        assert (page.status_code, text in page.text) == (status_code, True)


@chromium.needed
def test_without_scripts_the_form_filters_and_older_goes_on(serve: Callable[..., Server], browser: Browser) -> None:
    server = serve()
    server.publish(
        *[{"channel": f"orders/{n % 2}", "payload": f"{'even' if n % 2 else 'odd'} {n}"} for n in range(450)]
    )
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server.pubsub)
    page.get_by_role("combobox", name="Channels").fill("orders/?")
    page.get_by_role("searchbox", name="Text").fill("EVEN")
    with page.expect_navigation():
        page.get_by_role("button", name="Filter").click()
    found = payloads(page)
    while (older := page.get_by_role("link", name="Older messages")).is_visible():
        address = page.url
        older.click()
        page.wait_for_url(lambda url, last=address: url != last)
        assert {"pattern": ["orders/?"], "q": ["EVEN"]}.items() <= parse_qs(urlsplit(page.url).query).items()
        found += payloads(page)
    assert found == [f"even {n}" for n in range(449, -1, -2)]
    page.get_by_role("link", name="Show all").click()
    first(page, "even 449")
    page.locator(".pubsub-channel-list summary").click()
    picture = page.locator(".pubsub-channels").get_by_role("img").first
    expect(picture).to_have_attribute("aria-label", re.compile(r"^225 messages in the last 10 minutes"))
    context.close()


# -- with scripts --------------------------------------------------------------


@chromium.needed
def test_a_text_is_searched_in_the_log_and_in_what_arrives(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(channel="a", payload={"word": "needle", "n": 1})
    server.publish(*[{"channel": "a", "payload": f"hay {n}"} for n in range(300)])
    page = watched.open(f"{server.pubsub}/a")
    page.get_by_role("searchbox", name="Text").fill('"NEEDLE')
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(1)
    assert read(page) == (['{"word":"needle","n":1}'], "q=%22NEEDLE")
    server.publish(*[{"channel": "a", "payload": text} for text in ("hay", 'a "needle" again', "hay")])
    first(page, 'a "needle" again')
    # The links to other forms, and the page itself, say the same.
    for kind in ("json", "csv", "table", "sql"):
        assert "NEEDLE" in (page.locator(f'[data-link="{kind}"]').get_attribute("href") or ""), kind
    shared = watched.open(page.url)
    assert payloads(shared) == payloads(page)
    page.get_by_role("searchbox", name="Text").fill("nothing has this")
    expect(page.get_by_text("No messages that contain this text")).to_be_visible()
    page.get_by_role("searchbox", name="Text").fill("")
    first(page, "hay")
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(100)
    assert urlsplit(page.url).query == ""


@chromium.needed
def test_a_pattern_is_followed_from_the_moment_it_is_chosen(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish({"channel": "orders/1", "payload": "one"}, {"channel": "users", "payload": "other"})
    page = watched.open(server.pubsub)
    box = page.get_by_role("combobox", name="Channels")
    box.fill("orders/*")
    box.press("Enter")
    page.wait_for_url("**?pattern=orders*")
    status(page, "Live")
    server.publish({"channel": "users", "payload": "other"}, {"channel": "orders/2", "payload": "two"})
    first(page, "two")
    assert payloads(page) == ["two", "one"]
    expect(page.locator(".pubsub-channels tbody tr")).to_have_text([re.compile("^orders/21"), re.compile("^orders/11")])


@chromium.needed
def test_filtering_while_paused_and_resuming_loses_nothing(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": f"{'red' if n % 2 else 'blue'} {n}"} for n in range(6)])
    page = watched.open(f"{server.pubsub}/a")
    page.get_by_role("button", name="Pause").click()
    server.publish(*[{"channel": "a", "payload": f"{'red' if n % 2 else 'blue'} {n}"} for n in range(6, 43)])
    expect(page.get_by_role("button", name="37 new")).to_be_visible()
    page.get_by_role("searchbox", name="Text").fill("red")
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(3)
    assert payloads(page) == ["red 5", "red 3", "red 1"]
    page.get_by_role("button", name="Resume").click()
    first(page, "red 41")
    assert payloads(page) == [f"red {n}" for n in range(41, 0, -2)]
    page.get_by_role("searchbox", name="Text").fill("")
    first(page, "blue 42")
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(43)


@chromium.needed
def test_older_messages_come_in_their_place_down_to_the_first(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(350)])
    page = watched.open(f"{server.pubsub}/a")
    older = page.get_by_role("link", name="Older messages")
    for count in (200, 300, 350):
        older.click()
        expect(page.locator(".pubsub-messages tbody tr")).to_have_count(count)
    expect(older).to_be_hidden()
    assert payloads(page) == [str(n) for n in range(349, -1, -1)]
    # While that is read, what arrives waits; at the top it comes, and the rows are bounded again.
    server.publish(channel="a", payload="new")
    expect(page.get_by_role("button", name="1 new")).to_be_visible()
    page.get_by_role("button", name="1 new").click()
    first(page, "new")
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(200)
    older.click()
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(300)
    assert payloads(page) == ["new", *[str(n) for n in range(349, 50, -1)]]


@chromium.needed
def test_pictures_move_with_messages_and_with_time(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": "x"}] * 3)
    page = watched.context.new_page()
    page.clock.install()
    page.goto(f"{server.pubsub}/a")
    picture = page.locator(".pubsub-rate").get_by_role("img")
    begins = re.compile("^3 messages in the last 10 minutes, at most")
    expect(picture).to_have_attribute("aria-label", begins)
    status(page, "Live")
    server.publish(*[{"channel": "a", "payload": "x"}] * 4)
    first(page, "x")
    wait_for(lambda: page.clock.run_for(200) or page.locator(".pubsub-messages tbody tr").count() == 7, "rows")
    expect(picture).to_have_attribute("aria-label", re.compile("^7 messages in the last 10 minutes, at most"))
    expect(page.locator(".pubsub-rate figcaption")).to_have_text(re.compile("^7 messages"))
    page.clock.run_for(11 * 60 * 1000)
    expect(picture).to_have_attribute("aria-label", "No messages in the last 10 minutes")
    assert picture.locator("path").get_attribute("d") == ""


@chromium.needed
def test_how_far_behind_it_is_is_said_while_it_catches_up(serve: Callable[..., Server], watched: Watched) -> None:
    """A stream that stops half way: the rest is counted by the server."""
    server = serve()
    ids = server.publish(*[{"channel": "a", "payload": str(n)} for n in range(10)])
    page = watched.context.new_page()
    fields = {"channel": "a", "createdAt": "2026-01-01T00:00:00.000Z"}
    body = "".join(
        f"id: {n}\ndata: {json.dumps({'messageId': str(n), 'payload': 'x', **fields})}\n\n" for n in ids[7:9]
    )
    page.add_init_script(f"globalThis.body = {json.dumps(body)};")
    page.add_init_script("""
        // Answers to the page's streams, which stay open as a slow server's would.
        const real = fetch;
        globalThis.fetch = (url, options) => {
            if (!String(url).includes("/-/stream")) return real(url, options);
            const stays = new ReadableStream({ start: (to) => to.enqueue(new TextEncoder().encode(body)) });
            return Promise.resolve(new Response(stays, { headers: { "content-type": "text/event-stream" } }));
        };
    """)
    page.goto(f"{server.pubsub}/a")
    page.evaluate(
        """(after) => {
        const viewer = document.querySelector("pubsub-viewer");
        const again = viewer.cloneNode(true);
        again.setAttribute("last-id", after);
        viewer.replaceWith(again);
    }""",
        str(ids[6]),
    )
    status(page, "Catching up (1 behind)")
