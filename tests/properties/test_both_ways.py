"""The batcher's own connection and the ordinary one do the same with every message, in every file."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from own_way import Served, allow
from property_tests import QUICK

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.core.values import Item
from datasette_pubsub.storage import log, schema

NOW = "2026-01-31T12:00:00.000Z"


class Text(enum.StrEnum):
    """A text that is not exactly ``str``."""

    ONE = "one"


class Adapted(str):
    """A text that Python's ``sqlite3`` binds as something else."""

    def __conform__(self, protocol: object) -> str:
        return "adapted" * 100


#: Texts at and beyond the limits of channels and keys, and what SQLite and UTF-8 treat in their own way.
TEXTS = [
    "a",
    "b",
    "",
    " ",
    "a" * 256,
    "a" * 257,
    "é" * 128,
    "é" * 129,
    "😀" * 64,
    "😀" * 65,
    "a\0b",
    "\0",
    "\ud800",
    "x\udfff",
    "\ufffd",
    "\ufffe\uffff",
    "\u202e\x7f\x01",
    "[a-z]*?",
    "'",
    Text.ONE,
]
#: Payloads around the limit of each file, of every type that Python can hand over.
PAYLOADS: list[Any] = [
    *TEXTS,
    "p" * 63,
    "p" * 64,
    "p" * 65,
    "é" * 32,
    "é" * 33,
    b"",
    b"\0\xff",
    b"p" * 64,
    b"p" * 65,
    bytearray(b"ok"),
    memoryview(b"p" * 64),
    memoryview(b"p" * 80).cast("I"),
    Adapted("short"),
    0,
    -(2**63),
    2**63 - 1,
    2**63,
    1e308,
    -2.2250738585072014e-308,
    -0.0,
    7.0,
    float("nan"),
    float("inf"),
    True,
    None,
    ["list"],
    {"a": 1},
]

items = st.builds(
    Item,
    channel=st.one_of(st.sampled_from(["a", "b"]), st.sampled_from([*TEXTS, 7, None, b"a"])),
    payload=st.one_of(
        st.sampled_from(["x", b"y", 1]),
        st.sampled_from(range(len(PAYLOADS))).map(PAYLOADS.__getitem__),
        st.text(max_size=80),
    ),
    key=st.one_of(st.none(), st.none(), st.none(), st.sampled_from(["k", "", "k\0", "é" * 129, "\ud800"])),
    expected_last_id=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 12)),
)
plain = st.builds(Item, channel=st.sampled_from(["a", "b", "é"]), payload=st.sampled_from(["x", b"y", 1, 1.5, "😀"]))
keyed = st.builds(
    Item,
    channel=st.sampled_from(["a", "b"]),
    payload=st.sampled_from(["x", "y" * 15]),
    key=st.sampled_from([None, "k", "é"]),
    expected_last_id=st.sampled_from([None, None, 0, 1, 2, 3]),
)
publish = st.one_of(*[st.lists(each, min_size=1, max_size=5) for each in (plain, plain, keyed, items)])
publishes = st.lists(publish, min_size=1, max_size=4)

#: What another program, or another limit of the plugin, has done to the file: each by its SQL.
GUARD = "DROP TRIGGER IF EXISTS vpubsub_guard"
CHANGES: dict[str, Callable[[sqlite3.Connection], Any]] = {
    "notes": lambda conn: conn.execute(
        "CREATE TRIGGER IF NOT EXISTS notes AFTER INSERT ON VPUBSUB BEGIN "
        "INSERT INTO seen VALUES (NEW.id, NEW.channel, NEW.payload); END"
    ),
    "refuses": lambda conn: conn.execute(
        "CREATE TRIGGER IF NOT EXISTS refuses BEFORE INSERT ON vpubsub WHEN NEW.payload = 'x' BEGIN "
        "SELECT RAISE(ABORT, 'no x here'); END"
    ),
    "publishes": lambda conn: conn.execute(
        "CREATE TRIGGER IF NOT EXISTS publishes AFTER INSERT ON vpubsub WHEN NEW.channel = 'a' BEGIN "
        "INSERT INTO vpubsub (channel, payload, created_at) VALUES ('copy', NEW.payload, NEW.created_at); END"
    ),
    "drops triggers": lambda conn: [
        conn.execute(f"DROP TRIGGER IF EXISTS {name}") for name in ("notes", "refuses", "publishes")
    ],
    # Not where there are two already.
    "a unique index": lambda conn: conn.execute("CREATE UNIQUE INDEX IF NOT EXISTS one ON vpubsub (payload, channel)"),
    "no index": lambda conn: conn.execute("DROP INDEX IF EXISTS one"),
    "a smaller limit": lambda conn: schema.install(conn, Settings(max_payload_bytes=10)),
    "a larger limit": lambda conn: schema.install(conn, Settings(max_payload_bytes=10_000)),
    "no guard": lambda conn: conn.execute(GUARD),
    "another table": lambda conn: conn.execute("CREATE TABLE IF NOT EXISTS other (a)"),
}
change = st.sampled_from(["drops triggers", "a larger limit", *sorted(CHANGES)])
step = st.tuples(st.lists(change, max_size=2), publishes)

