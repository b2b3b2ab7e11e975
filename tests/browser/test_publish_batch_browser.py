"""publish_batch on the SQL page in a real Chromium: the button publishes once, and nothing else publishes."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import browsers as chromium
import pytest
from batch_page import SELECT, install, published
from playwright.sync_api import Browser, BrowserContext, Page, expect
from servers import OPEN, Server

pytestmark = chromium.NEEDED


NOT_RUN = "It was not run, since opening a page publishes nothing."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.running() as found:
        yield found


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context() as found:
        found.set_default_timeout(chromium.DEADLINE_MS)
        yield found


@pytest.fixture
def server(serve: Callable[..., Server], tmp_path: Path) -> Server:
    install(tmp_path / "data.db")
    config: dict[str, Any] = {
        **OPEN,
        "databases": {
            "data": {
                "queries": {
                    "say": {"sql": "SELECT publish_batch(:channel, x) AS n FROM t"},
                    "hidden": {"sql": "SELECT publish_batch('h', x) AS n FROM t", "hide_sql": True},
                }
            }
        },
    }
    return serve(config=config)


def result(page: Page) -> list[str]:
    return page.locator("table.rows-and-columns td").all_inner_texts()


def sql_page(context: BrowserContext, server: Server, sql: str = "SELECT 1") -> Page:
    page = context.new_page()
    page.goto(f"{server.url}/data/-/query?sql={quote(sql)}")
    return page


def typed(page: Page, sql: str) -> None:
    page.locator(".cm-content").fill(sql)


def press(page: Page, name: str = "Run SQL") -> None:
    with page.expect_navigation(url="**_pubsub_run=**"):
        page.get_by_role("button", name=name, exact=True).click()


def told(page: Page, count: int) -> None:
    verb = "message was" if count == 1 else "messages were"
    expect(page.locator(".pubsub-run .message-info")).to_contain_text(
        re.compile(rf"^{count} {verb} published at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\.")
    )


def test_the_button_publishes_once_and_nothing_else_does(server: Server, context: BrowserContext) -> None:
    page = sql_page(context, server)
    typed(page, SELECT)
    press(page)
    assert (result(page), published(server)) == (["3"], 3)
    told(page, 3)

    page.reload()
    assert result(page) == ["3"]
    page.go_back()
    expect(page.locator(".cm-content")).to_have_text(re.compile("SELECT"))
    page.go_forward()
    assert result(page) == ["3"]
    told(page, 3)

    csv = page.evaluate(
        "async (url) => (await fetch(url)).text()", page.get_by_role("link", name="CSV").get_attribute("href")
    )
    assert csv.split() == ["n", "3"]
    page.get_by_role("link", name="json", exact=True).click()
    page.wait_for_url("**/query.json?**")
    assert '"rows": [{"n": 3}]' in page.content()
    page.go_back()
    page.get_by_role("link", name="CSV").click()
    page.wait_for_url("**/query.csv?**")
    assert page.inner_text("body").split() == ["n", "3"]
    page.go_back()

    other = context.new_page()
    other.goto(page.url)
    assert result(other) == ["3"]
    told(other, 3)
    assert published(server) == 3

    # Asked again, it publishes again: by the button of the result, and by the form's own.
    press(page, "Publish again")
    assert (result(page), published(server)) == (["3"], 6)
    told(page, 3)
    press(page)
    assert published(server) == 9
    # Back to the form, and once more.
    form = sql_page(context, server, SELECT)
    press(form)
    form.go_back()
    press(form)
    assert published(server) == 15


def test_a_link_a_typed_address_and_a_reload_publish_nothing_and_offer_the_button(
    server: Server, context: BrowserContext
) -> None:
    page = sql_page(context, server, SELECT)
    for _ in range(2):
        expect(page.locator(".pubsub-run .message-info")).to_contain_text(NOT_RUN)
        expect(page.locator(".message-error")).to_contain_text("opening or reloading a page publishes nothing")
        page.reload()
    for way in ("csv", "json"):
        page.goto(f"{server.url}/data/-/query.{way}?sql={quote(SELECT)}")
        assert "run it from Datasette's SQL page" in page.content()
    assert published(server) == 0
    page.goto(f"{server.url}/data/-/query?sql={quote(SELECT)}")
    press(page, "Publish")
    assert (result(page), published(server)) == (["3"], 3)


def test_the_page_that_datasette_shows_first_and_the_shortcut_of_its_editor(
    server: Server, context: BrowserContext
) -> None:
    page = context.new_page()
    page.goto(f"{server.url}/data")
    typed(page, SELECT)
    press(page)
    assert published(server) == 3
    typed(page, SELECT + " WHERE id < 3")
    with page.expect_navigation(url="**_pubsub_run=**"):
        page.locator(".cm-content").press("Shift+Enter")
    assert (result(page), published(server)) == (["2"], 5)
    # Other queries go their usual way.
    typed(page, "SELECT 7 AS seven")
    with page.expect_navigation(url=re.compile(r"/-/query\?sql=SELECT\+7")):
        page.get_by_role("button", name="Run SQL").click()
    assert result(page) == ["7"]
    assert page.locator(".pubsub-run").count() == 0


def test_a_double_click_is_one(server: Server, context: BrowserContext) -> None:
    page = sql_page(context, server)
    typed(page, SELECT)
    with page.expect_navigation(url="**_pubsub_run=**"):
        page.get_by_role("button", name="Run SQL").dblclick()
    told(page, 3)
    assert published(server) == 3


def test_without_scripts_the_page_that_was_not_run_has_a_button(server: Server, browser: Browser) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        context.set_default_timeout(chromium.DEADLINE_MS)
        page = context.new_page()
        page.goto(f"{server.url}/data/-/query?sql=SELECT+1")
        page.locator("#sql-editor").fill(SELECT)
        page.get_by_role("button", name="Run SQL").click()
        expect(page.locator(".pubsub-run .message-info")).to_contain_text(NOT_RUN)
        assert published(server) == 0
        page.get_by_role("button", name="Publish").click()
        told(page, 3)
        page.reload()
        told(page, 3)
        assert published(server) == 3


@pytest.mark.parametrize("name", ["say", "hidden"])
def test_a_stored_query(server: Server, context: BrowserContext, name: str) -> None:
    page = context.new_page()
    page.goto(f"{server.url}/data/{name}?channel=a%2Fb&_hide_sql=")
    assert published(server) == 0
    expect(page.locator(".pubsub-run .message-info")).to_contain_text(NOT_RUN)
    press(page)
    assert (result(page), published(server)) == (["3"], 3)
    channel = {"say": "a/b", "hidden": "h"}[name]
    assert server.rows("SELECT DISTINCT channel FROM vpubsub") == [(channel,)]
    page.reload()
    page.get_by_role("link", name="CSV").click()
    page.wait_for_url("**.csv?**")
    assert page.inner_text("body").split() == ["n", "3"]
    assert published(server) == 3


def test_groups_and_rows_that_have_changed(server: Server, context: BrowserContext) -> None:
    page = sql_page(context, server)
    typed(page, "SELECT g, publish_batch('g', x) AS n FROM t GROUP BY g")
    press(page)
    assert result(page) == ["1", "2", "2", "1"]
    told(page, 3)
    with closing(sqlite3.connect(server.path, isolation_level=None)) as conn:
        conn.execute("INSERT INTO t (x, g) VALUES (4, 3)")
    page.reload()
    expect(page.locator("p.message-error")).to_contain_text("the rows that it reads have changed since")
    told(page, 3)
    # Of one result it does not matter what has changed.
    typed(page, "SELECT publish_batch('g', payload) AS n FROM vpubsub")
    press(page)
    assert result(page) == ["3"]
    page.reload()
    assert result(page) == ["3"]
    assert published(server) == 6


def test_more_groups_than_an_address_holds(
    serve: Callable[..., Server], tmp_path: Path, context: BrowserContext
) -> None:
    install(tmp_path / "data.db")
    with closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as conn:
        conn.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) "
            "INSERT INTO t (x, g) SELECT i, (abs(random()) % 70) * (abs(random()) % 70) FROM n"
        )
    server = serve(options=["--setting", "max_returned_rows", "5000"])
    page = sql_page(context, server)
    # 100,000 messages in one statement.
    page.set_default_timeout(120_000)
    typed(page, "SELECT g, publish_batch('g', x) AS n, publish_batch('h', x) FILTER (WHERE x % 3) FROM t GROUP BY g")
    press(page)
    count = published(server)
    assert count > 80_000
    expect(page.locator("p.message-error")).to_contain_text("The results of so many groups are not kept")
    expect(page.locator(".pubsub-run .message-info")).to_contain_text(f"{count:,} messages were published at")
    page.reload()
    assert published(server) == count


def test_what_went_wrong_is_shown_again_and_not_tried_again(server: Server, context: BrowserContext) -> None:
    page = sql_page(context, server)
    typed(page, "SELECT publish_batch('', x) AS n FROM t")
    press(page)
    for _ in range(2):
        expect(page.locator("p.message-error")).to_have_text("publish_batch: channel is empty")
        told(page, 0)
        page.reload()
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)"
    typed(page, f"{many} SELECT publish_batch('c', i, CASE WHEN i = 1400 THEN '' ELSE 'k' || i END) FROM n")
    press(page)
    expect(page.locator("p.message-error")).to_contain_text("publish_batch: key")
    expect(page.locator(".pubsub-run .message-info")).to_contain_text("1,000 messages were published at")
    page.reload()
    assert published(server) == 1000


def test_a_result_that_took_longer_than_a_query_may(
    serve: Callable[..., Server], tmp_path: Path, context: BrowserContext
) -> None:
    install(tmp_path / "data.db")
    server = serve(options=["--setting", "sql_time_limit_ms", "60"])
    page = sql_page(context, server)
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000)"
    typed(page, f"{many} SELECT publish_batch('c', i) AS n FROM n")
    press(page)
    assert result(page) == ["300000"]
    told_text = page.locator(".pubsub-run .message-info")
    expect(told_text).to_contain_text("300,000 messages were published at")
    page.reload()
    assert result(page) == ["300000"]
    assert published(server) == 300_000


def test_after_a_restart_and_in_another_process(
    serve: Callable[..., Server], tmp_path: Path, context: BrowserContext
) -> None:
    install(tmp_path / "data.db")
    server = serve()
    page = sql_page(context, server)
    typed(page, SELECT)
    press(page)
    server.restart()
    page.reload()
    assert result(page) == ["3"]
    # A server with the same secret knows what was published, one with another does not, and publishes nothing.
    for options, shown in (([], True), (["--secret", "another"], False)):
        twin = serve(options=options)
        other = context.new_page()
        other.goto(page.url.replace(server.url, twin.url))
        if shown:
            assert result(other) == ["3"]
        else:
            expect(other.locator("p.message-error")).to_contain_text("this address does not say what was published")
    assert published(server) == 3


def test_another_query_with_the_same_receipt_is_not_run(server: Server, context: BrowserContext) -> None:
    page = sql_page(context, server)
    typed(page, SELECT)
    press(page)
    receipt = page.url.partition("&_pubsub_run=")[2]
    page.goto(f"{server.url}/data/-/query?sql={quote(SELECT.replace('c', 'd', 3))}&_pubsub_run={receipt}")
    other = f"{server.url}/data/-/query?sql={quote(SELECT + ' WHERE 1')}&_pubsub_run={receipt}"
    page.goto(other)
    expect(page.locator("p.message-error")).to_contain_text("it was made for another query")
    assert published(server) == 3
    press(page, "Publish")
    assert published(server) == 6


def test_a_page_within_a_page_of_another_does_not_run(server: Server, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{server.url}/data")
    page.evaluate(
        "url => document.body.append(Object.assign(document.createElement('iframe'), { src: url, name: 'inner' }))",
        f"{server.url}/data/-/query?sql={quote(SELECT)}",
    )
    inner = page.frame_locator("iframe[name=inner]")
    inner.get_by_role("button", name="Publish").click()
    expect(inner.locator("body")).to_contain_text("a query is not run within a page of another")
    assert published(server) == 0


def test_under_a_prefix_with_names_that_must_be_written_differently(
    serve: Callable[..., Server], tmp_path: Path, context: BrowserContext
) -> None:
    install(tmp_path / "my data.db")
    queries = {"say it": {"sql": "SELECT publish_batch(:c, x) AS n FROM t"}}
    config = {**OPEN, "settings": {"base_url": "/prefix/"}, "databases": {"my data": {"queries": queries}}}
    server = serve(databases=["my data"], config=config)
    page = context.new_page()
    page.goto(f"{server.url}/prefix/my+data")
    typed(page, SELECT)
    press(page)
    assert (result(page), published(server)) == (["3"], 3)
    press(page, "Publish again")
    assert (result(page), published(server)) == (["3"], 6)
    page.goto(f"{server.url}/prefix/my+data/say+it?c=%C3%A4%26%2B")
    press(page, "Publish")
    assert (result(page), published(server)) == (["3"], 9)
    assert server.rows("SELECT DISTINCT channel FROM vpubsub WHERE id > 6") == [("ä&+",)]


def test_on_plain_http_where_browsers_say_less(server: Server, browser: Browser) -> None:
    """Only to their own machine, and over TLS, do browsers send ``Sec-Fetch-*``."""
    arguments = ["--no-sandbox", "--disable-background-networking", "--host-resolver-rules=MAP lan.test 127.0.0.1"]
    elsewhere = browser.browser_type.launch(executable_path=chromium.binary(), args=arguments)
    try:
        page = elsewhere.new_page()
        page.set_default_timeout(chromium.DEADLINE_MS)
        with page.expect_request("**/-/query?**") as request:
            page.goto(f"http://lan.test:{server.port}/data/-/query?sql={quote(SELECT)}")
        assert not [name for name in request.value.all_headers() if name.startswith("sec-fetch")]
        expect(page.locator(".pubsub-run .message-info")).to_contain_text(NOT_RUN)
        assert published(server) == 0
        press(page)
        assert (result(page), published(server)) == (["3"], 3)
        page.reload()
        told(page, 3)
        page.get_by_role("link", name="CSV").click()
        page.wait_for_url("**/query.csv?**")
        page.go_back()
        told(page, 3)
        assert published(server) == 3
    finally:
        elsewhere.close()
