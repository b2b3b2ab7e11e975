"""The shape of a table, as far as a broadcast needs it: its columns, its key, and its unique indexes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import InvalidArgument, NotFound
from ..storage.objects import TABLES
from ..storage.quoting import identifier
from .expressions import index_condition


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, and the types that its values may have besides text, integer and NULL.

    ``subtyped``: a generated column, whose text SQLite may treat as JSON.
    ``may_be_text``: false for the few columns that only have numbers.
    """

    name: str
    may_be_real: bool = True
    may_be_blob: bool = True
    subtyped: bool = False
    may_be_text: bool = True


@dataclass(frozen=True, slots=True)
class Unique:
    """A unique index: its columns with their collations, for the rows where ``where`` holds.

    ``is_key``: it is the primary key, with exact comparison.
    """

    columns: tuple[tuple[str, str], ...]
    where: str = ""
    is_key: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a table: its columns, its primary key, and its name for the rowid, if it has one.

    ``alias``: the column that is the rowid. ``replaces_silently``: REPLACE can
    remove rows with other keys than the new row's, since other columns are
    ``unique`` as well, or the key ignores case. SQLite runs delete triggers for
    these rows only under ``PRAGMA recursive_triggers``; otherwise the noting
    triggers publish them. ``replaces_untold``: REPLACE can also remove rows by an
    index on an expression or a generated column, which the noting triggers miss.
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


#: SQLite's names for a table's rowid, unless a column has that name (https://sqlite.org/rowidtable.html).
_ROWIDS = ("rowid", "_rowid_", "oid")


#: The prefix of the plugin's hidden tables.
OWN_PREFIX = "_pubsub_"


def shape_of(conn: sqlite3.Connection, table: str) -> Shape:
    """The shape of a table. Raises :class:`NotFound`, or :class:`InvalidArgument` for a view and the like."""
    row = conn.execute(
        "SELECT name, type, wr, strict FROM pragma_table_list "
        "WHERE schema = 'main' AND name = ? COLLATE NOCASE AND name NOT LIKE 'sqlite^_%' ESCAPE '^'",
        [table],
    ).fetchone()
    if row is None:
        raise NotFound(f"table not found: {table}")
    name, kind, without_rowid, strict = row
    if name in TABLES or name.startswith(OWN_PREFIX):
        raise InvalidArgument(f"{name} belongs to the log itself and cannot be broadcast")
    if kind != "table":
        what = {"view": "a view", "virtual": "a virtual table"}.get(kind, "part of a virtual table")
        raise InvalidArgument(f"{name} is {what}: SQLite runs no triggers for changes there, so it cannot be broadcast")
    found = conn.execute(
        "SELECT name, type, pk, hidden FROM pragma_table_xinfo(?) WHERE hidden <> 1 ORDER BY cid", [name]
    ).fetchall()
    key = tuple(column[0] for column in sorted(found, key=lambda column: column[2]) if column[2])
    alias = _rowid_column(conn, name, key, found, without_rowid)
    columns = tuple(
        Column(
            column[0],
            may_be_real=column[0] != alias and _may_be_real(column[1], strict),
            may_be_blob=column[0] != alias and not (strict and column[1].upper() not in ("BLOB", "ANY")),
            subtyped=column[3] in (2, 3),
            may_be_text=column[0] != alias and not (strict and column[1].upper() in ("INT", "INTEGER", "REAL")),
        )
        for column in found
    )
    taken = {column.name.lower() for column in columns if column.name != alias}
    rowid = None if without_rowid else next((each for each in _ROWIDS if each not in taken), None)
    if rowid is None and not key:
        raise InvalidArgument(f"{name} has no primary key, and its columns hide the rowid: its rows cannot be named")
    unique, all_known = _unique(conn, name, {column.name for column in columns if column.subtyped})
    return Shape(
        name,
        columns,
        key,
        rowid,
        alias,
        tuple(unique),
        not all_known or any(not each.is_key for each in unique),
        not all_known,
    )


def _unique(conn: sqlite3.Connection, table: str, generated: set[str]) -> tuple[list[Unique], bool]:
    """The unique indexes of a table besides the rowid, and whether these are all.

    It leaves out indexes on expressions, and on generated columns, whose values
    a trigger before the change does not get.
    """
    found, all_known = [], True
    for name, origin, partial, sql in conn.execute(
        "SELECT i.name, i.origin, i.partial, m.sql FROM pragma_index_list(?) AS i "
        "LEFT JOIN sqlite_master AS m ON m.type = 'index' AND m.name = i.name WHERE i.\"unique\" ORDER BY i.seq DESC",
        [table],
    ).fetchall():
        columns = conn.execute("SELECT name, coll FROM pragma_index_xinfo(?) WHERE key", [name]).fetchall()
        where = index_condition(sql) if partial else ""
        if where is None or any(column is None or column in generated for column, _ in columns):
            all_known = False
            continue
        exact = all(collation.upper() == "BINARY" for _, collation in columns)
        pairs = tuple((column, identifier(collation)) for column, collation in columns)
        found.append(Unique(pairs, where, origin == "pk" and exact))
    return found, all_known


def _rowid_column(
    conn: sqlite3.Connection, table: str, key: tuple[str, ...], columns: Sequence[sqlite3.Row], without_rowid: int
) -> str | None:
    """The column that is the rowid, and so always an integer; ``None`` if there is none."""
    if without_rowid or len(key) != 1:
        return None
    declared = next(column[1] for column in columns if column[0] == key[0])
    indexed = conn.execute("SELECT 1 FROM pragma_index_list(?) WHERE origin = 'pk'", [table]).fetchone()
    return key[0] if declared.upper() == "INTEGER" and indexed is None else None


def _may_be_real(declared: str, strict: int) -> bool:
    """Whether a column of this type may hold a REAL (https://sqlite.org/datatype3.html#determination_of_column_affinity)."""
    kind = declared.upper()
    if strict:
        return kind in ("REAL", "ANY")
    return "INT" in kind or not any(part in kind for part in ("CHAR", "CLOB", "TEXT"))
