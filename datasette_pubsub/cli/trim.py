"""Trimming from the command line: what is to go, and removing it beside whoever writes.

The law of this module: it decides nothing about messages; :mod:`retention`
does, with the same rules as a server. It only counts, and holds the write lock
for one small transaction at a time.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter

from ..core.selector import Selector
from ..core.settings import Rule, Settings
from ..storage import log, retention
from ..storage.names import Name
from .common import Progress, counted, transaction


def limits(days: float | None, messages: int | None, size: int | None, patterns: tuple[str, ...]) -> Settings:
    """The settings that retain as asked: 30 days, a server's default, when no limit is given.

    With patterns the limits hold for each matching channel by itself, and all
    others are left alone. Raises :class:`InvalidArgument` for a pattern that is none.
    """
    if days is None and messages is None and size is None:
        days = Settings().retention_days
    # Checked by the same rules as a subscriber's patterns.
    Selector.of((), patterns, max(1, len(patterns)))
    if not patterns:
        return Settings(retention_days=days or 0, retention_messages=messages or 0, retention_bytes=size or 0)
    rule = Rule(days, messages, size)
    return Settings(retention_days=0, channel_retention=tuple((pattern, rule) for pattern in patterns))


class Trimmer:
    """One trim. ``wanted`` and ``done`` count messages by channel; what is in ``done`` is committed."""

    def __init__(self, conn: sqlite3.Connection, settings: Settings) -> None:
        self._conn = conn
        with transaction(conn, "BEGIN"):
            self._goals = retention.goals(conn, settings)
            self.wanted = Counter({channel: self._up_to(channel, goal) for channel, goal in self._goals.items()})
        self.done: Counter[Name] = Counter()

    def _up_to(self, channel: Name, goal: int) -> int:
        """How many messages of a channel have ids up to a goal."""
        return log.count_up_to(self._conn, channel, goal)

    def run(self) -> None:
        """Remove what is to go, with a pause after each transaction as long as it took: others write then."""
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
        """One transaction: the oldest messages of some channels."""
        left = dict(self._goals)
        with transaction(self._conn):
            removed = retention.trim(self._conn, left)
        self._goals = left
        self.done.update(removed)
