"""Channel names as they stand in a file: text, or the bytes of a text that is not UTF-8.

The log refuses such names today, but files may hold them. A decoded copy of one
finds nothing, and sorts elsewhere than its bytes; so what SQL gives out is given
back to SQL as it was, and only people and subscribers are shown a decoded copy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

#: A channel's name: bytes where it is not valid UTF-8.
Name = str | bytes

#: A condition of SQL: the message's channel is the :data:`Name` that is bound to it.
OF_CHANNEL = "channel = CAST(? AS TEXT)"

#: What stands in a decoded copy for bytes that are not UTF-8.
REPLACED = "\ufffd"


def shown(name: Name) -> str:
    """A name as people and subscribers see it."""
    return name if isinstance(name, str) else name.decode(errors="replace")


def sort_key(name: Name) -> bytes:
    """Names sort as SQLite sorts them: by their bytes."""
    return name if isinstance(name, bytes) else name.encode()


@contextmanager
def factories(conn: sqlite3.Connection, text_factory: Any) -> Iterator[None]:
    """Within it, rows are tuples, and texts are what ``text_factory`` makes of their bytes."""
    before = conn.row_factory, conn.text_factory
    conn.row_factory, conn.text_factory = None, text_factory
    try:
        yield
    finally:
        conn.row_factory, conn.text_factory = before


def exact(conn: sqlite3.Connection) -> AbstractContextManager[None]:
    """Within it, rows are tuples, and texts that the connection reads are :data:`Name` values."""
    return factories(conn, _name)


def _name(data: bytes) -> Name:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
