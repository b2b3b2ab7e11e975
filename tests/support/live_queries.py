"""What tests of live queries share: tables, a server, and a count of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from commands import call
from servers import OPEN, Server, Sse, sqlite_shell

Serve = Callable[..., Server]

TABLES = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, total REAL);
CREATE TABLE customers (name TEXT PRIMARY KEY, town TEXT);
INSERT INTO customers VALUES ('ada', 'London'), ('bob', 'Paris');
INSERT INTO orders VALUES (1, 'ada', 10), (2, 'bob', 20);
"""
BY_TOWN = (
    "SELECT town, sum(total) AS sum FROM orders JOIN customers ON name = customer "
    "GROUP BY town HAVING sum(total) > 5 ORDER BY town"
)

#: Counts the runs of a query that has ``(SELECT ran('name'))`` in it, in a file.
COUNTING = """
from datasette import hookimpl

@hookimpl
def prepare_connection(conn):
    def ran(name):
        with open({path!r}, "a") as file:
            file.write(name + "\\n")
        return 1
    conn.create_function("ran", 1, ran)
"""


class Runs:
    """Counts how often queries ran."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "runs"
        self._path.touch()
        plugins = folder / "plugins"
        plugins.mkdir()
        (plugins / "counting.py").write_text(COUNTING.format(path=str(self._path)))
        self.options = ["--plugins-dir", str(plugins)]

    def of(self, name: str) -> int:
        return self._path.read_text().split().count(name)


def started(
    serve: Serve, *, options: list[str] | None = None, config: dict[str, Any] | None = None, **plugin: Any
) -> Server:
    """A server with the tables, whose live queries run often."""
    plugin = {"live_query_interval_seconds": 0.02, **plugin}
    server = serve(
        config={**OPEN, **(config or {}), "plugins": {"datasette-pubsub": plugin}}, options=["--root", *(options or [])]
    )
    call("install", server.path)
    sqlite_shell(server.path, TABLES)
    return server


def live(server: Server, **asked: Any) -> Sse:
    return Sse(f"{server.pubsub}/-/live", **asked)


def refused(server: Server, headers: dict[str, str] | None = None, **asked: Any) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{server.pubsub}/-/live", params=asked, headers=headers, timeout=60)
    return answer.status_code, answer.json()
