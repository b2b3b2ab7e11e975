"""A table of items that is broadcast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from commands import datasette
from servers import Server, sqlite_shell

ITEMS = """
CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL);
INSERT INTO items VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3);
"""


def broadcast(server: Server, table: str, *options: str) -> None:
    datasette("pubsub", "install", server.path)
    datasette("pubsub", "broadcast", server.path, table, *options)


def with_items(serve: Callable[..., Server], *options: str, sql: str = ITEMS, **how: Any) -> Server:
    server = serve(**how)
    sqlite_shell(server.path, sql)
    broadcast(server, "items", *options)
    return server
