"""Broadcasts: the triggers by which a table publishes its own changes, as SQL text.

The law of this module: text in, text out; it opens and runs nothing. The same
broadcast of the same table always gives the same text, so that what stands in a
file can be compared with what would be made now. The triggers name nothing but
SQLite's own functions: every program's writes are broadcast, whatever it is
written in. They never make a write fail, and never tell what is not so: a
message holds the row as it stands in the table when it is published, and a
deletion is told only if the row is gone, so other triggers of the table may do
what they want.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .config import MAX_CHANNEL_BYTES
from .errors import InvalidArgument
from .expressions import check_expression
from .models import check_channel
from .objects import LOG

OPERATIONS = ("insert", "update", "delete")

#: How our triggers' names begin; the operation and the table follow.
PREFIX = "pubsub_broadcast_"

#: Columns that one json_object() names. SQLite allowed 100 arguments of a
#: function for twenty years, and a column takes two.
OBJECT_COLUMNS = 45

#: Smallest payload limit under which a table can be broadcast, in bytes: room for a message without values.
MIN_LIMIT = 1024

_MARK = "datasette-pubsub broadcast 1:"
_COMMENT = re.compile(re.escape(f"/* {_MARK} ") + r"(\{.*?\}) \*/", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, and which types its values may have beside text, whole number and NULL.

    ``subtyped``: a generated column, whose text SQLite may take for JSON.
    """

    name: str
    may_be_real: bool = True
    may_be_blob: bool = True
    subtyped: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """What must be known of a table: its columns, its primary key, and its name for the rowid, if it has one.

    ``replaces_silently``: REPLACE can remove rows with another key than the new
    one's, because other columns are unique as well or the key takes 'a' for 'A';
    of those SQLite tells triggers only under ``PRAGMA recursive_triggers``.
    """

    table: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    rowid: str | None
    replaces_silently: bool = False

    def has(self, name: str) -> bool:
        return any(column.name == name for column in self.columns)

    def column(self, name: str) -> Column:
        """The column of this name. Raises :class:`InvalidArgument`."""
        for column in self.columns:
            if column.name == name:
                return column
        raise InvalidArgument(f"table {self.table} has no column {name!r}")


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What of a table's changes is published, and where.

    ``channel`` is the channel, or with ``per_row``, an SQL expression over the
    row's columns, how every channel begins; the expression's value follows.
    ``columns`` of ``None`` are all columns. ``conditions`` holds for each
    operation that is broadcast an SQL condition, empty for none. ``limit`` is
    the largest payload, in bytes.
    """

    channel: str
    per_row: str = ""
    columns: tuple[str, ...] | None = None
    new: bool = True
    old: bool = True
    conditions: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(OPERATIONS, ""))
    limit: int = 1024 * 1024

    def checked(self, shape: Shape) -> Broadcast:
        """This broadcast with its texts tidied. Raises :class:`InvalidArgument`, naming the field."""
        check_channel(self.channel)
        if self.per_row and len(follow_pattern(self.channel).encode()) > MAX_CHANNEL_BYTES:
            raise InvalidArgument(
                f"channel is too long to be continued: as a pattern it is over {MAX_CHANNEL_BYTES} bytes"
            )
        if self.limit < MIN_LIMIT + 2 * len(json.dumps(shape.table)):
            raise InvalidArgument(f"messages of {self.limit} bytes (max_payload_bytes) are too small to broadcast rows")
        if not self.conditions:
            raise InvalidArgument("choose at least one of insert, update and delete")
        if self.columns == () and (self.new or self.old):
            raise InvalidArgument("choose at least one column, or neither new nor old values")
        for name in self.columns or ():
            shape.column(name)
        return Broadcast(
            self.channel,
            check_expression(self.per_row, "the channel's expression") if self.per_row.strip() else "",
            None if self.columns is None else tuple(dict.fromkeys(self.columns)),
            self.new,
            self.old,
            {
                operation: check_expression(self.conditions[operation], f"the condition for {operation}")
                if self.conditions[operation].strip()
                else ""
                for operation in OPERATIONS
                if operation in self.conditions
            },
            self.limit,
        )

    def follows(self) -> tuple[list[str], list[str]]:
        """The channels and the patterns that a reader of all changes follows."""
        return ([], [follow_pattern(self.channel)]) if self.per_row else ([self.channel], [])

    def as_comment(self, table: str) -> str:
        """The note inside each trigger; ``table`` is what messages call the table, also after it is renamed."""
        data = {
            "table": table,
            "channel": self.channel,
            "per_row": self.per_row,
            "columns": self.columns,
            "new": self.new,
            "old": self.old,
            "conditions": dict(self.conditions),
            "limit": self.limit,
        }
        return f"/* {_MARK} {json.dumps(data, ensure_ascii=False).replace('/', chr(92) + '/')} */"


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger: the operation that fires it, its name and its text."""

    operation: str
    name: str
    sql: str


