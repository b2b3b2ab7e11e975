"""The log: appends messages, and reads its head, its channels and its counts.

The other SQL on ``vpubsub`` is in :mod:`.storage.catchup`, :mod:`.storage.search`, :mod:`.storage.activity` and
:mod:`.storage.retention`. This module never begins or ends a transaction that writes.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import nlargest
from itertools import groupby
from typing import Any

from ..core.errors import Conflict, FailedPrecondition, InvalidArgument, PubsubError
from ..core.selector import Selector
from ..core.validation import utc_text
from ..core.values import Item, Message
from .names import OF_CHANNEL, REPLACED, Name, exact, shown, sort_key
from .objects import LOG, RELEASED
from .schema import installed
from .sources import followed
from .sqlite_codes import has_table

logger = logging.getLogger("datasette_pubsub")

#: The numbers of rows that one INSERT statement can append. Binding many rows to one statement makes few calls for a
#: commit; each call needs the interpreter lock, which a busy event loop holds. There is one statement for each size.
#: Its LIMIT cuts off the unused rows, which are bound to 0: binding NULL takes half as long as SQLite takes for a row.
_ROWS = (1, 4, 16, 64, 256, 1024)

#: The most channels whose oldest messages are looked up one by one.
EARLIEST_CHANNELS = 1_000

#: The most messages that a lag counts; beyond that, the exact number is of no use.
LAG_MESSAGES = 10_000

_APPEND_ONE = f"INSERT INTO {LOG} (channel, payload, created_at, key) VALUES (?, ?, ?, ?)"


def now() -> str:
    """The present time in the log's format."""
    return utc_text(datetime.now(UTC))


@contextmanager
def moment(conn: sqlite3.Connection) -> Iterator[None]:
    """Run the block in one read transaction, so that all reads see the same state. For connections that only read."""
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.execute("ROLLBACK")


def head(conn: sqlite3.Connection) -> int:
    """The newest id that the log has given out; 0 if it is empty or missing."""
    try:
        row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", [LOG]).fetchone()
    except sqlite3.OperationalError:
        # SQLite makes this table with the first AUTOINCREMENT column: a file without it has no log. The check comes
        # only after the error, since this function runs for every commit.
        if has_table(conn, "sqlite_sequence"):
            raise
        return 0
    return int(row[0]) if row else 0


def earliest(conn: sqlite3.Connection, selector: Selector | None = None) -> int:
    """The oldest id in the log, of the selector's channels if given; one past the head if there is no message.

    For a selector with very many channels it is the oldest id of all channels.
    """
    if selector is not None and not selector.everything:
        sql = f"SELECT min(id) FROM {LOG} WHERE {OF_CHANNEL}"
        channels = expand(conn, selector)
        if len(channels) <= EARLIEST_CHANNELS:
            found = [conn.execute(sql, [channel]).fetchone()[0] for channel in channels]
            return min((int(number) for number in found if number is not None), default=head(conn) + 1)
    row = conn.execute(f"SELECT min(id) FROM {LOG}").fetchone()
    return int(row[0]) if row[0] is not None else head(conn) + 1


def before_time(conn: sqlite3.Connection, since: str, low: int | None = None, high: int | None = None) -> int:
    """The last id whose message was created before a time; it lies between ``low`` and ``high``, if given.

    Binary search on ``created_at``, which grows with the id, since one writer at
    a time assigns both. If a clock was set back, several ids fit, and the result
    is one of them.
    """
    low = earliest(conn) - 1 if low is None else low
    high = head(conn) if high is None else high
    while low < high:
        middle = (low + high + 1) // 2
        row = conn.execute(
            f"SELECT created_at, id FROM {LOG} WHERE id <= ? ORDER BY id DESC LIMIT 1", [middle]
        ).fetchone()
        if row is None or row[0] < since:
            low = middle
        else:
            high = row[1] - 1
    return low


@functools.cache
def _append_rows(rows: int) -> str:
    values = ", ".join(["(?, ?)"] * rows)
    return f"""
        INSERT INTO {LOG} (channel, payload, created_at)
        SELECT column1, column2, ? FROM (VALUES {values}) LIMIT ?"""


