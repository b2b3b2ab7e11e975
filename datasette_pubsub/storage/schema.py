"""The schema of the user's file: inspects the plugin's objects, and installs, migrates and repairs them.

Only this module and :mod:`.storage.migration` create or change these objects, except for the triggers of broadcasts. An
object with one of our names that the plugin did not make is never changed.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import sqlite_utils
from sqlite_utils.migrations import Migrations

from ..core.errors import SchemaConflict
from ..core.settings import SYNCHRONOUS, Settings
from . import sources
from .migration import from_version_1, is_version_1, rebuild_log
from .objects import (
    BROADCAST_OBJECTS,
    FILE,
    FILE_OBJECTS,
    GUARD,
    LOG,
    LOG_OBJECTS,
    NOW,
    OBJECTS,
    RELEASED,
    SCHEMA_VERSION,
    SOURCES,
    SUBSCRIPTION_OBJECTS,
    SUBSCRIPTIONS,
    TABLES,
    WRITE_CACHE_KIB,
    existing,
    follower_guard_sql,
    guard_sql,
    make_missing,
)

#: The columns of the log as ``PRAGMA table_info`` shows them: type, not null, default, place in the primary key.
_LOG_COLUMNS = {
    "id": ("INTEGER", 0, None, 1),
    "channel": ("TEXT", 1, None, 0),
    "payload": ("", 1, None, 0),
    "created_at": ("TEXT", 1, NOW, 0),
    "key": ("TEXT", 0, None, 0),
}

migrations = Migrations("datasette-pubsub")


@migrations()
def m001_log(db: sqlite_utils.Database) -> None:
    """Make the log and the tables of retention."""
    make_missing(db.conn, LOG_OBJECTS)


@migrations()
def m002_subscriptions(db: sqlite_utils.Database) -> None:
    """Make the table of subscriptions."""
    make_missing(db.conn, SUBSCRIPTION_OBJECTS)


@migrations()
def m003_log_is_vpubsub(db: sqlite_utils.Database) -> None:
    """Make the tables for the file's schema version and for broadcasts.

    (:func:`from_version_1` has made ``vpubsub`` the log before.)
    """
    make_missing(db.conn, {**BROADCAST_OBJECTS, **FILE_OBJECTS})


_GUARD_LIMIT = re.compile(r"limit of (\d+) bytes \(max_payload_bytes\)")


def max_payload_bytes(conn: sqlite3.Connection) -> int | None:
    """The payload limit that the file's guard enforces for every program, in bytes; ``None`` without a guard."""
    row = conn.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?", [GUARD]).fetchone()
    found = _GUARD_LIMIT.search(row[0]) if row else None
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Inspection:
    """The state of the objects with our names in a file.

    ``recorded`` says that the plugin has made the file; ``version`` is the
    schema version that it records. ``missing`` objects do not exist, ``altered``
    ones have our names and tables but other SQL, and ``foreign`` ones were not
    made by the plugin.
    """

    recorded: bool
    version: int | None
    missing: tuple[str, ...]
    altered: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def newer(self) -> bool:
        """Whether a newer version of the plugin has made the file."""
        return self.version is not None and self.version > SCHEMA_VERSION


def inspect(conn: sqlite3.Connection) -> Inspection:
    """Inspect the objects with our names, without changing anything."""
    if is_version_1(conn):
        return Inspection(True, 1, tuple(OBJECTS), (), ())
    found = existing(conn)
    version = _version(conn, found)
    recorded = version is not None or bool(migrations.applied(_database(conn)))
    altered: list[str] = []
    foreign: list[str] = []
    for name, (kind, parent, sql) in found.items():
        if _as_made(conn, name, kind, parent, sql):
            continue
        belongs = parent == (LOG if name == GUARD else OBJECTS[name][0]) and kind == _kind(name)
        (altered if recorded and belongs else foreign).append(name)
    missing = [name for name in (*OBJECTS, GUARD) if name not in found]
    return Inspection(recorded, version, tuple(missing), tuple(altered), tuple(foreign))


def _kind(name: str) -> str:
    """The kind of object that one of our names should have."""
    return "trigger" if name == GUARD else OBJECTS[name][1].replace("UNIQUE", "").split()[1].lower()


