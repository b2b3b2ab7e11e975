"""Channel names in a file: text, or the bytes of a text that is not valid UTF-8.

The log refuses invalid names today, but older files may have them. A decoded name does not equal its bytes in SQL, and
sorts elsewhere. So a name that SQL returns goes back to SQL unchanged; only pages and subscribers get a decoded one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

#: A channel's name: bytes if it is not valid UTF-8.
Name = str | bytes

#: An SQL condition: the message's channel is the :data:`Name` that is bound to it.
OF_CHANNEL = "channel = CAST(? AS TEXT)"

#: The character that replaces invalid bytes in a decoded name.
REPLACED = "\ufffd"


def shown(name: Name) -> str:
    """A name as pages and subscribers get it."""
    return name if isinstance(name, str) else name.decode(errors="replace")


def sort_key(name: Name) -> bytes:
    """The key that sorts names as SQLite does: their bytes."""
    return name if isinstance(name, bytes) else name.encode()


@contextmanager
def factories(conn: sqlite3.Connection, text_factory: Any) -> Iterator[None]:
    """Within this block, rows are tuples, and ``text_factory`` decodes the bytes of texts."""
    before = conn.row_factory, conn.text_factory
    conn.row_factory, conn.text_factory = None, text_factory
    try:
        yield
    finally:
        conn.row_factory, conn.text_factory = before


def exact(conn: sqlite3.Connection) -> AbstractContextManager[None]:
    """Within this block, rows are tuples, and texts are :data:`Name` values."""
    return factories(conn, _name)


def _name(data: bytes) -> Name:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
