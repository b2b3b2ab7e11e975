"""Migrates files of schema version 1, and rebuilds logs that another tool has altered.

All functions run inside the caller's transaction: if one raises, the caller rolls back, and the file is as before.
Messages keep their ids, times and keys. Indexes, triggers and views that users have made on the log are made again
with the present names.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from ..core.errors import SchemaConflict
from .objects import LOG, LOG_OBJECTS, RELEASED, SUBSCRIPTION_OBJECTS, SUBSCRIPTIONS, TRIMS, make_missing
from .quoting import identifier

#: The tables of version 1, with their present names.
RENAMED = {"pubsub_messages": LOG, "pubsub_released": RELEASED, "pubsub_trims": TRIMS}

_OLD_LOG = "pubsub_messages"
_OLD_VIEW = f"CREATE VIEW {LOG} AS SELECT channel, payload, key, id, created_at FROM {_OLD_LOG}"
_OLD_OBJECTS = (
    *RENAMED,
    LOG,
    f"{LOG}_insert",
    f"{_OLD_LOG}_channel",
    f"{_OLD_LOG}_key",
    f"{_OLD_LOG}_update",
    f"{_OLD_LOG}_delete",
    f"{_OLD_LOG}_guard",
    f"{SUBSCRIPTIONS}_forward",
)

#: The temporary name of the old table while its rows are copied.
_ASIDE = "_pubsub_rebuilt"

_COLUMNS = "id, channel, payload, created_at, key"

#: The columns of the subscriptions of version 1.
_SUBSCRIPTION_COLUMNS = "id, owner, name, reads, cursor, created_at, last_seen_at"

#: Matches names, strings and comments of SQL; names inside strings and comments are not matched as names.
_TOKEN = re.compile(
    r"""(?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|'(?:[^']|'')*'|[^\W\d][\w$]*)|--[^\n]*|/\*.*?\*/""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Object:
    """An object of the file that users have made: its kind, its name, the table that it belongs to, its SQL."""

    kind: str
    name: str
    table: str
    sql: str


def is_version_1(conn: sqlite3.Connection) -> bool:
    """Whether the file has the log of version 1: the table ``pubsub_messages`` behind a view."""
    rows = conn.execute(
        "SELECT name, type, sql FROM sqlite_master WHERE type IN ('table', 'view') AND name IN (?, ?)", [_OLD_LOG, LOG]
    )
    found = {row[0]: (row[1], row[2]) for row in rows}
    if found.get(_OLD_LOG, ("",))[0] != "table" or found.get(LOG, ("",))[0] == "table":
        return False
    text = found.get(LOG, ("", ""))[1]
    return text.split() == _OLD_VIEW.split() or _recorded(conn)


def _recorded(conn: sqlite3.Connection) -> bool:
    if not _exists(conn, "_sqlite_migrations"):
        return False
    sql = "SELECT 1 FROM _sqlite_migrations WHERE migration_set = 'datasette-pubsub'"
    return conn.execute(sql).fetchone() is not None


def from_version_1(conn: sqlite3.Connection) -> None:
    """Migrate a file of version 1 to the present version.

    It rewrites users' views, triggers and indexes that name the old tables.
    Raises :class:`SchemaConflict` for an object that it cannot rewrite; the
    error names the object and says what to do.
    """
    if not is_version_1(conn):
        return
    users = [each for each in _objects(conn) if each.name.lower() not in _OLD_OBJECTS]
    for each in users:
        if each.table.lower() == LOG:
            raise SchemaConflict(
                f"{each.kind} {each.name} belongs to the view {LOG}, which becomes a table: drop it, install, and "
                f"make it again for the table {LOG}"
            )
    rewritten = _depending(users)
    for each in rewritten:
        if each.kind == "table":
            raise SchemaConflict(
                f"table {each.name} refers to {_named(each.sql)}, which is called {RENAMED[_named(each.sql)]} from now "
                "on: drop that table, install, and make it again with the new name"
            )
    worked = {each.name for each in rewritten if _compiles(conn, each)}
    (seq,) = conn.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", [_OLD_LOG]).fetchone()
    _drop(conn, rewritten)
    conn.execute(f"DROP VIEW IF EXISTS {LOG}")
    conn.execute(f"DROP TRIGGER IF EXISTS {SUBSCRIPTIONS}_forward")
    _renew_subscriptions(conn)
    _copy(conn, _OLD_LOG, seq)
    make_missing(conn, LOG_OBJECTS)
    for old, new in RENAMED.items():
        if new != LOG and any(each.name.lower() == old for each in _objects(conn)):
            conn.execute(f"INSERT INTO {new} SELECT * FROM {old}")
            conn.execute(f"DROP TABLE {old}")
    for each in rewritten:
        conn.execute(_renamed(each.sql))
    for each in rewritten:
        if each.name in worked and not _compiles(conn, each):
            raise SchemaConflict(
                f"{each.kind} {each.name} names {_named(each.sql)} in a way that cannot be rewritten: drop it, "
                f"install, and make it again for the table {RENAMED[_named(each.sql)]}"
            )


