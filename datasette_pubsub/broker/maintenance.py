"""What is done for a database again and again while it is served: cursors, subscriptions in use, retention.

The law of this module: it says when. What is done stands in :mod:`.broker.active`,
:mod:`.storage.subscriptions` and :mod:`.storage.retention`; an error of one round is told, and
the next round comes.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from ..broadcast import tables
from ..broadcast.tables import Lost
from ..core.errors import PubsubError
from ..core.settings import Settings
from ..core.validation import utc_text
from ..storage import retention, schema, subscriptions
from .active import ActiveSubscriptions

logger = logging.getLogger("datasette_pubsub")

#: How old ``last_seen_at`` of a connected subscription may become, in seconds; and
#: as a part of ``subscription_expiry_days``, so that none expires at once when its
#: connection ends, or when the server comes back before its reader does.
SEEN_SECONDS = 60.0
SEEN_PART = 0.1

#: How often the file's schema is looked at for tables that have lost their broadcast, in seconds: one number is read.
SCHEMA_SECONDS = 5.0

T = TypeVar("T")


class File(Protocol):
    """The database's file. Both raise :class:`~.core.errors.PubsubError`."""

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T: ...

    async def change(self, fn: Callable[[sqlite3.Connection], T]) -> T: ...


class Maintenance:
    """The upkeep of one database, until it is ``removed``."""

    def __init__(
        self, name: str, settings: Settings, file: File, holders: ActiveSubscriptions, removed: Callable[[], bool]
    ) -> None:
        self._name = name
        self._settings = settings
        self._file = file
        self._active = holders
        self._removed = removed
        #: The file's schema as it was seen last, when, and which tables were told to have lost their broadcast.
        self._schema_version: int | None = None
        self._schema_seen = float("-inf")
        self._told: set[tuple[str, str]] = set()

    async def run_cursors(self) -> None:
        """Save the cursors of live automatic subscriptions now and then, and look after the rows of all."""
        while True:
            await asyncio.sleep(self._settings.cursor_save_interval_seconds)
            if self._removed():
                return
            self._active.save()
            try:
                if time.monotonic() - self._schema_seen >= SCHEMA_SECONDS:
                    self._schema_seen = time.monotonic()
                    await self._tell_lost_broadcasts()
                await self._look_after(self._active.ids)
            except PubsubError:
                # Locked, or full: told where it was found, and the next round comes soon.
                continue
            except Exception:
                if self._removed():
                    return
                logger.exception("database %s: could not look after its subscriptions; trying again", self._name)

    async def _tell_lost_broadcasts(self) -> None:
        """Tell once of each table that is not broadcast any more; looks only where the file's schema has changed."""

        def look(conn: sqlite3.Connection) -> tuple[int, dict[str, Lost] | None]:
            version = int(conn.execute("PRAGMA schema_version").fetchone()[0])
            return version, None if version == self._schema_version else tables.lost(conn)

        self._schema_version, lost = await self._file.read(look)
        if lost is None:
            return
        for table, found in lost.items():
            if (table, found.made_at) not in self._told:
                logger.warning(
                    "database %s: table %r was broadcast: %s; broadcast it again on its page, or with: "
                    "datasette pubsub broadcast FILE TABLE --again",
                    self._name,
                    table,
                    found.reason,
                )
        self._told = {(table, found.made_at) for table, found in lost.items()}

    async def _look_after(self, held: list[int]) -> None:
        """Learn what others did to subscriptions that are held, write that they are in use, and claims that wait."""
        if not held:
            return
        if waiting := self._active.waiting:
            name = self._active.name
            done = await self._file.change(lambda conn: subscriptions.claim_late(conn, name, waiting))
            self._active.claimed(waiting, done)
        days = self._settings.subscription_expiry_days
        age = min(SEEN_SECONDS, days * 86400 * SEEN_PART) if days else SEEN_SECONDS
        limit = utc_text(datetime.now(UTC) - timedelta(seconds=age))
        states, stale = await self._file.read(lambda conn: subscriptions.states(conn, held, limit))
        self._active.learn(held, states)
        if stale:
            self._active.save_quiet(stale)
            await self._file.change(lambda conn: subscriptions.touch(conn, stale))

    async def run_retention(self) -> None:
        """Trim in the background, in small transactions with pauses of their own length between them."""
        while not self._removed():
            try:
                await self._trim()
            except PubsubError as error:
                logger.warning("database %s: not trimmed: %s", self._name, error.message)
            except Exception:
                if self._removed():
                    return
                logger.exception("database %s: not trimmed; trying again later", self._name)
            await asyncio.sleep(self._settings.trim_interval_seconds)

    async def _trim(self) -> None:
        """Remove what retention releases."""
        left = await self._file.read(lambda conn: retention.goals(conn, self._settings))
        while left:
            began = time.monotonic()
            await self._file.change(lambda conn: retention.trim(conn, left))
            await asyncio.sleep(time.monotonic() - began)
        if self._settings.subscription_expiry_days and await self._file.read(schema.installed):
            live = self._active.ids
            gone = await self._file.change(
                lambda conn: retention.expire(conn, self._settings.subscription_expiry_days, live)
            )
            for name in gone:
                logger.info("database %s: subscription %s expired", self._name, name)
