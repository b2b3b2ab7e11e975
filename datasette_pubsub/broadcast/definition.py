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

from ..core.errors import InvalidArgument
from ..core.settings import MAX_CHANNEL_BYTES
from ..core.validation import check_channel
from ..storage.objects import LOG, REPLACED
from ..storage.utf8_sql import invalid_utf8
from .expressions import check_expression
from .harmless import harmless

OPERATIONS = ("insert", "update", "delete")

#: How our triggers' names begin; the kind of trigger and the table follow.
PREFIX = "pubsub_broadcast_"

#: The triggers that note rows which REPLACE may remove, and tell those that it did, beside those for each operation.
NOTING = ("before_insert", "after_insert", "before_update", "after_update")

#: All kinds of our triggers, in the order in which they are created: SQLite runs the newest first, and what
#: REPLACE has removed is told before what has taken its place.
KINDS = (*OPERATIONS, *NOTING)

#: Notes of one table that are kept, at most. Only notes of changes that are under way are needed, and those that
#: stay behind (the change was ignored, or an upsert has updated) are removed with the next ones.
NOTES = 20

#: Most bytes of a row's values, old and new, of which a message is built whatever the payload limit: as JSON they may
#: be six times as long, and SQLite makes no text of more than a billion bytes.
ROW_BYTES = 100_000_000

#: Columns that one comparison or one sum takes: SQLite allows expressions a depth of 1,000.
EXPRESSION_COLUMNS = 100

#: Columns that one json_object() names. SQLite allowed 100 arguments of a
#: function for twenty years, and a column takes two.
OBJECT_COLUMNS = 45

#: Smallest payload limit under which a table can be broadcast, in bytes: room for a message without values.
MIN_LIMIT = 1024

_PER_ROW = "the channel's expression"
_ROWS = ("NEW", "OLD")

