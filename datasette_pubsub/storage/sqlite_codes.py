"""What SQLite's result codes mean (https://sqlite.org/rescode.html). An error is told by its code, never by its text.

Texts are for people, and an owner's trigger may say anything in them. Where SQLite
has no code but ``SQLITE_ERROR`` (a missing table), the schema is asked.
"""

from __future__ import annotations

import sqlite3


def primary(error: sqlite3.Error) -> int:
    """The primary result code; 0 for an error of Python's ``sqlite3`` itself, which has none."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection's lock stands in the way, which may be gone a moment later."""
    return primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def has_table(conn: sqlite3.Connection, name: str) -> bool:
    """Whether the file has a table of this name."""
    return conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [name]).fetchone() is not None


#: What tells of the file, its disk or other programs, and not of the SQL that was run.
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
    """Whether the error tells of the file, and so says nothing about the SQL that met it."""
    return primary(error) in _OF_THE_FILE
