"""A broadcast never makes somebody's write fail: expressions that could raise, and rows of any size."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from datasette_pubsub.broadcast import tables
from datasette_pubsub.broadcast.definition import Broadcast
from datasette_pubsub.broadcast.harmless import BUILT_BYTES, COLUMN_BYTES
from datasette_pubsub.core.errors import FailedPrecondition, InvalidArgument
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

#: A limit that a program may have set on its values, in bytes; SQLite's own is a billion.
LENGTH = 1_000_000

#: Values that functions stumble over, as SQL.
VALUES = [
    "NULL", "''", "'plain'", "'{\"a\": 1}'", "'{\"a\": {\"b\": [1, 2]}}'", "'[1'", "'{a: 1}'", "'{\"a\": 1} x'", "'[]'",
    "-9223372036854775808", "9223372036854775807", "1.5", "9e999", "-9e999", "x''", "x'00'", "x'7b7d'",
    "x'7b2261223a317d'", "x'8c'", "x'1b'", "x'cc0b'", "'a' || char(0) || 'b'", "CAST(x'e4f6fc' AS TEXT)",
    f"zeroblob({LENGTH // 3})", f"printf('%{LENGTH // 3}d', 1)", f"replace(printf('%{LENGTH // 3}d', 1), ' ', '[')",
    f"replace(printf('%{LENGTH // 3}d', 1), ' ', char(1))", f"printf('%{COLUMN_BYTES}d', 1)",
    "'$.a'", "'%%%%'", "'[[[['", "'\\'",
]  # fmt: skip

#: Expressions that raise for one of these values as they stand, or might; "it" is a column of the row.
EXPRESSIONS = [
    "json_extract(it, '$.a') = 1",
    "json_extract(it, '$.a', '$.b')",
    "json_extract(json_extract(it, '$.a'), '$.b')",
    "json_extract(it, '$[#-1]') OR json_extract(it, '$.\"a b\".c')",
    "json(it) = '{}'",
    "json_type(it) = 'object' AND json_array_length(it, '$.a.b') > 1",
    "it -> 'a' ->> 'b' = 1",
    "it -> '$.a' IS NOT NULL",
    "it ->> 0",
    "(it || '') ->> '$.a'",
    "NOT it ->> '$.a'",
    "abs(it)",
    "abs(it - 1) + abs(-it)",
    "it LIKE 'a%'",
    "it NOT LIKE '%50\\%%' ESCAPE '\\' COLLATE NOCASE",
    "it GLOB '[[]*' AND it LIKE '' ESCAPE ''''",
    "it || it || '/' || it",
    "hex(it) || quote(it)",
    "replace(it, ' ', 'a long text in place of a short one')",
    "printf('%s-%05.2f-%-10d %q %%', it, it, it, it)",
    "strftime(it, 'now') || strftime('%Y', it, 'localtime')",
    "char(it, it, 65)",
    "substr(it, it, it) || substring(it, -9223372036854775808)",
    "CASE WHEN it IN ('a', 'b') THEN 'x' ELSE iif(it, lower(it), upper(trim(it, 'xyz'))) END",
    "CAST(it AS VARCHAR(10)) = 'a' AND CAST(it AS INTEGER) + 9223372036854775807",
    "round(it, it) + length(it) + unicode(it) + instr(it, it) + sign(it)",
    "max(it, 1, 'x') = min(it, 2) AND coalesce(it, nullif(it, 1), ifnull(it, 0)) BETWEEN 1 AND 2",
    "it IS NOT DISTINCT FROM typeof(it)",
    "date(it) = datetime(it, it) OR julianday(it) + unixepoch(it, 'utc')",
]

REFUSED = [
    ("mine() is not among", "mine(it)"),
    ("zeroblob() is not among", "zeroblob(it)"),
    ("randomblob() is not among", "randomblob(it)"),
    ("json_object() is not among", "json_object('a', it)"),
    ("json_each() is not among", "it IN json_each(it)"),
    ("load_extension() is not among", "load_extension(it)"),
    ('"json_extract"() is not among', "\"json_extract\"(it, '$.a')"),
    ("json_extract() needs its path", "json_extract(it, it)"),
    ("json_extract() needs its path", "json_extract(it, '$.' || it)"),
    ("is not a JSON path", "json_extract(it, '$.a[x]')"),
    ("is not a JSON path", "json_extract(it, 'a')"),
    ("is not a JSON path or a plain name", "it -> '$[x]'"),
    ("is not a JSON path or a plain name", "it ->> 'a\"b'"),
    ("the right side of ->", "it -> it"),
    ("the right side of ->", "it -> -1"),
    ("the left side of ->", "it || it -> 'a'"),
    ("the left side of ->>", "-it ->> 'a'"),
    ("the left side of ->", "CASE WHEN it THEN it END -> 'a'"),
    ("needs one character", "it LIKE 'a' ESCAPE 'ab'"),
    ("needs one character", "it LIKE 'a' ESCAPE ''"),
    ("needs one character", "it LIKE 'a' ESCAPE it"),
    ("needs one character", "it LIKE 'a' ESCAPE 'a' || 'b'"),
    ("the pattern of LIKE", "it LIKE it"),
    ("the pattern of GLOB", "it GLOB 'a' || it"),
    ("the pattern of LIKE", "like(it, it)"),
    ("MATCH can fail", "it MATCH 'a'"),
    ("REGEXP can fail", "it REGEXP 'a'"),
    ("COLLATE takes", "it COLLATE mine = 'a'"),
    ("replace() needs", "replace(it, 'a', it)"),
    ("printf() needs its format", "printf(it, it)"),
    ("no width from a value", "printf('%*d', it, it)"),
    ("none over 1000", "format('%1001d', it)"),
    ("could have more than", "hex(hex(hex(hex(hex(hex(hex(it)))))))"),
    ("could have more than", "replace(it, 'a', '" + "b" * 500 + "')"),
    ("nested too deeply", "json(" * 15 + "it" + ")" * 15),
    ("one SQL expression", "it, it"),
    ("trim() needs", "trim(it, it)"),
    ("no such column", "items.it ->> 'a'"),
]


@contextlib.contextmanager
def installed(path: Path | str = ":memory:", largest: int = 1024 * 1024) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.install(conn, Settings(max_payload_bytes=largest))
        yield conn


Writer = Callable[..., Any]


@contextlib.contextmanager
def _writer(kind: str, path: Path) -> Iterator[Writer]:
    """Another program, with a low limit of its own on the length of a value."""
    if kind == "sqlite3":
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.execute("PRAGMA synchronous = OFF")
            conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LENGTH)
            yield lambda sql, *values: conn.execute(sql, values).fetchall()
    else:
        other = apsw.Connection(str(path))
        other.execute("PRAGMA synchronous = OFF")
        other.limit(apsw.SQLITE_LIMIT_LENGTH, LENGTH)
        yield lambda sql, *values: list(other.execute(sql, values))
        other.close()


@pytest.mark.parametrize("program", ["sqlite3", "apsw"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_no_expression_makes_a_write_fail(tmp_path: Path, program: str, expression: str) -> None:
    """As each condition and as the channel's expression, for every value."""
    path = tmp_path / "data.db"
    rows = {"insert": "NEW", "update": "OLD", "delete": "OLD"}
    conditions = {operation: re.sub(r"\bit\b", f"{row}.it", expression) for operation, row in rows.items()}
    with installed(path, LENGTH // 8) as conn:
        conn.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, it, u UNIQUE)")
        tables.create(conn, "items", Broadcast("a/", per_row=expression, conditions=conditions))
        assert tables.find(conn, "items").problems == ()
    with _writer(program, path) as write:
        write("CREATE TEMPORARY TABLE samples (id INTEGER PRIMARY KEY, it)")
        for number, value in enumerate(VALUES):
            # The same texts for every value, so that the triggers are compiled once for each.
            write(f"INSERT INTO samples VALUES (?, {value})", number)
            write("INSERT INTO items SELECT id, it, id FROM samples WHERE id = ?", number)
            write("UPDATE items SET it = NULL WHERE id = ?", number)
            write("UPDATE items SET it = (SELECT it FROM samples WHERE id = ?1), u = -1 - u WHERE id = ?1", number)
            write("INSERT OR REPLACE INTO items SELECT id + 1000, it, -1 - id FROM samples WHERE id = ?", number)
            write("DELETE FROM items WHERE id = ? + 1000", number)
        assert write("SELECT count(*) FROM items") == [(0,)]
        assert write("SELECT count(*) FROM vpubsub WHERE channel NOT GLOB 'a/*'") == [(0,)]


