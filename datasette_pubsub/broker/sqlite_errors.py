"""Maps SQLite's errors, by their codes, to errors that clients may see."""

from __future__ import annotations

import logging
import sqlite3

from ..core.errors import FailedPrecondition, PubsubError, Unavailable
from ..storage import log, schema
from ..storage.sqlite_codes import is_busy, primary

logger = logging.getLogger("datasette_pubsub")


def explain(error: sqlite3.Error, name: str, conn: sqlite3.Connection | None = None) -> PubsubError:
    """The error for a client that an SQLite error means, by its code, without paths or SQL.

    ``conn`` is the connection that raised it, after a rollback: SQLite has no
    code for a missing table, so this function looks at the schema.
    """
    code = primary(error)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return FailedPrecondition(
            f"database {name} cannot be written: its file is read-only, or was when Datasette opened it; "
            "nothing was stored"
        )
    if is_busy(error):
        return Unavailable(f"database {name} is locked by another writer; nothing was stored, try again")
    if code == sqlite3.SQLITE_FULL:
        return Unavailable(f"the disk of database {name} is full; nothing was stored")
    if code == sqlite3.SQLITE_CONSTRAINT and isinstance(error, sqlite3.IntegrityError):
        return log.refusal(error)
    if conn is not None and code == sqlite3.SQLITE_ERROR and lacks_a_part(conn):
        return FailedPrecondition(
            f"database {name} has lost a part of its log; restart Datasette, or run: datasette pubsub install"
        )
    logger.error("database %s: %s", name, error)
    return Unavailable(f"database {name} could not be written; nothing was stored")


def lacks_a_part(conn: sqlite3.Connection) -> bool:
    try:
        return bool(schema.inspect(conn).missing)
    except sqlite3.Error:
        return False
