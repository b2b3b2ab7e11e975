"""Runs the SELECT of a live query: its rows and the log's head of one moment, within limits; and what it reads."""

from __future__ import annotations

import base64
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..core.errors import InvalidArgument, PayloadTooLarge, PubsubError
from ..core.result import Result
from . import log
from .objects import LOG
from .sqlite_codes import is_of_the_file, primary
from .time_limit import time_limit

_encode = msgspec.json.Encoder().encode

#: Rows are fetched this many at a time: each fetch of one row would take the interpreter lock once.
FETCH_ROWS = 500

#: What a statement of a live query may do: the authorizer's action codes (https://sqlite.org/c3ref/c_alter_table.html).
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})

#: Functions that do something besides returning a value.
_FORBIDDEN_FUNCTIONS = frozenset({"publish_batch", "load_extension"})

#: Table-valued functions whose rows come from their arguments alone.
_OF_ARGUMENTS = frozenset({"json_each", "json_tree", "generate_series"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A query, with everything that its result depends on.

    ``key`` names result columns that recognise a row. ``rows`` of the result
    are taken, further ones are left out; ``None``: the result has to fit into
    the limit. ``count_sql`` counts all rows of which the result is a page.
    ``own_sql``: the subscriber has sent the SQL, and so may see it in errors.
    """

    sql: str
    params: tuple[tuple[str, Any], ...] = ()
    key: tuple[str, ...] = ()
    rows: int | None = None
    count_sql: str = ""
    own_sql: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one run: ``seconds``, ``rows`` and ``bytes`` (the sum of all rows, as JSON)."""

    seconds: float
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Reads:
    """The tables that a query reads. ``anything``: it may read more than these, as through a virtual table."""

    tables: frozenset[str]
    anything: bool = False

    @property
    def of_broker(self) -> bool:
        """Whether it reads a table that the broker itself writes to."""
        return self.anything or any(is_of_broker(name) for name in self.tables)


def is_of_broker(table: str) -> bool:
    """Whether the broker writes to this table when it publishes, trims, or moves a cursor."""
    name = table.lower()
    return name in (LOG, "sqlite_sequence") or name.startswith(("_pubsub_", "pubsub_", "sqlite_stat"))


def reads(conn: sqlite3.Connection, question: Question) -> Reads:
    """Find the tables that a query reads, without running it.

    Raises :class:`InvalidArgument` for SQL that does not compile, does
    anything but read, or calls a function with an effect.
    """
    tables: set[str] = set()
    refused: list[str] = []

    def look(action: int, first: str | None, second: str | None, database: str | None, inner: str | None) -> int:
        if action == sqlite3.SQLITE_READ and first:
            tables.add(first)
        elif action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
            refused.append(f"the function {second} cannot be used in a live query")
            return sqlite3.SQLITE_DENY
        if action not in _ALLOWED:
            refused.append("a live query is a SELECT, and only reads")
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    statement, params = f"EXPLAIN {question.sql}", dict(question.params)
    try:
        # The first use of a virtual table declares its columns, which an authorizer would take for a change.
        conn.execute(statement, params).fetchall()
        conn.set_authorizer(look)
        conn.execute(statement, params).fetchall()
    except sqlite3.Error as error:
        if refused:
            raise InvalidArgument(f"sql: {refused[0]}", field="sql") from None
        raise _explained(error, question) from None
    finally:
        conn.set_authorizer(None)
    known = {
        name.lower(): sql
        for name, sql in conn.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view')")
    }
    anything = any(
        (known[name.lower()] or "").upper().startswith("CREATE VIRTUAL")
        if name.lower() in known
        else name.lower() not in _OF_ARGUMENTS and not name.lower().startswith("sqlite_")
        for name in tables
    )
    return Reads(frozenset(tables), anything)


def run(conn: sqlite3.Connection, question: Question, limits: Limits) -> Result:
    """Run a query; it must be inside of a read transaction, so that head and rows belong to one moment.

    Raises :class:`InvalidArgument` with SQLite's own message, and
    :class:`PayloadTooLarge` naming the limit.
    """
    head = log.head(conn)
    longest = conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.bytes)
    try:
        with time_limit(conn, limits.seconds):
            cursor = conn.execute(question.sql, dict(question.params))
            if cursor.description is None:
                raise InvalidArgument("sql: a live query is a SELECT, and only reads", field="sql")
            columns = tuple(column[0] for column in cursor.description)
            rows, keys = _rows(cursor, columns, question, limits)
        return Result(columns, rows, head, keys, _count(conn, question, limits))
    except sqlite3.Error as error:
        raise _explained(error, question, limits) from None
    finally:
        conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)


