"""Standing queries: publishes what has changed in the result of a SELECT, exactly once.

Theory of operation. The last result of each standing query stands in the file. A *run* is one write transaction of the
caller: it reads the last result, runs the query, publishes the difference, and stores the new result (:func:`run`). So
a process that is killed has either published a change and stored the result, or neither; and of several processes that
run the same query, the first publishes, and the others find no difference. Since a run holds the write lock, the
caller runs the query in a read transaction before, and begins a run only if :func:`is_due` says so.

A query with no stored result, with other SQL or other columns than the stored one, has nothing to be compared with: its
result is stored, and nothing is published.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from ..core.errors import InvalidArgument
from ..core.result import Identity, Result
from ..core.standing import StandingQuery
from ..core.validation import utc_text
from ..core.values import Item
from . import log, query, schema, sources
from .objects import LOG, STANDING, TRIGGERS
from .query import Limits, Question
from .sqlite_codes import has_table

_encode = msgspec.json.Encoder().encode
_row = msgspec.json.Decoder(list[msgspec.Raw]).decode

#: How old ``ran_at`` may become while the query is run and its result stays the same, in seconds. Each update of it is
#: a commit.
RAN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What stands in the file: the definition, and the last result (``rows`` is ``None`` before the first)."""

    question: str
    settings: str
    columns: tuple[str, ...]
    rows: Sequence[bytes] | None
    error: str | None
    ran_at: str


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run has done: how many messages it has published of each operation, and the rows of the result.

    ``replaced`` says why the result could not be compared with the stored one, if there was one.
    """

    published: dict[str, int]
    rows: int
    replaced: str | None = None


def question(standing: StandingQuery) -> Question:
    """The question that a standing query asks."""
    return Question(sql=standing.sql, params=standing.params, key=standing.key)


def check(conn: sqlite3.Connection, standing: StandingQuery) -> query.Reads:
    """The tables that it reads. Raises :class:`InvalidArgument` for SQL that does not compile, or does not only read.

    It must not read the table of standing queries either, which each of its runs changes.
    """
    found = query.reads(conn, question(standing))
    if STANDING in {name.lower() for name in found.tables}:
        raise InvalidArgument(f"sql: a standing query cannot read {STANDING}, which it changes itself", field="sql")
    return found


def load(conn: sqlite3.Connection, name: str) -> Stored | None:
    """The last result of a standing query, as it stands in the file."""
    if not has_table(conn, STANDING):
        return None
    row = conn.execute(
        f"SELECT sql, params, channel, key, operations, columns, result, error, ran_at FROM {STANDING} WHERE name = ?",
        [name],
    ).fetchone()
    if row is None:
        return None
    rows = None if row[6] is None else [bytes(each) for each in _row(row[6])]
    columns = () if row[5] is None else tuple(msgspec.json.decode(row[5]))
    return Stored(_joined(row[0], row[1]), _joined(*row[2:5]), columns, rows, row[7], row[8])


def is_due(stored: Stored | None, standing: StandingQuery, result: Result) -> bool:
    """Whether a run would change more in the file than the time of the last run.

    Raises :class:`InvalidArgument` for a result that cannot be published.
    """
    check_columns(result)
    return (
        stored is None
        or stored.error is not None
        or stored.settings != _settings(standing)
        or _incomparable(stored, standing, result) is not None
        or _by_identity(_last(stored, standing, result)) != _by_identity(result)
    )


def is_stale(stored: Stored) -> bool:
    """Whether the time of the last run should be updated, by :func:`touch`."""
    return stored.ran_at < utc_text(datetime.now(UTC) - timedelta(seconds=RAN_SECONDS))


def touch(conn: sqlite3.Connection, name: str) -> None:
    """Note that the query was run, inside the caller's write transaction."""
    conn.execute(f"UPDATE {STANDING} SET ran_at = ? WHERE name = ?", [log.now(), name])