def _insert_plain(conn: sqlite3.Connection, items: Sequence[Item], created_at: str) -> int:
    """Append plain messages; returns the last id."""
    most = _ROWS[-1]
    last = 0
    for start in range(0, len(items), most):
        chunk = items[start : start + most]
        rows = next(rows for rows in _ROWS if rows >= len(chunk))
        values: list[Any] = [created_at]
        for item in chunk:
            values += (item.channel, item.payload)
        values += [0] * (2 * (rows - len(chunk)))
        values.append(len(chunk))
        last = int(conn.execute(_append_rows(rows), values).lastrowid or 0)
    return last


def append_plain(conn: sqlite3.Connection, items: Sequence[Item], created_at: str) -> range | None:
    """Append plain messages, in order, inside the caller's transaction; returns their ids.

    Returns ``None`` if the ids cannot be matched with the items, since a user's
    trigger on the log has published as well. The caller then rolls back to a
    savepoint and calls :func:`append`. Raises ``sqlite3.Error``, also for
    messages that the guard refuses.
    """
    before = head(conn)
    changes = conn.total_changes
    last = _insert_plain(conn, items, created_at)
    if last - before != len(items) or (conn.total_changes - changes != len(items) and head(conn) != last):
        return None
    return range(before + 1, last + 1)


def append(conn: sqlite3.Connection, items: Sequence[Item], created_at: str) -> tuple[list[int], list[Message]]:
    """Append messages, in order, inside the caller's transaction.

    Returns the id of every item, and the new messages. An item whose key is
    already in its channel gets the id of the existing message and adds nothing.
    Raises ``sqlite3.Error``, also for messages that the guard refuses, and
    :class:`~.core.errors.Conflict` when an ``expected_last_id`` is not met.
    """
    ids: list[int] = []
    new: list[Message] = []
    for plain, run in groupby(items, _is_plain):
        neighbours = list(run)
        if not plain or len(neighbours) == 1 or not _append_run(conn, neighbours, created_at, ids, new):
            for item in neighbours:
                _append_one(conn, item, created_at, ids, new)
    return ids, new


def insert(conn: sqlite3.Connection, items: Sequence[Item], created_at: str) -> None:
    """Append messages without returning their ids; this also works inside another statement."""
    for plain, run in groupby(items, _is_plain):
        if plain:
            _insert_plain(conn, list(run), created_at)
        else:
            for item in run:
                conn.execute(_APPEND_ONE, (item.channel, item.payload, created_at, item.key))


def insert_from(conn: sqlite3.Connection, table: str, batch: int, created_at: str) -> None:
    """Append a batch of rows from a table with ``id``, ``batch``, ``channel``, ``payload`` and ``key``."""
    sql = f"INSERT INTO {LOG} (channel, payload, created_at, key) SELECT channel, payload, ?, key FROM {table}"
    conn.execute(f"{sql} WHERE batch = ? ORDER BY id", [created_at, batch])


def _is_plain(item: Item) -> bool:
    return item.plain


def _append_run(
    conn: sqlite3.Connection, items: list[Item], created_at: str, ids: list[int], new: list[Message]
) -> bool:
    """Append consecutive plain items together; returns ``False``, and appends nothing, if their ids are not known."""
    conn.execute("SAVEPOINT pubsub_append")
    found = append_plain(conn, items, created_at)
    if found is None:
        conn.execute("ROLLBACK TO pubsub_append")
        conn.execute("RELEASE pubsub_append")
        return False
    conn.execute("RELEASE pubsub_append")
    ids.extend(found)
    new.extend(messages(found, items, created_at))
    return True


def messages(ids: Iterable[int], items: Iterable[Item], created_at: str) -> list[Message]:
    """The messages of the log that appended items have become."""
    return [
        Message(number, item.channel, item.payload, created_at, item.key)
        for number, item in zip(ids, items, strict=True)
    ]


