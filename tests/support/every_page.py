"""Every page of ours, with something on it: for the tests of how pages are made, and for the pictures of them."""

from __future__ import annotations

import json
from typing import Any

from auth import cookie
from commands import datasette
from playwright.sync_api import BrowserContext, Page, expect
from servers import Server, sqlite_shell

from datasette_pubsub.core.settings import PLUGIN

STANDING = {
    "large-orders": {
        "sql": "SELECT id, customer, total FROM orders WHERE total > 50",
        "channel": "large",
        "key": ["id"],
    },
    "broken": {"sql": "SELECT * FROM nowhere", "channel": "alerts/broken"},
}

#: Everybody may publish; ada is logged in and may do everything else, in a database of either name.
CONFIG: dict[str, Any] = {
    "permissions": {"publish-message": True, "alter-table": {"id": "ada"}},
    "databases": {
        name: {
            "tables": {
                "pubsub_subscriptions": {"allow": {"id": "ada"}, "permissions": {"delete-row": {"id": "ada"}}},
            },
            "plugins": {"datasette-pubsub": {"standing_queries": STANDING}},
        }
        for name in ("data", "shop")
    },
    "plugins": {"datasette-pubsub": {"heartbeat_seconds": 1}},
}

TABLES = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, total REAL, status TEXT);
INSERT INTO orders VALUES (1, 'Ada', 12.5, 'paid'), (2, 'Grace', 80, 'sent'), (3, 'Edsger', 7.25, 'open');
"""

#: By name: where each page stands under the server's address, after the database's name.
PAGES = {
    "panel": "",
    "live": "/-/pubsub",
    "channel": "/-/pubsub/orders",
    "publish": "/-/pubsub/-/publish-form?channel=alerts",
    "subscriptions": "/-/pubsub/-/subscriptions",
    "queries": "/-/pubsub/-/queries",
    "delete": "/-/pubsub/-/subscriptions?delete=billing&owner=ada",
    "broadcast": "/orders/-/broadcast",
    "preview": "/orders/-/broadcast",
    "table": "/orders",
    "log": "/vpubsub?_sort_desc=id",
    "query": "/-/query.live?sql=SELECT+customer,+count(*)+AS+orders,+sum(total)+AS+total%0A"
    "FROM+orders+GROUP+BY+customer+ORDER+BY+total+DESC",
}

#: Those that the docs also show with the option ``dark_scheme``, to a visitor whose system prefers dark.
DARK = ("live", "channel", "publish")


def dark_config() -> dict[str, Any]:
    """As ``CONFIG``, with that option."""
    return {**CONFIG, "plugins": {PLUGIN: {**CONFIG["plugins"][PLUGIN], "dark_scheme": True}}}


def fill(server: Server) -> None:
    """Tables, a broadcast, messages of several channels, subscriptions of several owners."""
    sqlite_shell(server.path, TABLES)
    datasette("pubsub", "install", server.path)
    datasette("pubsub", "broadcast", server.path, "orders", "--channel", "orders")
    sqlite_shell(
        server.path,
        "UPDATE orders SET status = 'sent' WHERE id = 3; INSERT INTO orders VALUES (4, 'Barbara', 19.99, 'open');",
    )
    reads = json.dumps({"channels": ["orders"], "patterns": ["alerts/*"]})
    for owner, name, cursor in (("ada", "billing", 1), ("ada", "search-index", 2), ("", "public dashboard", 0)):
        sqlite_shell(
            server.path,
            "INSERT INTO pubsub_subscriptions (owner, name, reads, cursor) "
            f"VALUES ('{owner}', '{name}', '{reads}', {cursor});",
        )
    for n in range(12):
        server.publish(
            {"channel": "alerts/temperature", "payload": {"room": n % 3 + 1, "celsius": 20 + n, "limit": 25}},
            {"channel": "log", "payload": f"worker {n} has started"},
        )


def log_in(context: BrowserContext, server: Server) -> None:
    value = cookie("ada")["Cookie"].removeprefix("ds_actor=")
    context.add_cookies([{"name": "ds_actor", "value": value, "url": server.url}])


def show(context: BrowserContext, server: Server, name: str) -> Page:
    """A tab with one of the pages, once it is as its reader sees it."""
    page = context.new_page()
    page.goto(f"{server.url}/{server.database}{PAGES[name]}")
    if name in ("panel", "live", "channel"):
        element = "pubsub-panel" if name == "panel" else "pubsub-viewer"
        expect(page.locator(element)).to_have_attribute("data-status", "live")
    elif name == "query":
        expect(page.locator("pubsub-query")).to_have_attribute("data-status", "live")
        sqlite_shell(server.path, "UPDATE orders SET total = total + 0.5 WHERE id = 1")
        expect(page.locator("tr.pubsub-changed")).to_have_count(1)
    elif name == "preview":
        page.get_by_role("button", name="Show the triggers").click()
        expect(page.get_by_role("button", name="Create these triggers")).to_be_visible()
    elif name == "publish":
        page.get_by_label("Payload").fill('{"text": "it\'s getting warm"}')
    return page