def run(conn: sqlite3.Connection, standing: StandingQuery, limits: Limits) -> Ran:
    """Run a query, publish what has changed since the stored result, and store the new one.

    All this belongs to the write transaction that the caller has begun. Raises
    :class:`~.core.errors.PubsubError`, also for a log that follows a stream; the
    caller must then roll back, and may store the error with :func:`fail`.
    """
    sources.check_own(conn)
    stored = load(conn, standing.name)
    reads = check(conn, standing)
    result = _result(conn, standing, limits)
    replaced = None
    published: dict[str, int] = {}
    if stored is None or stored.rows is None:
        changes = _changes(None, result) if standing.initial else ()
    else:
        replaced = _incomparable(stored, standing, result)
        changes = () if replaced else _changes(_last(stored, standing, result), result)
    wanted = [change for change in changes if change.operation in standing.operations]
    if wanted:
        publish(conn, standing, result.columns, wanted)
        for change in wanted:
            published[change.operation] = published.get(change.operation, 0) + 1
        if reads.of_broker or _has_triggers(conn):
            # It may read the messages that it has published itself: what they change in its result is no news, and
            # would be published for ever.
            result = _result(conn, standing, limits)
    save(conn, standing, result, len(wanted))
    return Ran(published, len(result.rows), replaced)


def fail(conn: sqlite3.Connection, standing: StandingQuery, message: str) -> None:
    """Store why a query cannot be run, inside the caller's write transaction; its last result stays."""
    conn.execute(
        f"INSERT INTO {STANDING} (name, sql, params, channel, key, operations, ran_at, error) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET ran_at = excluded.ran_at, error = excluded.error",
        [*_definition(standing), log.now(), message],
    )


def forget(conn: sqlite3.Connection, name: str) -> bool:
    """Delete a standing query with its last result; returns whether there was one."""
    return conn.execute(f"DELETE FROM {STANDING} WHERE name = ?", [name]).rowcount > 0


_LISTED = (
    "name", "channel", "sql", "params", "key", "operations", "ran_at", "changed_at", "messages", "error", "row_count",
)  # fmt: skip


def everyone(conn: sqlite3.Connection) -> list[dict[str, Any]]:
    """The standing queries of the file, sorted by name, without their results."""
    if not has_table(conn, STANDING):
        return []
    rows = conn.execute(f"SELECT {', '.join(_LISTED)} FROM {STANDING} ORDER BY name")
    found = [dict(zip(_LISTED, row, strict=True)) for row in rows]
    for each in found:
        for name in ("params", "key", "operations"):
            each[name] = msgspec.json.decode(each[name])
    return found


# -- the difference -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """What has happened to one row; ``key`` has the values of the key columns."""

    operation: str
    key: bytes | None
    new: bytes | None = None
    old: bytes | None = None


def _changes(old: Result | None, new: Result) -> Iterator[Change]:
    """What leads from one result to the next: first the rows that went, then the others in the order of the query.

    The order of rows does not matter: a row that has only moved has not changed.
    """
    before, now = _by_identity(old) if old else {}, _by_identity(new)
    keyed = new.keys is not None
    for identity, row in before.items():
        if identity not in now:
            yield Change("delete", identity[0] if keyed else None, old=row)
    for identity, row in now.items():
        key = identity[0] if keyed else None
        if identity not in before:
            yield Change("insert", key, new=row)
        elif row != before[identity]:
            yield Change("update", key, new=row, old=before[identity])


def _by_identity(result: Result) -> dict[Identity, bytes]:
    return dict(zip(result.identities(), result.rows, strict=True))


def _incomparable(stored: Stored, standing: StandingQuery, result: Result) -> str | None:
    """Why the stored result cannot be compared with the new one."""
    if stored.rows is None:
        return "it has no result yet"
    if stored.question != _joined(*_definition(standing)[1:3]):
        return "its SQL or its parameters are others than before"
    if stored.columns != result.columns:
        return "its result has other columns than before"
    return None