def test_expressions_mean_what_they_say() -> None:
    """The guards leave the values alone that need none."""
    with installed() as conn:
        conn.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, it)")
        document = json.dumps({"a": 1, "b": [5, {"c": "x"}], "user": "ada"})
        for expression, channel in {
            "json_extract(it, '$.user')": "of/ada",
            "json_extract(it, '$.b[1].c')": "of/x",
            "it ->> 'user'": "of/ada",
            "it -> 'b' ->> 1": 'of/{"c":"x"}',
            "'<' || (it ->> 'user') || '>'": "of/<ada>",
            "json_array_length(it, '$.b') + abs(-3)": "of/5",
            "json_type(it) || printf('%03d', id)": "of/object007",
            "it LIKE '%\\%%' ESCAPE '\\'": "of/0",
            "replace(json_extract(it, '$.user'), 'a', 'o')": "of/odo",
            "abs(-9223372036854775807 - 1)": "of/",
        }.items():
            tables.create(conn, "items", Broadcast("of/", per_row=expression))
            conn.execute("INSERT INTO items VALUES (7, ?)", [document])
            conn.execute("DELETE FROM items")
            found = conn.execute("SELECT channel FROM vpubsub ORDER BY id DESC LIMIT 2").fetchall()
            assert found == [(channel,), (channel,)], expression


