"""Writes the SQL of the triggers by which a table publishes its own changes. This module runs no SQL.

The same broadcast of the same table always gives the same SQL, so that the triggers in a file can be compared with
those that would be made now. The triggers call only SQLite's own functions, so that the writes of every program are
broadcast. They guarantee two things, whatever other triggers of the table do: they never make a write fail, and they
never publish something false. A message has the row as it is in the table when the message is published, and a deletion
is published only if the row is gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..core.settings import MAX_CHANNEL_BYTES
from ..storage.objects import LOG, REPLACED
from ..storage.quoting import identifier, literal
from ..storage.utf8_sql import invalid_utf8
from .definition import _PER_ROW, _ROWS, NOTING, Broadcast, Trigger, _condition, kinds_of, name_of
from .harmless import harmless
from .shape import Column, Shape

#: The most notes that are kept for one table. Only the notes of the present changes are needed; a note that stays
#: behind (the change was ignored, or an upsert became an update) is removed with the next ones.
NOTES = 20


#: The most bytes of a row's values, old and new, for which a message is built, whatever the payload limit is: as JSON
#: they may be six times as long, and SQLite builds no text of more than a billion bytes.
ROW_BYTES = 100_000_000


#: The most columns in one comparison or one sum: SQLite limits the depth of an expression to 1,000.
EXPRESSION_COLUMNS = 100


#: The most columns in one json_object(): older versions of SQLite allow 100 arguments, and a column takes two.
OBJECT_COLUMNS = 45


def triggers(broadcast: Broadcast, shape: Shape, names: Mapping[str, str] | None = None) -> list[Trigger]:
    """The triggers of a broadcast; ``names``, by kind, replace the usual names.

    Raises :class:`InvalidArgument` if the broadcast does not fit the table.
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


