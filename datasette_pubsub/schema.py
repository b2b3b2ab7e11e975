"""The tables, the view and the triggers in the user's file, and their migrations.

The law of this module: it is the only one that creates or changes database
objects. Everything is plain SQL stored in the file, so that every program that
opens it can publish with nothing installed (DESIGN.md, decision 2). It never
touches an object of the same name that it did not make.
"""

from __future__ import annotations

import re
import sqlite3

import sqlite_utils
from sqlite_utils.migrations import Migrations

from .config import MAX_CHANNEL_BYTES, SYNCHRONOUS, Settings
from .errors import SchemaConflict

LOG = "pubsub_messages"
VIEW = "vpubsub"
SUBSCRIPTIONS = "pubsub_subscriptions"
RELEASED = "pubsub_released"
TRIMS = "pubsub_trims"

#: Objects that must be a table or view of ours, with the columns they must have.
EXPECTED = {
    LOG: ("table", {"id", "channel", "payload", "created_at", "key"}),
    VIEW: ("view", {"channel", "payload", "key", "id", "created_at"}),
    SUBSCRIPTIONS: ("table", {"id", "owner", "name", "reads", "cursor", "created_at", "last_seen_at"}),
    RELEASED: ("table", {"channel", "id"}),
    TRIMS: ("table", {"channel", "last_id", "first_id", "messages", "runs"}),
}

NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"

#: Page cache of a connection that writes, in KiB; SQLite's default is 2,000. A message of another channel goes to
#: another place of the index: a million of them, over 100,000 channels, take 3.9 s with this cache instead of 6.7.
WRITE_CACHE_KIB = 32_000

#: Checks every message; made anew when its limit changes.
GUARD = f"{LOG}_guard"

#: The log, its face for publishers, and what retention has released: by name, what it belongs to, and its SQL.
_LOG_OBJECTS = {
    LOG: (
        LOG,
        f"""
        CREATE TABLE {LOG} (
            id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
            channel TEXT NOT NULL,
            payload NOT NULL,
            created_at TEXT NOT NULL DEFAULT ({NOW}),
            key TEXT
        )""",
    ),
    f"{LOG}_channel": (LOG, f"CREATE INDEX {LOG}_channel ON {LOG} (channel, id)"),
    f"{LOG}_key": (LOG, f"CREATE UNIQUE INDEX {LOG}_key ON {LOG} (channel, key) WHERE key IS NOT NULL"),
    RELEASED: (RELEASED, f"CREATE TABLE {RELEASED} (channel TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID"),
    TRIMS: (
        TRIMS,
        f"""
        CREATE TABLE {TRIMS} (
            channel TEXT NOT NULL,
            last_id INTEGER NOT NULL,
            first_id INTEGER NOT NULL,
            messages INTEGER NOT NULL,
            runs BLOB NOT NULL,
            PRIMARY KEY (channel, last_id)
        ) WITHOUT ROWID""",
    ),
    f"{LOG}_update": (
        LOG,
        f"""
        CREATE TRIGGER {LOG}_update BEFORE UPDATE ON {LOG}
        BEGIN SELECT RAISE(ABORT, '{LOG} is append-only: messages cannot be changed'); END""",
    ),
    f"{LOG}_delete": (
        LOG,
        f"""
        CREATE TRIGGER {LOG}_delete BEFORE DELETE ON {LOG}
        WHEN NOT EXISTS (SELECT 1 FROM {RELEASED} WHERE channel = OLD.channel AND id >= OLD.id)
        BEGIN SELECT RAISE(ABORT, '{LOG} is append-only: only retention removes messages'); END""",
    ),
    VIEW: (VIEW, f"CREATE VIEW {VIEW} AS SELECT channel, payload, key, id, created_at FROM {LOG}"),
    f"{VIEW}_insert": (
        VIEW,
        f"""
        CREATE TRIGGER {VIEW}_insert INSTEAD OF INSERT ON {VIEW}
        BEGIN INSERT INTO {LOG} (channel, payload, key) VALUES (NEW.channel, NEW.payload, NEW.key); END""",
    ),
}

