"""Where the values on live pages lead: to the rows, to the rows that they refer to, and to binary values."""

from __future__ import annotations

from collections.abc import Callable

import browsers as chromium
import httpx
from browsers import Watched, status
from playwright.sync_api import Page, expect
from servers import Server, sqlite_shell

pytestmark = chromium.NEEDED

SCHEMA = """
CREATE TABLE "cust/omers" (id TEXT PRIMARY KEY, name TEXT);
CREATE TABLE secret (id INTEGER PRIMARY KEY);
CREATE TABLE pairs (a INTEGER, b INTEGER, PRIMARY KEY (a, b));
CREATE TABLE parts ("the order" TEXT, number INTEGER, customer TEXT REFERENCES "cust/omers",
    secret REFERENCES secret(id), pair_a, pair_b, picture BLOB,
    PRIMARY KEY ("the order", number), FOREIGN KEY (pair_a, pair_b) REFERENCES pairs);
INSERT INTO "cust/omers" VALUES ('a, b', 'Ann');
INSERT INTO secret VALUES (1);
INSERT INTO pairs VALUES (1, 2);
INSERT INTO parts VALUES ('o/1', 1, 'a, b', 1, 1, 2, x'ff00'), ('o/1', 2, NULL, NULL, NULL, NULL, NULL);
INSERT INTO parts VALUES (NULL, 3, 'a, b', 1, 1, 2, x'ff00');
CREATE VIEW seen AS SELECT * FROM parts;
CREATE TABLE plain (text, picture);
INSERT INTO plain VALUES ('x', x'00');
"""


def hrefs(page: Page) -> list[list[str]]:
    """The links of each row that is there, in the order of its cells."""
    script = "rows => rows.map(row => [...row.querySelectorAll('a')].map(link => link.getAttribute('href')))"
    found: list[list[str]] = page.locator("tbody tr:not(.pubsub-gone)").evaluate_all(script)
    return found


def test_the_server_and_the_script_link_alike(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve(config={"databases": {"data": {"tables": {"secret": {"allow": {"id": "root"}}}}}})
    sqlite_shell(server.path, SCHEMA)
    page = watched.context.new_page()
    row = "/data/parts/o~2F1,1"
    customer = "/data/cust~2Fomers/a~2C+b"
    wanted = [
        [customer],
        [row, customer, f"{row}.blob?_blob_column=picture"],
        ["/data/parts/o~2F1,2"],
    ]
    plain = httpx.get(f"{server.url}/data/parts.live").text
    assert "secret/1" not in plain
    page.goto(f"{server.url}/data/parts.live?_sort=the+order")
    assert hrefs(page) == wanted
    for path in [path for links in wanted for path in links]:
        assert httpx.get(server.url + path).status_code == 200, path
    # The script fills rows of its own.
    status(page, "Live: changes appear as they happen")
    sqlite_shell(server.path, "UPDATE parts SET \"the order\" = \"the order\" || 'x', picture = x'01' WHERE number = 1")
    expect(page.get_by_role("link", name="o/1x")).to_be_visible()
    there = "/data/parts/o~2F1x,1"
    assert [there, customer, f"{there}.blob?_blob_column=picture"] in hrefs(page)
    # And the cells that have changed.
    sqlite_shell(server.path, "UPDATE parts SET customer = 'other' WHERE number = 1")
    expect(page.get_by_role("link", name="other")).to_have_attribute("href", "/data/cust~2Fomers/other")
    sqlite_shell(server.path, "UPDATE parts SET customer = NULL WHERE number = 1")
    expect(page.get_by_role("link", name="other")).to_have_count(0)


def test_rows_without_a_key_and_views(serve: Callable[..., Server], watched: Watched) -> None:
    server = serve()
    sqlite_shell(server.path, SCHEMA)
    page = watched.context.new_page()
    page.goto(f"{server.url}/data/plain.live")
    assert hrefs(page) == [["/data/plain/1", "/data/plain/1.blob?_blob_column=picture"]]
    assert httpx.get(f"{server.url}/data/plain/1.blob?_blob_column=picture").content == b"\0"
    page.goto(f"{server.url}/data/seen.live")
    assert hrefs(page) == [[], [], []]
