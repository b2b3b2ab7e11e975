"""Snapshots: the rows of a query and the log's head, read in one transaction and bounded in memory."""

from __future__ import annotations

import sqlite3
from typing import Any

from ..core.errors import InvalidArgument, PayloadTooLarge
from ..core.limits import MAX_SNAPSHOT_BYTES
from . import log
from .sqlite_codes import is_of_the_file
from .time_limit import time_limit


def take(
    conn: sqlite3.Connection, statement: str, params: dict[str, Any], max_rows: int, milliseconds: int
) -> tuple[list[str], list[Any], int]:
    """The columns and rows of a SELECT, and the log's head.

    Raises :class:`InvalidArgument`, with SQLite's own message, for SQL that does
    not run or takes longer than ``milliseconds``, and :class:`PayloadTooLarge`
    for more than ``max_rows`` rows or ``MAX_SNAPSHOT_BYTES`` bytes.
    """
    conn.execute("BEGIN")
    longest = conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_SNAPSHOT_BYTES)
    try:
        head = log.head(conn)
        with time_limit(conn, milliseconds / 1000):
            cursor = conn.execute(statement, params)
            rows: list[Any] = []
            size = 0
            for row in cursor:
                rows.append(row)
                size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
                if len(rows) > max_rows:
                    raise PayloadTooLarge(f"more than {max_rows} rows (max_snapshot_rows)", limit="max_snapshot_rows")
                if size > MAX_SNAPSHOT_BYTES:
                    raise PayloadTooLarge(f"more than {MAX_SNAPSHOT_BYTES} bytes in one snapshot")
            return [column[0] for column in cursor.description], rows, head
    except sqlite3.Error as error:
        if is_of_the_file(error):
            raise
        raise InvalidArgument(f"sql: {error}") from None
    finally:
        conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
        conn.execute("ROLLBACK")
