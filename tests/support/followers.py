"""A follower's file without NATS: what the command ``follow`` does to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import log, schema

STREAM = "orders"
INSTANCE = "0123456789abcdef"
PUBLISH_AT = "https://origin.example/data"

#: What a publisher is told.
REFUSAL = f"this log follows the stream {STREAM}: publish at {PUBLISH_AT}"


def follow(path: Path, instance: str | None = INSTANCE, publish_at: str | None = PUBLISH_AT) -> None:
    """Make a file a follower's, or check that it is one."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.set_durability(conn, Settings())
        conn.execute("BEGIN IMMEDIATE")
        schema.follow(conn, Settings(), STREAM, instance, publish_at)
        conn.execute("COMMIT")


def promote(path: Path) -> None:
    """Make a follower's file an ordinary log."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        schema.promote(conn, Settings())
        conn.execute("COMMIT")


def copy(path: Path, ids: Iterable[int], channel: str = "a", newest: int | None = None) -> None:
    """Write messages of the stream into the file, in one transaction; each payload is the message's id."""
    numbers, created_at = list(ids), log.now()
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(
            "INSERT INTO vpubsub (id, channel, payload, created_at, key) VALUES (?, ?, ?, ?, ?)",
            [(n, channel, str(n), created_at, f"key-{n}") for n in numbers],
        )
        last = newest or max(numbers)
        conn.execute("UPDATE _pubsub_sources SET newest = ? WHERE kind = 'follow'", [last])
        conn.execute("COMMIT")
