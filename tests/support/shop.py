"""A small shop, and what its live pages show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page
from servers import Server, sqlite_shell, wait_for

SHOP = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT);
INSERT INTO customers VALUES (1, 'Ada'), (2, 'Grace');
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, total REAL, status TEXT);
INSERT INTO orders VALUES (1, 1, 12.5, 'open'), (2, 2, 80, 'open'), (3, 1, 7.25, 'sent');
CREATE VIEW open_orders AS SELECT id, total FROM orders WHERE status = 'open';
"""

#: The customers with what they have ordered, the best first.
TOTALS = """SELECT customers.name, count(*) AS orders, sum(total) AS total
FROM customers JOIN orders ON orders.customer_id = customers.id GROUP BY customers.id ORDER BY 3 DESC"""

CONFIG: dict[str, Any] = {
    "databases": {
        "data": {
            "queries": {
                "totals": {"sql": TOTALS, "title": "Best customers"},
                "with_status": "SELECT id, total FROM orders WHERE status = :status",
                "clear": {"sql": "DELETE FROM orders", "write": True},
            }
        }
    },
}


def shop(serve: Callable[..., Server], config: dict[str, Any] | None = None, **how: Any) -> Server:
    server = serve(config=config or CONFIG, **how)
    sqlite_shell(server.path, SHOP)
    return server


def rows(page: Page) -> list[list[str]]:
    """What the rows show, from the top, without those that are gone."""
    script = "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    return page.locator(".pubsub-result tbody tr:not(.pubsub-gone)").evaluate_all(script)


def row(page: Page, text: str) -> Locator:
    return page.locator(".pubsub-result tbody tr", has_text=text)


def until_rows(page: Page, expected: list[list[str]]) -> None:
    wait_for(lambda: rows(page) == expected, f"{expected}, not {rows(page)}")