#: Durable subscriptions; a cursor moves forward only, and never past the head.
_SUBSCRIPTION_OBJECTS = {
    SUBSCRIPTIONS: (
        SUBSCRIPTIONS,
        f"""
        CREATE TABLE {SUBSCRIPTIONS} (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            owner TEXT NOT NULL DEFAULT '',
            name TEXT NOT NULL CHECK (name <> ''),
            reads TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(reads)),
            cursor INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL DEFAULT ({NOW}),
            last_seen_at TEXT NOT NULL DEFAULT ({NOW}),
            UNIQUE (owner, name)
        )""",
    ),
    f"{SUBSCRIPTIONS}_forward": (
        SUBSCRIPTIONS,
        f"""
        CREATE TRIGGER {SUBSCRIPTIONS}_forward BEFORE UPDATE OF cursor ON {SUBSCRIPTIONS}
        WHEN NEW.cursor IS NOT OLD.cursor
        BEGIN
            SELECT RAISE(ABORT, 'a cursor only moves forward') WHERE NEW.cursor < OLD.cursor;
            SELECT RAISE(ABORT, 'a cursor is a message id of the log, and this one is ahead of its head')
            WHERE typeof(NEW.cursor) <> 'integer'
               OR NEW.cursor > coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{LOG}'), 0);
        END""",
    ),
}

_OBJECTS = {**_LOG_OBJECTS, **_SUBSCRIPTION_OBJECTS}

migrations = Migrations("datasette-pubsub")


@migrations()
def m001_log(db: sqlite_utils.Database) -> None:
    """The log, its face for publishers, and what retention has released."""
    _make_missing(db.conn, _LOG_OBJECTS)


@migrations()
def m002_subscriptions(db: sqlite_utils.Database) -> None:
    """Durable subscriptions."""
    _make_missing(db.conn, _SUBSCRIPTION_OBJECTS)


def guard_sql(max_payload_bytes: int) -> str:
    """The trigger that checks every message, whichever program inserts it.

    One condition that is false for an ordinary message, so that it costs one
    evaluation a row, and in it the cheapest forms: bytes are counted and searched
    faster than characters. (In a file in UTF-16 there is a zero byte in every
    channel; the statements behind the condition decide.) It stands before the table's own constraints, so that
    neither ``OR REPLACE`` nor ``OR IGNORE`` of an outer statement, which SQLite
    hands down into triggers, can replace a stored message or drop a bad one in
    silence. ``NEW.id`` is -1 when the publisher gave none
    (https://sqlite.org/lang_createtrigger.html).
    """
    too_large = f"length(CAST(NEW.payload AS BLOB)) > {max_payload_bytes}"
    channel_bytes = "length(CAST(NEW.channel AS BLOB))"
    return f"""
        CREATE TRIGGER {GUARD} BEFORE INSERT ON {LOG}
        WHEN NEW.key IS NOT NULL OR NEW.id <> -1 OR NEW.payload IS NULL OR {too_large}
          OR typeof(NEW.channel) <> 'text' OR {channel_bytes} NOT BETWEEN 1 AND {MAX_CHANNEL_BYTES}
          OR instr(CAST(NEW.channel AS BLOB), x'00')
          OR NEW.created_at NOT GLOB
             '[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9].[0-9][0-9][0-9]Z'
        BEGIN
            SELECT RAISE(ABORT, 'message ids are given by the log, not by the publisher') WHERE NEW.id <> -1;
            SELECT RAISE(ABORT, 'channel is NULL') WHERE NEW.channel IS NULL;
            SELECT RAISE(ABORT, 'channel must be text') WHERE typeof(NEW.channel) <> 'text';
            SELECT RAISE(ABORT, 'channel is empty') WHERE {channel_bytes} = 0;
            SELECT RAISE(ABORT, 'channel is over the limit of {MAX_CHANNEL_BYTES} bytes')
            WHERE {channel_bytes} > {MAX_CHANNEL_BYTES};
            SELECT RAISE(ABORT, 'channel must not contain NUL') WHERE instr(NEW.channel, char(0));
            SELECT RAISE(ABORT, 'payload is NULL') WHERE NEW.payload IS NULL;
            SELECT RAISE(ABORT, 'payload is over the limit of {max_payload_bytes} bytes (max_payload_bytes)')
            WHERE {too_large};
            SELECT RAISE(ABORT, 'key must be text of 1 to {MAX_CHANNEL_BYTES} bytes')
            WHERE NEW.key IS NOT NULL
              AND (typeof(NEW.key) <> 'text' OR length(CAST(NEW.key AS BLOB)) NOT BETWEEN 1 AND {MAX_CHANNEL_BYTES});
            SELECT RAISE(ABORT, 'created_at must be UTC like 2026-01-31T12:00:00.000Z')
            WHERE NEW.created_at NOT GLOB
             '[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9].[0-9][0-9][0-9]Z';
            SELECT RAISE(IGNORE)
            WHERE EXISTS (SELECT 1 FROM {LOG} WHERE channel = NEW.channel AND key = NEW.key);
        END"""


