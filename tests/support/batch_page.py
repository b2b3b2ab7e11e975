"""Datasette's SQL page with publish_batch in a browser."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from servers import Server

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

SELECT = "SELECT publish_batch('c', x) AS n FROM t"


def install(path: Path) -> None:
    conn = sqlite3.connect(path)
    schema.set_durability(conn, Settings())
    schema.install(conn, Settings())
    conn.executescript(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x, g); INSERT INTO t (x, g) VALUES (1, 1), (2, 1), (3, 2)"
    )
    conn.close()


def published(server: Server) -> int:
    return int(server.rows("SELECT count(*) FROM vpubsub")[0][0])
