"""Retention: finds the messages that exceed the limits, and trims them.

Only this module removes messages. A trim removes the oldest messages of a channel, in small transactions, and records
which: so a subscriber that comes too late learns exactly how many messages it missed.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TypeVar

from ..core.glob import glob_regex
from ..core.retention_rule import Rule
from ..core.selector import Selector
from ..core.settings import Settings
from ..core.validation import utc_text
from . import log, subscriptions
from .names import OF_CHANNEL, Name, exact, shown, sort_key
from .objects import LOG, RELEASED, SUBSCRIPTIONS, TRIMS
from .schema import installed

#: The most messages that one transaction trims. It holds the write lock for about 10 ms: publishers wait no longer for
#: a trim than for other publishers.
TRIM_MESSAGES = 1000

#: A transaction begins no further channel after this time, in seconds: with many channels that each lose few messages,
#: the records take longer than the messages.
TRIM_SECONDS = 0.01

#: The most trimmed messages that one record describes: a few kilobytes, to which an addition takes about a millisecond.
RECORD_MESSAGES = 2_000

#: How many records a channel keeps; older ones are dropped. A gap of more than 5 million messages of a channel is
#: reported with a number that is too small.
MAX_RECORDS = 2_500

#: How many payload sizes one statement adds up: enough that SQLite does most of the work, and few enough that the read
#: does not delay a checkpoint.
SUM_MESSAGES = 10_000


def goals(conn: sqlite3.Connection, settings: Settings, now: datetime | None = None) -> dict[Name, int]:
    """For each channel with messages to trim: the id up to which they exceed the limits."""
    if not installed(conn):
        return {}
    now = now or datetime.now(UTC)
    database = settings.retention
    whole = max(_by_count(conn, database.messages), _by_bytes(conn, database.bytes))
    aged = _by_age(conn, database.days, now)
    if log.earliest(conn) > max(whole, aged) and not settings.channel_retention:
        return {}
    found: dict[Name, int] = {}
    for channel in log.channel_names(conn):
        rule = _rule_of(settings, shown(channel))
        goal, days, old = whole, database.days, aged
        if rule is not None:
            goal = max(goal, _by_count(conn, rule.messages, channel), _by_bytes(conn, rule.bytes, channel))
            if rule.days is not None:
                days, old = rule.days, _by_age(conn, rule.days, now)
        oldest = conn.execute(f"SELECT min(id) FROM {LOG} WHERE {OF_CHANNEL}", [channel]).fetchone()[0]
        if oldest is None or oldest > max(goal, old):
            continue
        if days and old > goal:
            goal = max(goal, _before_young(conn, channel, goal, old, days, now))
        if oldest <= goal:
            found[channel] = goal
    if settings.retention_unread_bytes and found:
        _hold(conn, found, settings.retention_unread_bytes)
    return found


def _rule_of(settings: Settings, channel: str) -> Rule | None:
    """The channel's own rule, from the first pattern that matches it; ``None`` without one."""
    for pattern, rule in settings.channel_retention:
        if glob_regex(pattern).fullmatch(channel):
            return rule
    return None


def _by_age(conn: sqlite3.Connection, days: float | None, now: datetime) -> int:
    return 0 if not days else log.before_time(conn, utc_text(now - timedelta(days=days)))


def _before_young(conn: sqlite3.Connection, channel: Name, after: int, to: int, days: float, now: datetime) -> int:
    """The id before the channel's first message between two ids that is young enough; ``to`` if none is.

    Publishers may set ``created_at``, and clocks may be set back, so times need
    not grow with ids. A time in the future says nothing about a message's age.
    """
    row = conn.execute(
        f"SELECT id FROM {LOG} WHERE {OF_CHANNEL} AND id > ? AND id <= ? AND created_at BETWEEN ? AND ? "
        "ORDER BY id LIMIT 1",
        [channel, after, to, utc_text(now - timedelta(days=days)), utc_text(now)],
    ).fetchone()
    return int(row[0]) - 1 if row else to