def _existing(conn: sqlite3.Connection) -> dict[str, tuple[str, str, str]]:
    """What stands in the file under our names: type, what it belongs to, SQL."""
    wanted = [*_OBJECTS, GUARD]
    names = ",".join("?" * len(wanted))
    rows = conn.execute(
        f"SELECT lower(name), type, lower(tbl_name), sql FROM sqlite_master WHERE lower(name) IN ({names})", wanted
    )
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def _make_missing(conn: sqlite3.Connection, objects: dict[str, tuple[str, str]]) -> None:
    found = _existing(conn)
    for name, (_, sql) in objects.items():
        if name not in found:
            conn.execute(sql)


def _make_again(conn: sqlite3.Connection) -> None:
    """Make what was dropped. A new log goes on above every id that its readers remember, so that none comes twice."""
    lost = LOG not in _existing(conn)
    _make_missing(conn, _OBJECTS)
    if lost:
        newest = (
            f"SELECT max(coalesce((SELECT max(cursor) FROM {SUBSCRIPTIONS}), 0), "
            f"coalesce((SELECT max(id) FROM {RELEASED}), 0))"
        )
        conn.execute(f"INSERT INTO sqlite_sequence (name, seq) SELECT '{LOG}', ({newest})")


def check(conn: sqlite3.Connection) -> bool:
    """Whether the log is installed in this file, complete and ours.

    Raises :class:`SchemaConflict` when an object with one of our names is not
    ours, or when the log has lost its AUTOINCREMENT (as a table rebuild by
    other tools can do), which would let ids be given out twice.
    """
    found = _existing(conn)
    if not found:
        return False
    recorded = bool(migrations.applied(_database(conn)))
    for name, (kind, parent, sql) in found.items():
        if not _is_ours(conn, name, kind, parent, sql, recorded):
            raise SchemaConflict(
                f"{name} already exists in this database and is not datasette-pubsub's; rename it, then install again"
            )
    if LOG in found and "AUTOINCREMENT" not in found[LOG][2].upper():
        raise SchemaConflict(
            f"{LOG} has lost its AUTOINCREMENT, so message ids could be given out twice; "
            "restore the table as datasette-pubsub makes it"
        )
    return found.keys() >= _OBJECTS.keys()


