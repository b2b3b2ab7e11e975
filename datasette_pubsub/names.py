"""Channel names as they stand in a file: text, or the bytes of a text that is not UTF-8.

The log refuses such names today, but files may hold them. A decoded copy of one
finds nothing, and sorts elsewhere than its bytes; so what SQL gives out is given
back to SQL as it was, and only people and subscribers are shown a decoded copy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

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
def exact(conn: sqlite3.Connection) -> Iterator[None]:
    """Within it, texts that a connection reads are :data:`Name` values, and rows are tuples."""
    factories = conn.row_factory, conn.text_factory
    conn.row_factory, conn.text_factory = None, _name
    try:
        yield
    finally:
        conn.row_factory, conn.text_factory = factories


def _name(data: bytes) -> Name:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