def default_channel(table: str) -> str:
    """Where a table's changes go unless somebody chooses."""
    return f"changes/{table}"


def follow_pattern(channel: str) -> str:
    """The GLOB pattern of all channels that begin so."""
    return re.sub(r"[*?[]", r"[\g<0>]", channel) + "*"


def read_comment(sql: str) -> tuple[str, Broadcast] | None:
    """What messages call the table, and the broadcast that a trigger was made of; ``None`` for one that is not ours.

    Raises :class:`InvalidArgument` for one of ours that somebody has edited beyond recognition.
    """
    found = _COMMENT.search(sql)
    if found is None:
        return None
    try:
        data: dict[str, Any] = json.loads(found[1])
        table, columns, conditions = str(data.pop("table")), data.pop("columns"), data.pop("conditions")
        if set(conditions) - set(OPERATIONS):
            raise ValueError
        broadcast = Broadcast(
            columns=None if columns is None else tuple(map(str, columns)),
            conditions={operation: str(condition) for operation, condition in conditions.items()},
            **data,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InvalidArgument("the note in a trigger, which says what it broadcasts, cannot be read") from None
    return table, broadcast


def name_of(operation: str, table: str) -> str:
    return f"{PREFIX}{operation}_{table}"


def triggers(broadcast: Broadcast, shape: Shape, names: Mapping[str, str] | None = None) -> list[Trigger]:
    """The triggers of a broadcast, one for each operation; ``names`` where they are not the usual ones.

    Raises :class:`InvalidArgument` when the broadcast does not fit the table.
    """
    broadcast = broadcast.checked(shape)
    made = []
    for operation, condition in broadcast.conditions.items():
        name = (names or {}).get(operation) or name_of(operation, shape.table)
        when = f"\nWHEN ({condition})" if condition else ""
        body = "\n".join(_Statements(broadcast, shape).of(operation))
        sql = (
            f"CREATE TRIGGER {identifier(name)} AFTER {operation.upper()} ON {identifier(shape.table)}{when}\n"
            f"BEGIN\n  {broadcast.as_comment(shape.table)}\n{body}\nEND"
        )
        made.append(Trigger(operation, name, sql))
    return made


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class _Statements:
    """The statements inside the triggers of one broadcast.

    Each reads one row under the name ``pubsub_now``: the row as it stands in
    the table, found by the rowid or key of NEW, or the values of OLD.
    """

    def __init__(self, broadcast: Broadcast, shape: Shape) -> None:
        self._broadcast = broadcast
        self._shape = shape
        self._keys = [shape.column(name) for name in shape.key] or [Column("rowid", False, False)]
        self._columns = (
            list(shape.columns) if broadcast.columns is None else [shape.column(name) for name in broadcast.columns]
        )

    def of(self, operation: str) -> list[str]:
        gone = self._publish("delete", self._gone(), f"NOT EXISTS ({self._same_row()})")
        if operation == "insert":
            return [self._publish("insert", self._standing())]
        if operation == "delete":
            return [gone]
        # A row that has got another key, or another channel, is gone from where it was, and new where it is.
        moved, stayed = f"row_key IS NOT {self._key('OLD')}", f"row_key IS {self._key('OLD')}"
        if self._broadcast.per_row:
            before = f"(SELECT {self._channel()} FROM {self._gone()})"
            moved, stayed = f"({moved} OR channel IS NOT {before})", f"{stayed} AND channel IS {before}"
        return [
            gone,
            self._publish("insert", self._standing(), moved),
            self._publish("update", self._standing(), f"new_row IS NOT old_row AND {stayed}"),
        ]

    def _publish(self, operation: str, source: str, where: str = "") -> str:
        """One statement that publishes the row of a source, if there is one."""
        names = f"'op', '{operation}', 'table', {literal(self._shape.table)}"
        row = [f"{self._channel()} AS channel", f"{self._key('pubsub_now')} AS row_key"]
        values = ""
        if operation != "delete":
            row.append(f"{self._object(self._columns, 'pubsub_now')} AS new_row")
            values += ", 'new', json(new_row)" if self._broadcast.new else ""
        if operation != "insert":
            row.append(f"{self._object(self._columns, 'pubsub_now' if operation == 'delete' else 'OLD')} AS old_row")
            values += ", 'old', json(old_row)" if self._broadcast.old else ""
        limit = self._broadcast.limit
        # What the names take beside the key: the table's name with every character escaped, and the rest.
        rest = 100 + len(json.dumps(self._shape.table))
        lines = ",\n      ".join(row)
        return f"""\
  INSERT INTO {LOG} (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= {limit} THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= {limit - rest}
      THEN json_object({names}, 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object({names}, 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object({names}, 'key', json(row_key){values}) AS payload
    FROM (
      SELECT {lines}
      FROM {source}
    ) AS pubsub_row{f"{chr(10)}    WHERE {where}" if where else ""}
  );"""

    def _standing(self) -> str:
        """The row of NEW as it stands in the table now; none if it is there no more."""
        if self._shape.rowid:
            where = f"pubsub_now.{self._shape.rowid} = NEW.{self._shape.rowid}"
        else:
            where = " AND ".join(f"pubsub_now.{c} = NEW.{c}" for c in map(identifier, self._shape.key))
        return f"{identifier(self._shape.table)} AS pubsub_now WHERE {where}"

    def _gone(self) -> str:
        """The row of OLD, with the columns that are needed of it."""
        columns = self._shape.columns if self._broadcast.per_row else (*self._columns, *self._keys)
        names = list(dict.fromkeys(identifier(column.name) for column in columns if self._shape.has(column.name)))
        parts = [f"OLD.{name} AS {name}" for name in names]
        if not self._shape.key:
            parts.append(f"OLD.{self._shape.rowid} AS {self._shape.rowid}")
        return f"(SELECT {', '.join(parts)}) AS pubsub_now"

    def _same_row(self) -> str:
        """Whether a row with the key of OLD stands in the table, and in the same channel."""
        if self._shape.key:
            # The key decides exactly, whatever collation finds it.
            parts = [f"pubsub_now.{c} IS OLD.{c}" for c in map(identifier, self._shape.key)]
            parts.append(f"{self._key('pubsub_now')} IS pubsub_row.row_key")
        else:
            parts = [f"pubsub_now.{self._shape.rowid} = OLD.{self._shape.rowid}"]
        if self._broadcast.per_row:
            parts.append(f"{self._channel()} IS pubsub_row.channel")
        return f"SELECT 1 FROM {identifier(self._shape.table)} AS pubsub_now WHERE {' AND '.join(parts)}"

    def _channel(self) -> str:
        """The channel of the row ``pubsub_now``; where its value can be none, the beginning alone."""
        begin = literal(self._broadcast.channel)
        if not self._broadcast.per_row:
            return begin
        return (
            f"coalesce((SELECT {begin} || value FROM (SELECT ({self._broadcast.per_row}) AS value) "
            f"WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 "
            f"AND length(CAST({begin} || value AS BLOB)) <= {MAX_CHANNEL_BYTES}), {begin})"
        )

    def _key(self, source: str) -> str:
        if self._shape.key:
            return self._object(self._keys, source)
        return f"json_object('rowid', {source}.{self._shape.rowid})"

    def _object(self, columns: Sequence[Column], source: str) -> str:
        """The columns of a row as a JSON object, as text."""
        if len(columns) <= OBJECT_COLUMNS:
            lines = "".join(f",\n          {literal(c.name)}, {_value(c, source)}" for c in columns[1:])
            return (
                "json_object()"
                if not columns
                else (f"json_object({literal(columns[0].name)}, {_value(columns[0], source)}{lines})")
            )
        rows = ", ".join(f"({literal(c.name)}, json_quote({_value(c, source)}))" for c in columns)
        # More columns than one function takes: a row for each.
        return f"(SELECT json_group_object(column1, json(column2)) FROM (VALUES {rows}))"


def _value(column: Column, source: str) -> str:
    """A value that json_object() takes for what it is, whatever its type."""
    name = f"{source}.{identifier(column.name)}"
    cases = []
    if column.may_be_real:
        cases.append(f"WHEN 'real' THEN json({_real(name)})")
    if column.may_be_blob:
        cases.append(f"WHEN 'blob' THEN json_object('hex', hex({name}))")
    if column.subtyped:
        cases.append(f"WHEN 'text' THEN {name} || ''")
    return f"CASE typeof({name}) {' '.join(cases)} ELSE {name} END" if cases else name


def _real(name: str) -> str:
    """A REAL in digits from which a reader gets the same number.

    As people write it, 19.99, where fifteen digits are enough; else all seventeen. Very large and very small numbers
    have seventeen, since older versions of SQLite do not read them exactly. Infinity is the number that every reader
    takes for it.
    """
    short = f"printf('%!.15g', {name})"
    enough = f"abs({name}) BETWEEN 1e-15 AND 1e15 AND CAST({short} AS REAL) = {name}"
    return f"CASE WHEN {enough} THEN {short} ELSE replace(printf('%!.17g', {name}), 'Inf', '9e999') END"