@pytest.mark.parametrize(("fault", "expression"), REFUSED)
def test_what_could_make_a_write_fail_is_refused(fault: str, expression: str) -> None:
    """When the broadcast is made, with the field named."""
    with installed() as conn:
        conn.create_function("mine", 1, str)
        conn.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, it)")
        conn.create_collation("mine", lambda a, b: 0)
        conn.execute("BEGIN")
        with pytest.raises(InvalidArgument) as refused:
            tables.preview(conn, "items", Broadcast("a/", per_row=expression))
        assert fault in refused.value.message
        assert refused.value.message.startswith("the channel's expression")
        for operation, row in (("insert", "NEW"), ("update", "OLD"), ("delete", "OLD")):
            condition = re.sub(r"\bit\b", f"{row}.it", expression)
            with pytest.raises(InvalidArgument, match=f"^the condition for {operation}"):
                tables.preview(conn, "items", Broadcast("a/", conditions={operation: condition}))


def test_a_condition_on_json_is_false_for_what_is_not_json() -> None:
    """A broadcast on the field of a JSON column lets plain text be written, and publishes nothing for it."""
    with installed() as conn:
        conn.execute("CREATE TABLE biz (id INTEGER PRIMARY KEY, x TEXT)")
        condition = {"insert": "json_extract(NEW.x, '$.a') = 1"}
        tables.create(conn, "biz", Broadcast("b", conditions=condition))
        conn.execute("INSERT INTO biz (x) VALUES ('plain'), ('{\"a\": 1}'), ('{\"a\": 2}')")
        found = [json.loads(row[0])["key"] for row in conn.execute("SELECT payload FROM vpubsub")]
        assert found == [{"id": 2}]
        tables.create(conn, "biz", Broadcast("b/", per_row="json_extract(x, '$.user')"))
        conn.execute("INSERT INTO biz (x) VALUES ('plain'), ('{\"user\": \"ada\"}')")
        channels = [row[0] for row in conn.execute("SELECT channel FROM vpubsub WHERE id > 1 ORDER BY id")]
        assert channels == ["b/", "b/ada"]


def test_a_broadcast_of_an_earlier_version_that_could_fail_is_named() -> None:
    with installed() as conn:
        conn.execute("CREATE TABLE biz (id INTEGER PRIMARY KEY, x TEXT)")
        made = tables.create(conn, "biz", Broadcast("b", conditions={"insert": "NEW.x = 'a'"}))
        conn.execute(f'DROP TRIGGER "{made[0].name}"')
        conn.execute(made[0].sql.replace("NEW.x = 'a'", "NEW.x LIKE NEW.x"))
        assert "the pattern of LIKE" in tables.find(conn, "biz").problems[0]


# -- rows that no message can hold --------------------------------------------


