"""Catch-up: the log in pages for one subscriber, and how many messages it missed on the way.

A page costs what its messages cost, and a bounded scan where few of them match. A page and its count of missed messages
come from one read transaction, so that a trim in between is seen by both or by neither. This module begins none.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from ..core.selector import Selector
from ..core.settings import PAGE_MESSAGES
from ..core.values import Message, Page
from . import retention
from .log import expand, expands, head
from .names import OF_CHANNEL, Name, exact, factories, shown, sort_key
from .objects import LOG
from .schema import installed
from .sqlite_codes import primary

_COLUMNS = "id, channel, payload, created_at"


class CatchUp:
    """The pages of one stream. Each call may use another connection."""

    def __init__(self, selector: Selector, max_bytes: int) -> None:
        self._reader = Reader(selector)
        self._max_bytes = max_bytes
        #: By channel, the newest removed id that this reader was told of.
        self._told: dict[Name, int] = {}
        self._head = 0

    def forgive(self, conn: sqlite3.Connection, position: int) -> None:
        """What is gone already counts as told: for a reader that asked for what there is."""
        if installed(conn):
            self.know(retention.released(conn, self._reader.selector, position))

    def know(self, gone: Mapping[Name, int]) -> None:
        """Up to these ids, by channel, what is gone counts as told."""
        for channel, number in gone.items():
            self._told[channel] = max(number, self._told.get(channel, 0))

    def page(self, conn: sqlite3.Connection, after: int, limit: int = PAGE_MESSAGES) -> Page:
        """The next messages after a position, at most ``limit``, with how many between them and it were trimmed."""
        conn.execute("BEGIN")
        try:
            page = self._reader.page(conn, after, self._max_bytes, min(limit, PAGE_MESSAGES))
            if page.head < self._head:
                # The file was restored from a backup: what was told were ids of another log.
                self._told.clear()
            self._head = page.head
            if page.position <= after:
                return page
            gone = retention.missed(conn, self._reader.selector, after, self._told, page.position)
        finally:
            conn.execute("ROLLBACK")
        self._told.update(gone.released)
        return replace(page, missed=gone.messages) if gone.messages else page


#: Up to so many channels, catch-up merges one index range per channel; above,
#: it scans windows of the log. SQLite allows 500 terms in a compound SELECT.
MERGED_CHANNELS = 50


#: Ids scanned per page when the log is scanned, in ids; bounds the time that
#: one page takes when few messages match.
WINDOW_IDS = 20_000


class Reader:
    """Reads one selector's messages from the log in pages, forward.

    Keeps, between pages, the channels that its patterns match, and up to which
    id that list is complete. Belongs to one stream; each call may use another
    connection.
    """

    __slots__ = ("_channels", "_known_to", "selector")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self._channels: list[Name] = sorted(selector.channels)
        self._known_to = -1

    def page(self, conn: sqlite3.Connection, after: int, max_bytes: int, limit: int = PAGE_MESSAGES) -> Page:
        """The next messages after an id: at most ``limit``, and about ``max_bytes`` of payload, but at least one.

        The head is read before the rows, so that ``position`` never passes a
        message that was committed in between.
        """
        # Texts are decoded in C, and rows are tuples: Datasette's own connections call Python for every text and row,
        # which takes as long as SQLite takes to find them.
        with factories(conn, str):
            try:
                return self._page(conn, after, max_bytes, limit)
            except sqlite3.OperationalError as error:
                # What Python cannot decode is not an error of SQLite's, and has no code.
                if primary(error):
                    raise
        # A text is no UTF-8, which any program can store: the connection knows what to make of it.
        return self._page(conn, after, max_bytes, limit)

    def _page(self, conn: sqlite3.Connection, after: int, max_bytes: int, limit: int) -> Page:
        top = head(conn)
        if top <= after:
            return Page([], max(after, 0), top)
        if top != self._known_to and not self.selector.everything and expands(self.selector):
            self._learn(conn, top)
        rows, end = self._select(conn, after, top, limit)
        messages: list[Message] = []
        total = 0
        for number, channel, payload, created_at in rows:
            total += len(payload) if isinstance(payload, (str, bytes)) else 8
            if messages and total > max_bytes:
                return Page(messages, messages[-1].id, top)
            messages.append(Message(number, channel, payload, created_at))
        if len(messages) == limit:
            end = messages[-1].id
        return Page(messages, end, top)

    def _learn(self, conn: sqlite3.Connection, top: int) -> None:
        """Bring the channels that the patterns match up to a head; where little is new, by looking at that only."""
        if self._known_to >= 0 and 0 <= top - self._known_to <= WINDOW_IDS:
            sql = f"SELECT DISTINCT channel FROM {LOG} WHERE id > ? AND id <= ?"
            with exact(conn):
                names = [row[0] for row in conn.execute(sql, [self._known_to, top])]
            new = [name for name in names if self.selector.matches(shown(name))]
            self._channels = sorted({*self._channels, *new}, key=sort_key) if new else self._channels
        else:
            self._channels = expand(conn, self.selector)
        self._known_to = top

    def _select(self, conn: sqlite3.Connection, after: int, top: int, limit: int) -> tuple[Iterable[Any], int]:
        channels = self._channels
        if self.selector.everything:
            sql = f"SELECT {_COLUMNS} FROM {LOG} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
            return conn.execute(sql, [after, top, limit]), top
        if not channels:
            return [], top
        if len(channels) <= MERGED_CHANNELS:
            one = f"SELECT {_COLUMNS} FROM {LOG} WHERE {OF_CHANNEL} AND id > ? AND id <= ?"
            sql = " UNION ALL ".join([one] * len(channels)) + " ORDER BY id LIMIT ?"
            values = [value for channel in channels for value in (channel, after, top)]
            return conn.execute(sql, [*values, limit]), top
        end = min(top, after + WINDOW_IDS)
        # Names first: what is for others may be large. A list of many channels would cost more than it saves.
        names = conn.execute(f"SELECT id, channel FROM {LOG} WHERE id > ? AND id <= ? ORDER BY id", [after, end])
        matches = self.selector.matches
        ids = list(islice((row[0] for row in names if matches(row[1])), limit))
        sql = f"SELECT {_COLUMNS} FROM {LOG} WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
        return conn.execute(sql, [json.dumps(ids)]), end
