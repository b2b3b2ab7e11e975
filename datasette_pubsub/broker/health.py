"""Health check: looks twice a second whether a database can be written, and repairs what it can.

It notices a dead write thread, and a file that was deleted, renamed or replaced, and logs each once. For publishers,
:mod:`.broker.database` checks the file at every commit; this module ends subscribers' streams, and reopens the file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from ..core.errors import PubsubError
from .database import DatabaseFile

logger = logging.getLogger("datasette_pubsub")

#: The interval of the checks, in seconds: a fault should be noticed within a second. One check takes 2 µs.
HEALTH_SECONDS = 0.5


class Served(Protocol):
    """The broker, as the health check uses it."""

    def end_streams(self) -> None: ...

    def leave(self) -> None: ...

    async def begin_anew(self) -> None: ...


class Health:
    """Checks one database until it is ``removed``."""

    def __init__(self, name: str, store: DatabaseFile, served: Served, removed: Callable[[], bool]) -> None:
        self._name = name
        self._store = store
        self._served = served
        self._removed = removed
        #: The last message that was logged about the file; ``None`` while the file is present.
        self._logged: str | None = None
        #: The last reason that was logged for not reopening it.
        self._hindrance: str | None = None
        #: Whether another file was opened whose log the broker has not read yet.
        self._anew = False

    async def run(self) -> None:
        """Check for ever; an error in one check is logged, and the checks go on."""
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            if self._removed():
                return
            try:
                await self._look()
            except Exception:
                if self._removed():
                    # During the check.
                    return
                logger.exception("database %s: the health check failed; trying again", self._name)

    async def _look(self) -> None:
        store = self._store
        if store.revive() or await store.open_again():
            # The new thread serves the writes that wait in the queue.
            await store.prepare_later()
        absence = store.absence()
        if absence is not None:
            first = self._logged is None
            if self._logged != absence.message:
                self._logged = absence.message
                logger.error("%s; publishing is refused", absence.message.partition(";")[0])
            try:
                if store.replaced:
                    await self._reopen()
            finally:
                if first:
                    # This comes after the file was reopened, if it could be: subscribers that reconnect find it.
                    self._served.end_streams()
        elif self._logged is not None or self._anew:
            await self._go_on()

    async def _reopen(self) -> None:
        if await self._store.reopen(self._served.leave):
            self._anew = True
            await self._go_on()
        elif self._hindrance is None:
            self._hindrance = "its connections cannot be reopened: restart Datasette"
            logger.error("database %s: %s", self._name, self._hindrance)

    async def _go_on(self) -> None:
        """Serve the file at the path: it is present again, the same file or another."""
        if self._anew:
            try:
                await self._served.begin_anew()
            except PubsubError as error:
                if self._hindrance != error.message:
                    self._hindrance = error.message
                    logger.error("database %s: the file at its path: %s", self._name, error.message)
                return
        self._logged = self._hindrance = None
        self._anew = False
        await self._store.prepare_later()
        logger.warning("database %s: the file that is at its path is served; publishing goes on", self._name)