def rebuild_log(conn: sqlite3.Connection) -> None:
    """Rebuild the table ``vpubsub`` in its proper form, with the rows of the existing one.

    Raises :class:`SchemaConflict` if that would lose data.
    """
    present = {row[1] for row in conn.execute(f"PRAGMA table_info({LOG})")}
    wanted = set(_COLUMNS.split(", "))
    if present != wanted:
        what = "has further columns: " + ", ".join(sorted(present - wanted))
        if present - wanted == set():
            what = "has lost columns: " + ", ".join(sorted(wanted - present))
        raise SchemaConflict(f"table {LOG} was altered and {what}; it cannot be repaired without losing something")
    own = [each for each in _objects(conn) if each.table.lower() == LOG and each.name.lower() != LOG]
    users = [each for each in own if each.name.lower() not in {*LOG_OBJECTS, f"{LOG}_guard"}]
    row = conn.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", [LOG]).fetchone()
    _drop(conn, own)
    _set_aside(conn, LOG)
    try:
        _copy(conn, _ASIDE, row[0])
        make_missing(conn, LOG_OBJECTS)
    except sqlite3.IntegrityError as error:
        raise SchemaConflict(f"table {LOG} was altered and holds what a log cannot hold: {error}") from None
    for each in users:
        conn.execute(each.sql)


def _renew_subscriptions(conn: sqlite3.Connection) -> None:
    """Rebuild the table of subscriptions of version 1, with the columns that it lacks."""
    if not _exists(conn, SUBSCRIPTIONS):
        return
    own = [
        each for each in _objects(conn) if each.table.lower() == SUBSCRIPTIONS and each.name.lower() != SUBSCRIPTIONS
    ]
    present = {row[1] for row in conn.execute(f"PRAGMA table_info({SUBSCRIPTIONS})")}
    if more := present - set(_SUBSCRIPTION_COLUMNS.split(", ")):
        raise SchemaConflict(
            f"table {SUBSCRIPTIONS} has further columns, which this version has no place for: "
            f"{', '.join(sorted(more))}; drop them, and install again"
        )
    (seq,) = conn.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", [SUBSCRIPTIONS]).fetchone()
    _drop(conn, own)
    _set_aside(conn, SUBSCRIPTIONS)
    conn.execute(SUBSCRIPTION_OBJECTS[SUBSCRIPTIONS][1])
    columns = _SUBSCRIPTION_COLUMNS
    conn.execute(f"INSERT INTO {SUBSCRIPTIONS} ({columns}) SELECT {columns} FROM {_ASIDE} ORDER BY id")
    conn.execute(f"DROP TABLE {_ASIDE}")
    _set_sequence(conn, SUBSCRIPTIONS, seq)
    make_missing(conn, SUBSCRIPTION_OBJECTS)
    for each in own:
        conn.execute(each.sql)


def _set_aside(conn: sqlite3.Connection, table: str) -> None:
    """Rename a table for a while, without changing its name in users' views and triggers."""
    (legacy,) = conn.execute("PRAGMA legacy_alter_table").fetchone()
    conn.execute("PRAGMA legacy_alter_table = ON")
    try:
        conn.execute(f"ALTER TABLE {table} RENAME TO {_ASIDE}")
    finally:
        conn.execute(f"PRAGMA legacy_alter_table = {legacy}")


def _set_sequence(conn: sqlite3.Connection, table: str, seq: int | None) -> None:
    """Make a table continue with ids after this one."""
    if seq is not None:
        conn.execute("DELETE FROM sqlite_sequence WHERE name = ?", [table])
        conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", [table, seq])


def _copy(conn: sqlite3.Connection, source: str, seq: int | None) -> None:
    """Make the log with the rows of another table, and drop that; ids continue after ``seq``."""
    conn.execute(LOG_OBJECTS[LOG][1])
    conn.execute(f"INSERT INTO {LOG} ({_COLUMNS}) SELECT {_COLUMNS} FROM {source} ORDER BY id")
    conn.execute(f"DROP TABLE {source}")
    _set_sequence(conn, LOG, seq)


def _objects(conn: sqlite3.Connection) -> list[_Object]:
    rows = conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
    return [_Object(*row) for row in rows]


def _drop(conn: sqlite3.Connection, objects: Iterable[_Object]) -> None:
    for each in objects:
        conn.execute(f"DROP {each.kind} IF EXISTS {identifier(each.name)}")


def _depending(users: list[_Object]) -> list[_Object]:
    """The objects that name a table of version 1, and the triggers of the views among them."""
    naming = [each for each in users if _named(each.sql)]
    views = {each.name.lower() for each in naming if each.kind == "view"}
    return [each for each in users if each in naming or (each.kind == "trigger" and each.table.lower() in views)]


def _named(sql: str) -> str:
    """The first table of version 1 that the SQL names; empty if there is none."""
    for match in _TOKEN.finditer(sql):
        name = _unquoted(match["name"] or "")
        if name in RENAMED:
            return name
    return ""


def _renamed(sql: str) -> str:
    """The SQL with the present names of our tables, quoted or not."""

    def present(match: re.Match[str]) -> str:
        text: str = match[0]
        new = RENAMED.get(_unquoted(match["name"] or ""))
        if new is None:
            return text
        return text[0] + new + text[-1] if text[0] in "\"'`[" else new

    return _TOKEN.sub(present, sql)


def _unquoted(token: str) -> str:
    return (token[1:-1] if token[:1] in ('"', "'", "`", "[") else token).lower()


def _compiles(conn: sqlite3.Connection, found: _Object) -> bool:
    """Whether a view can be read, or a trigger's table can be written. It changes nothing."""
    name = found.name if found.kind == "view" else found.table
    name = RENAMED.get(name.lower(), name) if not _exists(conn, name) else name
    quoted = identifier(name)
    statements = [f"SELECT 1 FROM {quoted} LIMIT 0"]
    if found.kind == "trigger":
        statements = [f"EXPLAIN INSERT INTO {quoted} DEFAULT VALUES", f"EXPLAIN DELETE FROM {quoted}"]
    try:
        for statement in statements:
            conn.execute(statement).fetchall()
    except sqlite3.Error:
        return False
    return True


def _exists(conn: sqlite3.Connection, name: str) -> bool:
    return conn.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone() is not None
