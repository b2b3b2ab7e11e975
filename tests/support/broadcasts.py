"""A log in which tables are broadcast, and the values of its messages."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema
from datasette_pubsub.storage.quoting import identifier


def quoted(name: str) -> str:
    return identifier(name)


def value_of(found: Any) -> Any:
    """A value of a payload as SQLite has it, with its type."""
    value = bytes.fromhex(found["hex"]) if isinstance(found, dict) else found
    return type(value).__name__, value


@contextlib.contextmanager
def opened(path: Path | str = ":memory:") -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        schema.install(conn, Settings())
        yield conn
