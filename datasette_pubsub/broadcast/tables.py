"""Finds, checks, creates and removes the broadcasts of a file.

It changes the file inside the caller's transaction. It recognises the plugin's triggers by their names and by the
comment inside them, and never touches other triggers.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..core.errors import FailedPrecondition, InvalidArgument, NotFound, PubsubError
from ..storage.objects import BROADCAST_OBJECTS, LOG, RECORDS, REPLACED, make_missing
from ..storage.quoting import identifier, literal
from ..storage.schema import installed, max_payload_bytes
from ..storage.sources import check_own
from ..storage.sqlite_codes import is_of_the_file
from . import definition as text
from .definition import Broadcast, Trigger
from .shape import Shape, shape_of
from .triggers import triggers as make_triggers

#: The oldest SQLite version that has the JSON functions by default.
OLDEST_SQLITE = "3.38"


@dataclass(frozen=True, slots=True)
class Found:
    """The broadcast of a table, from its triggers.

    ``broadcast`` is ``None`` if it cannot be read, and ``told_as`` is the table's
    name in messages. ``problems`` say how the triggers differ from those that
    would be made for the table now.
    """

    triggers: tuple[Trigger, ...]
    broadcast: Broadcast | None
    told_as: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """A broadcast that is recorded, but whose triggers are missing: the reason, and the broadcast, if it can be read.

    ``made_at``: when it was made, in UTC. ``gone``: its table does not exist any
    more either.
    """

    table: str
    reason: str
    broadcast: Broadcast | None
    made_at: str
    gone: bool = False


def find(conn: sqlite3.Connection, table: str, compare: bool = True) -> Found | None:
    """The broadcast of a table, or ``None``; with ``compare``, its triggers are compared with those made now."""
    rows = conn.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE ORDER BY name",
        [table],
    ).fetchall()
    triggers: list[Trigger] = []
    read: list[tuple[str, Broadcast]] = []
    problems: list[str] = []
    for name, sql in rows:
        kind = text.kind_of(name)
        if kind is None:
            continue
        try:
            note = text.read_comment(sql)
        except InvalidArgument as error:
            problems.append(f"{name}: {error.message}")
            triggers.append(Trigger(kind, name, sql))
            continue
        if note is not None:
            triggers.append(Trigger(kind, name, sql))
            read.append(note)
    if not triggers:
        return None
    triggers.sort(key=lambda trigger: text.KINDS.index(trigger.kind))
    if read and any(note != read[0] for note in read):
        problems.append("its triggers differ in what they broadcast")
    if compare and read and not problems:
        problems += _differences(conn, table, *read[0], triggers)
    told_as, broadcast = read[0] if read else (table, None)
    return Found(tuple(triggers), broadcast, told_as, tuple(problems))


def _differences(
    conn: sqlite3.Connection, table: str, told_as: str, broadcast: Broadcast, there: list[Trigger]
) -> list[str]:
    """How triggers differ from those that their comment would make now."""
    try:
        shape = shape_of(conn, table)
        if shape.table != told_as:
            return [f"the table was renamed, and its messages still call it {told_as!r}"]
        gone = [name for name in broadcast.columns or () if not shape.has(name)]
        if gone:
            return [f"the table has no column {name!r} any more" for name in gone]
        wanted = make_triggers(broadcast, shape, {trigger.kind: trigger.name for trigger in there})
    except (InvalidArgument, NotFound) as error:
        return [error.message]
    missing = {trigger.kind for trigger in wanted} - {trigger.kind for trigger in there}
    if missing & set(text.OPERATIONS):
        return [f"the trigger for {operation} is missing" for operation in text.OPERATIONS if operation in missing]
    if missing:
        return ["the triggers that publish what REPLACE removes are missing"]
    limit = max_payload_bytes(conn)
    if limit is not None and limit < broadcast.limit:
        return [f"it was made for messages of {broadcast.limit} bytes, and this file takes {limit} (max_payload_bytes)"]
    if wanted == there:
        return []
    changes = ", ".join(_changes(shape, there[0].sql)) or "its columns, their types, its name or its key"
    return [f"the table was changed since ({changes}), or the triggers were"]


def _changes(shape: Shape, sql: str) -> list[str]:
    return [f"column {column.name!r} was added" for column in shape.columns if literal(column.name) not in sql]


def create(conn: sqlite3.Connection, table: str, broadcast: Broadcast) -> list[Trigger]:
    """Create the broadcast of a table, and replace its present one.

    Raises :class:`InvalidArgument`, naming the field, if it does not fit the
    table or an expression in it does not work, and :class:`FailedPrecondition`
    if the log takes no messages; the caller must then roll its transaction back.
    """
    if not installed(conn):
        raise FailedPrecondition("this file has no log of messages yet: run `datasette pubsub install` on it first")
    check_own(conn)
    _check_json(conn)
    shape = shape_of(conn, table)
    limit = max_payload_bytes(conn)
    broadcast = (broadcast if limit is None else replace(broadcast, limit=limit)).checked(shape)
    _compile(conn, shape, "the table cannot be written as it is")
    remove(conn, shape.table)
    make_missing(conn, BROADCAST_OBJECTS)
    taken = {row[0].lower() for row in conn.execute("SELECT name FROM sqlite_master")}
    names = {kind: _free(text.name_of(kind, shape.table), taken) for kind in text.kinds_of(broadcast, shape)}
    made = make_triggers(broadcast, shape, names)
    for trigger in made:
        try:
            conn.execute(trigger.sql)
        except sqlite3.OperationalError as error:
            if is_of_the_file(error):
                raise
            raise InvalidArgument(f"{_field(broadcast, trigger)}: {error}") from None
    with _overheard(conn, made, shape.table) as heard:
        for trigger in made:
            _compile(conn, shape, _field(broadcast, trigger), (trigger.operation,))
    _check_heard(conn, heard)
    _record(conn, shape.table, broadcast, [trigger.name for trigger in made])
    return made


def preview(conn: sqlite3.Connection, table: str, broadcast: Broadcast) -> list[Trigger]:
    """The triggers that :func:`create` would make, with the same checks; changes nothing. Needs a transaction."""
    conn.execute("SAVEPOINT pubsub_preview")
    try:
        return create(conn, table, broadcast)
    finally:
        conn.execute("ROLLBACK TO pubsub_preview")
        conn.execute("RELEASE pubsub_preview")


def again(conn: sqlite3.Connection, table: str) -> list[Trigger]:
    """Create a table's lost broadcast again. Raises as :func:`create` does, and if the table has lost none."""
    found = lost(conn).get(table)
    if found is None or found.broadcast is None:
        raise InvalidArgument(f"{table} has lost no broadcast that could be made again")
    return create(conn, table, found.broadcast)


