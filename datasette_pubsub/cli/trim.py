"""Trimming from the command line, while other programs write.

:mod:`.storage.retention` decides which messages to trim, with the same rules as in a server. This module counts them,
and holds the write lock for one small transaction at a time.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter

from ..core.retention_rule import Rule
from ..core.selector import Selector
from ..core.settings import Settings
from ..storage import log, retention
from ..storage.names import Name
from ..storage.transaction import transaction
from .common import Progress, counted


def limits(days: float | None, messages: int | None, size: int | None, patterns: tuple[str, ...]) -> Settings:
    """The settings for the given limits; without a limit, 30 days, the default of a server.

    With patterns, the limits apply to each matching channel by itself, and to no
    other channel. Raises :class:`InvalidArgument` for an invalid pattern.
    """
    if days is None and messages is None and size is None:
        days = Settings().retention_days
    # This checks patterns by the same rules as a subscriber's.
    Selector.of((), patterns, max(1, len(patterns)))
    if not patterns:
        return Settings(retention_days=days or 0, retention_messages=messages or 0, retention_bytes=size or 0)
    rule = Rule(days, messages, size)
    return Settings(retention_days=0, channel_retention=tuple((pattern, rule) for pattern in patterns))


class Trimmer:
    """One trim. ``wanted`` and ``done`` count messages by channel; those in ``done`` are committed."""

    def __init__(self, conn: sqlite3.Connection, settings: Settings) -> None:
        self._conn = conn
        with transaction(conn, "BEGIN"):
            self._goals = retention.goals(conn, settings)
            self.wanted = Counter({channel: self._up_to(channel, goal) for channel, goal in self._goals.items()})
        self.done: Counter[Name] = Counter()

    def _up_to(self, channel: Name, goal: int) -> int:
        """How many messages of a channel have ids up to the goal."""
        return log.count_up_to(self._conn, channel, goal)

    def run(self) -> None:
        """Trim, with a pause after each transaction that is as long as the transaction, so that others can write."""
        progress = Progress()
        total = sum(self.wanted.values())
        try:
            while self._goals:
                began = time.monotonic()
                self._step()
                progress.show(f"Trimmed {sum(self.done.values())} of {counted(total)}")
                time.sleep(time.monotonic() - began)
        finally:
            progress.clear()

    def _step(self) -> None:
        """Trim the oldest messages of some channels in one transaction."""
        left = dict(self._goals)
        with transaction(self._conn):
            removed = retention.trim(self._conn, left)
        self._goals = left
        self.done.update(removed)
