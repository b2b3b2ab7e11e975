"""Broadcast this table, and live rows on Datasette's page of it, in a real Chromium with another process writing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import browsers as chromium
import httpx
import pytest
from broadcast_items import ITEMS, broadcast, with_items
from browsers import Watched
from playwright.sync_api import Browser, Locator, Page, Route, expect
from servers import Server, sqlite_shell, wait_for

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.binary() is None, reason=f"none of {', '.join(chromium.NAMES)} is installed"),
]


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


def opened(watched: Watched, url: str) -> Page:
    """A table's page, once it is live."""
    page = watched.context.new_page()
    page.goto(url)
    expect(page.locator("pubsub-table")).to_have_attribute("data-status", "live")
    return page


def row(page: Page, path: str) -> Locator:
    return page.locator(f"table.rows-and-columns tr[data-row='{path}']")


def rows(page: Page) -> Locator:
    return page.locator("table.rows-and-columns tbody tr")


def cells(page: Page, column: str = "name") -> list[str]:
    """A column of the rows that are there, from the top, without those that are gone."""
    return page.locator(f"table.rows-and-columns tbody tr:not(.pubsub-gone) td.col-{column}").all_inner_texts()


# -- live rows ----------------------------------------------------------------


def test_rows_appear_change_and_go(serve: Callable[..., Server], watched: Watched) -> None:
    """In one transaction each, as a row that goes before its message has come is not marked."""
    server = with_items(serve)
    page = opened(watched, f"{server.url}/data/items")
    page.evaluate("document.querySelector('tr[data-row=\"1\"]').same = true")
    sqlite_shell(
        server.path,
        "BEGIN; INSERT INTO items VALUES (4, '<b>four</b>', 4); UPDATE items SET name = 'TWO' WHERE id = 2; COMMIT;",
    )
    expect(row(page, "4")).to_have_class(re.compile("pubsub-new"))
    expect(row(page, "4").locator(".col-name")).to_have_text("<b>four</b>")
    expect(row(page, "2")).to_have_class(re.compile("pubsub-changed"))
    assert cells(page) == ["one", "TWO", "three", "<b>four</b>"]
    expect(page.locator("h3.table-summary")).to_have_text("4 rows")
    sqlite_shell(server.path, "BEGIN; DELETE FROM items WHERE id = 3; UPDATE items SET id = 9 WHERE id = 4; COMMIT;")
    expect(row(page, "3")).to_have_class(re.compile("pubsub-gone"))
    expect(row(page, "4")).to_have_class(re.compile("pubsub-gone"))
    expect(row(page, "9")).to_have_class(re.compile("pubsub-new"))
    assert rows(page).evaluate_all("rows => rows.map(row => row.dataset.row)") == ["1", "2", "3", "4", "9"]
    # What is gone may come back.
    sqlite_shell(server.path, "INSERT INTO items VALUES (3, 'again', 3);")
    expect(row(page, "3")).to_have_class(re.compile("pubsub-new"))
    assert cells(page) == ["one", "TWO", "again", "<b>four</b>"]
    assert page.evaluate("document.querySelector('tr[data-row=\"1\"]').same"), "a row that is the same stays"


def test_nothing_is_missed_between_the_page_and_the_stream(serve: Callable[..., Server], watched: Watched) -> None:
    server = with_items(serve)

    def late(route: Route) -> None:
        sqlite_shell(
            server.path, "BEGIN; DELETE FROM items WHERE id = 1; INSERT INTO items VALUES (4, 'between', 4); COMMIT;"
        )
        route.continue_()

    watched.context.route("**/pages/live_table.js*", late)
    page = opened(watched, f"{server.url}/data/items")
    expect(row(page, "4")).to_have_class(re.compile("pubsub-new"))
    expect(row(page, "1")).to_have_class(re.compile("pubsub-gone"))