X = [Item("a", "x"), Item("b", 1)]
LONG = [Item("a", "p" * 15)]

#: All that a batch may change, with the types of its values. Times are the same in both, see :data:`NOW`.
TABLES = {
    "vpubsub": "id, quote(channel), quote(payload), typeof(payload), created_at, quote(key)",
    "sqlite_sequence": "name, seq",
    "seen": "rowid, quote(id), quote(channel), quote(payload)",
    "_pubsub_probe": "*",
    "_pubsub_released": "*",
    "_pubsub_file": "schema_version, checked_after, claims",
}


def state(served: Served) -> dict[str, list[Any]]:
    return {table: served.execute(f"SELECT {columns} FROM {table} ORDER BY 1") for table, columns in TABLES.items()}


#: How many messages went the own way, over all examples.
went_own = 0


async def compare(steps: list[Any], folder: Path, limit: int) -> None:
    global went_own
    options: dict[str, Any] = {"max_payload_bytes": limit, "synchronous": "normal"}
    async with (
        Served(folder / "own.db", **options) as own,
        Served(folder / "ordinary.db", own=False, **options) as ordinary,
    ):
        for served in (own, ordinary):
            # The first write installs the log.
            assert await served.publish(Item("first", "x")) == [1]
        for changes, publishes in steps:
            for name in changes:
                for served in (own, ordinary):
                    conn = sqlite3.connect(served.path, isolation_level=None)
                    with contextlib.closing(conn), contextlib.suppress(sqlite3.IntegrityError):
                        CHANGES[name](conn)
                    if name in ("drops triggers", "a larger limit"):
                        # The own connection may be used again from the next session on.
                        await served.next_session()
            one, other = [
                await asyncio.gather(*[served.publish(*items) for items in publishes], return_exceptions=True)
                for served in (own, ordinary)
            ]
            assert repr(one) == repr(other)
            assert state(own) == state(ordinary)
        went_own += own.changes
        assert ordinary.changes == 0


@given(st.lists(step, min_size=2, max_size=8), st.sampled_from([20, 64, 64]))
@example([([], [X]), (["notes"], [X, X]), (["drops triggers"], [X])], 64)
@example([([], [X]), (["refuses"], [X, [Item("b", "y")]]), (["drops triggers"], [X])], 64)
@example([([], [X]), (["publishes"], [X]), (["drops triggers"], [X])], 64)
@example([([], [X]), (["a smaller limit"], [LONG, X]), (["a larger limit"], [LONG])], 64)
@example([([], [X]), (["a unique index"], [[Item("c", "x"), Item("c", "x")], [Item("c", "y")]])], 64)
@example([([], [[Item("a", "x", key="k")], [Item("a", "y", key="k")], [Item("a", "z", expected_last_id=9)], X])], 64)
@settings(QUICK, max_examples=40)
def both_ways(steps: list[Any], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        allow(patch)
        patch.setattr(log, "now", lambda: NOW)
        patch.setattr("datasette_pubsub.broker.own_connection.ORDINARY_BATCHES", 0)
        asyncio.run(compare(steps, Path(folder), limit))


def test_both_ways_do_the_same() -> None:
    both_ways()
    assert went_own > 30, "messages"


@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(len(PAYLOADS)))
@pytest.mark.parametrize("limit", [20, 64])
async def test_each_payload_and_channel_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, limit: int
) -> None:
    allow(monkeypatch)
    monkeypatch.setattr(log, "now", lambda: NOW)
    payload = PAYLOADS[number]
    steps: list[Any] = [
        ([], [[Item("a", payload)]]),
        ([], [[Item("a", "before"), Item("b", payload)], [Item("c", "after")]]),
    ]
    if isinstance(payload, str):
        steps.append(([], [[Item(payload, "x"), Item("b", "y")]]))
    await compare(steps, tmp_path, limit)