def remove(conn: sqlite3.Connection, table: str) -> int:
    """Remove a table's broadcast and its record; returns the number of its triggers."""
    found = find(conn, table, compare=False)
    for trigger in found.triggers if found else ():
        conn.execute(f"DROP TRIGGER {identifier(trigger.name)}")
    if _has_table(conn, RECORDS):
        _follow_renames(conn)
        conn.execute(f"DELETE FROM {RECORDS} WHERE table_name = ? COLLATE NOCASE", [table])
    if found and _has_table(conn, REPLACED):
        for trigger in found.triggers:
            conn.execute(f"DELETE FROM {REPLACED} WHERE table_name = ?", [trigger.name])
    return len(found.triggers) if found else 0


# -- the record of what is broadcast --------------------------------------------


def renew(conn: sqlite3.Connection) -> None:
    """Create the broadcasts of an earlier version again, and record them; one that fails stays as it is.

    Needs a transaction of the caller.
    """
    for table, (_, broadcast) in standing(conn).items():
        conn.execute("SAVEPOINT pubsub_renew")
        try:
            create(conn, table, broadcast)
        except (PubsubError, sqlite3.Error):
            conn.execute("ROLLBACK TO pubsub_renew")
        conn.execute("RELEASE pubsub_renew")
    record_standing(conn)