def _rows(
    cursor: sqlite3.Cursor, columns: tuple[str, ...], question: Question, limits: Limits
) -> tuple[list[bytes], list[bytes] | None]:
    places = [_place(columns, name) for name in question.key]
    wanted = question.rows if question.rows is not None else limits.rows + 1
    rows: list[bytes] = []
    keys: list[bytes] | None = [] if places else None
    size = 0
    while len(rows) < wanted and (some := cursor.fetchmany(min(FETCH_ROWS, wanted - len(rows)))):
        for row in some:
            text = _encode([value if value.__class__ in _PLAIN else _shown(value) for value in row])
            rows.append(text)
            size += len(text)
            if keys is not None:
                keys.append(_encode([_shown(row[place]) for place in places]))
        if size > limits.bytes:
            raise PayloadTooLarge(
                f"the result has more than {limits.bytes} bytes (max_live_query_bytes)", limit="max_live_query_bytes"
            )
    cursor.close()
    if len(rows) > limits.rows:
        raise PayloadTooLarge(
            f"the result has more than {limits.rows} rows (Datasette's max_returned_rows): use LIMIT",
            limit="max_returned_rows",
        )
    return rows, keys


def _place(columns: Sequence[str], name: str) -> int:
    """The place of a key column. Raises :class:`InvalidArgument` if the result has no such column."""
    try:
        return columns.index(name)
    except ValueError:
        raise InvalidArgument(f"key: the result has no column {name}", field="key") from None


#: Values that JSON has as they are.
_PLAIN = frozenset({int, str, type(None)})


def _shown(value: Any) -> Any:
    """A value for JSON: bytes as Datasette writes them, infinities as text as Protobuf's JSON mapping has them."""
    if isinstance(value, bytes):
        return {"$base64": True, "encoded": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def as_json(row: Iterable[Any]) -> bytes:
    """A row as JSON text, as it travels."""
    return _encode([_shown(value) for value in row])


#: A count is left out if it takes longer than this, in seconds: Datasette's pages do the same.
COUNT_SECONDS = 0.05


def _count(conn: sqlite3.Connection, question: Question, limits: Limits) -> int | None:
    if not question.count_sql:
        return None
    try:
        with time_limit(conn, min(COUNT_SECONDS, limits.seconds)):
            return int(conn.execute(question.count_sql, dict(question.params)).fetchone()[0])
    except sqlite3.OperationalError as error:
        if primary(error) == sqlite3.SQLITE_INTERRUPT:
            return None
        raise


def _explained(error: sqlite3.Error, question: Question, limits: Limits | None = None) -> PubsubError | sqlite3.Error:
    if is_of_the_file(error):
        return error
    code = primary(error)
    if not code:
        # Python's own module refuses several statements, and parameters without names.
        return InvalidArgument("sql: give one SELECT, and each parameter in it a name, as in :name", field="sql")
    if code == sqlite3.SQLITE_INTERRUPT and limits is not None:
        return InvalidArgument(
            f"sql: the query took longer than {limits.seconds:g} seconds (Datasette's sql_time_limit_ms)",
            field="sql",
            limit="sql_time_limit_ms",
        )
    if code == sqlite3.SQLITE_TOOBIG and limits is not None:
        return PayloadTooLarge(
            f"a value has more than {limits.bytes} bytes (max_live_query_bytes)", limit="max_live_query_bytes"
        )
    if not question.own_sql:
        return InvalidArgument("the query cannot be run: what it reads may have been changed or dropped", field="sql")
    return InvalidArgument(f"sql: {error}", field="sql")


def missing_parameters(names: Sequence[str], params: Mapping[str, Any]) -> None:
    """Raise :class:`InvalidArgument` naming the first parameter that has no value."""
    for name in names:
        if name not in params:
            raise InvalidArgument(f"the query needs a value for its parameter {name}", field=name)