class _Statements:
    """The heads and statements of the triggers of one broadcast.

    Each statement reads one row under the name ``pubsub_now``: the row in the
    table, found by the rowid or key of NEW, or the values of OLD. If it reads a
    table's rowid, it also reads another column, or only checks that the rowid is
    IN the table: if a statement reads nothing but the rowid, SQLite's authorizer
    does not get the table's database, and Datasette refuses the write.
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
        #: The name of the rowid, if that is the key; and another column of the table, if there is one.
        self._id = identifier(shape.alias) if shape.alias else None if shape.key else shape.rowid
        others = [column for column in shape.columns if column.name != shape.alias]
        plain = [column for column in others if not column.subtyped]
        self._other = identifier((plain or others)[0].name) if others else None
        #: The notes of this table have the name of one of its triggers, which no other table has.
        self._group = literal(names.get("before_insert", ""))
        self._notes = "before_insert" in names
        #: The unique indexes by which REPLACE may remove a row with another key, or in another channel.
        self._unique = [unique for unique in shape.unique if broadcast.per_row or not unique.is_key]
        self._per_row = harmless(broadcast.per_row, _PER_ROW, self._names) if broadcast.per_row else ""

    def of(self, kind: str) -> tuple[str, list[str]]:
        """The head of a trigger of this kind, which says when it fires, and its statements."""
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
        # An update that changes the key or the channel is published as a deletion and an insertion.
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
        """One statement that publishes the row of a source, if it has one and all of ``where`` holds."""
        old = "pubsub_now" if operation == "delete" else "OLD"
        return (
            f"  INSERT INTO {LOG} (channel, payload)\n  SELECT channel, {self._payload(operation)}\n"
            f"  FROM (\n    SELECT {self._message(operation, old)}\n    FROM {source}\n"
            f"    WHERE {' AND '.join(each for each in where if each) or '1'} LIMIT 1\n  ) WHERE 1;"
        )

    def _message(self, operation: str, old: str) -> str:
        """The columns of a message: its channel, the row's key as JSON, and the payload, if it can be built.

        SQLite does not merge a subquery with LIMIT under a WHERE, so that each column is computed once.
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
        """The payload, without values if it is too large."""
        head, limit = self._head(operation), self._broadcast.limit
        # The bytes besides the key: the table's name with every character escaped, and the field names.
        rest = 100 + len(json.dumps(self._shape.table))
        return (
            f"CASE\n    WHEN length(CAST(payload AS BLOB)) <= {limit} THEN payload\n"
            f"    WHEN length(CAST(row_key AS BLOB)) <= {limit - rest}\n"
            f"      THEN json_object({head}, 'key', json(row_key), 'too_large', json('true'))\n"
            f"    ELSE json_object({head}, 'too_large', json('true')) END"
        )

    # -- rows ---------------------------------------------------------------

    def _standing(self, reads: bool) -> tuple[str, str]:
        """A source with the row of NEW as it is in the table now, and the condition that finds it, if it still exists.

        ``reads``: whether the statement reads the chosen columns.
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
        """A condition that is always true, and reads a column that is not the rowid."""
        return f" AND typeof(pubsub_now.{self._other}) <> ''" if self._other else ""

    def _gone(self) -> str:
        """A source with the row of OLD, with the columns that a message needs."""
        columns = self._shape.columns if self._broadcast.per_row else (*self._columns, *self._keys)
        names = list(dict.fromkeys(identifier(column.name) for column in columns if self._shape.has(column.name)))
        parts = [f"OLD.{name} AS {name}" for name in names]
        if not self._shape.key:
            parts.append(f"OLD.{self._shape.rowid} AS {self._shape.rowid}")
        return f"(SELECT {', '.join(parts)}) AS pubsub_now"

    def _same_row(self) -> str:
        """A condition: the table has a row with the key of OLD, in the same channel."""
        if self._id:
            if not self._broadcast.per_row or self._other is None:
                return f"OLD.{self._id} IN (SELECT {self._id} FROM {self._table})"
            found = f"pubsub_now.{self._id} = OLD.{self._id}{self._touch()}"
        else:
            # The key is compared exactly, even if its collation ignores case.
            found = " AND ".join(f"pubsub_now.{c} IS OLD.{c}" for c in map(identifier, self._shape.key))
            found += f" AND NOT ({_differ(self._named(self._keys), 'pubsub_now', 'OLD')})"
        if self._broadcast.per_row:
            found += f" AND {self._channel()} IS (SELECT {self._channel()} FROM {self._gone()})"
        return f"EXISTS (SELECT 1 FROM {self._table} AS pubsub_now WHERE {found})"

    def _named(self, columns: Sequence[Column]) -> list[tuple[str, Column]]:
        return [(identifier(column.name), column) for column in columns]

    # -- what REPLACE removes -----------------------------------------------

    def _noting(self, kind: str) -> tuple[str, list[str]]:
        """Before a change, note the rows that it may replace; after it, publish those that are gone."""
        time, _, operation = kind.partition("_")
        columns = [name for unique in self._unique for name, _ in unique.columns]
        columns += self._shape.key if self._broadcast.per_row else ()
        # With a partial index, a change of any column can bring a row into the index.
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
                f"    {rows}{self._delete_condition()} LIMIT -1\n  ) WHERE 1;",
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
        """A condition: the new row would replace this row, which is not the updated row itself."""
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

    def _delete_condition(self) -> str:
        """The broadcast's condition for deletions, applied to a row that may be replaced."""
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
        """A value that identifies a change among those in progress: the beginnings of its unique values."""
        names = dict.fromkeys(name for unique in self._unique for name, _ in unique.columns)
        parts = [
            f"coalesce(substr(CAST(NEW.{identifier(name)} AS TEXT), 1, 50), '')"
            for name in list(names)[:4]
            if name != self._shape.alias
        ]
        return "(" + " || ',' || ".join(parts) + ")" if parts else "''"

    def _key1(self, source: str) -> str:
        """The rowid, or the first column of the primary key."""
        return f"{source}.{self._id or identifier(self._shape.key[0])}"

    # -- values -------------------------------------------------------------

    def _channel(self) -> str:
        """The channel of the row ``pubsub_now``; only its beginning, if the expression's value is not valid."""
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
        """The key as JSON text; NULL if it is too large for a message."""
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
        # There are more columns than one function can take: use a row for each.
        return f"json((SELECT json_group_object(column1, json(column2)) FROM (VALUES {rows})))"


def _differ(columns: Sequence[tuple[str, Column]], one: str, other: str) -> str:
    """A condition: two rows differ in a column, compared exactly and with their types."""
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
    """SQL for the bytes of a text or blob; empty for a column that has neither."""
    if not column.may_be_text or not shape.has(column.name):
        return ""
    name = f"{source}.{identifier(column.name)}"
    return f"CASE WHEN typeof({name}) IN ('text', 'blob') THEN length(CAST({name} AS BLOB)) ELSE 0 END"


def _sum(terms: Sequence[str]) -> str:
    """The sum of terms, with brackets that limit the depth of the expression."""
    if len(terms) <= EXPRESSION_COLUMNS:
        return " + ".join(terms)
    parts = (terms[n : n + EXPRESSION_COLUMNS] for n in range(0, len(terms), EXPRESSION_COLUMNS))
    return " + ".join(f"({' + '.join(part)})" for part in parts)


def _value(column: Column, source: str) -> str:
    """SQL for a value that json_object() encodes correctly, whatever its type."""
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
    """SQL for a REAL in digits that every JSON parser reads as the same number.

    Fifteen digits if they are enough, as in 19.99, else seventeen. Very large and very small numbers always have
    seventeen, since older versions of SQLite do not read them exactly. Infinity is 9e999, which every parser reads as
    infinity.
    """
    short = f"printf('%!.15g', {name})"
    enough = f"abs({name}) BETWEEN 1e-15 AND 1e15 AND CAST({short} AS REAL) = {name}"
    return f"CASE WHEN {enough} THEN {short} ELSE replace(printf('%!.17g', {name}), 'Inf', '9e999') END"