def _as_made(conn: sqlite3.Connection, name: str, kind: str, parent: str, sql: str) -> bool:
    """Whether an object has the SQL that the plugin gives it; the log may have further columns."""
    if name == GUARD:
        limit = _GUARD_LIMIT.search(sql)
        followed = sources.followed(conn)
        if followed is not None:
            return kind == "trigger" and sql.split() == follower_guard_sql(followed.refusal).split()
        return kind == "trigger" and limit is not None and sql.split() == guard_sql(int(limit[1])).split()
    if sql.split() == OBJECTS[name][1].split():
        return True
    if name != LOG or kind != "table" or "AUTOINCREMENT" not in sql.upper() or "ON CONFLICT REPLACE" not in sql.upper():
        return False
    columns = {row[1]: tuple(row[2:6]) for row in conn.execute(f"PRAGMA table_info({LOG})")}
    return all(columns.get(column) == wanted for column, wanted in _LOG_COLUMNS.items())


def _version(conn: sqlite3.Connection, found: dict[str, tuple[str, str, str]]) -> int | None:
    if found.get(FILE, ("",))[0] != "table":
        return None
    if "schema_version" not in [row[1] for row in conn.execute(f"PRAGMA table_info({FILE})")]:
        return None
    row = conn.execute(f"SELECT schema_version FROM {FILE}").fetchone()
    return row[0] if row and isinstance(row[0], int) else None


def instance_id(conn: sqlite3.Connection) -> str | None:
    """The random id that this file got when its log was made; ``None`` without one."""
    if FILE not in existing(conn):
        return None
    row = conn.execute(f"SELECT instance_id FROM {FILE}").fetchone()
    return str(row[0]) if row else None


def _record_file(conn: sqlite3.Connection, unchecked: bool) -> None:
    """Record the schema version in the file; ``unchecked`` says that no guard has checked the present messages."""
    conn.execute(
        f"INSERT INTO {FILE} (one, schema_version, instance_id) VALUES (1, ?, lower(hex(randomblob(16)))) "
        "ON CONFLICT (one) DO UPDATE SET schema_version = excluded.schema_version",
        [SCHEMA_VERSION],
    )
    if unchecked:
        conn.execute(f"UPDATE {FILE} SET checked_after = (SELECT coalesce(max(id), 0) FROM {LOG})")


def go_on_above(conn: sqlite3.Connection) -> None:
    """Make the log continue with ids above all stored ids, all trimmed ids and all cursors."""
    known = " UNION ALL ".join(
        f"SELECT max({column}) FROM {table}"
        for table, column in ((LOG, "id"), (SUBSCRIPTIONS, "cursor"), (RELEASED, "id"))
    )
    sequence = f"SELECT seq FROM sqlite_sequence WHERE name = '{LOG}'"
    (seq,) = conn.execute(f"SELECT max(id) FROM (SELECT 0 AS id UNION ALL {sequence} UNION ALL {known})").fetchone()
    conn.execute("DELETE FROM sqlite_sequence WHERE name = ?", [LOG])
    conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", [LOG, seq])


def check(conn: sqlite3.Connection) -> bool:
    """Whether the log is installed in this file, complete and unaltered.

    Raises :class:`SchemaConflict` if an object with one of our names is foreign
    or altered, or if a newer version of the plugin has made the file.
    """
    return _complete(inspect(conn))


def _complete(found: Inspection) -> bool:
    if found.newer:
        raise SchemaConflict(
            f"this file was made by a newer version of datasette-pubsub (schema {found.version}; this version knows "
            f"{SCHEMA_VERSION}): it can be read but not written; upgrade datasette-pubsub"
        )
    if found.foreign:
        raise SchemaConflict(
            f"{found.foreign[0]} already exists in this database and is not datasette-pubsub's; "
            "rename it, then install again"
        )
    if found.altered:
        raise SchemaConflict(
            f"{', '.join(found.altered)}: not as datasette-pubsub makes it; nothing is published until it is repaired: "
            "run datasette pubsub install"
        )
    return not found.missing