def test_filters_order_pages_and_facets_hold(serve: Callable[..., Server], watched: Watched) -> None:
    sql = f"""{ITEMS}
    WITH RECURSIVE n (n) AS (VALUES (100) UNION ALL SELECT n + 1 FROM n WHERE n < 259)
    INSERT INTO items SELECT n, 'many', n FROM n;"""
    server = with_items(serve, sql=sql)
    page = opened(watched, f"{server.url}/data/items?name=many&_sort_desc=price&_facet=name&_size=5")
    assert cells(page, "id") == ["259", "258", "257", "256", "255"]
    expect(page.locator(".facet-results")).to_contain_text("160")
    sqlite_shell(server.path, "INSERT INTO items VALUES (500, 'many', 500), (501, 'other', 501), (50, 'many', 50);")
    expect(row(page, "500")).to_have_class(re.compile("pubsub-new"))
    assert cells(page, "id") == ["500", "259", "258", "257", "256"]
    expect(page.locator("h3.table-summary")).to_contain_text("162 rows")
    expect(page.locator(".facet-results")).to_contain_text("162")
    # It belongs here no more; the one that slid off the page comes back.
    sqlite_shell(server.path, "UPDATE items SET name = 'other' WHERE id = 258;")
    expect(row(page, "258")).to_have_class(re.compile("pubsub-gone"))
    assert cells(page, "id") == ["500", "259", "257", "256", "255"]
    expect(row(page, "255")).not_to_have_class(re.compile("pubsub-"))
    page.get_by_role("link", name="Next page").click()
    expect(rows(page).first).to_have_attribute("data-row", "254")
    assert "_nosuggest" not in page.url
    expect(page.locator("pubsub-table")).to_have_attribute("data-status", "live")
    sqlite_shell(server.path, "UPDATE items SET price = 254.5 WHERE id = 254;")
    expect(row(page, "254")).to_have_class(re.compile("pubsub-changed"))
    assert cells(page, "id") == ["254", "253", "252", "251", "250"]