def _by_count(conn: sqlite3.Connection, messages: int | None, channel: Name | None = None) -> int:
    """The newest id that is not among the newest ``messages``."""
    if not messages:
        return 0
    where, values = (f"WHERE {OF_CHANNEL}", [channel]) if channel is not None else ("", [])
    sql = f"SELECT id FROM {LOG} {where} ORDER BY id DESC LIMIT 1 OFFSET ?"
    row = conn.execute(sql, [*values, messages]).fetchone()
    return int(row[0]) if row else 0


def _by_bytes(conn: sqlite3.Connection, limit: int | None, channel: Name | None = None, top: int = 2**62) -> int:
    """The newest id at which the payloads, added up from the newest message back, exceed the limit."""
    if not limit:
        return 0
    where, values = (f"AND {OF_CHANNEL}", [channel]) if channel is not None else ("", [])
    newest = (
        f"SELECT id, length(CAST(payload AS BLOB)) AS size FROM {LOG} WHERE id <= ? {where} "
        f"ORDER BY id DESC LIMIT {SUM_MESSAGES}"
    )
    total = 0
    while True:
        low, size = conn.execute(f"SELECT min(id), sum(size) FROM ({newest})", [top, *values]).fetchone()
        if low is None:
            return 0
        if total + size > limit:
            break
        total += size
        top = low - 1
    for number, size in conn.execute(newest, [top, *values]):
        total += size
        if total > limit:
            return int(number)
    # Another process has trimmed messages in between.
    return 0


def _hold(conn: sqlite3.Connection, found: dict[Name, int], hold_bytes: int) -> None:
    """Lower the goals to the cursors of subscriptions, up to ``hold_bytes`` of payload."""
    found_subscriptions = subscriptions.everyone(conn)
    left = hold_bytes
    for channel in sorted(found, key=sort_key):
        cursors = [each.cursor for each in found_subscriptions if each.selector.matches(shown(channel))]
        if not cursors or min(cursors) >= found[channel]:
            continue
        needed = min(cursors)
        over = _by_bytes(conn, max(left, 1), channel, found[channel])
        held = max(needed, over)
        sql = f"SELECT sum(length(CAST(payload AS BLOB))) FROM {LOG} WHERE {OF_CHANNEL} AND id > ? AND id <= ?"
        left -= conn.execute(sql, [channel, held, found[channel]]).fetchone()[0] or 0
        if held:
            found[channel] = held
        else:
            del found[channel]


AnyName = TypeVar("AnyName", bound=Name)


def trim(conn: sqlite3.Connection, left: dict[AnyName, int], limit: int = TRIM_MESSAGES) -> Counter[AnyName]:
    """Trim the oldest messages of the channels in ``left``, at most ``limit``, inside the caller's transaction.

    ``left`` maps channels to goals, as :func:`goals` returns them; finished
    channels are removed from it. Returns how many messages of each channel were
    trimmed.
    """
    removed: Counter[AnyName] = Counter()
    room = limit
    end = time.monotonic() + TRIM_SECONDS
    for channel, goal in list(islice(left.items(), limit)):
        if room <= 0 or (room < limit and time.monotonic() > end):
            break
        sql = f"SELECT id FROM {LOG} WHERE {OF_CHANNEL} AND id <= ? ORDER BY id LIMIT ?"
        ids = [int(row[0]) for row in conn.execute(sql, [channel, goal, room])]
        if len(ids) < room:
            del left[channel]
        if not ids:
            continue
        # The record comes first: by it, the log's trigger lets the messages go.
        note(conn, channel, ids)
        conn.execute(f"DELETE FROM {LOG} WHERE {OF_CHANNEL} AND id <= ?", [channel, ids[-1]])
        removed[channel] = len(ids)
        room -= len(ids)
    return removed