def _database(conn: sqlite3.Connection) -> sqlite_utils.Database:
    return sqlite_utils.Database(conn, recursive_triggers=False, execute_plugins=False)


def installed(conn: sqlite3.Connection) -> bool:
    """Whether this file has a log. Cheap, without the checks of :func:`check`."""
    return conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [LOG]).fetchone() is not None


def readers(conn: sqlite3.Connection) -> list[str]:
    """The views and virtual tables that read the plugin's tables, directly or through each other.

    This looks at their SQL, which must name the tables that it reads; a name in a comment counts as well.
    """
    rows = conn.execute("SELECT name, coalesce(sql, ''), type FROM sqlite_master WHERE type IN ('table', 'view')")
    others = {row[0]: (row[1], row[2]) for row in rows if row[0] not in TABLES}
    found: list[str] = []
    sources = list(TABLES)
    while sources:
        quoted = (re.escape(name.replace('"', '""')) for name in sources)
        named = re.compile("|".join(rf"(?<!\w){name}(?!\w)" for name in quoted), re.IGNORECASE)
        sources = [
            name
            for name, (sql, kind) in others.items()
            if name not in found and (kind == "view" or _VIRTUAL.match(sql)) and named.search(sql)
        ]
        found += sources
    return found


_VIRTUAL = re.compile(r"\s*CREATE\s+VIRTUAL\s", re.IGNORECASE)


def install(
    conn: sqlite3.Connection,
    settings: Settings,
    *,
    repair: bool = False,
    migrated: Callable[[sqlite3.Connection], None] = lambda conn: None,
) -> tuple[str, ...]:
    """Install the newest schema, in one transaction, including objects that were dropped; reads only if complete.

    Inside a transaction of the caller it becomes part of that. ``migrated`` is
    called inside the transaction after a migration from version 1. With
    ``repair``, altered objects are repaired if that loses no data; returns their
    names. Raises :class:`SchemaConflict` if the file has a foreign object, one
    that cannot be repaired, or a newer version, and ``sqlite3.OperationalError``
    if the file cannot be written.
    """
    guard = _guard(conn, settings)
    if _ready(conn, guard, repair):
        return ()
    nested = conn.in_transaction
    conn.execute("SAVEPOINT pubsub_install" if nested else "BEGIN IMMEDIATE")
    try:
        repaired: tuple[str, ...] = ()
        # Checked again inside the transaction: another process may have installed it meanwhile.
        if not _ready(conn, guard, repair):
            repaired = _install(conn, guard, migrated)
    except BaseException:
        # On a full disk, SQLite itself has ended the transaction.
        if conn.in_transaction:
            conn.execute("ROLLBACK TO pubsub_install" if nested else "ROLLBACK")
        raise
    conn.execute("RELEASE pubsub_install" if nested else "COMMIT")
    return repaired


def _guard(conn: sqlite3.Connection, settings: Settings) -> str:
    """The SQL of the guard that this file should have."""
    followed = sources.followed(conn)
    return guard_sql(settings.max_payload_bytes) if followed is None else follower_guard_sql(followed.refusal)


def _install(conn: sqlite3.Connection, guard: str, migrated: Callable[[sqlite3.Connection], None]) -> tuple[str, ...]:
    was_version_1 = is_version_1(conn)
    from_version_1(conn)
    found = inspect(conn)
    repaired = found.altered
    for name in repaired:
        if name != LOG:
            _drop_altered(conn, name)
    lost = LOG not in existing(conn)
    migrations.apply(_database(conn))
    if LOG in repaired:
        rebuild_log(conn)
    make_missing(conn, OBJECTS)
    _record_file(conn, unchecked=GUARD in (*found.missing, *found.altered))
    if lost or LOG in repaired:
        go_on_above(conn)
    _make_guard(conn, guard)
    if was_version_1:
        migrated(conn)
    return repaired


