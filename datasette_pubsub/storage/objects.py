"""The SQL of the plugin's tables, indexes and triggers in the user's file.

All of it is plain SQL stored in the file, so that any program can publish without installing anything
(docs/architecture.md).
"""

from __future__ import annotations

import sqlite3
from textwrap import dedent

from ..core.settings import MAX_CHANNEL_BYTES
from .utf8_sql import invalid_utf8

LOG = "vpubsub"
SUBSCRIPTIONS = "pubsub_subscriptions"
RELEASED = "_pubsub_released"
TRIMS = "_pubsub_trims"
FILE = "_pubsub_file"
PROBE = "_pubsub_probe"
RECORDS = "_pubsub_broadcasts"
REPLACED = "_pubsub_replaced"
STANDING = "_pubsub_standing"
SOURCES = "_pubsub_sources"

#: The version of the objects below. A file records the version that made it.
SCHEMA_VERSION = 2

#: The plugin's tables. Datasette hides those that begin with an underscore, which users do not need.
TABLES = (LOG, SUBSCRIPTIONS, RELEASED, TRIMS, FILE, PROBE, RECORDS, REPLACED, STANDING, SOURCES)

NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"

#: The page cache of the write connection, in KiB; SQLite's default is 2,000. Messages of different channels go to
#: different places in the index: a million messages in 100,000 channels take 3.9 s with this cache instead of 6.7 s.
WRITE_CACHE_KIB = 32_000

#: The trigger that checks every message; it is made again when its limit changes.
GUARD = f"{LOG}_guard"

#: The log and the tables of retention: for each object, the table that it belongs to, and its SQL.
#:
#: ``created_at``: an ORM sends NULL for a column that is not set, which then gets its default. The index of keys also
#: covers messages without a key, since ``ON CONFLICT (channel, key)`` matches no partial index. The index of channels
#: is sorted by id within a channel, since every index ends with the rowid (https://sqlite.org/fileformat2.html,
#: "Representation Of An SQL Index"); naming the id would store it twice.
LOG_OBJECTS = {
    LOG: (
        LOG,
        dedent(f"""\
        CREATE TABLE {LOG} (
            id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
            channel TEXT NOT NULL,
            payload NOT NULL,
            created_at TEXT NOT NULL ON CONFLICT REPLACE DEFAULT ({NOW}),
            key TEXT
        )"""),
    ),
    f"{LOG}_channel": (LOG, f"CREATE INDEX {LOG}_channel ON {LOG} (channel)"),
    f"{LOG}_key": (LOG, f"CREATE UNIQUE INDEX {LOG}_key ON {LOG} (channel, key)"),
    RELEASED: (RELEASED, f"CREATE TABLE {RELEASED} (channel TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID"),
    TRIMS: (
        TRIMS,
        dedent(f"""\
        CREATE TABLE {TRIMS} (
            channel TEXT NOT NULL,
            last_id INTEGER NOT NULL,
            first_id INTEGER NOT NULL,
            messages INTEGER NOT NULL,
            runs BLOB NOT NULL,
            PRIMARY KEY (channel, last_id)
        ) WITHOUT ROWID"""),
    ),
    PROBE: (PROBE, f"CREATE TABLE {PROBE} (created_at INTEGER NOT NULL DEFAULT 1)"),
    f"{LOG}_update": (
        LOG,
        dedent(f"""\
        CREATE TRIGGER {LOG}_update BEFORE UPDATE ON {LOG}
        BEGIN SELECT RAISE(ABORT, '{LOG} is append-only: messages cannot be changed'); END"""),
    ),
    f"{LOG}_delete": (
        LOG,
        dedent(f"""\
        CREATE TRIGGER {LOG}_delete BEFORE DELETE ON {LOG}
        WHEN NOT EXISTS (SELECT 1 FROM {RELEASED} WHERE channel = OLD.channel AND id >= OLD.id)
        BEGIN SELECT RAISE(ABORT, '{LOG} is append-only: only retention removes messages'); END"""),
    ),
}

