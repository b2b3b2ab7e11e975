"""Looks, twice a second, whether a database can be written as it should, and mends what can be mended.

The write thread may have died, and the file may have been deleted, renamed or
replaced. Each is told once in the log. What is told to publishers is looked at by
:mod:`.broker.database` for every commit; this is for subscribers, and for going on by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from ..core.errors import PubsubError
from .database import DatabaseFile

logger = logging.getLogger("datasette_pubsub")

#: How often it looks, in seconds: what is wrong is to be noticed within a second. One look takes 2 µs.
HEALTH_SECONDS = 0.5


class Served(Protocol):
    """The live side of the database."""

    def end_streams(self) -> None: ...

    def leave(self) -> None: ...

    async def begin_anew(self) -> None: ...


class Health:
    """The health of one database, until it is ``removed``."""

    def __init__(self, name: str, store: DatabaseFile, served: Served, removed: Callable[[], bool]) -> None:
        self._name = name
        self._store = store
        self._served = served
        self._removed = removed
        #: What was told of the file last; ``None`` while it is there.
        self._told: str | None = None
        #: What was told last of why it could not be opened anew.
        self._hindrance: str | None = None
        #: Whether another file was opened, of whose log nothing is known yet.
        self._anew = False

    async def run(self) -> None:
        """Look for ever; an error of one look is logged, and the next one comes."""
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            if self._removed():
                return
            try:
                await self._look()
            except Exception:
                if self._removed():
                    # While it was looked after.
                    return
                logger.exception("database %s: could not look after it; trying again", self._name)

    async def _look(self) -> None:
        store = self._store
        if store.revive() or await store.open_again():
            # Whoever waits in the queue is served by the new thread.
            await store.prepare_later()
        absence = store.absence()
        if absence is not None:
            first = self._told is None
            if self._told != absence.message:
                self._told = absence.message
                logger.error("%s; publishing is refused", absence.message.partition(";")[0])
            try:
                if store.replaced:
                    await self._reopen()
            finally:
                if first:
                    # After the file was opened anew, where that was possible: whoever comes back finds it.
                    self._served.end_streams()
        elif self._told is not None or self._anew:
            await self._go_on()

    async def _reopen(self) -> None:
        if await self._store.reopen(self._served.leave):
            self._anew = True
            await self._go_on()
        elif self._hindrance is None:
            self._hindrance = "its connections cannot be opened anew: restart Datasette"
            logger.error("database %s: %s", self._name, self._hindrance)

    async def _go_on(self) -> None:
        """The file is there again, the same or another."""
        if self._anew:
            try:
                await self._served.begin_anew()
            except PubsubError as error:
                if self._hindrance != error.message:
                    self._hindrance = error.message
                    logger.error("database %s: the file at its path: %s", self._name, error.message)
                return
        self._told = self._hindrance = None
        self._anew = False
        await self._store.prepare_later()
        logger.warning("database %s: the file that is at its path is served; publishing goes on", self._name)
