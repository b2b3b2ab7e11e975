"""A second write connection, made as Datasette makes its own, on which no trigger of the file fires.

``tests/unit/test_own_connection_compat.py`` fails when Datasette or SQLite changes what this needs.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from datasette.plugins import pm

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

#: ``sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER``, which Python knows since 3.12; ``None`` before.
_ENABLE_TRIGGER: int | None = getattr(sqlite3, "SQLITE_DBCONFIG_ENABLE_TRIGGER", None)

#: The modules whose ``write_wrapper`` is known: Datasette's own looks for renamed tables, and the plugin's leaves the
#: batcher's writes alone.
_KNOWN_WRAPPERS = ("datasette", "datasette_pubsub")


def can_disable_triggers() -> bool:
    """Whether Python can disable the triggers of one connection: since 3.12."""
    return _ENABLE_TRIGGER is not None and hasattr(sqlite3.Connection, "setconfig")


def disable_triggers(conn: sqlite3.Connection) -> bool:
    """Disable the triggers of the file on this connection for good; returns whether they are disabled.

    TEMP triggers still fire (https://sqlite.org/c3ref/c_dbconfig_defensive.html). A connection that is not one of
    Python's ``sqlite3`` cannot be asked.
    """
    if not can_disable_triggers() or not hasattr(conn, "setconfig"):
        return False
    conn.setconfig(_ENABLE_TRIGGER, False)
    return not conn.getconfig(_ENABLE_TRIGGER)  # type: ignore[attr-defined]


def open_write_connection(datasette: Datasette, db: Database) -> sqlite3.Connection | None:
    """A further write connection, made and prepared as Datasette does it on the write thread.

    Datasette prepares a connection (its settings, extensions and the plugins' hook) in a method without a public name.
    Returns ``None`` if that is missing. Datasette closes the connection with the database. Raises what opening or a
    plugin's hook raises.
    """
    prepare = getattr(datasette, "_prepare_connection", None)
    if prepare is None:
        return None
    conn: sqlite3.Connection = db.connect(write=True)
    try:
        prepare(conn, db.name)
    except BaseException:
        close_connection(db, conn)
        raise
    return conn


def close_connection(db: Database, conn: sqlite3.Connection) -> None:
    """Close a connection that ``db.connect()`` has made, and take it off Datasette's list of open ones."""
    with contextlib.suppress(ValueError):
        getattr(db, "_all_connections", []).remove(conn)
    with contextlib.suppress(sqlite3.Error):
        conn.close()


def writes_are_wrapped() -> bool:
    """Whether another plugin wraps writes: it may have prepared the write connection for this one write.

    The hook is documented; that it has a list of its implementations is pluggy's
    (https://pluggy.readthedocs.io/en/stable/api_reference.html#pluggy.HookCaller.get_hookimpls).
    """
    return any(
        found.function.__module__.partition(".")[0] not in _KNOWN_WRAPPERS
        for found in pm.hook.write_wrapper.get_hookimpls()
    )
