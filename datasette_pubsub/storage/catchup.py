"""Catch-up: the next page of the log for one reader, and what it missed on the way.

The law of this module: a page and its count of missed messages come from one
read transaction, so that a trim in between is seen by both or by neither.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from ..core.selector import Selector
from ..core.settings import PAGE_MESSAGES
from ..core.values import Page
from . import retention
from .names import Name
from .reader import Reader
from .schema import installed


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