def last_id(conn: sqlite3.Connection, channel: str) -> int:
    """The newest id of a channel, even if that message was trimmed; 0 if the channel never had a message."""
    row = conn.execute(f"SELECT max(id) FROM {LOG} WHERE channel = ?", [channel]).fetchone()
    if row[0] is None:
        row = conn.execute(f"SELECT id FROM {RELEASED} WHERE channel = ?", [channel]).fetchone()
    return int(row[0]) if row else 0


def _append_one(conn: sqlite3.Connection, item: Item, created_at: str, ids: list[int], new: list[Message]) -> None:
    known = item.key is not None and item.expected_last_id is not None and _id_of_key(conn, item)
    if item.expected_last_id is not None and not known:
        found = last_id(conn, item.channel)
        if found != item.expected_last_id:
            raise Conflict(
                f"expected_last_id is {item.expected_last_id}, but the newest message of channel "
                f"{item.channel!r} is {found}; nothing was stored"
            )
    cursor = conn.execute(_APPEND_ONE, (item.channel, item.payload, created_at, item.key))
    if cursor.rowcount == 1:
        message_id = int(cursor.lastrowid or 0)
        new.append(Message(message_id, item.channel, item.payload, created_at, item.key))
    else:
        message_id = _id_of_key(conn, item)
    ids.append(message_id)


def refusal(error: sqlite3.IntegrityError | Conflict, conn: sqlite3.Connection | None = None) -> PubsubError:
    """The error for the publisher of a message that SQLite refused, or that :func:`append` did.

    A log that follows a stream, which ``conn`` is asked for, refuses every message; the error says where to publish.
    The message of a trigger, ours or the user's, is meant for the publisher. SQLite's message about a constraint names
    tables and columns, which the publisher may not know.
    """
    source = None if conn is None else followed(conn)
    if source is not None:
        return FailedPrecondition(source.refusal)
    if isinstance(error, Conflict):
        return error
    if error.sqlite_errorname == "SQLITE_CONSTRAINT_TRIGGER":
        return InvalidArgument(str(error))
    logger.info("a publish was refused: %s", error)
    return InvalidArgument("a constraint of the database refuses this; nothing was stored")


def _id_of_key(conn: sqlite3.Connection, item: Item) -> int:
    """The id of the message with the item's key in its channel; 0 if there is none."""
    row = conn.execute(f"SELECT id FROM {LOG} WHERE channel = ? AND key = ?", (item.channel, item.key)).fetchone()
    return int(row[0]) if row else 0


def channel_names(conn: sqlite3.Connection, limit: int = -1) -> list[Name]:
    """The channels of the log, sorted by name, all or the first ones, with one index seek each.

    The walk from one name to the next is in SQL, since a decoded name might sort elsewhere. Without a log, the list is
    empty.
    """
    if not installed(conn):
        return []
    sql = f"""
        WITH RECURSIVE names(channel) AS (
            SELECT min(channel) FROM {LOG}
            UNION ALL
            SELECT (SELECT min(channel) FROM {LOG} WHERE channel > names.channel)
            FROM names WHERE names.channel IS NOT NULL
        ) SELECT channel FROM names WHERE channel IS NOT NULL LIMIT ?"""
    with exact(conn):
        return [row[0] for row in conn.execute(sql, [limit])]


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel with its number of messages in the log and its newest message. ``exact`` is its name in the file."""

    exact: Name
    count: int
    newest_id: int
    newest_at: str

    @property
    def name(self) -> str:
        """The channel's name for display."""
        return shown(self.exact)

    def as_json(self) -> dict[str, Any]:
        """The channel's entry in ``channels.json``."""
        return {
            "channel": self.name,
            "count": self.count,
            "newest_id": self.newest_id,
            "newest_created_at": self.newest_at,
        }


def channels(conn: sqlite3.Connection) -> list[Channel]:
    """All channels of the log, sorted by name; an empty list without a log."""
    if not installed(conn):
        return []
    sql = f"""
        SELECT c.channel, c.count, c.newest, m.created_at
        FROM (SELECT channel, count(*) AS count, max(id) AS newest FROM {LOG} GROUP BY channel) AS c
        JOIN {LOG} AS m ON m.id = c.newest ORDER BY c.channel"""
    with exact(conn):
        return [Channel(row[0], row[1], row[2], shown(row[3])) for row in conn.execute(sql)]


