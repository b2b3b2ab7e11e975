"""The live pages of tables, views and queries, in a real Chromium with another process writing."""

from __future__ import annotations

import re
from collections.abc import Callable

import browsers as chromium
import httpx
import pytest
from auth import actor_cookies
from browsers import Watched, status
from datasette.utils import tilde_encode
from playwright.sync_api import Browser, Page, Route, expect
from servers import Server, sqlite_shell
from shop import CONFIG, row, rows, shop, until_rows

pytestmark = chromium.NEEDED


def live_links(page: Page) -> list[str]:
    """Where the page offers its live page: in the menu, and beside JSON and CSV."""
    return page.locator("a[href*='.live']").evaluate_all("links => links.map((link) => link.getAttribute('href'))")


# -- what is seen --------------------------------------------------------------


def test_rows_of_a_filtered_table_come_change_and_go(serve: Callable[..., Server], watched: Watched) -> None:
    server = shop(serve)
    page = watched.context.new_page()
    page.goto(f"{server.url}/data/orders?status=open&_sort_desc=total")
    assert live_links(page) == ["/data/orders.live?status=open&_sort_desc=total"] * 2
    page.locator(".export-links").get_by_role("link", name="live").click()
    status(page, "Live: changes appear as they happen")
    assert rows(page) == [["2", "2", "80.0", "open"], ["1", "1", "12.5", "open"]]
    assert "customer_id" in page.locator("th").nth(1).inner_text()
    expect(page.locator("pubsub-query tbody a").first).to_have_attribute("href", "/data/orders/2")
    expect(page.locator(".pubsub-count")).to_have_text("2 rows")
    page.evaluate("for (const cell of document.querySelectorAll('td')) cell.same = true")
    sqlite_shell(server.path, "UPDATE orders SET total = 81.0 WHERE id = 2")
    expect(row(page, "81.0")).to_have_class(re.compile("pubsub-changed"))
    expect(row(page, "81.0")).to_have_attribute("title", re.compile("^Changed at "))
    # No cell is made anew, and only what has changed is filled anew.
    kept = page.locator("tbody tr").first.locator("td").evaluate_all("cells => cells.map((cell) => cell.same)")
    assert kept == [True] * 4
    sqlite_shell(server.path, "INSERT INTO orders VALUES (9, 1, 50, 'open')")
    expect(row(page, "50.0")).to_have_class(re.compile("pubsub-new"))
    expect(page.locator(".pubsub-count")).to_have_text("3 rows")
    assert [cells[0] for cells in rows(page)] == ["2", "9", "1"]
    # It leaves the filter, and so the page.
    sqlite_shell(server.path, "UPDATE orders SET status = 'sent' WHERE id = 9")
    expect(row(page, "50.0")).to_have_class(re.compile("pubsub-gone"))
    expect(page.locator(".pubsub-count")).to_have_text("2 rows")
    # What is gone may come back, once.
    sqlite_shell(server.path, "UPDATE orders SET status = 'open' WHERE id = 9")
    expect(row(page, "50.0")).to_have_class(re.compile("pubsub-new"))
    expect(page.locator("tbody tr")).to_have_count(3)
    sqlite_shell(server.path, "DELETE FROM orders")
    expect(page.locator(".pubsub-gone")).to_have_count(3)
    expect(page.locator(".zero-results")).to_be_visible()
    expect(page.locator(".pubsub-said")).to_have_text(re.compile("new|gone"))


@pytest.mark.parametrize("width", [390, 1280])
def test_a_stored_query_with_a_join_changed_by_another_process(
    serve: Callable[..., Server], watched: Watched, width: int
) -> None:
    server = shop(serve)
    page = watched.context.new_page()
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{server.url}/data/totals")
    assert live_links(page) == ["/data/totals.live"] * 2
    page.goto(f"{server.url}/data/totals.live")
    status(page, "Live: changes appear as they happen")
    assert rows(page) == [["Grace", "1", "80.0"], ["Ada", "2", "19.75"]]
    ada = row(page, "Ada").element_handle()
    sqlite_shell(server.path, "INSERT INTO orders VALUES (10, 1, 100, 'open')")
    expect(row(page, "Ada")).to_have_class(re.compile("pubsub-changed"))
    until_rows(page, [["Ada", "3", "119.75"], ["Grace", "1", "80.0"]])
    # It is the same row, in another place.
    assert ada is not None
    assert ada.evaluate("row => row === document.querySelector('.pubsub-result tbody tr')")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    named = page.locator("tbody td").first.evaluate("cell => getComputedStyle(cell, '::before').content")
    assert named == ('"name"' if width == 390 else "none")


