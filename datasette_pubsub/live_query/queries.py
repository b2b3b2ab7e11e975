"""All live queries of one database: shares them among their followers, and runs them when something was committed.

Theory of operation. The watcher calls :meth:`LiveQueries.committed` after each commit that it sees; that makes the
queries dirty. The supervised task :meth:`LiveQueries.run` takes the dirty query that has been due for the longest, and
starts a run of it, on one of Datasette's SQL threads. Two runs may happen at the same time: one of a query that is
known to be slow, and one of any other, so that a slow query never stands before a quick one. When a query is due is
decided by :mod:`.shares`. A run that finds the result unchanged tells nobody.

Commits that cannot matter are passed over. The batcher's transactions change only the log and what belongs to it: a
query that reads none of this stays as it is, if nothing else was committed (:meth:`LiveQueries._unchanged`). Tables
that are broadcast tell by their messages that they have changed (:mod:`.runs`).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Protocol, TypeVar

from ..core.errors import PubsubError, TooManyRequests, Unavailable
from ..core.settings import Settings
from ..live.admission import Admission
from ..storage.query import Limits, Question
from . import runs, shares
from .follower import Follower, FollowOptions
from .query import Encoder, LiveQuery, Woken

logger = logging.getLogger("datasette_pubsub")

T = TypeVar("T")

#: A query whose runs take longer than this is slow, in seconds; slow ones run one at a time, beside the others.
SLOW_SECONDS = 0.1

#: A query that has not run for this long does not count when the time is shared, in seconds.
IDLE_SECONDS = 10.0

#: How much of the last run's duration goes into the duration that is expected of the next one.
WEIGHT = 0.5


class Read(Protocol):
    """Runs a read of the file. Raises :class:`~.core.errors.PubsubError`."""

    async def __call__(self, fn: Callable[[sqlite3.Connection], T]) -> T: ...


class LiveQueries:
    """The live queries of one database.

    ``limits`` returns the limits of one run. ``stamp`` returns a value that
    stays the same while nobody but the batcher commits, or ``None`` if that
    is not known. ``watch`` is called when the first follower comes and when
    the last one has gone.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        admission: Admission,
        *,
        read: Read,
        limits: Callable[[], Limits],
        stamp: Callable[[], Awaitable[object]],
        watch: Callable[[], None],
    ) -> None:
        self._name = name
        self._settings = settings
        self._admission = admission
        self._read = read
        self._limits = limits
        self._stamp = stamp
        self._watch = watch
        self._queries: dict[Question, LiveQuery] = {}
        #: The first runs of new queries, which several followers may wait for.
        self._first_runs: dict[Question, asyncio.Future[None]] = {}
        #: For each actor or address, how many followers each of its queries has.
        self._parties: dict[str, Counter[Question]] = {}
        #: How many commits were seen.
        self._commits = 0
        #: The last stamp, and the number of commits that had been seen when it was asked for.
        self._stamped: tuple[int, object] = (-1, None)
        self._wake = asyncio.Event()
        self._runs: set[asyncio.Task[None]] = set()
        self._slow_running = self._quick_running = False

    def __len__(self) -> int:
        """How many queries are followed."""
        return len(self._queries)

    @property
    def queries(self) -> list[LiveQuery]:
        """The queries that are followed."""
        return list(self._queries.values())

    def forget(self) -> None:
        """Forget what is known of the file: another one is served now."""
        for query in self._queries.values():
            query.schema = query.stamp = None
        self.committed()

    def committed(self) -> None:
        """Note that something was committed to the file, by any program."""
        if not self._queries:
            return
        self._commits += 1
        for query in self._queries.values():
            query.touch(self._commits)
        self._wake.set()

    # -- followers ------------------------------------------------------------

    @asynccontextmanager
    async def follow(self, question: Question, encoder: Encoder, options: FollowOptions) -> AsyncIterator[Follower]:
        """Open a follower until the block ends. Raises :class:`~.core.errors.PubsubError` before anything is sent."""
        self._admission.enter(options.party)
        query = follower = None
        try:
            self._count(options.party, question)
            try:
                query = await self._opened(question)
                follower = Follower(query, encoder, options)
                query.followers.add(follower)
                self._admission.add(follower)
                yield follower
            finally:
                self._uncount(options.party, question)
        finally:
            if follower is not None and query is not None:
                query.followers.discard(follower)
                self._admission.discard(follower)
            self._drop_unfollowed(question)
            self._admission.leave(options.party)

    def _count(self, party: str, question: Question) -> None:
        own = self._parties.get(party) or Counter()
        most = self._settings.max_live_queries_per_actor
        if question not in own and len(own) >= most:
            raise TooManyRequests(
                f"{len(own)} live queries of this actor are open on database {self._name}; the limit is "
                f"{most} (max_live_queries_per_actor)",
                limit="max_live_queries_per_actor",
            )
        if question not in self._queries and len(self._queries) >= self._settings.max_live_queries:
            raise TooManyRequests(
                f"{len(self._queries)} live queries are open on database {self._name}; the limit is "
                f"{self._settings.max_live_queries} (max_live_queries)",
                limit="max_live_queries",
            )
        self._parties.setdefault(party, own)[question] += 1

    def _uncount(self, party: str, question: Question) -> None:
        own = self._parties[party]
        own[question] -= 1
        if not own[question]:
            del own[question]
        if not own:
            del self._parties[party]

    async def _opened(self, question: Question) -> LiveQuery:
        """The query, after its first run. Raises :class:`~.core.errors.PubsubError` if that failed."""
        query = self._queries.get(question) or self._begin(question)
        first = self._first_runs.get(question)
        if first is not None:
            await asyncio.shield(first)
            self._first_runs.pop(question, None)
        if query.error is not None:
            raise query.error.bare()
        if query.result is None:
            raise Unavailable("the server is shutting down; try again")
        return query

    def _begin(self, question: Question) -> LiveQuery:
        """Begin to keep a query up to date, with a first run."""
        query = self._queries[question] = LiveQuery(question, self._settings.max_live_query_bytes)
        self._watch()
        query.running = True
        task = asyncio.get_running_loop().create_task(
            self._run(query), name=f"pubsub live query: {self._name}", context=Context()
        )
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        self._first_runs[question] = task
        return query

    def keep(self, question: Question, keeper: Woken) -> LiveQuery:
        """Keep a query up to date for ever, for the server itself: it counts for nobody, and an error does not end it.

        ``keeper`` is woken after each run.
        """
        query = self._queries.get(question) or self._begin(question)
        query.keepers.add(keeper)
        return query

    def _drop_unfollowed(self, question: Question) -> None:
        query = self._queries.get(question)
        if query is None or query.followers or query.keepers or any(question in own for own in self._parties.values()):
            return
        del self._queries[question]
        self._first_runs.pop(question, None)
        if not self._queries:
            self._watch()

    # -- runs -------------------------------------------------------------------

    async def run(self) -> None:
        """Run dirty queries when they are due, for ever."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                wait = self._start_due(loop.time())
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._runs:
                task.cancel()

    def _start_due(self, now: float) -> float | None:
        """Start the runs that are due; returns the seconds until the next one is, or ``None``."""
        waiting = [query for query in self._queries.values() if query.dirty and not query.running]
        waiting.sort(key=lambda query: query.began + query.pause)
        next_at = None
        for query in waiting:
            slow = query.duration > SLOW_SECONDS
            if self._slow_running if slow else self._quick_running:
                continue
            at = query.began + query.pause
            if at > now:
                next_at = at if next_at is None else min(next_at, at)
                continue
            if slow:
                self._slow_running = True
            else:
                self._quick_running = True
            query.running = True
            task = asyncio.get_running_loop().create_task(
                self._run_in_lane(query, slow), name=f"pubsub live query: {self._name}", context=Context()
            )
            self._runs.add(task)
            task.add_done_callback(self._runs.discard)
        return None if next_at is None else max(0.0, next_at - now)

    async def _run_in_lane(self, query: LiveQuery, slow: bool) -> None:
        try:
            await self._run(query)
        finally:
            if slow:
                self._slow_running = False
            else:
                self._quick_running = False
            self._wake.set()

    async def _run(self, query: LiveQuery) -> None:
        """Run a query once, unless nothing that it reads can have changed."""
        loop = asyncio.get_running_loop()
        # A commit that comes while it runs makes the query dirty again.
        query.dirty = False
        query.began = loop.time()
        try:
            unchanged, stamp = await self._unchanged(query)
            if unchanged:
                return
            limits = self._limits()
            query.runs += 1
            try:
                found, seconds = await self._read(lambda conn: _timed(conn, query, limits))
            except PubsubError as error:
                query.schema = None
                query.failed(error)
                # Whether the file can be read is not told by a commit.
                query.dirty = query.dirty or isinstance(error, Unavailable)
                self._ran(query, loop.time() - query.began)
                return
            query.schema, query.stamp = found.schema, stamp
            if found.result is not None:
                query.succeeded(found.result, found.change)
                self._ran(query, seconds)
        except Exception:
            logger.exception("database %s: a live query could not be run", self._name)
            query.failed(PubsubError("the query could not be run"))
        finally:
            query.running = False

    async def _unchanged(self, query: LiveQuery) -> tuple[bool, object]:
        """Whether only the batcher has committed since the last run of a query that reads nothing of the broker's.

        Also returns the stamp for this run, which has to be known before the run begins.
        """
        if query.schema is not None and query.schema.reads.of_broker:
            return False, None
        commits, stamp = self._stamped
        if commits < query.touched or query.touched == 0:
            commits, stamp = self._stamped = self._commits, await self._stamp()
        return stamp is not None and query.result is not None and stamp == query.stamp, stamp

    def _ran(self, query: LiveQuery, seconds: float) -> None:
        """Note how long a run took, and share the time anew."""
        query.duration = seconds if query.runs == 1 else WEIGHT * seconds + (1 - WEIGHT) * query.duration
        now = asyncio.get_running_loop().time()
        counted = [each for each in self._queries.values() if each.dirty or now - each.began < IDLE_SECONDS]
        interval = self._settings.live_query_interval_seconds
        for each, pause in zip(counted, shares.pauses([each.duration for each in counted], interval), strict=True):
            each.pause = pause


def _timed(conn: sqlite3.Connection, query: LiveQuery, limits: Limits) -> tuple[runs.Ran, float]:
    """A run, and how long it took in seconds."""
    began = time.monotonic()
    ran = runs.run(conn, query.question, limits, query.result, query.schema)
    return ran, time.monotonic() - began