def count_after(conn: sqlite3.Connection, selector: Selector, after: int) -> int:
    """How many messages of the selector's channels the log has after an id."""
    if selector.everything:
        return int(conn.execute(f"SELECT count(*) FROM {LOG} WHERE id > ?", [after]).fetchone()[0])
    one = f"SELECT count(*) FROM {LOG} WHERE {OF_CHANNEL} AND id > ?"
    return sum(int(conn.execute(one, [channel, after]).fetchone()[0]) for channel in expand(conn, selector))


@dataclass(slots=True)
class LagBudget:
    """A budget for the lags of one list: how many more messages may be read to count them."""

    left: int = 20 * LAG_MESSAGES

    def lag(self, conn: sqlite3.Connection, selector: Selector, after: int) -> tuple[int, bool]:
        """How many messages of the selector's channels the log has after an id, and whether there may be more.

        It counts at most ``LAG_MESSAGES``. For patterns, it reads at most that many messages of any channel.
        """
        most = min(LAG_MESSAGES, self.left)
        if selector.everything:
            sql = f"SELECT count(*) FROM (SELECT 1 FROM {LOG} WHERE id > ? LIMIT ?)"
            found = int(conn.execute(sql, [after, most + 1]).fetchone()[0])
            self.left -= min(found, most)
            return min(found, most), found > most
        if not expands(selector):
            found = 0
            one = f"SELECT count(*) FROM (SELECT 1 FROM {LOG} WHERE {OF_CHANNEL} AND id > ? LIMIT ?)"
            for channel in selector.channels:
                found += int(conn.execute(one, [channel, after, most + 1 - found]).fetchone()[0])
            self.left -= min(found, most)
            return min(found, most), found > most
        with exact(conn):
            sql = f"SELECT channel FROM {LOG} WHERE id > ? ORDER BY id LIMIT ?"
            names = Counter(row[0] for row in conn.execute(sql, [after, most + 1]))
        looked_at = names.total()
        self.left -= min(looked_at, most)
        found = sum(number for name, number in names.items() if selector.matches(shown(name)))
        return min(found, most), looked_at > most


def count_up_to(conn: sqlite3.Connection, channel: Name, last: int) -> int:
    """How many messages of a channel have ids up to ``last``."""
    sql = f"SELECT count(*) FROM {LOG} WHERE {OF_CHANNEL} AND id <= ?"
    return int(conn.execute(sql, [channel, last]).fetchone()[0])


def before_newest(conn: sqlite3.Connection, selector: Selector, count: int) -> int:
    """The id after which the newest ``count`` messages of the selector's channels begin; 0 if there are fewer.

    It reads ids only; the caller can then read any number of large messages in pages.
    """
    if count <= 0:
        return head(conn)
    if selector.everything:
        sql = f"SELECT id FROM {LOG} ORDER BY id DESC LIMIT 1 OFFSET ?"
        row = conn.execute(sql, [count - 1]).fetchone()
        return int(row[0]) - 1 if row else 0
    ids: list[int] = []
    for channel in expand(conn, selector):
        sql = f"SELECT id FROM {LOG} WHERE {OF_CHANNEL} ORDER BY id DESC LIMIT ?"
        ids = nlargest(count, ids + [row[0] for row in conn.execute(sql, [channel, count])])
    return ids[-1] - 1 if len(ids) == count else 0


def expands(selector: Selector) -> bool:
    """Whether a selector's channels must be looked up in the log: for patterns, and for names that are not UTF-8."""
    return bool(selector.patterns) or any(REPLACED in channel for channel in selector.channels)


def expand(conn: sqlite3.Connection, selector: Selector) -> list[Name]:
    """The selector's channels, with its patterns resolved against the channels of the log."""
    channels: set[Name] = set(selector.channels)
    if expands(selector):
        channels.update(name for name in channel_names(conn) if selector.matches(shown(name)))
    return sorted(channels, key=sort_key)