def record_standing(conn: sqlite3.Connection) -> None:
    """Record the broadcasts of an earlier version, which recorded none.

    Needs a transaction of the caller.
    """
    make_missing(conn, BROADCAST_OBJECTS)
    _follow_renames(conn)
    recorded = {row[0].lower() for row in conn.execute(f"SELECT table_name FROM {RECORDS}")}
    for table, (_, broadcast) in standing(conn).items():
        found = find(conn, table, compare=False)
        if found is not None and table.lower() not in recorded:
            _record(conn, table, broadcast, [trigger.name for trigger in found.triggers])


def lost(conn: sqlite3.Connection) -> dict[str, Lost]:
    """The recorded broadcasts whose triggers are missing, by table."""
    if not _has_table(conn, RECORDS):
        return {}
    found = {}
    triggers = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
    tables = {
        row[0].lower(): row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    }
    rows = conn.execute(f"SELECT table_name, definition, triggers, made_at FROM {RECORDS}").fetchall()
    for recorded, definition, names, made_at in rows:
        missing = [name for name in json.loads(names) if name not in triggers]
        if not missing:
            continue
        table = tables.get(recorded.lower(), recorded)
        gone = recorded.lower() not in tables
        if gone:
            reason = "there is no such table any more"
        elif len(missing) < len(json.loads(names)):
            reason = f"triggers of its broadcast are missing: {', '.join(missing)}"
        else:
            reason = "it was rebuilt, or its triggers were dropped, and its changes are not published any more"
        try:
            broadcast = text.read_json(definition)[1]
        except InvalidArgument:
            broadcast = None
        found[table] = Lost(table, reason, broadcast, made_at, gone)
    return found


def _record(conn: sqlite3.Connection, table: str, broadcast: Broadcast, names: Sequence[str]) -> None:
    _follow_renames(conn)
    conn.execute(
        f"INSERT OR REPLACE INTO {RECORDS} (table_name, definition, triggers) VALUES (?, ?, ?)",
        [table, broadcast.as_json(table), json.dumps(names, ensure_ascii=False)],
    )


def _follow_renames(conn: sqlite3.Connection) -> None:
    """Update the names of recorded tables that were renamed, with their triggers."""
    on = dict(conn.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'").fetchall())
    rows = conn.execute(f"SELECT table_name, definition, triggers, made_at FROM {RECORDS}").fetchall()
    moved = []
    for table, definition, names, made_at in rows:
        now = {on.get(name) for name in json.loads(names)}
        if len(now) == 1 and None not in now and now != {table}:
            moved.append((*now, definition, names, made_at))
            conn.execute(f"DELETE FROM {RECORDS} WHERE table_name = ?", [table])
    conn.executemany(f"INSERT OR REPLACE INTO {RECORDS} VALUES (?, ?, ?, ?)", moved)


def _has_table(conn: sqlite3.Connection, name: str) -> bool:
    return conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [name]).fetchone() is not None


def _check_json(conn: sqlite3.Connection) -> None:
    """Raise :class:`FailedPrecondition` if this program's SQLite lacks the functions that the triggers call."""
    try:
        conn.execute("SELECT json_object('a', json('1')), json_quote(1), json_valid('1')").fetchone()
    except sqlite3.OperationalError:
        version = conn.execute("SELECT sqlite_version()").fetchone()[0]
        raise FailedPrecondition(
            f"SQLite {version} here has no functions of JSON, which a broadcast's triggers call: it needs "
            f"SQLite {OLDEST_SQLITE}, or an older one built with SQLITE_ENABLE_JSON1"
        ) from None


def standing(conn: sqlite3.Connection) -> dict[str, tuple[int, Broadcast]]:
    """The broadcast of each table that has one, with the table's root page in the file."""
    rows = conn.execute(
        "SELECT t.tbl_name, m.rootpage, t.sql FROM sqlite_master t JOIN sqlite_master m "
        f"ON m.type = 'table' AND m.name = t.tbl_name WHERE t.type = 'trigger' AND t.name GLOB '{text.PREFIX}*'"
    ).fetchall()
    found = {}
    for table, begins, sql in rows:
        try:
            note = text.read_comment(sql)
        except InvalidArgument:
            continue
        if note is not None:
            found[table] = (begins, note[1])
    return found


