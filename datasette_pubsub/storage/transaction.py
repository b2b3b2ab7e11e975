"""One transaction around a block, for processes that have the connection to themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def transaction(conn: sqlite3.Connection | Any, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Run the block in one transaction, on a connection of Python's SQLite or of APSW.

    An error in the block takes everything back, and is raised.
    """
    conn.execute(begin)
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        # On a full disk, SQLite itself has ended the transaction.
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
