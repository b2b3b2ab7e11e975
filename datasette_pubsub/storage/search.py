"""Searches the messages of a selector backward from any id, all of them or those that contain a text.

Each search reads a bounded part of the log and says where the next one begins, so that a search through a log of any
size is a sequence of short reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

from ..core.selector import Selector
from ..core.values import Message, text_of
from . import log
from .catchup import MERGED_CHANNELS
from .names import OF_CHANNEL, Name
from .objects import LOG
from .schema import installed

#: The most messages, and the most bytes of payload, that one search reads: about a fifth of a second's work.
SEARCHED_MESSAGES = 50_000
SEARCHED_BYTES = 64 * 1024 * 1024

#: The longest search text, in characters; a longer one may not fit into a URL.
MAX_TEXT = 1_000

_COLUMNS = "id, channel, payload, created_at, key"


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search: messages, newest first, and the log's head at that moment.

    ``older`` is the id before which the next search begins, ``None`` if there
    are no older messages. ``behind`` counts the selector's messages after the
    id ``after``, if that was given.
    """

    messages: list[Message]
    older: int | None
    head: int
    behind: int | None = None


def newest(
    conn: sqlite3.Connection,
    selector: Selector,
    limit: int,
    *,
    before: int | None = None,
    text: str = "",
    max_bytes: int = SEARCHED_BYTES,
    after: int | None = None,
) -> Found:
    """The newest messages below ``before`` whose payload contains the text, ignoring case.

    At most ``limit`` messages, and about ``max_bytes`` of payload, but at least
    one message. With ``after``, the messages after that id are counted.
    """
    if not installed(conn):
        return Found([], None, 0, None if after is None else 0)
    head = log.head(conn)
    top = head + 1 if before is None else min(before, head + 1)
    behind = None if after is None else log.count_after(conn, selector, after)
    messages, older = _search(conn, selector, limit, top, text.lower(), max_bytes)
    return Found(messages, older, head, behind)


def _search(
    conn: sqlite3.Connection, selector: Selector, limit: int, top: int, wanted: str, max_bytes: int
) -> tuple[list[Message], int | None]:
    messages: list[Message] = []
    taken = size = 0
    last = top
    for read, message in enumerate(_backward(conn, selector, top, None if wanted else limit + 1)):
        if len(messages) == limit or read == SEARCHED_MESSAGES or size > SEARCHED_BYTES or taken > max_bytes:
            return messages, last
        last = message.id
        size += message.size
        if selector.matches(message.channel) and contains(message, wanted):
            messages.append(message)
            taken += message.size
    return messages, None


def contains(message: Message, wanted: str) -> bool:
    """Whether the payload contains a lower-case text, ignoring the payload's case. Bytes contain no text."""
    if not wanted:
        return True
    return not isinstance(message.payload, bytes) and wanted in text_of(message.payload).lower()


def _backward(conn: sqlite3.Connection, selector: Selector, top: int, limit: int | None) -> Iterator[Message]:
    """Messages below an id, newest first: the selector's; for many channels without a limit, of all channels."""
    rows: Iterable[Any]
    channels = [] if selector.everything else log.expand(conn, selector)
    if selector.everything or (len(channels) > MERGED_CHANNELS and limit is None):
        rows = conn.execute(f"SELECT {_COLUMNS} FROM {LOG} WHERE id < ? ORDER BY id DESC", [top])
    elif not channels:
        return
    elif len(channels) <= MERGED_CHANNELS:
        one = f"SELECT {_COLUMNS} FROM {LOG} WHERE {OF_CHANNEL} AND id < ?"
        sql = " UNION ALL ".join([one] * len(channels)) + " ORDER BY id DESC"
        rows = conn.execute(sql, [value for channel in channels for value in (channel, top)])
    else:
        rows = _by_id(conn, channels, top, limit or 0)
    for row in rows:
        yield Message(*row)


def _by_id(conn: sqlite3.Connection, channels: list[Name], top: int, limit: int) -> Iterator[Any]:
    """The newest messages of many channels; it finds the ids first, so that it reads no payload in vain."""
    ids: list[int] = []
    for channel in channels:
        sql = f"SELECT id FROM {LOG} WHERE {OF_CHANNEL} AND id < ? ORDER BY id DESC LIMIT ?"
        ids = nlargest(limit, ids + [row[0] for row in conn.execute(sql, [channel, top, limit])])
    for number in ids:
        yield conn.execute(f"SELECT {_COLUMNS} FROM {LOG} WHERE id = ?", [number]).fetchone()
