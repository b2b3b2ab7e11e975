"""What retention releases, and what it remembers of it: plain functions of a connection."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_pubsub.core.retention_rule import Rule
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.core.validation import utc_text
from datasette_pubsub.core.values import Item
from datasette_pubsub.storage import log, retention, schema
from datasette_pubsub.storage.catchup import Reader

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema.install(connection, Settings())
        yield connection


def aged(conn: sqlite3.Connection, channel: str, days: list[float]) -> None:
    """Messages that say that they are so many days old."""
    conn.executemany(
        "INSERT INTO vpubsub (channel, payload, created_at) VALUES (?, ?, ?)",
        [(channel, str(age), utc_text(NOW - timedelta(days=age))) for age in days],
    )


def trimmed(conn: sqlite3.Connection, options: Settings) -> list[str]:
    """What is left after a trim."""
    left = retention.goals(conn, options, NOW)
    while left:
        retention.trim(conn, left)
    return [row[0] for row in conn.execute("SELECT payload FROM vpubsub ORDER BY id")]


def test_old_messages_that_came_later_take_no_young_ones_with_them(conn: sqlite3.Connection) -> None:
    """Somebody brings the history of another log over: its messages have greater ids, and are older."""
    aged(conn, "a", [2, 1])
    aged(conn, "history", [90, 80, 70, 60, 50, 40])
    aged(conn, "a", [0.5])
    assert trimmed(conn, Settings()) == ["2", "1", "0.5"]


def test_a_time_that_is_still_to_come_holds_nothing(conn: sqlite3.Connection) -> None:
    """A clock was wrong for a moment."""
    aged(conn, "a", [50, -1000, 40, 39, 38, 37, 1])
    assert trimmed(conn, Settings()) == ["1"]


def test_age_by_channel_and_for_ever(conn: sqlite3.Connection) -> None:
    for channel in ("audit", "metric", "other"):
        aged(conn, channel, [100, 40, 5, 1])
    rules = (("audit", Rule(days=0)), ("metric", Rule(days=3)))
    trimmed(conn, Settings(channel_retention=rules))
    rows = conn.execute("SELECT channel, count(*) FROM vpubsub GROUP BY channel").fetchall()
    assert rows == [("audit", 4), ("metric", 1), ("other", 2)]


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_bytes_are_counted_from_the_newest_back(sizes: list[int], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch, closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        patch.setattr(retention, "SUM_MESSAGES", 7)
        schema.install(conn, Settings())
        log.append(conn, [Item("ab"[n % 3 == 0], "x" * size) for n, size in enumerate(sizes)], log.now())
        total, kept = 0, 0
        for size in reversed(sizes):
            total += size
            if total > limit:
                break
            kept += 1
        assert retention._by_bytes(conn, limit) == len(sizes) - kept
        trimmed(conn, Settings(retention_days=0, channel_retention=(("a", Rule(bytes=limit)),)))
        (left,) = conn.execute("SELECT coalesce(sum(length(payload)), 0) FROM vpubsub WHERE channel = 'a'").fetchone()
        assert left <= limit


def test_a_transaction_takes_no_further_channel_when_it_has_taken_long(
    conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "TRIM_SECONDS", 0.0)
    names = [f"c{n}" for n in range(20)]
    log.append(conn, [Item(name, "x") for name in names * 3], log.now())
    left = dict.fromkeys([*names, "unknown"], 40)
    counts = []
    while left:
        counts.append(retention.trim(conn, left))
    assert [dict(count) for count in counts if count] == [{name: 2} for name in names]


def test_missed_is_exact_for_every_position_whatever_the_records_are(
    conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "RECORD_MESSAGES", 7)
    chance = random.Random(1)
    names = [chance.choice("abc") for _ in range(300)]
    log.append(conn, [Item(name, "x") for name in names], log.now())
    while (top := conn.execute("SELECT count(*) FROM vpubsub").fetchone()[0]) > 40:
        left = {chance.choice("abc"): 300 - top + chance.randrange(60)}
        while left:
            retention.trim(conn, left, chance.randint(1, 12))
    assert conn.execute("SELECT max(messages), count(*) > 20 FROM _pubsub_trims WHERE messages < 8").fetchone() == (
        7,
        1,
    )
    gone = set(range(1, 301)) - {row[0] for row in conn.execute("SELECT id FROM vpubsub")}
    for selector in (Selector.of(["a"]), Selector.of(["a", "c"]), Selector.of((), ["[bc]"])):
        for after in range(301):
            owed = sum(1 for n in gone if n > after and selector.matches(names[n - 1]))
            assert retention.missed(conn, selector, after, {}).messages == owed


def test_records_are_dropped_beyond_their_number(conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "RECORD_MESSAGES", 10)
    monkeypatch.setattr(retention, "MAX_RECORDS", 5)
    log.append(conn, [Item("a", "x") for _ in range(200)], log.now())
    for goal in range(10, 200, 10):
        retention.trim(conn, {"a": goal})
    assert conn.execute("SELECT count(*), sum(messages) FROM _pubsub_trims").fetchone() == (5, 50)
    assert retention.missed(conn, Selector.of(["a"]), 150, {}).messages == 40


def test_a_reader_by_pattern_learns_of_channels_that_come_between_its_pages(conn: sqlite3.Connection) -> None:
    log.append(conn, [Item(f"c{n % 70}", str(n)) for n in range(500)], log.now())
    read: list[Any] = []
    reader, position, count = Reader(Selector.of((), ["c*"])), 0, 500
    while len(read) < 2000:
        page = reader.page(conn, position, 10_000, limit=100)
        read.extend(message.payload for message in page.messages)
        position = page.position
        if count < 2000:
            log.append(conn, [Item(f"{'cd'[n % 2]}{n}", str(n)) for n in range(count, count + 150)], log.now())
            count += 150
        elif page.position == count:
            break
    assert read == [str(n) for n in range(500)] + [str(n) for n in range(500, count) if n % 2 == 0]
