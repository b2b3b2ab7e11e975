"""A plugin for measurements only: it runs SQL on Datasette's write connection, and measures the time there."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from datasette import hookimpl
from datasette.utils.asgi import Request, Response

#: The log table without what the plugin adds: no triggers, no default, no AUTOINCREMENT, no keys.
BARE = """
CREATE TABLE IF NOT EXISTS bench_bare (
    id INTEGER PRIMARY KEY, channel TEXT NOT NULL, payload NOT NULL, created_at TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS bench_bare_channel ON bench_bare (channel, id);
"""

#: The log table of the first version: its index of keys had a condition, and its guard trigger read no characters.
FIRST = """
CREATE TABLE IF NOT EXISTS bench_first (
    id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0), channel TEXT NOT NULL, payload NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')), key TEXT);
CREATE INDEX IF NOT EXISTS bench_first_channel ON bench_first (channel, id);
CREATE UNIQUE INDEX IF NOT EXISTS bench_first_key ON bench_first (channel, key) WHERE key IS NOT NULL;
CREATE TRIGGER IF NOT EXISTS bench_first_guard BEFORE INSERT ON bench_first
WHEN NEW.key IS NOT NULL OR NEW.id <> -1 OR NEW.payload IS NULL OR length(CAST(NEW.payload AS BLOB)) > 1048576
  OR typeof(NEW.channel) <> 'text' OR length(CAST(NEW.channel AS BLOB)) NOT BETWEEN 1 AND 255
  OR instr(CAST(NEW.channel AS BLOB), x'00')
  OR NEW.created_at NOT GLOB
     '[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9].[0-9][0-9][0-9]Z'
BEGIN SELECT RAISE(ABORT, 'not an ordinary message'); END;
"""

#: An example of a business table. An index contains the columns that the update changes.
ORDERS = """
CREATE TABLE IF NOT EXISTS bench_orders (
    id INTEGER PRIMARY KEY, customer TEXT NOT NULL, status TEXT NOT NULL, total REAL NOT NULL,
    note TEXT, placed_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS bench_orders_customer ON bench_orders (customer, placed_at);
CREATE INDEX IF NOT EXISTS bench_orders_status ON bench_orders (status, updated_at);
"""
NOW = "2030-01-01T00:00:00.000Z"


def _fill_source(conn: sqlite3.Connection, rows: int, payload: str) -> None:
    """Create the rows to publish, and a business table with a fifth as many rows."""
    conn.executescript(
        "CREATE TABLE IF NOT EXISTS bench_source (id INTEGER PRIMARY KEY, channel TEXT, payload TEXT);"
        + ORDERS
        + BARE
        + FIRST
    )
    if conn.execute("SELECT count(*) FROM bench_source").fetchone()[0] == rows:
        return
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    conn.execute("DELETE FROM bench_source")
    conn.execute(f"{numbers} INSERT INTO bench_source SELECT i, 'chan-' || (i % 10), ? FROM n", [rows, payload])
    conn.execute("DELETE FROM bench_orders")
    conn.execute(
        f"{numbers} INSERT INTO bench_orders SELECT i, 'customer-' || (i % 5000), 'new', i / 7.0, ?, "
        f"'{NOW}', '{NOW}' FROM n",
        [max(1, rows // 5), "to the back door, please"],
    )
    conn.commit()


def _reset(conn: sqlite3.Connection) -> None:
    """Empty the tables that the measures write to. SQLite empties a table without triggers at once."""
    guard = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'vpubsub_delete'").fetchone()[0]
    conn.execute("BEGIN")
    conn.execute("DROP TRIGGER vpubsub_delete")
    conn.execute("DELETE FROM vpubsub")
    conn.execute(guard)
    conn.execute("DELETE FROM bench_bare")
    conn.execute("DELETE FROM bench_first")
    conn.execute("DROP TRIGGER IF EXISTS bench_orders_publish")
    conn.commit()
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _timed(conn: sqlite3.Connection, run: Callable[[], Any]) -> float:
    """Run one transaction; the seconds that it and its commit took."""
    start = time.perf_counter()
    conn.execute("BEGIN IMMEDIATE")
    run()
    conn.commit()
    return time.perf_counter() - start


def _statement(sql: str) -> Callable[[sqlite3.Connection], float]:
    return lambda conn: _timed(conn, lambda: conn.execute(sql).fetchall())


def _executemany(sql: str) -> Callable[[sqlite3.Connection], float]:
    def measure(conn: sqlite3.Connection) -> float:
        rows = conn.execute("SELECT channel, payload FROM bench_source ORDER BY id").fetchall()
        return _timed(conn, lambda: conn.executemany(sql, rows))

    return measure


#: Every run of this statement changes every row.
UPDATE = (
    "UPDATE bench_orders SET status = CASE status WHEN 'new' THEN 'paid' ELSE 'new' END, "
    "updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
)


def _update_with_trigger(conn: sqlite3.Connection) -> float:
    conn.execute(
        "CREATE TRIGGER bench_orders_publish AFTER UPDATE ON bench_orders BEGIN "
        "INSERT INTO vpubsub (channel, payload) VALUES ('orders', json_object('id', NEW.id, 'status', NEW.status)); END"
    )
    return _timed(conn, lambda: conn.execute(UPDATE))


MEASURES: dict[str, Callable[[sqlite3.Connection], float]] = {
    "first": _statement("INSERT INTO bench_first (channel, payload) SELECT channel, payload FROM bench_source"),
    "log": _statement("INSERT INTO vpubsub (channel, payload) SELECT channel, payload FROM bench_source"),
    "bare": _statement(
        f"INSERT INTO bench_bare (channel, payload, created_at) SELECT channel, payload, '{NOW}' FROM bench_source"
    ),
    "publish_batch": _statement("SELECT publish_batch(channel, payload) FROM bench_source"),
    "executemany": _executemany("INSERT INTO vpubsub (channel, payload) VALUES (?, ?)"),
    "executemany_bare": _executemany(f"INSERT INTO bench_bare (channel, payload, created_at) VALUES (?, ?, '{NOW}')"),
    "update": lambda conn: _timed(conn, lambda: conn.execute(UPDATE)),
    "update_trigger": _update_with_trigger,
}


async def measure(request: Request, datasette: Any) -> Response:
    """``POST``: run one measure by name; the response has its seconds."""
    body = json.loads(await request.post_body())

    def run(conn: sqlite3.Connection) -> float:
        _fill_source(conn, body["rows"], body["payload"])
        _reset(conn)
        return MEASURES[body["measure"]](conn)

    database = datasette.get_database(body["database"])
    return Response.json({"seconds": await database.execute_write_fn(run, transaction=False)})


@hookimpl
def register_routes() -> list[tuple[str, Any]]:
    return [(r"^/-/bench-sql$", measure)]