def _last(stored: Stored, standing: StandingQuery, result: Result) -> Result:
    """The stored result, which has the columns of the new one; its keys are those of the present key columns."""
    rows = stored.rows or []
    keys = None
    if standing.key:
        places = [result.columns.index(name) for name in standing.key]
        keys = [b"[%b]" % b",".join(bytes(values[place]) for place in places) for values in map(_row, rows)]
    return Result(result.columns, rows, 0, keys)


def _result(conn: sqlite3.Connection, standing: StandingQuery, limits: Limits) -> Result:
    result = query.run(conn, question(standing), limits)
    check_columns(result)
    return result


def check_columns(result: Result) -> None:
    """Raise :class:`InvalidArgument` if two columns have the same name: a message has its values by name."""
    names = list(result.columns)
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"sql: the result has two columns {name}; name one of them with AS", field="sql")


# -- what is written ------------------------------------------------------------


def publish(
    conn: sqlite3.Connection, standing: StandingQuery, columns: tuple[str, ...], changes: Iterable[Change]
) -> None:
    """Publish a message for each change."""
    most = schema.max_payload_bytes(conn)
    items = [Item(standing.channel, _payload(standing, columns, change, most)) for change in changes]
    log.insert(conn, items, log.now())


def save(conn: sqlite3.Connection, standing: StandingQuery, result: Result, messages: int) -> None:
    """Store a result, and add to the number of messages."""
    now = log.now()
    conn.execute(
        f"INSERT INTO {STANDING} (name, sql, params, channel, key, operations, ran_at, changed_at, messages, "
        "row_count, columns, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET sql = excluded.sql, params = excluded.params, channel = excluded.channel, "
        "key = excluded.key, operations = excluded.operations, ran_at = excluded.ran_at, error = NULL, "
        "changed_at = CASE WHEN result IS excluded.result THEN changed_at ELSE excluded.changed_at END, "
        "messages = messages + excluded.messages, row_count = excluded.row_count, columns = excluded.columns, "
        "result = excluded.result",
        [
            *_definition(standing),
            now,
            now,
            messages,
            len(result.rows),
            _encode(result.columns).decode(),
            (b"[%b]" % b",".join(result.rows)).decode(),
        ],
    )


def _payload(standing: StandingQuery, columns: tuple[str, ...], change: Change, most: int | None) -> str:
    """The message of a change; without its values, or its key, if it would be larger than ``most`` bytes."""
    fields: dict[str, Any] = {"query": standing.name, "op": change.operation}
    if change.key is not None:
        fields["key"] = dict(zip(standing.key, _row(change.key), strict=True))
    whole = dict(fields)
    for name, row in (("new", change.new), ("old", change.old)):
        if row is not None:
            whole[name] = dict(zip(columns, _row(row), strict=True))
    text = _encode(whole)
    if most is not None and len(text) > most:
        text = _encode({**fields, "too_large": True})
    if most is not None and len(text) > most:
        fields.pop("key", None)
        text = _encode({**fields, "too_large": True})
    return text.decode()


def _definition(standing: StandingQuery) -> list[str]:
    """Name, SQL, parameters, channel, key and operations as they stand in the file."""
    lists = (dict(standing.params), standing.key, standing.operations)
    params, key, operations = (_encode(each).decode() for each in lists)
    return [standing.name, standing.sql, params, standing.channel, key, operations]


def _settings(standing: StandingQuery) -> str:
    return _joined(*_definition(standing)[3:])


def _joined(*parts: str) -> str:
    return "\0".join(parts)


def _has_triggers(conn: sqlite3.Connection) -> bool:
    """Whether others have made triggers on the log."""
    marks = ", ".join("?" * len(TRIGGERS))
    sql = f"SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = '{LOG}' AND name NOT IN ({marks})"
    return conn.execute(sql, TRIGGERS).fetchone() is not None