#: Durable subscriptions. A cursor only moves forward, and never past the head. ``holder`` names the server process that
#: has the subscriber, and ``claim`` is the number of its claim; :mod:`.storage.subscriptions` explains both.
SUBSCRIPTION_OBJECTS = {
    SUBSCRIPTIONS: (
        SUBSCRIPTIONS,
        dedent(f"""\
        CREATE TABLE {SUBSCRIPTIONS} (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            owner TEXT NOT NULL DEFAULT '',
            name TEXT NOT NULL CHECK (name <> ''),
            reads TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(reads)),
            cursor INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL DEFAULT ({NOW}),
            last_seen_at TEXT NOT NULL DEFAULT ({NOW}),
            holder TEXT,
            claim INTEGER NOT NULL DEFAULT 0,
            UNIQUE (owner, name)
        )"""),
    ),
    f"{SUBSCRIPTIONS}_claim": (SUBSCRIPTIONS, f"CREATE INDEX {SUBSCRIPTIONS}_claim ON {SUBSCRIPTIONS} (claim)"),
    f"{SUBSCRIPTIONS}_forward": (
        SUBSCRIPTIONS,
        dedent(f"""\
        CREATE TRIGGER {SUBSCRIPTIONS}_forward BEFORE UPDATE OF cursor ON {SUBSCRIPTIONS}
        WHEN NEW.cursor IS NOT OLD.cursor
        BEGIN
            SELECT RAISE(ABORT, 'a cursor only moves forward') WHERE NEW.cursor < OLD.cursor;
            SELECT RAISE(ABORT, 'a cursor is a message id of the log, and this one is ahead of its head')
            WHERE typeof(NEW.cursor) <> 'integer'
               OR NEW.cursor > coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{LOG}'), 0);
        END"""),
    ),
}

#: The definitions of broadcast tables, by which a table that has lost its triggers is recognised; and the rows that
#: REPLACE may remove, stored from the trigger before a change until the trigger after it.
BROADCAST_OBJECTS = {
    RECORDS: (
        RECORDS,
        dedent(f"""\
        CREATE TABLE {RECORDS} (
            table_name TEXT PRIMARY KEY,
            definition TEXT NOT NULL,
            triggers TEXT NOT NULL,
            made_at TEXT NOT NULL DEFAULT ({NOW})
        ) WITHOUT ROWID"""),
    ),
    REPLACED: (
        REPLACED,
        dedent(f"""\
        CREATE TABLE {REPLACED} (
            id INTEGER PRIMARY KEY,
            table_name TEXT NOT NULL,
            cause TEXT NOT NULL,
            key1,
            row_key TEXT,
            channel TEXT NOT NULL,
            payload TEXT NOT NULL
        )"""),
    ),
    f"{REPLACED}_cause": (REPLACED, f"CREATE INDEX {REPLACED}_cause ON {REPLACED} (table_name, cause)"),
}

#: The standing queries with their last results, of which the next messages are the difference: what
#: :mod:`.storage.standing` writes in the transaction of the messages.
STANDING_OBJECTS = {
    STANDING: (
        STANDING,
        dedent(f"""\
        CREATE TABLE {STANDING} (
            name TEXT PRIMARY KEY,
            channel TEXT NOT NULL,
            sql TEXT NOT NULL,
            params TEXT NOT NULL,
            key TEXT NOT NULL,
            operations TEXT NOT NULL,
            ran_at TEXT NOT NULL DEFAULT ({NOW}),
            changed_at TEXT,
            messages INTEGER NOT NULL DEFAULT 0,
            error TEXT,
            row_count INTEGER,
            columns TEXT,
            result TEXT
        )"""),
    ),
}