def restore(conn: sqlite3.Connection, before: dict[str, tuple[int, Broadcast]]) -> dict[str, str]:
    """Create the broadcasts again of tables that were rebuilt since, and so have lost their triggers.

    If the table was not rebuilt, a user has removed its triggers on purpose, and
    it stays as it is. Returns the tables for which this failed, with the error.
    """
    failed = {}
    now = standing(conn)
    for table, (began, broadcast) in before.items():
        row = conn.execute("SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = ?", [table]).fetchone()
        if table in now or row is None or row[0] == began:
            continue
        conn.execute("SAVEPOINT pubsub_restore")
        try:
            create(conn, table, broadcast)
        except (PubsubError, sqlite3.Error) as error:
            conn.execute("ROLLBACK TO pubsub_restore")
            failed[table] = str(error)
        conn.execute("RELEASE pubsub_restore")
    return failed


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number if another object has it: a table may have been renamed, with its triggers."""
    found, number = name, 2
    while found.lower() in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def _field(broadcast: Broadcast, trigger: Trigger) -> str:
    """The field that an error in a trigger must come from."""
    operation = "delete" if trigger.kind in text.NOTING else trigger.operation
    parts = ["the channel's expression"] if broadcast.per_row else []
    parts += [f"the condition for {operation}"] if broadcast.conditions[operation] else []
    return " or ".join(parts) or f"the trigger for {trigger.operation}"


def _compile(conn: sqlite3.Connection, shape: Shape, what: str, operations: Sequence[str] = text.OPERATIONS) -> None:
    """Let SQLite compile a write of each kind, with the triggers that it fires, without running it."""
    table = identifier(shape.table)
    column = identifier(next(column.name for column in shape.columns if not column.subtyped))
    statements = {
        "insert": f"INSERT INTO {table} DEFAULT VALUES",
        "update": f"UPDATE {table} SET {column} = {column}",
        "delete": f"DELETE FROM {table}",
    }
    for operation in operations:
        try:
            conn.execute(f"EXPLAIN QUERY PLAN {statements[operation]}").fetchall()
        except sqlite3.Error as error:
            if is_of_the_file(error):
                raise
            raise InvalidArgument(f"{what}: {error}") from None


@contextmanager
def _overheard(conn: sqlite3.Connection, made: Sequence[Trigger], table: str) -> Iterator[dict[str, set[str]]]:
    """Records, within this block, the functions that our compiled triggers call and the other tables that they read."""
    heard: dict[str, set[str]] = {"functions": set(), "tables": set()}
    ours = {trigger.name for trigger in made}

    def listen(action: int, first: str | None, second: str | None, _database: str | None, inside: str | None) -> int:
        if inside in ours:
            if action == sqlite3.SQLITE_FUNCTION and second:
                heard["functions"].add(second.lower())
            elif action == sqlite3.SQLITE_READ and first and first.lower() not in (table.lower(), LOG, REPLACED):
                heard["tables"].add(first)
        return sqlite3.SQLITE_OK

    conn.set_authorizer(listen)
    try:
        yield heard
    finally:
        conn.set_authorizer(None)


def _check_heard(conn: sqlite3.Connection, heard: dict[str, set[str]]) -> None:
    """Raise :class:`InvalidArgument` if an expression reads more than its row, or calls a foreign function."""
    where = "the channel's expression and the conditions"
    if heard["tables"]:
        raise InvalidArgument(f"{where} must be about the row alone, not about {sorted(heard['tables'])[0]}")
    known = {row[0].lower() for row in conn.execute("SELECT name FROM pragma_function_list WHERE builtin")}
    foreign = sorted(heard["functions"] - known)
    if foreign:
        raise InvalidArgument(
            f"{where} may call SQLite's own functions only: {foreign[0]}() would make the writes of programs fail "
            "that do not have it"
        )