def _is_ours(conn: sqlite3.Connection, name: str, kind: str, parent: str, sql: str, recorded: bool) -> bool:
    """By its very text; where the file says that we have been here (``recorded``), by its columns, too."""
    if name == GUARD:
        return kind == "trigger" and parent == LOG
    if sql.split() == _OBJECTS[name][1].split():
        return True
    if not recorded:
        return False
    if name not in EXPECTED:
        return parent == _OBJECTS[name][0]
    expected_kind, columns = EXPECTED[name]
    return kind == expected_kind and columns <= {row[1] for row in conn.execute(f"PRAGMA table_info({name})")}


def _database(conn: sqlite3.Connection) -> sqlite_utils.Database:
    return sqlite_utils.Database(conn, recursive_triggers=False, execute_plugins=False)


def installed(conn: sqlite3.Connection) -> bool:
    """Whether there is a log to read in this file. Cheap: no checks."""
    return conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [LOG]).fetchone() is not None


def readers(conn: sqlite3.Connection) -> list[str]:
    """The views and virtual tables that read ours, also through each other.

    Told by their SQL, which must name what it reads; one that names it in a comment counts, too.
    """
    rows = conn.execute("SELECT name, coalesce(sql, ''), type FROM sqlite_master WHERE type IN ('table', 'view')")
    others = {row[0]: (row[1], row[2]) for row in rows if row[0] not in EXPECTED}
    found: list[str] = []
    sources = list(EXPECTED)
    while sources:
        named = re.compile("|".join(rf"(?<!\w){re.escape(_in_quotes(name))}(?!\w)" for name in sources), re.IGNORECASE)
        sources = [
            name
            for name, (sql, kind) in others.items()
            if name not in found and (kind == "view" or _VIRTUAL.match(sql)) and named.search(sql)
        ]
        found += sources
    return found


_VIRTUAL = re.compile(r"\s*CREATE\s+VIRTUAL\s", re.IGNORECASE)


def _in_quotes(name: str) -> str:
    return name.replace('"', '""')


def install(conn: sqlite3.Connection, settings: Settings) -> None:
    """Bring the file to the newest schema, in one transaction, with all that was dropped; a complete one is only read.

    Inside a transaction of the caller's it becomes part of that. Raises
    :class:`SchemaConflict` when the file holds something with our names that is
    not ours, and ``sqlite3.OperationalError`` when the file cannot be written.
    """
    guard = guard_sql(settings.max_payload_bytes)
    if _complete(conn, guard):
        return
    nested = conn.in_transaction
    conn.execute("SAVEPOINT pubsub_install" if nested else "BEGIN IMMEDIATE")
    try:
        # Looked at again inside the transaction: another process may have been faster.
        if not _complete(conn, guard):
            migrations.apply(_database(conn))
            _make_again(conn)
            conn.execute(f"DROP TRIGGER IF EXISTS {GUARD}")
            conn.execute(guard)
    except BaseException:
        conn.execute("ROLLBACK TO pubsub_install" if nested else "ROLLBACK")
        raise
    conn.execute("RELEASE pubsub_install" if nested else "COMMIT")


def _complete(conn: sqlite3.Connection, guard: str) -> bool:
    if not check(conn):
        return False
    row = conn.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?", [GUARD]).fetchone()
    if row is None or row[0].strip() != guard.strip():
        return False
    return not migrations.pending(_database(conn))


def set_durability(conn: sqlite3.Connection, settings: Settings) -> None:
    """Write-ahead log, and ``synchronous`` at least as configured, on one writing connection."""
    conn.execute("PRAGMA journal_mode = WAL").fetchone()
    wanted = SYNCHRONOUS[settings.synchronous]
    if settings.synchronous == "normal" or conn.execute("PRAGMA synchronous").fetchone()[0] < wanted:
        conn.execute(f"PRAGMA synchronous = {wanted}")


def set_cache(conn: sqlite3.Connection) -> None:
    """Room for the index of many channels, on one writing connection."""
    conn.execute(f"PRAGMA cache_size = {-WRITE_CACHE_KIB}")