#: The streams that this log takes messages from. ``follow``: the log is a copy of the stream; it has one such row, and
#: no other message is accepted. ``import``: ``position`` is the last sequence whose message was taken, written in the
#: transaction of the message. ``newest`` is the newest sequence that the stream was known to have at ``heard_at``.
SOURCE_OBJECTS = {
    SOURCES: (
        SOURCES,
        dedent(f"""\
        CREATE TABLE {SOURCES} (
            kind TEXT NOT NULL CHECK (kind IN ('follow', 'import')),
            stream TEXT NOT NULL,
            position INTEGER NOT NULL DEFAULT 0,
            newest INTEGER NOT NULL DEFAULT 0,
            heard_at TEXT NOT NULL DEFAULT ({NOW}),
            instance_id TEXT,
            publish_at TEXT,
            PRIMARY KEY (kind, stream)
        ) WITHOUT ROWID"""),
    ),
}

#: One row about the file: its schema version, its instance id, the last message that was stored before the log checked
#: that channels are UTF-8, and the number of the newest claim.
FILE_OBJECTS = {
    FILE: (
        FILE,
        dedent(f"""\
        CREATE TABLE {FILE} (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            schema_version INTEGER NOT NULL,
            instance_id TEXT NOT NULL,
            checked_after INTEGER NOT NULL DEFAULT 0,
            claims INTEGER NOT NULL DEFAULT 0
        )"""),
    ),
}

OBJECTS = {
    **LOG_OBJECTS,
    **SUBSCRIPTION_OBJECTS,
    **BROADCAST_OBJECTS,
    **STANDING_OBJECTS,
    **SOURCE_OBJECTS,
    **FILE_OBJECTS,
}

#: The triggers on the plugin's tables. Each writes to these tables only.
TRIGGERS = (GUARD, *(name for name, (_, sql) in OBJECTS.items() if sql.startswith("CREATE TRIGGER")))


