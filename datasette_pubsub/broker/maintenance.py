"""Periodic maintenance of a database: saves cursors, marks subscriptions as used, trims old messages.

This module decides when; :mod:`.broker.active`, :mod:`.storage.subscriptions` and :mod:`.storage.retention` do the
work. An error in one run is logged, and the next run follows.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..broadcast import tables
from ..broadcast.tables import Lost
from ..core.errors import PubsubError
from ..core.settings import RELAY_OWNER, Settings
from ..core.validation import utc_text
from ..storage import relays, retention, schema, subscriptions
from ..storage.names import Name
from .active import ActiveSubscriptions
from .measuring import Measuring

if TYPE_CHECKING:
    from .broker import Broker

logger = logging.getLogger("datasette_pubsub")

#: How old ``last_seen_at`` of a connected subscription may become: in seconds, and as a part of
#: ``subscription_expiry_days``. So no subscription expires at once when its connection ends, or when the server
#: restarts before its subscriber reconnects.
SEEN_SECONDS = 60.0
SEEN_PART = 0.1

#: How often the file is checked for tables that have lost their broadcast, in seconds. A check reads one number.
SCHEMA_SECONDS = 5.0

T = TypeVar("T")


class File(Protocol):
    """The database's file. Both methods raise :class:`~.core.errors.PubsubError`."""

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T: ...

    async def change(self, fn: Callable[[sqlite3.Connection], T]) -> T: ...


class UnlimitedFile:
    """The file, without a time limit on reads: for maintenance, which no visitor waits for."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        return await self._broker.store.read(fn)

    async def change(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        return await self._broker.change(fn)


class Maintenance:
    """Maintains one database until it is ``removed``."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        file: File,
        active: ActiveSubscriptions,
        measuring: Measuring,
        removed: Callable[[], bool],
    ) -> None:
        self._name = name
        self._settings = settings
        self._file = file
        self._active = active
        self._measuring = measuring
        self._removed = removed
        #: The file's schema version at the last check, the time of that check, and the lost broadcasts already logged.
        self._schema_version: int | None = None
        self._schema_seen = float("-inf")
        self._logged: set[tuple[str, str]] = set()
        #: The relays that retention has outrun, by stream, with their positions then: each is logged once, until a trim
        #: removes nothing that it lacks although it has gone on.
        self._outrun: dict[str, int] = {}

    async def run_cursors(self) -> None:
        """Save the automatic cursors of active subscriptions periodically, and check the rows of all of them."""
        while True:
            await asyncio.sleep(self._settings.cursor_save_interval_seconds)
            if self._removed():
                return
            self._active.save()
            try:
                if time.monotonic() - self._schema_seen >= SCHEMA_SECONDS:
                    self._schema_seen = time.monotonic()
                    await self._log_lost_broadcasts()
                await self._look_after(self._active.ids)
                await self._measuring.sample(self._file.read)
            except PubsubError:
                # The file is locked, or the disk is full: logged where it was found, and the next run comes soon.
                continue
            except Exception:
                if self._removed():
                    return
                logger.exception("database %s: maintenance of its subscriptions failed; trying again", self._name)

    async def _log_lost_broadcasts(self) -> None:
        """Log each table that has lost its broadcast, once; checks only if the file's schema has changed."""

        def look(conn: sqlite3.Connection) -> tuple[int, dict[str, Lost] | None]:
            version = int(conn.execute("PRAGMA schema_version").fetchone()[0])
            return version, None if version == self._schema_version else tables.lost(conn)

        self._schema_version, lost = await self._file.read(look)
        if lost is None:
            return
        for table, found in lost.items():
            if (table, found.made_at) not in self._logged:
                logger.warning(
                    "database %s: table %r was broadcast: %s; broadcast it again on its page, or with: "
                    "datasette pubsub broadcast FILE TABLE --again",
                    self._name,
                    table,
                    found.reason,
                )
        self._logged = {(table, found.made_at) for table, found in lost.items()}

    async def _look_after(self, held: list[int]) -> None:
        """For active subscriptions: write claims that wait, read changes that SQL has made, and mark them as used."""
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
        """Trim periodically, in small transactions, each followed by a pause of the same length."""
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
        """Trim the messages that exceed the retention limits, and delete expired subscriptions."""

        def look(conn: sqlite3.Connection) -> tuple[dict[Name, int], dict[str, int], dict[str, int]]:
            goals = retention.goals(conn, self._settings)
            relayed = relays.positions(conn) if goals or self._outrun else {}
            return goals, relayed, relays.unrelayed(conn, goals, relayed)

        left, relayed, lost = await self._file.read(look)
        while left:
            began = time.monotonic()
            removed = await self._file.change(lambda conn: retention.trim(conn, left))
            self._measuring.trimmed += removed.total()
            await asyncio.sleep(time.monotonic() - began)
        self._log_outrun(relayed, lost)
        if self._settings.subscription_expiry_days and await self._file.read(schema.installed):
            live = self._active.ids
            gone = await self._file.change(
                lambda conn: retention.expire(conn, self._settings.subscription_expiry_days, live)
            )
            for owner, name in gone:
                if owner == RELAY_OWNER:
                    logger.warning(
                        "database %s: the relay to the stream %s has relayed nothing for subscription_expiry_days (%g "
                        "days): retention does not hold messages for it any more, until it relays again",
                        self._name,
                        name,
                        self._settings.subscription_expiry_days,
                    )
                else:
                    logger.info("database %s: subscription %s expired", self._name, name)

    def _log_outrun(self, relayed: dict[str, int], lost: dict[str, int]) -> None:
        """Log each relay that lacks messages which were trimmed, once for each time that it is outrun."""
        for stream, number in lost.items():
            if stream not in self._outrun:
                logger.warning(
                    "database %s: retention has removed %s that the relay to the stream %s has not relayed; with a "
                    "greater retention_unread_bytes (now %s) the log keeps them for it",
                    self._name,
                    f"{number:,} message{'s' if number > 1 else ''}",
                    stream,
                    self._settings.retention_unread_bytes,
                )
        stays = {stream: at for stream, at in self._outrun.items() if relayed.get(stream) == at}
        self._outrun = stays | {stream: relayed[stream] for stream in lost}
