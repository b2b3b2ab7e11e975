"""Tells whether a plain append to this file does nothing but append: whether only the plugin's triggers would fire.

:mod:`.broker.own_connection` then writes without triggers what has been checked already.
"""

from __future__ import annotations

import sqlite3

from .objects import GUARD, LOG, OBJECTS, SUBSCRIPTIONS, TABLES, guard_sql
from .schema import max_payload_bytes

#: The most bytes that a number has as text, which is how the guard measures it: ``-1.7976931348623157e+308`` has 24.
#: The plugin's check counts 8 for a number, so a guard with a smaller limit may refuse one that has passed the check.
NUMBER_BYTES = 32

#: The objects that take part in a plain append or in moving a cursor, without the guard: the two tables, and the
#: triggers on them.
_OURS = {
    (sql.split()[1].lower(), name, sql)
    for name, (table, sql) in OBJECTS.items()
    if table in (LOG, SUBSCRIPTIONS) and sql.startswith(("CREATE TABLE", "CREATE TRIGGER"))
}

#: SQLite keeps a trigger's table as the statement wrote it, so upper and lower case count as equal.
_FOUND = f"""
    SELECT type, name, coalesce(sql, '') FROM sqlite_master
    WHERE (type = 'trigger' AND lower(tbl_name) IN ('{LOG}', '{SUBSCRIPTIONS}'))
       OR (type IN ('table', 'view') AND lower(name) IN ('{LOG}', '{SUBSCRIPTIONS}'))"""

_TEMPORARY = f"""
    SELECT 1 FROM sqlite_temp_master
    WHERE type = 'trigger' OR lower(name) IN ({", ".join(f"'{name}'" for name in (*TABLES, "sqlite_sequence"))})"""


def only_ours(conn: sqlite3.Connection, checked_bytes: int) -> bool:
    """Whether the log, the subscriptions and all triggers on both have exactly the SQL that the plugin gives them.

    ``checked_bytes`` is the payload limit, in bytes, that messages were checked
    with: ``False`` if the file's guard may have a smaller one. So it is for a
    log that follows a stream, and for a file in UTF-16, where the guard counts
    other bytes.
    """
    limit = max_payload_bytes(conn)
    if limit is None or limit < max(checked_bytes, NUMBER_BYTES):
        return False
    if conn.execute("PRAGMA encoding").fetchone()[0] != "UTF-8":
        return False
    found = {(row[0], row[1], row[2]) for row in conn.execute(_FOUND)}
    return found == {*_OURS, ("trigger", GUARD, guard_sql(limit))}


def has_temporary(conn: sqlite3.Connection) -> bool:
    """Whether this connection has a TEMP trigger, or a TEMP object with the name of one of the plugin's tables."""
    return conn.execute(_TEMPORARY).fetchone() is not None