def guard_sql(max_payload_bytes: int) -> str:
    """The SQL of the trigger that checks every message, whichever program inserts it.

    Theory of operation. The trigger's condition is false for an ordinary message, so
    it costs one evaluation for each row. It uses the cheapest tests: comparisons
    instead of calls; texts sort between numbers and blobs; a text with fewer characters
    (up to a NUL) than bytes has a NUL or is not ASCII; and one GLOB matches printable
    ASCII. (In a UTF-16 file the bytes always outnumber the characters; the statements
    after the condition then decide.)
    The trigger runs before the table's own constraints. So ``OR REPLACE`` or ``OR
    IGNORE`` of an outer statement, which SQLite applies inside triggers too, can neither
    replace a stored message nor silently drop a bad one. ``NEW.id`` is -1 if the
    publisher gave no id (https://sqlite.org/lang_createtrigger.html).

    Checking every character of a channel takes ten times as long as the rest, so the
    trigger does not check a channel again that has passed before.

    NULL for ``created_at`` means its default. The column's ON CONFLICT REPLACE applies
    the default, except under ``INSERT OR IGNORE``, which would drop the row. To notice
    that, the trigger inserts NULL into the probe table: if the same rule drops that row,
    the trigger inserts the message itself.
    """
    too_large = f"length(CAST(NEW.payload AS BLOB)) > {max_payload_bytes}"
    channel_bytes = "length(CAST(NEW.channel AS BLOB))"
    moment = "'[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9].[0-9][0-9][0-9]Z'"
    known = f"SELECT 1 FROM {LOG} WHERE channel = NEW.channel AND id > (SELECT checked_after FROM {FILE})"
    ignored = f"NEW.created_at IS NULL AND NOT EXISTS (SELECT 1 FROM {PROBE} WHERE created_at)"
    return dedent(f"""\
        CREATE TRIGGER {GUARD} BEFORE INSERT ON {LOG}
        WHEN NEW.key IS NOT NULL OR NEW.id <> -1 OR NEW.payload IS NULL OR {too_large}
          OR NEW.channel IS NULL OR NEW.channel <= '' OR NEW.channel >= x''
          OR length(NEW.channel) NOT BETWEEN {channel_bytes} AND {MAX_CHANNEL_BYTES} OR NEW.channel GLOB '*[^ -~]*'
          OR NEW.created_at NOT GLOB {moment} IS NOT 0
        BEGIN
            SELECT RAISE(ABORT, 'message ids are given by the log, not by the publisher') WHERE NEW.id <> -1;
            SELECT RAISE(ABORT, 'channel is NULL') WHERE NEW.channel IS NULL;
            SELECT RAISE(ABORT, 'channel must be text') WHERE typeof(NEW.channel) <> 'text';
            SELECT RAISE(ABORT, 'channel is empty') WHERE {channel_bytes} = 0;
            SELECT RAISE(ABORT, 'channel is over the limit of {MAX_CHANNEL_BYTES} bytes')
            WHERE {channel_bytes} > {MAX_CHANNEL_BYTES};
            SELECT RAISE(ABORT, 'channel must not contain NUL') WHERE instr(NEW.channel, char(0));
            SELECT RAISE(ABORT, 'channel is not valid UTF-8')
            WHERE NEW.channel GLOB '*[^ -~]*' AND NOT EXISTS ({known}) AND {invalid_utf8("NEW.channel")};
            SELECT RAISE(ABORT, 'payload is NULL') WHERE NEW.payload IS NULL;
            SELECT RAISE(ABORT, 'payload is over the limit of {max_payload_bytes} bytes (max_payload_bytes)')
            WHERE {too_large};
            SELECT RAISE(ABORT, 'key must be text of 1 to {MAX_CHANNEL_BYTES} bytes')
            WHERE NEW.key IS NOT NULL
              AND (typeof(NEW.key) <> 'text' OR length(CAST(NEW.key AS BLOB)) NOT BETWEEN 1 AND {MAX_CHANNEL_BYTES});
            SELECT RAISE(ABORT, 'key must not contain NUL') WHERE instr(NEW.key, char(0));
            SELECT RAISE(ABORT, 'key is not valid UTF-8') WHERE {invalid_utf8("NEW.key")};
            SELECT RAISE(ABORT, 'created_at must be UTC like 2026-01-31T12:00:00.000Z')
            WHERE NEW.created_at NOT GLOB {moment};
            SELECT RAISE(IGNORE)
            WHERE EXISTS (SELECT 1 FROM {LOG} WHERE channel = NEW.channel AND key = NEW.key);
            DELETE FROM {PROBE} WHERE NEW.created_at IS NULL;
            INSERT OR REPLACE INTO {PROBE} (created_at) SELECT NULL WHERE NEW.created_at IS NULL;
            INSERT INTO {LOG} (channel, payload, created_at, key)
            SELECT NEW.channel, NEW.payload, {NOW}, NEW.key WHERE {ignored};
            SELECT RAISE(IGNORE) WHERE {ignored};
            DELETE FROM {PROBE} WHERE NEW.created_at IS NULL;
        END""")


def follower_guard_sql(refusal: str) -> str:
    """The SQL of the guard of a follower's log: it accepts the next id of the origin, and nothing else.

    ``refusal`` is what a publisher is told. The messages themselves were checked at the origin.
    """
    head = f"(SELECT seq FROM sqlite_sequence WHERE name = '{LOG}')"
    text = refusal.replace("'", "''")
    return dedent(f"""\
        CREATE TRIGGER {GUARD} BEFORE INSERT ON {LOG}
        WHEN NEW.id <> coalesce({head}, 0) + 1
        BEGIN SELECT RAISE(ABORT, '{text}'); END""")


def existing(conn: sqlite3.Connection) -> dict[str, tuple[str, str, str]]:
    """The objects in the file with our names: the type, the table, and the SQL of each."""
    wanted = [*OBJECTS, GUARD]
    names = ",".join("?" * len(wanted))
    rows = conn.execute(
        f"SELECT lower(name), type, lower(tbl_name), coalesce(sql, '') FROM sqlite_master "
        f"WHERE lower(name) IN ({names})",
        wanted,
    )
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def make_missing(conn: sqlite3.Connection, objects: dict[str, tuple[str, str]]) -> None:
    """Create the objects that do not exist yet."""
    found = existing(conn)
    for name, (_, sql) in objects.items():
        if name not in found:
            conn.execute(sql)