def follow(
    conn: sqlite3.Connection, settings: Settings, stream: str, instance_id: str | None, publish_at: str | None
) -> None:
    """Make this log a copy of a stream's, inside the caller's transaction, or check that it is one.

    Raises :class:`SchemaConflict` if the log has had messages of its own,
    follows another stream, or is not in UTF-8.
    """
    install(conn, settings)
    if conn.execute("PRAGMA encoding").fetchone()[0] != "UTF-8":
        raise SchemaConflict("this file is in UTF-16, which cannot hold every message: begin with a new file")
    found = sources.followed(conn)
    if found is None:
        (seq,) = conn.execute(f"SELECT max(seq) FROM sqlite_sequence WHERE name = '{LOG}'").fetchone()
        if seq:
            raise SchemaConflict(
                f"this log has messages of its own, up to id {seq}: only an empty log can begin to follow a stream"
            )
        conn.execute(f"INSERT INTO {SOURCES} (kind, stream) VALUES ('follow', ?)", [stream])
    elif found.stream != stream:
        raise SchemaConflict(f"this log follows the stream {found.stream}, not {stream}")
    elif None not in (found.instance_id, instance_id) and found.instance_id != instance_id:
        raise SchemaConflict(f"this log follows a stream {stream} that was made from another log")
    conn.execute(
        f"UPDATE {SOURCES} SET instance_id = coalesce(?, instance_id), publish_at = ? WHERE kind = 'follow'",
        [instance_id, publish_at],
    )
    _make_guard(conn, _guard(conn, settings))


def promote(conn: sqlite3.Connection, settings: Settings) -> None:
    """Make a copy an ordinary log, inside the caller's transaction; it takes the place of the log that it copied.

    So it has that log's instance id: a relay goes on with the same stream.
    Raises :class:`SchemaConflict` if the log follows nothing.
    """
    found = sources.followed(conn)
    if found is None:
        raise SchemaConflict("this log follows no stream")
    if found.instance_id is not None:
        conn.execute(f"UPDATE {FILE} SET instance_id = ?", [found.instance_id])
    conn.execute(f"DELETE FROM {SOURCES} WHERE kind = 'follow'")
    # No guard of this file has checked the messages that are there.
    conn.execute(f"UPDATE {FILE} SET checked_after = (SELECT coalesce(max(id), 0) FROM {LOG})")
    _make_guard(conn, _guard(conn, settings))


def _make_guard(conn: sqlite3.Connection, guard: str) -> None:
    """Make the guard, unless it is there already."""
    row = conn.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?", [GUARD]).fetchone()
    if row is None or row[0] != guard:
        conn.execute(f"DROP TRIGGER IF EXISTS {GUARD}")
        conn.execute(guard)


def _drop_altered(conn: sqlite3.Connection, name: str) -> None:
    """Drop an altered object, so that it can be made again. Raises for a table with rows, which would be lost."""
    kind = _kind(name)
    if kind == "table" and conn.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() is not None:
        raise SchemaConflict(
            f"table {name} was altered, and making it again would lose its rows: give it back the form that "
            "docs/sql.md shows, or rename it"
        )
    conn.execute(f"DROP {kind} {name}")


def _ready(conn: sqlite3.Connection, guard: str, repair: bool) -> bool:
    """Whether the schema is up to date. Raises :class:`SchemaConflict` if it cannot be installed."""
    found = inspect(conn)
    if repair and found.altered and not found.newer and not found.foreign:
        return False
    if not _complete(found) or found.version != SCHEMA_VERSION:
        return False
    row = conn.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?", [GUARD]).fetchone()
    return row is not None and row[0].strip() == guard.strip() and not migrations.pending(_database(conn))


def set_durability(conn: sqlite3.Connection, settings: Settings) -> None:
    """Set a connection that writes to WAL mode, and to the configured ``synchronous`` or a stricter one."""
    conn.execute("PRAGMA journal_mode = WAL").fetchone()
    wanted = SYNCHRONOUS[settings.synchronous]
    if settings.synchronous == "normal" or conn.execute("PRAGMA synchronous").fetchone()[0] < wanted:
        conn.execute(f"PRAGMA synchronous = {wanted}")


def set_cache(conn: sqlite3.Connection) -> None:
    """Give a connection that writes a page cache for the index of many channels."""
    conn.execute(f"PRAGMA cache_size = {-WRITE_CACHE_KIB}")