def note(conn: sqlite3.Connection, channel: Name, ids: list[int]) -> None:
    """Note the trimmed ids of a channel, in its newest record while that is small."""
    conn.execute(
        f"INSERT INTO {RELEASED} (channel, id) VALUES (CAST(? AS TEXT), ?) "
        "ON CONFLICT (channel) DO UPDATE SET id = max(id, excluded.id)",
        [channel, ids[-1]],
    )
    sql = f"SELECT last_id, messages, runs FROM {TRIMS} WHERE {OF_CHANNEL} ORDER BY last_id DESC LIMIT 1"
    row = conn.execute(sql, [channel]).fetchone()
    grows = row is not None and row[1] + len(ids) <= RECORD_MESSAGES
    if grows:
        conn.execute(f"DELETE FROM {TRIMS} WHERE {OF_CHANNEL} AND last_id = ?", [channel, row[0]])
        ids = [*unpack(row[2]), *ids]
    conn.execute(
        f"INSERT INTO {TRIMS} (channel, last_id, first_id, messages, runs) VALUES (CAST(? AS TEXT), ?, ?, ?, ?)",
        [channel, ids[-1], ids[0], len(ids), pack(ids)],
    )
    if not grows:
        conn.execute(
            f"DELETE FROM {TRIMS} WHERE {OF_CHANNEL} AND last_id <= "
            f"(SELECT last_id FROM {TRIMS} WHERE {OF_CHANNEL} ORDER BY last_id DESC LIMIT 1 OFFSET ?)",
            [channel, channel, MAX_RECORDS],
        )


def pack(ids: Iterable[int]) -> bytes:
    """Encode increasing ids as compressed runs: pairs of distance and length. Consecutive ids cost nothing."""
    runs: list[list[int]] = []
    end = 0
    for number in ids:
        if runs and number == end + 1:
            runs[-1][1] += 1
        else:
            runs.append([number - end, 1])
        end = number
    return zlib.compress(" ".join(f"{gap} {length}" for gap, length in runs).encode())


def unpack(data: bytes) -> list[int]:
    """Decode the ids that :func:`pack` has encoded."""
    numbers = [int(part) for part in zlib.decompress(data).split()]
    ids: list[int] = []
    end = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        ids.extend(range(end + gap, end + gap + length))
        end += gap + length - 1
    return ids


@dataclass(frozen=True, slots=True)
class Missed:
    """How many messages of a selector were trimmed, and the newest of these ids for each channel."""

    messages: int
    released: Mapping[Name, int]


def missed(
    conn: sqlite3.Connection, selector: Selector, after: int, told: Mapping[Name, int], to: int = 2**62
) -> Missed:
    """The messages trimmed between two positions, without those up to the ids that were ``told``, by channel."""
    total = 0
    newest: dict[Name, int] = {}
    for channel, last in released(conn, selector, after).items():
        begin = max(after, told.get(channel, 0))
        if last <= begin or begin >= to:
            continue
        where = f"{OF_CHANNEL} AND last_id > ? AND first_id <= ?"
        sql = f"SELECT first_id, messages, runs, last_id FROM {TRIMS} WHERE {where}"
        for row in conn.execute(sql, [channel, begin, to]):
            whole = row[0] > begin and row[3] <= to
            total += row[1] if whole else sum(1 for number in unpack(row[2]) if begin < number <= to)
        newest[channel] = min(last, to)
    return Missed(total, newest)


def released(conn: sqlite3.Connection, selector: Selector, after: int) -> dict[Name, int]:
    """The channels that have lost messages after an id, each with the newest trimmed id."""
    if log.expands(selector):
        with exact(conn):
            rows = conn.execute(f"SELECT channel, id FROM {RELEASED} WHERE id > ?", [after]).fetchall()
        return {row[0]: int(row[1]) for row in rows if selector.matches(shown(row[0]))}
    found: dict[Name, int] = {}
    for channel in selector.channels:
        row = conn.execute(f"SELECT id FROM {RELEASED} WHERE channel = ? AND id > ?", [channel, after]).fetchone()
        if row is not None:
            found[channel] = int(row[0])
    return found


def expire(conn: sqlite3.Connection, days: float, connected: Iterable[int]) -> list[tuple[str, str]]:
    """Delete subscriptions that were not used for ``days`` and have no subscriber; returns their owners and names."""
    limit = utc_text(datetime.now(UTC) - timedelta(days=days))
    keep = set(connected)
    gone = [
        row[:3]
        for row in conn.execute(f"SELECT id, owner, name FROM {SUBSCRIPTIONS} WHERE last_seen_at < ?", [limit])
        if row[0] not in keep
    ]
    conn.executemany(f"DELETE FROM {SUBSCRIPTIONS} WHERE id = ?", [(number,) for number, _, _ in gone])
    return [(owner, name) for _, owner, name in gone]
