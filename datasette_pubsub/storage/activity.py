"""Channel activity: the channels with the newest messages, and the number of messages of each in recent time spans.

It uses index seeks, not scans: the cost grows with the channels asked for and with the messages of the last minutes,
never with the log, since every page of a database shows it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ..core.validation import utc_text
from ..core.values import Message
from . import log
from .names import OF_CHANNEL, Name, exact, shown
from .objects import LOG
from .schema import installed

#: The number of spans and the length of each, in seconds: ten minutes, in as many bars as a sparkline can hold.
#: ui/sparkline.js has the same constants.
SPANS = 60
SPAN_SECONDS = 10

#: The most channels that are read in the order of their names: one seek each, so a few milliseconds.
WALKED_NAMES = 1_000

#: The most newest messages that are read to find channels beyond those.
WALKED_MESSAGES = 1_000


@dataclass(frozen=True, slots=True)
class Active:
    """A channel with its newest message, and its message counts in the last ``SPANS`` spans, oldest first."""

    newest: Message
    counts: tuple[int, ...]

    @property
    def name(self) -> str:
        """The channel's name."""
        return self.newest.channel


@dataclass(frozen=True, slots=True)
class Activity:
    """The channels with the newest messages, newest first, at one moment of the log.

    ``span`` is the number of the last span, counted since 1970.
    """

    span: int
    head: int = 0
    installed: bool = False
    channels: list[Active] = field(default_factory=list)
    more: bool = False


def present_span() -> int:
    """The number of the present span."""
    return int(datetime.now(UTC).timestamp() // SPAN_SECONDS)


def recent(conn: sqlite3.Connection, allows: Callable[[str], bool], limit: int) -> Activity:
    """The ``limit`` channels with the newest messages, among those that are allowed.

    The result is exact for up to ``WALKED_NAMES`` channels. With more, it also
    considers the channels of the newest ``WALKED_MESSAGES`` messages.
    """
    span = present_span()
    if not installed(conn):
        return Activity(span)
    names = [name for name in walk(conn, WALKED_NAMES) if allows(shown(name))]
    newest = f"SELECT id, channel, payload, created_at FROM {LOG} WHERE {OF_CHANNEL} ORDER BY id DESC LIMIT 1"
    last = {name: _last_id(conn, name) for name in names}
    found = sorted(last, key=lambda name: last[name], reverse=True)
    spans = counts(conn, found[:limit], span)
    active = [Active(Message(*conn.execute(newest, [name]).fetchone()), spans[name]) for name in found[:limit]]
    return Activity(span, log.head(conn), True, active, len(found) > limit)


def walk(conn: sqlite3.Connection, limit: int) -> list[Name]:
    """Channel names without repetition: the first ``limit`` by name, and, if there are more, those of new messages."""
    names = log.channel_names(conn, limit)
    if len(names) < limit:
        return names
    with exact(conn):
        newest = conn.execute(f"SELECT channel FROM {LOG} ORDER BY id DESC LIMIT ?", [WALKED_MESSAGES]).fetchall()
    return list(dict.fromkeys([*names, *(row[0] for row in newest)]))


def _last_id(conn: sqlite3.Connection, channel: Name) -> int:
    return int(conn.execute(f"SELECT max(id) FROM {LOG} WHERE {OF_CHANNEL}", [channel]).fetchone()[0])


def counts(conn: sqlite3.Connection, channels: list[Name], span: int) -> dict[Name, tuple[int, ...]]:
    """How many messages each channel has in each of the ``SPANS`` spans up to this one.

    It finds the ids at which the log passed from one span to the next, and then
    counts in the index of channels, without reading messages.
    """
    edges = _edges(conn, span)
    ranges = json.dumps([[i, low, high] for i, (low, high) in enumerate(edges) if high > low])
    sql = f"""
        SELECT json_extract(value, '$[0]'),
               (SELECT count(*) FROM {LOG}
                WHERE {OF_CHANNEL} AND id > json_extract(value, '$[1]') AND id <= json_extract(value, '$[2]'))
        FROM json_each(?)"""
    found = {}
    for channel in channels:
        row = [0] * SPANS
        for i, count in conn.execute(sql, [channel, ranges]):
            row[i] = count
        found[channel] = tuple(row)
    return found


def _edges(conn: sqlite3.Connection, span: int) -> list[tuple[int, int]]:
    """For each span: the last id before it, and the last id in it. Later messages count for the last span."""
    head = log.head(conn)
    low = log.before_time(conn, _begin(span - SPANS + 1))
    edges = []
    for number in range(span - SPANS + 2, span + 1):
        high = log.before_time(conn, _begin(number), low, head) if low < head else head
        edges.append((low, high))
        low = max(low, high)
    edges.append((low, head))
    return edges


def _begin(span: int) -> str:
    return utc_text(datetime.fromtimestamp(span * SPAN_SECONDS, UTC))
