"""Catch-up: reads the log in pages for one subscriber, and counts the messages that were trimmed before it read them.

The cost of a page grows with its messages, plus a bounded scan if few messages match. A page and its count of missed
messages come from one read transaction, so that both see the same state of a trim.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from ..core.limits import PAGE_MESSAGES
from ..core.selector import Selector
from ..core.values import Message, Page
from . import retention
from .filters import Filters
from .log import expand, expands, head
from .names import OF_CHANNEL, Name, exact, factories, shown, sort_key
from .objects import LOG
from .schema import installed
from .sqlite_codes import primary

_COLUMNS = "id, channel, payload, created_at"


class CatchUp:
    """Reads the pages of one subscriber. Each call may use another connection. ``filters`` evaluates its filter."""

    def __init__(self, selector: Selector, max_bytes: int, filters: Filters | None = None) -> None:
        self._reader = Reader(selector, keys=bool(selector.filter))
        self._max_bytes = max_bytes
        self._filters = filters
        #: For each channel, the newest trimmed id that was counted as missed, or that does not count.
        self._reported: dict[Name, int] = {}
        self._head = 0

    def forgive(self, conn: sqlite3.Connection, position: int) -> None:
        """Do not count messages that are trimmed already: for a subscriber that asked for what the log still has."""
        if installed(conn):
            self.know(retention.released(conn, self._reader.selector, position))

    def know(self, gone: Mapping[Name, int]) -> None:
        """Do not count trimmed messages up to these ids, by channel."""
        for channel, number in gone.items():
            self._reported[channel] = max(number, self._reported.get(channel, 0))

    def page(self, conn: sqlite3.Connection, after: int, limit: int = PAGE_MESSAGES) -> Page:
        """The next messages after a position, at most ``limit``, and how many in between were trimmed.

        With a filter, the page may have no message: its position has passed those that do not pass the filter.
        """
        conn.execute("BEGIN")
        try:
            if self._reader.selector.filter:
                page = self._filtered(self._reader.page(conn, after, self._max_bytes), limit)
            else:
                page = self._reader.page(conn, after, self._max_bytes, min(limit, PAGE_MESSAGES))
            if page.head < self._head:
                # The file was restored from a backup: the reported ids belong to another log.
                self._reported.clear()
            self._head = page.head
            if page.position <= after:
                return page
            gone = retention.missed(conn, self._reader.selector, after, self._reported, page.position)
        finally:
            conn.execute("ROLLBACK")
        self._reported.update(gone.released)
        return replace(page, missed=gone.messages) if gone.messages else page

    def _filtered(self, page: Page, limit: int) -> Page:
        """The messages of a page that pass the filter, at most ``limit``, up to where the time sufficed."""
        if not page.messages:
            return page
        assert self._filters is not None
        messages, position = page.messages, page.position
        verdicts = self._filters.passes(self._reader.selector.filter, messages)
        if len(verdicts) < len(messages):
            position = messages[len(verdicts)].id - 1
        found = [message for message, passes in zip(messages, verdicts, strict=False) if passes]
        if len(found) > limit:
            position = found[limit].id - 1
        return replace(page, messages=found[:limit], position=position)


#: For up to this many channels, catch-up merges one index range per channel; for more, it scans windows of the log.
#: SQLite allows 500 terms in a compound SELECT.
MERGED_CHANNELS = 50


#: How many ids of the log one page scans, at most. This bounds the time of a page if few messages match.
WINDOW_IDS = 20_000


class Reader:
    """Reads one selector's messages from the log in pages, forward.

    Between pages it keeps the channels that its patterns match, and the id up
    to which that list is complete. It belongs to one stream; each call may use
    another connection.
    """

    __slots__ = ("_channels", "_columns", "_known_to", "selector")

    def __init__(self, selector: Selector, *, keys: bool = False) -> None:
        self.selector = selector
        #: Keys are read for filters alone: they take time, and are not sent.
        self._columns = f"{_COLUMNS}, key" if keys else _COLUMNS
        self._channels: list[Name] = sorted(selector.channels)
        self._known_to = -1

    def page(self, conn: sqlite3.Connection, after: int, max_bytes: int, limit: int = PAGE_MESSAGES) -> Page:
        """The next messages after an id: at most ``limit``, and about ``max_bytes`` of payload, but at least one.

        The head is read before the rows, so that ``position`` never passes a
        message that was committed in between.
        """
        # Decode text in C, and return rows as tuples: Datasette's connections call Python for each text and each row,
        # which takes as long as SQLite itself.
        with factories(conn, str):
            try:
                return self._page(conn, after, max_bytes, limit)
            except sqlite3.OperationalError as error:
                # An error of Python's decoder is not SQLite's, and has no code.
                if primary(error):
                    raise
        # A text is not valid UTF-8, which any program can store: the connection's own text factory handles it.
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
        for row in rows:
            payload = row[2]
            total += len(payload) if isinstance(payload, (str, bytes)) else 8
            if messages and total > max_bytes:
                return Page(messages, messages[-1].id, top)
            messages.append(Message(*row))
        if len(messages) == limit:
            end = messages[-1].id
        return Page(messages, end, top)

    def _learn(self, conn: sqlite3.Connection, top: int) -> None:
        """Update the channels that the patterns match, up to a head; if little is new, read only the new messages."""
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
            sql = f"SELECT {self._columns} FROM {LOG} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
            return conn.execute(sql, [after, top, limit]), top
        if not channels:
            return [], top
        if len(channels) <= MERGED_CHANNELS:
            one = f"SELECT {self._columns} FROM {LOG} WHERE {OF_CHANNEL} AND id > ? AND id <= ?"
            sql = " UNION ALL ".join([one] * len(channels)) + " ORDER BY id LIMIT ?"
            values = [value for channel in channels for value in (channel, after, top)]
            return conn.execute(sql, [*values, limit]), top
        end = min(top, after + WINDOW_IDS)
        # Read the names first: messages of other channels may be large. Binding a list of many channels costs more.
        names = conn.execute(f"SELECT id, channel FROM {LOG} WHERE id > ? AND id <= ? ORDER BY id", [after, end])
        matches = self.selector.matches
        ids = list(islice((row[0] for row in names if matches(row[1])), limit))
        sql = f"SELECT {self._columns} FROM {LOG} WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
        return conn.execute(sql, [json.dumps(ids)]), end
