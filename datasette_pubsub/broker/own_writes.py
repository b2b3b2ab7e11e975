"""Tells whether all commits to a file were the broker's own, as far as they went through its two write connections.

``PRAGMA data_version`` of a connection changes when another connection has committed, and not by its own commits
(https://sqlite.org/pragma.html#pragma_data_version). The broker's own transactions change only the log and the broker's
other tables, unless somebody's trigger on one of these changes more.

The broker commits on Datasette's write connection and on the batcher's own (:mod:`.broker.own_connection`), and each
sees the other as a stranger. So one of them at a time is *watched*: the one that commits. Before the broker commits on
the other one, inside that one's write transaction, in which nobody can commit, :meth:`OwnWrites.enter` looks at the
watched connection for the last time, and watches the other from then on.
"""

from __future__ import annotations

import sqlite3
from contextvars import ContextVar

from ..storage.objects import TABLES, TRIGGERS

#: True in the plugin's background tasks. The hook ``write_wrapper`` leaves their writes alone: the batcher tells the
#: hub itself, and the others publish nothing, or bring the hub up to date.
in_batcher: ContextVar[bool] = ContextVar("datasette_pubsub_in_batcher", default=False)

_TABLES = ", ".join(f"'{name}'" for name in TABLES)
_KNOWN = ", ".join(f"'{name}'" for name in TRIGGERS)

_OTHERS = (
    "SELECT EXISTS (SELECT 1 FROM sqlite_master "
    f"WHERE type = 'trigger' AND lower(tbl_name) IN ({_TABLES}) AND name NOT IN ({_KNOWN}))"
)


class OwnWrites:
    """Looks at the write connections; what it has found about the schema is kept until the schema changes."""

    def __init__(self) -> None:
        self._schema: int | None = None
        self._others_triggers = True
        #: The watched connection, its data version when that was last asked for, and how often it has changed.
        self._watched: sqlite3.Connection | None = None
        self._version = 0
        self._changes = 0

    def enter(self, conn: sqlite3.Connection) -> None:
        """Note that the broker is about to commit on this connection; called inside its write transaction."""
        if conn is not self._watched:
            self._look()
            self._watched, self._version = conn, _data_version(conn)

    def _look(self) -> None:
        """Count a change if somebody has committed who is not the watched connection."""
        if self._watched is None:
            return
        try:
            version = _data_version(self._watched)
        except sqlite3.ProgrammingError:
            # It was closed, so what has been committed since then is not known.
            self._watched = None
            self._changes += 1
            return
        if version != self._version:
            self._version = version
            self._changes += 1

    def stamp(self, conn: sqlite3.Connection) -> tuple[int, int] | None:
        """A value that changes when others commit or the schema changes; ``None``: own writes change more.

        ``conn`` is Datasette's write connection. Runs on the write thread.
        """
        schema = int(conn.execute("PRAGMA schema_version").fetchone()[0])
        if schema != self._schema:
            self._others_triggers = bool(conn.execute(_OTHERS).fetchone()[0])
            self._schema = schema
        if self._others_triggers or conn.execute("SELECT 1 FROM sqlite_temp_master WHERE type = 'trigger'").fetchone():
            return None
        self._look()
        if self._watched is None:
            self._watched, self._version = conn, _data_version(conn)
        return schema, self._changes


def _data_version(conn: sqlite3.Connection) -> int:
    return int(conn.execute("PRAGMA data_version").fetchone()[0])