def test_any_name_key_and_kind_of_table(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve(options=["--setting", "base_url", "/sub/"])
    sqlite_shell(
        server.path,
        """CREATE TABLE "it's \"\"q\"\" ü/😀"
        ("a b" TEXT, "c,d" INTEGER, v BLOB, PRIMARY KEY ("a b", "c,d")) WITHOUT ROWID;
        CREATE TABLE plain (v);""",
    )
    for table in ('it\'s "q" ü/😀', "plain"):
        broadcast(server, table)
    base = f"{server.url}/sub/data"
    page = opened(watched, f"{base}/plain")
    expect(page.locator("p.zero-results")).to_be_visible()
    sqlite_shell(server.path, "INSERT INTO plain VALUES (NULL);")
    expect(row(page, "1")).to_have_class(re.compile("pubsub-new"))
    expect(page.locator("p.zero-results")).to_have_count(0)
    page = watched.context.new_page()
    link = page.get_by_role("link", name="it's")

    def listed() -> int:
        # Datasette looks for new tables once a second.
        page.goto(base)
        return link.count()

    wait_for(listed, "the table is on the page of the database")
    link.first.click()
    expect(page.locator("pubsub-table")).to_have_attribute("data-status", "live")
    table = '"it\'s ""q"" ü/😀"'
    sqlite_shell(server.path, f"INSERT INTO {table} VALUES ('x/ü ~', 9007199254740993, x'00ff'), ('y', 1, NULL);")
    expect(rows(page)).to_have_count(2)
    expect(rows(page).first).to_have_class(re.compile("pubsub-new"))
    sqlite_shell(server.path, f"DELETE FROM {table} WHERE \"a b\" GLOB 'x*'; UPDATE {table} SET v = 1;")
    expect(rows(page).first).to_have_class(re.compile("pubsub-gone"))
    expect(rows(page).last).to_have_class(re.compile("pubsub-changed"))


def test_it_can_be_turned_off_and_that_is_remembered(serve: Callable[..., Server], watched: Watched) -> None:
    server = with_items(serve)
    page = opened(watched, f"{server.url}/data/items")
    page.get_by_role("button", name="Turn off live rows").click()
    expect(page.get_by_role("status")).to_have_text("Live rows are off")
    streams = len(watched.streams)
    page.reload()
    expect(page.get_by_role("status")).to_have_text("Live rows are off")
    sqlite_shell(server.path, "INSERT INTO items VALUES (4, 'four', 4)")
    assert (cells(page), len(watched.streams)) == (["one", "two", "three"], streams)
    page.get_by_role("button", name="Turn on live rows").click()
    expect(rows(page)).to_have_count(4)
    sqlite_shell(server.path, "INSERT INTO items VALUES (5, 'five', 5)")
    expect(row(page, "5")).to_have_class(re.compile("pubsub-new"))
    # Under another name the table's messages keep the old one.
    sqlite_shell(server.path, "ALTER TABLE items RENAME TO things")
    page.goto(f"{server.url}/data/things")
    expect(page.locator("pubsub-table")).to_have_attribute("data-status", "live")
    sqlite_shell(server.path, "DELETE FROM things WHERE id = 5")
    expect(row(page, "5")).to_have_class(re.compile("pubsub-gone"))


def test_only_for_those_who_may_see_the_channel(serve: Callable[..., Server]) -> None:
    def parts(server: Server, path: str = "/data/items", **cookies: str) -> bool:
        response = httpx.get(f"{server.url}{path}", cookies=cookies)
        assert response.status_code == 200, response.text
        assert ("pages/live_table.js" in response.text) == ("<pubsub-table" in response.text)
        return "<pubsub-table" in response.text

    rules = {"channel_permissions": {"changes/*": {"view": {"id": "root"}}}}
    server = with_items(
        serve, config={"databases": {"data": {"plugins": {"datasette-pubsub": rules}}}}, options=["--root"]
    )
    root = server.root_cookie()
    assert not parts(server)
    assert parts(server, **root)
    assert not parts(server, "/data/existing", **root)
    assert "pubsub-table" not in httpx.get(f"{server.url}/data/items.json", cookies=root).text
    server.stop()
    off = with_items(serve, config={"plugins": {"datasette-pubsub": {"live_tables": False}}}, databases=["other"])
    assert not parts(off, "/other/items")


def test_a_right_that_ends_shows_no_rows(serve: Callable[..., Server], watched: Watched) -> None:
    """The channel goes on telling, but rows come from Datasette's page alone."""
    server = with_items(serve)
    page = opened(watched, f"{server.url}/data/items")
    page.route("**/data/items?_nosuggest=1", lambda route: route.fulfill(status=403, body="Forbidden"))
    sqlite_shell(server.path, "INSERT INTO items VALUES (4, 'secret', 4)")
    expect(page.get_by_role("status")).to_have_text("The rows may be out of date (the server answers 403)")
    assert "secret" not in page.content()


def test_the_server_goes_away_and_comes_back(serve: Callable[..., Server], watched: Watched) -> None:
    server = with_items(serve)
    page = opened(watched, f"{server.url}/data/items")
    server.kill()
    expect(page.get_by_role("status")).to_contain_text("Reconnecting")
    sqlite_shell(
        server.path, "BEGIN; INSERT INTO items VALUES (4, 'meanwhile', 4); DELETE FROM items WHERE id = 1; COMMIT;"
    )
    server.start()
    expect(row(page, "4")).to_have_class(re.compile("pubsub-new"))
    expect(row(page, "1")).to_have_class(re.compile("pubsub-gone"))
    expect(page.locator("pubsub-table")).to_have_attribute("data-status", "live")


STORM = """
import sqlite3, sys, time
conn = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
began = time.monotonic()
for n in range(int(sys.argv[2])):
    conn.execute("INSERT INTO items VALUES (?, 'new', 1)", [10 + n])
    conn.execute("UPDATE items SET price = ? WHERE id = ?", [n, n % 3 + 1])
    time.sleep(max(0.0, began + 2 * n / 500 - time.monotonic()))
conn.execute("DELETE FROM items WHERE id >= 10")
"""


def test_many_changes_are_shown_at_a_pace_that_can_be_borne(serve: Callable[..., Server], watched: Watched) -> None:
    """500 changes a second: few looks at the page, which answers clicks, and the last state at the end."""
    server = with_items(serve)
    page = opened(watched, f"{server.url}/data/items?_size=50")
    looks: list[str] = []
    page.on("request", lambda request: looks.append(request.url) if "_nosuggest" in request.url else None)
    count = 1000
    with subprocess.Popen([sys.executable, "-c", STORM, str(server.path), str(count)]) as writer:
        while writer.poll() is None:
            page.locator("h1").click()
    expect(page.locator("h3.table-summary")).to_have_text("3 rows")
    expect(row(page, "3").locator(".col-price")).to_have_text(str(float(max(n for n in range(count) if n % 3 == 2))))
    # Datasette reads the rows before it counts them: what was removed in between goes with the next look.
    there = page.locator("table.rows-and-columns tbody tr:not(.pubsub-gone) td.col-name")
    expect(there).to_have_text(["one", "two", "three"])
    assert rows(page).count() <= 3 + 50
    seconds = page.evaluate("performance.now()") / 1000
    assert 1 <= len(looks) <= 2 * seconds + 2