_MARK = "datasette-pubsub broadcast 1:"
_COMMENT = re.compile(re.escape(f"/* {_MARK} ") + r"(\{.*?\}) \*/", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, and which types its values may have beside text, whole number and NULL.

    ``subtyped``: a generated column, whose text SQLite may take for JSON.
    ``may_be_text``: false for the few columns that hold numbers only.
    """

    name: str
    may_be_real: bool = True
    may_be_blob: bool = True
    subtyped: bool = False
    may_be_text: bool = True


@dataclass(frozen=True, slots=True)
class Unique:
    """What no two rows may have in common: columns with their collations, in rows where ``where`` holds.

    ``is_key``: it is the primary key, and compares to the letter.
    """

    columns: tuple[tuple[str, str], ...]
    where: str = ""
    is_key: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """What must be known of a table: its columns, its primary key, and its name for the rowid, if it has one.

    ``alias``: the column that is the rowid. ``replaces_silently``: REPLACE can
    remove rows with another key than the new one's, because other columns are
    ``unique`` as well or the key takes 'a' for 'A'; of those SQLite tells
    triggers only under ``PRAGMA recursive_triggers``, and else our own notes do.
    ``replaces_untold``: by an index on an expression or a generated column, too,
    which is not noted.
    """

    table: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    rowid: str | None
    alias: str | None = None
    unique: tuple[Unique, ...] = ()
    replaces_silently: bool = False
    replaces_untold: bool = False

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
        names = [column.name for column in shape.columns]
        if self.per_row.strip():
            harmless(check_expression(self.per_row, _PER_ROW), _PER_ROW, names)
        for operation, condition in self.conditions.items():
            if condition.strip():
                field = _condition(operation)
                harmless(check_expression(condition, field), field, names, _ROWS)
        return Broadcast(
            self.channel,
            check_expression(self.per_row, _PER_ROW) if self.per_row.strip() else "",
            None if self.columns is None else tuple(dict.fromkeys(self.columns)),
            self.new,
            self.old,
            {
                operation: check_expression(self.conditions[operation], _condition(operation))
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

    def as_json(self, table: str) -> str:
        """All of it as JSON; ``table`` is what messages call the table, also after it is renamed."""
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
        return json.dumps(data, ensure_ascii=False)

    def as_comment(self, table: str) -> str:
        """The note inside each trigger."""
        return f"/* {_MARK} {self.as_json(table).replace('/', chr(92) + '/')} */"


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger: its kind, its name and its text."""

    kind: str
    name: str
    sql: str

    @property
    def operation(self) -> str:
        """The operation that fires it."""
        return self.kind.rpartition("_")[2]


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
    return None if found is None else read_json(found[1])


def read_json(text: str) -> tuple[str, Broadcast]:
    """What messages call the table, and the broadcast, from :meth:`Broadcast.as_json`.

    Raises :class:`InvalidArgument` for anything else.
    """
    try:
        data: dict[str, Any] = json.loads(text)
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


def name_of(kind: str, table: str) -> str:
    return f"{PREFIX}{kind}_{table}"


def kind_of(name: str) -> str | None:
    """Which of our triggers a name is for, or would be."""
    if not name.startswith(PREFIX):
        return None
    rest = name.removeprefix(PREFIX)
    return next((kind for kind in KINDS if rest.startswith(f"{kind}_")), None)


def kinds_of(broadcast: Broadcast, shape: Shape) -> list[str]:
    """The triggers that a broadcast consists of."""
    operations = [operation for operation in OPERATIONS if operation in broadcast.conditions]
    # A row that REPLACE removes by its own key is in the new row's channel, unless rows have channels of their own.
    moves = bool(broadcast.per_row) and any(column.name != shape.alias for column in shape.columns)
    noting = "delete" in operations and (shape.replaces_silently or moves)
    return operations + list(NOTING if noting else ())


def triggers(broadcast: Broadcast, shape: Shape, names: Mapping[str, str] | None = None) -> list[Trigger]:
    """The triggers of a broadcast; ``names`` by kind where they are not the usual ones.

    Raises :class:`InvalidArgument` when the broadcast does not fit the table.
    """
    broadcast = broadcast.checked(shape)
    found = {kind: (names or {}).get(kind) or name_of(kind, shape.table) for kind in kinds_of(broadcast, shape)}
    statements = _Statements(broadcast, shape, found)
    made = []
    for kind, name in found.items():
        head, body = statements.of(kind)
        sql = (
            f"CREATE TRIGGER {identifier(name)} {head}\nBEGIN\n"
            f"  {broadcast.as_comment(shape.table)}\n{chr(10).join(body)}\nEND"
        )
        made.append(Trigger(kind, name, sql))
    return made


def _condition(operation: str) -> str:
    return f"the condition for {operation}"


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class _Statements:
    """The heads and statements of the triggers of one broadcast.

    Each statement reads one row under the name ``pubsub_now``: the row as it
    stands in the table, found by the rowid or key of NEW, or the values of OLD.
    Where it reads a table's rowid, it reads another column, too, or only looks
    whether the rowid is IN the table: SQLite's authorizer is not told the
    database of a table of which nothing but the rowid is read, and Datasette
    then refuses the write.
    """

    def __init__(self, broadcast: Broadcast, shape: Shape, names: Mapping[str, str]) -> None:
        self._broadcast = broadcast
        self._shape = shape
        self._table = identifier(shape.table)
        self._names = [column.name for column in shape.columns]
        self._keys = [shape.column(name) for name in shape.key] or [Column("rowid", False, False, may_be_text=False)]
        self._columns = (
            list(shape.columns) if broadcast.columns is None else [shape.column(name) for name in broadcast.columns]
        )
        #: The name of the rowid where it is the key; and another column of the table, if there is one.
        self._id = identifier(shape.alias) if shape.alias else None if shape.key else shape.rowid
        others = [column for column in shape.columns if column.name != shape.alias]
        plain = [column for column in others if not column.subtyped]
        self._other = identifier((plain or others)[0].name) if others else None
        #: Rows are noted under the name of a trigger, which no other table has.
        self._group = literal(names.get("before_insert", ""))
        self._notes = "before_insert" in names
        #: Rows that have another key, or may have another channel, are told when they are replaced.
        self._unique = [unique for unique in shape.unique if broadcast.per_row or not unique.is_key]
        self._per_row = harmless(broadcast.per_row, _PER_ROW, self._names) if broadcast.per_row else ""

    def of(self, kind: str) -> tuple[str, list[str]]:
        """When a trigger of this kind fires, and what it does."""
        if kind in NOTING:
            return self._noting(kind)
        condition = self._broadcast.conditions[kind]
        when = f"\nWHEN ({harmless(condition, _condition(kind), self._names, _ROWS)})" if condition else ""
        return f"AFTER {kind.upper()} ON {self._table}{when}", self._publishing(kind)

    def _publishing(self, operation: str) -> list[str]:
        gone = self._publish("delete", self._gone(), f"NOT {self._same_row()}")
        if operation == "insert":
            return [self._publish("insert", *self._standing(self._broadcast.new))]
        if operation == "delete" and not self._notes:
            return [gone]
        if operation == "delete":
            return [gone, self._forget(f"key1 IS {self._key1('OLD')} AND row_key IS {self._key('OLD')}")]
        # A row that has got another key, or another channel, is gone from where it was, and new where it is.
        keys = [(self._id, Column("rowid", False, False, may_be_text=False))] if self._id else self._named(self._keys)
        moved = _differ(keys, "pubsub_now", "OLD")
        stayed = f"NOT ({moved})"
        if self._broadcast.per_row:
            before = f"(SELECT {self._channel()} FROM {self._gone()})"
            moved, stayed = (
                f"({moved} OR {self._channel()} IS NOT {before})",
                f"{stayed} AND {self._channel()} IS {before}",
            )
        changed = _differ(self._named(self._columns), "pubsub_now", "OLD")
        return [
            gone,
            self._publish("insert", *self._standing(self._broadcast.new), moved),
            self._publish("update", *self._standing(True), f"({changed}) AND {stayed}"),
        ]

    # -- one message --------------------------------------------------------

    def _publish(self, operation: str, source: str, *where: str) -> str:
        """One statement that publishes the row of a source, if there is one and all of ``where`` holds."""
        old = "pubsub_now" if operation == "delete" else "OLD"
        return (
            f"  INSERT INTO {LOG} (channel, payload)\n  SELECT channel, {self._payload(operation)}\n"
            f"  FROM (\n    SELECT {self._message(operation, old)}\n    FROM {source}\n"
            f"    WHERE {' AND '.join(each for each in where if each) or '1'} LIMIT 1\n  ) WHERE 1;"
        )

    def _message(self, operation: str, old: str) -> str:
        """The columns of a message: its channel, the row's key as JSON, and the payload where it can be built.

        A subquery with LIMIT under a WHERE is not merged into its query, so that each of them is made once.
        """
        values, sizes = "", [_size(column, "pubsub_now", self._shape) for column in self._keys]
        if self._broadcast.new and operation != "delete":
            values += f",\n        'new', {self._object(self._columns, 'pubsub_now')}"
            sizes += [_size(column, "pubsub_now", self._shape) for column in self._columns]
        if self._broadcast.old and operation != "insert":
            values += f",\n        'old', {self._object(self._columns, old)}"
            sizes += [_size(column, old, self._shape) for column in self._columns]
        payload = f"json_object({self._head(operation)}, 'key', {self._object(self._keys, 'pubsub_now')}{values})"
        total = _sum([size for size in dict.fromkeys(sizes) if size])
        if total:
            most = min(self._broadcast.limit, ROW_BYTES)
            payload = f"CASE WHEN {total} <= {most}\n      THEN {payload} END"
        return f"{self._channel()} AS channel, {self._key('pubsub_now')} AS row_key,\n      {payload} AS payload"

    def _head(self, operation: str) -> str:
        return f"'op', '{operation}', 'table', {literal(self._shape.table)}"

    def _payload(self, operation: str) -> str:
        """The payload, or without values where it is too large."""
        head, limit = self._head(operation), self._broadcast.limit
        # What the names take beside the key: the table's name with every character escaped, and the rest.
        rest = 100 + len(json.dumps(self._shape.table))
        return (
            f"CASE\n    WHEN length(CAST(payload AS BLOB)) <= {limit} THEN payload\n"
            f"    WHEN length(CAST(row_key AS BLOB)) <= {limit - rest}\n"
            f"      THEN json_object({head}, 'key', json(row_key), 'too_large', json('true'))\n"
            f"    ELSE json_object({head}, 'too_large', json('true')) END"
        )

    # -- rows ---------------------------------------------------------------

    def _standing(self, reads: bool) -> tuple[str, str]:
        """The row of NEW as it stands in the table now, and which it is; none if it is there no more.

        ``reads``: whether the chosen columns are read.
        """
        if not self._shape.rowid:
            return f"{self._table} AS pubsub_now", " AND ".join(
                f"pubsub_now.{c} = NEW.{c}" for c in map(identifier, self._shape.key)
            )
        rowid = self._id or self._shape.rowid
        if self._other is None:
            return (
                f"(SELECT NEW.{rowid} AS {rowid}) AS pubsub_now",
                f"NEW.{rowid} IN (SELECT {rowid} FROM {self._table})",
            )
        known = reads and any(column.name != self._shape.alias for column in self._columns)
        return f"{self._table} AS pubsub_now", f"pubsub_now.{rowid} = NEW.{rowid}" + ("" if known else self._touch())

    def _touch(self) -> str:
        """A condition that is true, and reads a column that is not the rowid."""
        return f" AND typeof(pubsub_now.{self._other}) <> ''" if self._other else ""

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
        if self._id:
            if not self._broadcast.per_row or self._other is None:
                return f"OLD.{self._id} IN (SELECT {self._id} FROM {self._table})"
            found = f"pubsub_now.{self._id} = OLD.{self._id}{self._touch()}"
        else:
            # The key decides exactly, whatever collation finds it.
            found = " AND ".join(f"pubsub_now.{c} IS OLD.{c}" for c in map(identifier, self._shape.key))
            found += f" AND NOT ({_differ(self._named(self._keys), 'pubsub_now', 'OLD')})"
        if self._broadcast.per_row:
            found += f" AND {self._channel()} IS (SELECT {self._channel()} FROM {self._gone()})"
        return f"EXISTS (SELECT 1 FROM {self._table} AS pubsub_now WHERE {found})"

    def _named(self, columns: Sequence[Column]) -> list[tuple[str, Column]]:
        return [(identifier(column.name), column) for column in columns]

    # -- what REPLACE removes -----------------------------------------------

    def _noting(self, kind: str) -> tuple[str, list[str]]:
        """Before a row's change, note which rows stand in its way; after it, tell those that are gone."""
        time, _, operation = kind.partition("_")
        columns = [name for unique in self._unique for name, _ in unique.columns]
        columns += self._shape.key if self._broadcast.per_row else ()
        # Under a condition an index takes a row in when any column changes.
        named = bool(columns) and not any(unique.where for unique in self._unique)
        of = f" OF {', '.join(map(identifier, dict.fromkeys(columns)))}" if operation == "update" and named else ""
        head = f"{time.upper()} {operation.upper()}{of} ON {self._table}"
        noted = f"EXISTS (SELECT 1 FROM {REPLACED} WHERE table_name = {self._group})"
        cause = self._cause()
        if time == "before":
            found = self._in_the_way(operation)
            rows = f"FROM {self._table} AS pubsub_now WHERE {found}"
            newest = f"SELECT id FROM {REPLACED} WHERE table_name = {self._group} ORDER BY id DESC LIMIT {NOTES}"
            return f"{head}\nWHEN EXISTS (SELECT 1 {rows}) OR {noted}", [
                self._forget(f"(cause = {cause} OR id NOT IN ({newest}))"),
                f"  INSERT INTO {REPLACED} (table_name, cause, key1, row_key, channel, payload)\n"
                f"  SELECT {self._group}, {cause}, key1, row_key, channel, {self._payload('delete')}\n  FROM (\n"
                f"    SELECT {self._key1('pubsub_now')} AS key1, {self._message('delete', 'pubsub_now')}\n"
                f"    {rows}{self._told()} LIMIT -1\n  ) WHERE 1;",
            ]
        if self._id and not self._broadcast.per_row:
            stands = f"note.key1 IN (SELECT {self._id} FROM {self._table})"
        else:
            same = (
                f"pubsub_now.{self._id} = note.key1{self._touch()}"
                if self._id
                else (f"{self._key1('pubsub_now')} IS note.key1 AND {self._key('pubsub_now')} IS note.row_key")
            )
            same += f" AND {self._channel()} IS note.channel" if self._broadcast.per_row else ""
            stands = f"EXISTS (SELECT 1 FROM {self._table} AS pubsub_now WHERE {same})"
        return f"{head}\nWHEN {noted}", [
            f"  INSERT INTO {LOG} (channel, payload)\n  SELECT channel, payload FROM {REPLACED} AS note\n"
            f"  WHERE table_name = {self._group} AND cause = {cause} AND NOT {stands} ORDER BY id;",
            self._forget(f"cause = {cause}"),
        ]

    def _forget(self, which: str) -> str:
        return f"  DELETE FROM {REPLACED} WHERE table_name = {self._group} AND {which};"

    def _in_the_way(self, operation: str) -> str:
        """Which rows a new row would replace; not the row that is updated."""
        ways = []
        for unique in self._unique:
            columns = [(identifier(name), collation) for name, collation in unique.columns]
            equal = [f"pubsub_now.{name} = NEW.{name} COLLATE {collation}" for name, collation in columns]
            ways.append(" AND ".join([*equal, f"({unique.where})"] if unique.where else equal))
        if self._broadcast.per_row and self._id:
            ways.append(f"pubsub_now.{self._id} = NEW.{self._id}{self._touch()}")
        found = "(" + " OR ".join(f"({way})" for way in ways) + ")"
        if operation == "update":
            rowid = self._id or self._shape.rowid
            same = (
                f"pubsub_now.{rowid} = OLD.{rowid}"
                if rowid
                else (f"NOT ({_differ(self._named(self._keys), 'pubsub_now', 'OLD')})")
            )
            found += f" AND NOT ({same})"
        return found

    def _told(self) -> str:
        """The condition for deletions, of a row that stands in the way."""
        condition = self._broadcast.conditions["delete"]
        if not condition:
            return ""
        row = ", ".join(f"pubsub_now.{identifier(name)} AS {identifier(name)}" for name in self._names)
        if not self._shape.key:
            row += f", pubsub_now.{self._shape.rowid} AS {self._shape.rowid}"
        return (
            f"\n    AND EXISTS (SELECT 1 FROM (SELECT {row}) AS OLD "
            f"WHERE ({harmless(condition, _condition('delete'), self._names, _ROWS)}))"
        )

    def _cause(self) -> str:
        """What tells one change from another while both are under way: the beginnings of its unique values."""
        names = dict.fromkeys(name for unique in self._unique for name, _ in unique.columns)
        parts = [
            f"coalesce(substr(CAST(NEW.{identifier(name)} AS TEXT), 1, 50), '')"
            for name in list(names)[:4]
            if name != self._shape.alias
        ]
        return "(" + " || ',' || ".join(parts) + ")" if parts else "''"

    def _key1(self, source: str) -> str:
        """The rowid, or the first column of the key."""
        return f"{source}.{self._id or identifier(self._shape.key[0])}"

    # -- values -------------------------------------------------------------

    def _channel(self) -> str:
        """The channel of the row ``pubsub_now``; where its value can be none, the beginning alone."""
        begin = literal(self._broadcast.channel)
        if not self._broadcast.per_row:
            return begin
        room = MAX_CHANNEL_BYTES - len(self._broadcast.channel.encode())
        return (
            f"coalesce((SELECT {begin} || value FROM (SELECT ({self._per_row}) AS value LIMIT 1) "
            f"WHERE typeof(value) <> 'blob' AND length(CAST(value AS BLOB)) <= {room} "
            f"AND instr(value, char(0)) = 0 AND NOT {invalid_utf8('value')}), {begin})"
        )

    def _key(self, source: str) -> str:
        """The key as JSON, as text; NULL where it is too large for a message."""
        total = _sum([size for size in (_size(column, source, self._shape) for column in self._keys) if size])
        key = self._object(self._keys, source)
        return f"CASE WHEN {total} <= {min(self._broadcast.limit, ROW_BYTES)} THEN {key} END" if total else key

    def _object(self, columns: Sequence[Column], source: str) -> str:
        """The columns of a row as a JSON object."""
        if not self._shape.key and list(columns) == self._keys:
            return f"json_object('rowid', {source}.{self._shape.rowid})"
        if len(columns) <= OBJECT_COLUMNS:
            lines = "".join(f",\n          {literal(c.name)}, {_value(c, source)}" for c in columns[1:])
            return (
                "json_object()"
                if not columns
                else (f"json_object({literal(columns[0].name)}, {_value(columns[0], source)}{lines})")
            )
        rows = ", ".join(f"({literal(c.name)}, json_quote({_value(c, source)}))" for c in columns)
        # More columns than one function takes: a row for each.
        return f"json((SELECT json_group_object(column1, json(column2)) FROM (VALUES {rows})))"


def _differ(columns: Sequence[tuple[str, Column]], one: str, other: str) -> str:
    """A condition that is true where two rows differ in a column, to the letter and in the type."""
    parts = []
    for start in range(0, len(columns), EXPRESSION_COLUMNS):
        left, right = [], []
        for name, column in columns[start : start + EXPRESSION_COLUMNS]:
            left.append(f"{one}.{name} COLLATE BINARY" if column.may_be_text else f"{one}.{name}")
            right.append(f"{other}.{name}")
            if column.may_be_real:
                left.append(f"typeof({one}.{name})")
                right.append(f"typeof({other}.{name})")
        parts.append(f"({', '.join(left)}) IS NOT ({', '.join(right)})")
    return " OR ".join(parts) or "0"


def _size(column: Column, source: str, shape: Shape) -> str:
    """The bytes of a value of text or blob, as SQL; empty for a column that has none."""
    if not column.may_be_text or not shape.has(column.name):
        return ""
    name = f"{source}.{identifier(column.name)}"
    return f"CASE WHEN typeof({name}) IN ('text', 'blob') THEN length(CAST({name} AS BLOB)) ELSE 0 END"


def _sum(terms: Sequence[str]) -> str:
    """The sum of terms, with brackets that keep the expression from being too deep."""
    if len(terms) <= EXPRESSION_COLUMNS:
        return " + ".join(terms)
    parts = (terms[n : n + EXPRESSION_COLUMNS] for n in range(0, len(terms), EXPRESSION_COLUMNS))
    return " + ".join(f"({' + '.join(part)})" for part in parts)


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