def test_views_sql_with_parameters_and_no_rows(serve: Callable[..., Server], watched: Watched) -> None:
    server = shop(serve)
    page = watched.open(f"{server.url}/data/open_orders.live")
    assert rows(page) == [["1", "12.5"], ["2", "80.0"]]
    page.goto(f"{server.url}/data/-/query?sql=SELECT+max(total)+FROM+orders+WHERE+status+=+:status&status=lost")
    page.locator("summary", has_text="Query actions").click()
    page.get_by_role("menuitem", name="Live").click()
    status(page, "Live: changes appear as they happen")
    assert rows(page) == [["\u00a0"]]
    sqlite_shell(server.path, "UPDATE orders SET status = 'lost' WHERE id = 3")
    # One row stays the same row.
    expect(row(page, "7.25")).to_have_class(re.compile("pubsub-changed"))
    page.goto(f"{server.url}/data/with_status.live?status=none")
    expect(page.locator(".zero-results")).to_be_visible()
    status(page, "Live: changes appear as they happen")
    sqlite_shell(server.path, "UPDATE orders SET status = 'none' WHERE id = 1")
    expect(row(page, "12.5")).to_have_class(re.compile("pubsub-new"))
    expect(page.locator(".zero-results")).to_be_hidden()


def test_duplicates_are_rows_of_their_own(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    sqlite_shell(server.path, "CREATE TABLE t (v); INSERT INTO t VALUES ('a'), ('a'), ('b')")
    page = watched.open(f"{server.url}/data/-/query.live?sql=SELECT+v+FROM+t+ORDER+BY+v")
    sqlite_shell(server.path, "INSERT INTO t VALUES ('a')")
    expect(page.locator(".pubsub-new")).to_have_count(1)
    assert rows(page) == [["a"], ["a"], ["a"], ["b"]]
    sqlite_shell(server.path, "DELETE FROM t WHERE rowid IN (1, 2)")
    until_rows(page, [["a"], ["b"]])
    expect(page.locator(".pubsub-gone")).to_have_count(2)


def test_nothing_is_missed_between_the_page_and_the_stream(serve: Callable[..., Server], watched: Watched) -> None:
    server = shop(serve)

    def late(route: Route) -> None:
        sqlite_shell(server.path, "DELETE FROM orders WHERE id = 1; INSERT INTO orders VALUES (4, 2, 44, 'open')")
        route.continue_()

    watched.context.route("**/pages/query.js*", late)
    page = watched.open(f"{server.url}/data/orders.live")
    expect(row(page, "44.0")).to_have_class(re.compile("pubsub-new"))
    expect(row(page, "12.5")).to_have_class(re.compile("pubsub-gone"))
    assert page.locator("tbody tr:not([class])").count() == 2


def test_pages_of_a_table_and_columns_that_change(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    sqlite_shell(
        server.path,
        """CREATE TABLE n (id INTEGER PRIMARY KEY, "key" TEXT);
        WITH RECURSIVE x (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM x WHERE n < 1234)
        INSERT INTO n SELECT n, 'k' FROM x""",
    )
    # A column that is called as a parameter of the stream.
    page = watched.open(f"{server.url}/data/n.live?key=k&_size=3")
    expect(page.locator(".pubsub-count")).to_have_text("1,234 rows, 3 on this page")
    sqlite_shell(server.path, "UPDATE n SET key = 'other' WHERE id = 2")
    expect(page.locator(".pubsub-count")).to_have_text("1,233 rows, 3 on this page")
    until_rows(page, [["1", "k"], ["3", "k"], ["4", "k"]])
    page.goto(f"{server.url}/data/-/query.live?sql=SELECT+*+FROM+n+WHERE+id+<+3")
    status(page, "Live: changes appear as they happen")
    sqlite_shell(server.path, "ALTER TABLE n ADD COLUMN more DEFAULT 'more'")
    until_rows(page, [["1", "k", "more"], ["2", "other", "more"]])
    expect(page.locator("th")).to_have_text(["id", "key", "more"])


# -- what the reader does ------------------------------------------------------


def test_paused_changes_wait_and_the_keyboard_resumes(serve: Callable[..., Server], watched: Watched) -> None:
    server = shop(serve)
    page = watched.open(f"{server.url}/data/orders.live")
    button = page.locator(".pubsub-pause")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_text("Resume")
    status(page, "Paused: changes wait")
    before = rows(page)
    sqlite_shell(server.path, "DELETE FROM orders WHERE id = 1; UPDATE orders SET total = 1 WHERE id = 2")
    expect(button).to_have_text("Resume: 2 changes wait")
    sqlite_shell(server.path, "INSERT INTO orders VALUES (7, 1, 7, 'open')")
    expect(button).to_have_text("Resume: 3 changes wait")
    assert rows(page) == before
    page.keyboard.press("Space")
    expect(button).to_have_text("Pause")
    until_rows(page, [["2", "2", "1.0", "open"], ["3", "1", "7.25", "sent"], ["7", "1", "7.0", "open"]])
    expect(page.locator(".pubsub-gone")).to_have_count(1)
    assert page.evaluate("document.activeElement.className") == "core pubsub-pause"
    expect(button).to_be_focused()


def test_without_scripts_the_page_is_plain_and_says_so(serve: Callable[..., Server], browser: Browser) -> None:
    server = shop(serve)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server.url}/data/orders.live?status=open")
    expect(page.locator("noscript")).to_be_visible()
    assert "does not update, as scripts are off" in page.locator("noscript").evaluate("element => element.innerText")
    assert rows(page) == [["1", "1", "12.5", "open"], ["2", "2", "80.0", "open"]]
    expect(page.locator(".pubsub-count")).to_have_text("2 rows on this page")
    page.get_by_role("link", name="Filter and sort").click()
    assert page.url == f"{server.url}/data/orders?status=open"
    for path in ("orders.live?status=open", "totals.live", "-/query.live?sql=SELECT+:a&a=1"):
        page.goto(f"{server.url}/data/{path}")
        for name in ("json", "CSV"):
            href = page.get_by_role("link", name=name, exact=True).get_attribute("href")
            assert href is not None
            assert httpx.get(f"{server.url}{href}", timeout=60).status_code == 200, (path, name)
    context.close()


def test_an_error_is_shown_and_over_when_the_query_runs_again(serve: Callable[..., Server], watched: Watched) -> None:
    server = shop(serve)
    page = watched.open(f"{server.url}/data/-/query.live?sql=SELECT+id,+total+FROM+orders")
    before = rows(page)
    sqlite_shell(server.path, "DROP VIEW open_orders; DROP TABLE orders")
    status(page, "Not up to date: sql: no such table: orders")
    assert rows(page) == before
    # Also for a page that is opened anew, which is told so by a refusal.
    sqlite_shell(server.path, "CREATE TABLE orders (id, total); INSERT INTO orders VALUES (1, 12.5), (5, 5.5)")
    status(page, "Live: changes appear as they happen")
    until_rows(page, [["1", "12.5"], ["5", "5.5"]])
    expect(row(page, "5.5")).to_have_class(re.compile("pubsub-new"))


def test_a_server_that_restarts_is_found_again(serve: Callable[..., Server], watched: Watched) -> None:
    server = shop(serve)
    page = watched.open(f"{server.url}/data/orders.live")
    server.kill()
    status(page, re.compile("^Reconnecting: "))
    sqlite_shell(server.path, "UPDATE orders SET total = 99 WHERE id = 1")
    server.start()
    status(page, "Live: changes appear as they happen")
    expect(page.locator(".pubsub-changed")).to_have_count(1)
    expect(page.locator(".pubsub-new")).to_have_count(0)


# -- who, and what must not be -------------------------------------------------


def test_hostile_values_and_names_are_text(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    evil = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"""
    name = """a</script><img src=x onerror=alert(3)>"" b"""
    sqlite_shell(
        server.path,
        f"""CREATE TABLE "{evil}" (id INTEGER PRIMARY KEY, "{name}" TEXT, url TEXT, b BLOB);
        INSERT INTO "{evil}" VALUES (1, '{evil}', 'https://example.com/"><script>alert(4)</script>', x'3c')""",
    )
    page = watched.context.new_page()
    page.goto(f"{server.url}/data/{tilde_encode(evil)}")
    page.locator(".export-links").get_by_role("link", name="live").click()
    status(page, "Live: changes appear as they happen")
    address = 'https://example.com/"><script>alert(4)</script>'
    expected = ["1", evil, address, "<Binary:\u00a01\u00a0byte>"]
    assert rows(page) == [expected]
    sqlite_shell(
        server.path,
        f"""INSERT INTO "{evil}" SELECT 9007199254740993, "{name}", url, x'0102' FROM "{evil}";
        INSERT INTO "{evil}" VALUES (3, 'javascript:alert(5)', ' http://x/y ', NULL)""",
    )
    made = ["9007199254740993", evil, address, "<Binary:\u00a02\u00a0bytes>"]
    until_rows(page, [expected, ["3", "javascript:alert(5)", "http://x/y", "\u00a0"], made])
    assert page.locator("tbody a[href^='javascript']").count() == 0
    assert page.locator("pubsub-query :is(img, td script)").count() == 0
    # The server shows what the script has shown.
    cells = "cells => cells.map((cell) => [cell.className, cell.dataset.column, cell.innerHTML])"
    before = page.locator(".pubsub-result td").evaluate_all(cells)
    page.reload()
    assert page.locator(".pubsub-result td").evaluate_all(cells) == before


def test_who_may_not_ask_gets_no_link_and_no_page(serve: Callable[..., Server], watched: Watched) -> None:
    database = {**CONFIG["databases"]["data"], "permissions": {"execute-sql": {"id": "ada"}}}
    database["tables"] = {"customers": {"allow": {"id": "ada"}}}
    server = shop(serve, {"databases": {"data": database}})

    def code(path: str, actor: str | None = None) -> int:
        cookies = actor_cookies(actor) if actor else None
        return httpx.get(f"{server.url}/data/{path}", cookies=cookies, timeout=60).status_code

    sql = "sql=SELECT+*+FROM+orders"
    for path in (f"-/query.live?{sql}", "customers.live", f"-/pubsub/-/live?{sql}", "-/pubsub/-/live?table=customers"):
        assert code(path) == 403, path
    assert (code(f"-/query.live?{sql}", "ada"), code("customers.live", "ada")) == (200, 200)
    # What everybody may see is live for everybody.
    page = watched.open(f"{server.url}/data/orders.live")
    assert len(rows(page)) == 3
    assert "execute-sql" not in page.content()


def test_no_link_to_what_cannot_be_live(serve: Callable[..., Server], watched: Watched) -> None:
    server = shop(serve)
    page = watched.context.new_page()
    for path in ("with_status", "clear", "-/query?sql=SELECT+:a", "orders/1"):
        page.goto(f"{server.url}/data/{path}")
        assert live_links(page) == [], path
    for path, text in (
        ("with_status.live", "the query needs a value for its parameter status"),
        ("clear.live", "query clear writes: a live query only reads"),
    ):
        page.goto(f"{server.url}/data/{path}")
        expect(page.get_by_role("alert")).to_have_text(text)
    assert httpx.get(f"{server.url}/data/orders/1.live", timeout=60).status_code == 404
    # Too many rows for a live query: the first are there, and the page says why they stay as they are.
    sqlite_shell(
        server.path,
        "WITH RECURSIVE x (n) AS (VALUES (10) UNION ALL SELECT n + 1 FROM x WHERE n < 1200)"
        "INSERT INTO orders SELECT n, 1, 1, 'many' FROM x",
    )
    page.goto(f"{server.url}/data/-/query.live?sql=SELECT+id+FROM+orders")
    expect(page.locator(".pubsub-count")).to_have_text("More than 1,000 rows")
    status(page, re.compile("the result has more than 1000 rows"))


@pytest.mark.parametrize("option", ["live_tables", "enabled"])
def test_turned_off(serve: Callable[..., Server], option: str) -> None:
    server = shop(serve, {**CONFIG, "plugins": {"datasette-pubsub": {option: False}}})
    for path in ("orders", "totals"):
        assert ".live" not in httpx.get(f"{server.url}/data/{path}", timeout=60).text
        answer = httpx.get(f"{server.url}/data/{path}.live", timeout=60)
        assert (answer.status_code, "no live pages" in answer.text) == (404, True)
    rendered = httpx.get(f"{server.url}/data/orders.json?_extra=renderers", timeout=60)
    assert rendered.json()["renderers"].keys() == {"json"}