@pytest.mark.parametrize("program", ["sqlite3", "apsw"])
@pytest.mark.parametrize(
    "create",
    [
        "CREATE TABLE items (id INTEGER PRIMARY KEY, a, b)",
        "CREATE TABLE items (id PRIMARY KEY, a, b UNIQUE)",
        "CREATE TABLE items (id, a, b, PRIMARY KEY (id, b)) WITHOUT ROWID",
        "CREATE TABLE items (id, a, b, c AS (a || b))",
        f"CREATE TABLE items (id INTEGER PRIMARY KEY, a, b, {', '.join(f'c{n}' for n in range(60))})",
    ],
)
def test_a_row_of_any_size_is_written_and_told(tmp_path: Path, program: str, create: str) -> None:
    """Values as large as the program's SQLite takes, whose JSON could not be made: told without values."""
    path = tmp_path / "data.db"
    with installed(path, LENGTH // 8) as conn:
        conn.execute(create)
        generated = " AS " in create
        columns = ("a", "b") if generated else None
        tables.create(conn, "items", Broadcast("a", columns=columns))
    most = LENGTH - 2_000
    values = [
        f"zeroblob({most})", f"zeroblob({LENGTH // 2})", f"printf('%{most}d', 1)",
        f"replace(printf('%{LENGTH // 6}d', 1), ' ', char(1))", f"CAST(zeroblob({most}) AS TEXT)",
        f"CAST(replace(printf('%{most}d', 1), ' ', 'x') AS BLOB)",
    ]  # fmt: skip
    with _writer(program, path) as write:
        for number, value in enumerate(values):
            write(f"INSERT INTO items (id, a, b) VALUES ({number}, {value}, {number})")
            write(f"UPDATE items SET b = -1 - b WHERE id = {number}")
            write(f"UPDATE items SET a = 1 WHERE id = {number}")
            write(f"UPDATE items SET a = {value} WHERE id = {number}")
            write(f"UPDATE items SET a = a WHERE id = {number}")
            write(f"INSERT OR REPLACE INTO items (id, a, b) VALUES ({number} + 10, {value}, -1 - {number})")
            write(f"DELETE FROM items WHERE id >= {number}")
            found = [json.loads(row[0]) for row in write("SELECT payload FROM vpubsub ORDER BY id")]
            done = len(found)
            assert {message["op"] for message in found} == {"insert", "update", "delete"}
            assert all(message.get("too_large") for message in found)
            assert all("new" not in message and "old" not in message for message in found)
            # Three changes; an update that changes nothing is not told, whatever its size.
            assert [message["op"] for message in found if message["op"] == "update"].count("update") in (2, 3)
            write("INSERT INTO _pubsub_released SELECT DISTINCT channel, 1 << 60 FROM vpubsub")
            write("DELETE FROM vpubsub")
            write("DELETE FROM _pubsub_released")
            assert done


@pytest.mark.parametrize("program", ["sqlite3", "apsw"])
def test_a_key_of_any_size_is_written_and_told(tmp_path: Path, program: str) -> None:
    path = tmp_path / "data.db"
    with installed(path, LENGTH // 8) as conn:
        conn.execute("CREATE TABLE items (id PRIMARY KEY, a)")
        tables.create(conn, "items", Broadcast("a/", per_row="id"))
    with _writer(program, path) as write:
        for value in (f"zeroblob({LENGTH - 1000})", f"printf('%{LENGTH - 1000}d', 1)"):
            write(f"INSERT INTO items VALUES ({value}, 1)")
            write("UPDATE items SET a = 2")
            write("INSERT OR REPLACE INTO items SELECT id, 3 FROM items")
            write("UPDATE items SET id = 1")
            write("DELETE FROM items")
        found = [(row[0], json.loads(row[1])) for row in write("SELECT channel, payload FROM vpubsub ORDER BY id")]
        large = {"table": "items", "too_large": True}
        assert found[:5] == [
            ("a/", {"op": "insert", **large}),
            ("a/", {"op": "update", **large}),
            ("a/", {"op": "insert", **large}),
            ("a/", {"op": "delete", **large}),
            ("a/1", {"op": "insert", "table": "items", "key": {"id": 1}, "new": {"id": 1, "a": 3}}),
        ]
        assert len(found) == 12


def test_a_channel_that_would_not_be_utf8_keeps_its_beginning() -> None:
    with installed() as conn:
        conn.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name)")
        tables.create(conn, "items", Broadcast("of/", per_row="name", old=False))
        names = [b"K\xe4se", "Käse".encode(), b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"a\xff", b"plain", b"x" * 253]
        for name in names:
            conn.execute("INSERT INTO items (name) VALUES (CAST(? AS TEXT))", [name])
        conn.execute("UPDATE items SET name = 'moved' WHERE id IN (1, 2)")
        found = conn.execute("SELECT CAST(channel AS BLOB), payload ->> 'op' FROM vpubsub ORDER BY id").fetchall()
        assert [channel for channel, _ in found[:7]] == [
            b"of/", "of/Käse".encode(), b"of/", "of/😀".encode(), b"of/", b"of/plain", b"of/"
        ]  # fmt: skip
        assert found[7:] == [
            (b"of/", "delete"), (b"of/moved", "insert"), ("of/Käse".encode(), "delete"), (b"of/moved", "insert")
        ]  # fmt: skip


def test_sqlite_without_json_is_named() -> None:
    """The oldest SQLite that a broadcast works in is checked by the one that makes it."""

    class Old(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            # As SQLite answers that was built without JSON1.
            return super().execute(sql.replace("json_object(", "no_json_object("), *values)

    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None, factory=Old)) as conn:
        schema.install(conn, Settings())
        conn.execute("CREATE TABLE items (id INTEGER PRIMARY KEY)")
        with pytest.raises(FailedPrecondition, match=r"no functions of JSON.* it needs SQLite 3\.38"):
            tables.create(conn, "items", Broadcast("a"))


assert BUILT_BYTES <= LENGTH
