"""Tells whether all commits to a file were the broker's own, as far as they went through the write connection.

``PRAGMA data_version`` on the write connection changes when another connection has committed, and not by its own
commits (https://sqlite.org/pragma.html#pragma_data_version). The broker's own transactions change only the log and the
broker's other tables, unless somebody's trigger on one of these changes more.
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
    f"WHERE type = 'trigger' AND tbl_name IN ({_TABLES}) AND name NOT IN ({_KNOWN}))"
)


class OwnWrites:
    """Looks at the write connection; what it has found about the schema is kept until the schema changes."""

    def __init__(self) -> None:
        self._schema: int | None = None
        self._others_triggers = True

    def stamp(self, conn: sqlite3.Connection) -> tuple[int, int] | None:
        """A value that changes when another connection commits or the schema changes; ``None``: own writes change more.

        Runs on the write thread.
        """
        schema = int(conn.execute("PRAGMA schema_version").fetchone()[0])
        if schema != self._schema:
            self._others_triggers = bool(conn.execute(_OTHERS).fetchone()[0])
            self._schema = schema
        if self._others_triggers or conn.execute("SELECT 1 FROM sqlite_temp_master WHERE type = 'trigger'").fetchone():
            return None
        return schema, int(conn.execute("PRAGMA data_version").fetchone()[0])
