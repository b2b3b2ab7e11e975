"""Runs the standing queries of one database that its configuration names.

Theory of operation. Each is kept up to date as a live query (:mod:`.live_query.queries`), which decides when it runs
and shares the time. After each of these runs the standing query is *woken*, and the supervised task
:meth:`StandingQueries.run` compares the live result with the stored one: only if they differ does it take the write
lock, for the run of :mod:`.storage.standing` that publishes. What cannot be done because the file is locked or cannot
be written is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from datasette.utils import named_parameters

from ..core.errors import InvalidArgument, PayloadTooLarge, PubsubError
from ..core.standing import StandingQuery
from ..live_query.query import LiveQuery, Woken
from ..storage import log, sources, standing
from ..storage.query import Limits, Question, missing_parameters
from ..storage.standing import Ran

logger = logging.getLogger("datasette_pubsub")

#: How soon a run is tried again that failed because of the file, in seconds.
RETRY_SECONDS = 1.0

#: Errors of the query itself: they are stored, and end when its result changes.
_OF_QUERY = (InvalidArgument, PayloadTooLarge)

T = TypeVar("T")


class File(Protocol):
    """The database's file. Both methods raise :class:`~.core.errors.PubsubError`."""

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T: ...

    async def change(self, fn: Callable[[sqlite3.Connection], T]) -> T: ...


class Keeps(Protocol):
    """Keeps queries up to date: :class:`~.live_query.queries.LiveQueries`."""

    def keep(self, question: Question, keeper: Woken) -> LiveQuery: ...


class Kept:
    """One standing query of this server: when it last ran, and its error, if it has one."""

    def __init__(self, query: StandingQuery, wake: asyncio.Event) -> None:
        self.query = query
        self.live: LiveQuery | None = None
        self.ran_at: str | None = None
        self.error: str | None = None
        self.woken = False
        self._wake = wake

    def wake(self) -> None:
        """The live query has run."""
        self.woken = True
        self.ran_at = log.now()
        self._wake.set()


class StandingQueries:
    """The standing queries of one database, until it is ``removed``. ``published`` is called after each publication."""

    def __init__(
        self,
        name: str,
        queries: Sequence[StandingQuery],
        live: Keeps,
        file: File,
        *,
        limits: Callable[[], Limits],
        published: Callable[[], Awaitable[None]],
        removed: Callable[[], bool],
    ) -> None:
        self._name = name
        self._live = live
        self._file = file
        self._limits = limits
        self._published = published
        self._removed = removed
        self._wake = asyncio.Event()
        self.kept = [Kept(query, self._wake) for query in queries]

    def refuse(self, error: PubsubError) -> None:
        """Note that none of them can run."""
        for kept in self.kept:
            self._tell(kept, error)

    async def states(self) -> list[dict[str, Any]]:
        """All standing queries of the file and of the configuration, sorted by name.

        ``configured`` says whether this server runs it; the others were run by ``datasette pubsub watch``, or by an
        earlier configuration.
        """
        found = {each["name"]: {**each, "configured": False} for each in await self._file.read(standing.everyone)}
        for kept in self.kept:
            query = kept.query
            state = found.setdefault(query.name, dict.fromkeys(("ran_at", "changed_at", "error", "row_count")))
            state |= {
                "name": query.name,
                "channel": query.channel,
                "sql": query.sql,
                "params": dict(query.params),
                "key": list(query.key),
                "operations": list(query.operations),
                "messages": state.get("messages", 0),
                "ran_at": max(filter(None, (state["ran_at"], kept.ran_at)), default=None),
                "error": kept.error if kept.error is not None or kept.ran_at else state["error"],
                "configured": True,
            }
        return [found[name] for name in sorted(found)]

    async def run(self) -> None:
        """Keep all of them up to date."""
        with contextlib.suppress(PubsubError):
            # The first write installs the log, which a query may read.
            await self._file.change(lambda conn: None)
        for kept in self.kept:
            try:
                missing_parameters(named_parameters(kept.query.sql), dict(kept.query.params))
            except InvalidArgument as error:
                self._tell(kept, error)
            else:
                kept.live = self._live.keep(standing.question(kept.query), kept)
        while not self._removed():
            self._wake.clear()
            wait = None
            for kept in self.kept:
                if kept.woken and not await self._look(kept):
                    kept.woken = True
                    wait = RETRY_SECONDS
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _look(self, kept: Kept) -> bool:
        """Publish what has changed; returns whether that was possible."""
        kept.woken = False
        try:
            await self._publish(kept)
        except PubsubError as error:
            self._tell(kept, error)
            return False
        except Exception:
            logger.exception("database %s: standing query %r could not be run", self._name, kept.query.name)
            kept.error = "the query could not be run; the server's log says why"
            return False
        return True

    async def _publish(self, kept: Kept) -> None:
        query, live = kept.query, kept.live
        assert live is not None
        if live.error is not None:
            await self._fail(kept, live.error)
            return
        result = live.result
        if result is None:
            return

        def compare(conn: sqlite3.Connection) -> tuple[bool, bool]:
            stored = standing.load(conn, query.name)
            due = standing.is_due(stored, query, result)
            if due:
                # A run would find it, too, but under the write lock, again and again.
                sources.check_own(conn)
            return due, stored is not None and standing.is_stale(stored)

        limits = self._limits()
        try:
            due, stale = await self._file.read(compare)
            if due:
                ran = await self._file.change(lambda conn: standing.run(conn, query, limits))
        except _OF_QUERY as error:
            await self._fail(kept, error)
            return
        kept.error = None
        if due:
            self._log(query, ran)
            if ran.published:
                await self._published()
        elif stale:
            await self._file.change(lambda conn: standing.touch(conn, query.name))

    async def _fail(self, kept: Kept, error: PubsubError) -> None:
        """Tell an error, and store it if it is the query's own."""
        self._tell(kept, error)
        if not isinstance(error, _OF_QUERY):
            return

        def known(conn: sqlite3.Connection) -> bool:
            stored = standing.load(conn, kept.query.name)
            return stored is not None and stored.error == error.message

        if not await self._file.read(known):
            await self._file.change(lambda conn: standing.fail(conn, kept.query, error.message))

    def _tell(self, kept: Kept, error: PubsubError) -> None:
        """Log an error once, until another comes."""
        if kept.error != error.message:
            kept.error = error.message
            logger.warning("database %s: standing query %r: %s", self._name, kept.query.name, error.message)

    def _log(self, query: StandingQuery, ran: Ran) -> None:
        if ran.replaced is not None:
            logger.warning(
                "database %s: standing query %r: its stored result was replaced, and no change was published: %s",
                self._name,
                query.name,
                ran.replaced,
            )
