"""Classifies SQLite's errors by their result codes (https://sqlite.org/rescode.html), never by their texts.

Texts are for people, and a user's trigger may raise any text. If SQLite only has ``SQLITE_ERROR`` (for a missing
table), the caller looks at the schema.
"""

from __future__ import annotations

import sqlite3


def primary(error: sqlite3.Error) -> int:
    """The primary result code; 0 for an error of Python's ``sqlite3`` module itself, which has none."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds a lock; trying again may work."""
    return primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def has_table(conn: sqlite3.Connection, name: str) -> bool:
    """Whether the file has a table of this name."""
    return conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [name]).fetchone() is not None


#: The codes for errors of the file, its disk or other programs, not of the SQL.
_OF_THE_FILE = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)


def is_of_the_file(error: sqlite3.Error) -> bool:
    """Whether the error is about the file, not about the SQL."""
    return primary(error) in _OF_THE_FILE
