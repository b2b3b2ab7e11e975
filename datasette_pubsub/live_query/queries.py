"""All live queries of one database: shares them among their subscribers, and runs them when something was committed.

Theory of operation. The watcher calls :meth:`LiveQueries.committed` after each commit that it sees; that makes the
queries dirty. The supervised task :meth:`LiveQueries.run` takes the dirty queries that have been due for the longest,
and starts their runs on one of Datasette's SQL threads: quick queries together, since handing one of them to a thread
costs more than running it, and a query that is known to be slow by itself. Each of these two *lanes* has one thread at
a time, so that a slow query never stands before a quick one. When a query is due is decided by :mod:`.shares`. A run
that finds the result unchanged tells nobody.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from ..core.errors import PubsubError, TooManyRequests, Unavailable
from ..core.settings import Settings
from ..live.admission import Admission
from ..live.line import Line
from ..storage.error_frames import clear_frames
from ..storage.query import Limits, Question
from . import runs, shares
from .query import Encoder, LiveQuery, Woken
from .subscriber import QuerySubscriber, QuerySubscriberOptions

logger = logging.getLogger("datasette_pubsub")

T = TypeVar("T")

#: Quick queries share one thread at a time, and slow ones another.
Lane = Literal["quick", "slow"]

#: A query whose runs take longer than this is slow, in seconds; slow ones run one at a time, beside the others.
SLOW_SECONDS = 0.1

#: Quick queries run together while their runs are expected to take no longer than this, in seconds.
TOGETHER_SECONDS = 0.05

#: How often the time is shared anew, in seconds: each time looks at all queries.
SHARE_SECONDS = 0.1

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
    is not known. ``watch`` is called when the first subscriber comes and when
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
        self._line = Line()
        self._queries: dict[Question, LiveQuery] = {}
        #: The first runs of new queries, which several subscribers may wait for.
        self._first_runs: dict[Question, asyncio.Future[None]] = {}
        #: For each actor or address, how many subscribers each of its queries has.
        self._parties: dict[str, Counter[Question]] = {}
        #: How many commits were seen.
        self._commits = 0
        #: The last stamp, and the number of commits that had been seen when it was asked for.
        self._stamped: tuple[int, object] = (-1, None)
        self._wake = asyncio.Event()
        self._runs: set[asyncio.Task[None]] = set()
        #: The lanes in which a run is on its way.
        self._busy: set[Lane] = set()
        #: How many times queries were run.
        self.ran = 0
        #: When the time was shared, on the loop's clock.
        self._shared_at = float("-inf")

    def __len__(self) -> int:
        """How many queries are kept up to date."""
        return len(self._queries)

    @property
    def queries(self) -> list[LiveQuery]:
        """The queries that are kept up to date."""
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
        news = False
        for query in self._queries.values():
            news = query.touch(self._commits) or news
        if news:
            self._wake.set()

    # -- subscribers ------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(
        self, question: Question, encoder: Encoder, options: QuerySubscriberOptions
    ) -> AsyncIterator[QuerySubscriber]:
        """Open a subscriber until the block ends.

        Raises :class:`~.core.errors.PubsubError` before anything is sent.
        """
        with self._admission.enter(options.party, "live_query") as place:
            query = subscriber = None
            try:
                self._count(options.party, question)
                try:
                    query = await self._opened(question)
                    subscriber = QuerySubscriber(query, encoder, options, self._line)
                    query.subscribers.add(subscriber)
                    place.take(subscriber)
                    yield subscriber
                finally:
                    self._uncount(options.party, question)
            finally:
                if subscriber is not None and query is not None:
                    query.subscribers.discard(subscriber)
                    subscriber.close()
                    place.discard()
                self._drop_unused(question)

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
        query = self._queries[question] = LiveQuery(question, self._settings.max_live_query_bytes, self._line)
        self._watch()
        task = self._start([query], None)
        self._first_runs[question] = task
        return query

    def keep(self, question: Question, keeper: Woken) -> LiveQuery:
        """Keep a query up to date for ever, for the server itself: it counts for nobody, and an error does not end it.

        ``keeper`` is woken after each run.
        """
        query = self._queries.get(question) or self._begin(question)
        query.keepers.add(keeper)
        return query

    def _drop_unused(self, question: Question) -> None:
        query = self._queries.get(question)
        if (
            query is None
            or query.subscribers
            or query.keepers
            or any(question in own for own in self._parties.values())
        ):
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
        next_at: float | None = None
        due: dict[Lane, list[LiveQuery]] = {}
        for query in waiting:
            lane: Lane = "slow" if query.duration > SLOW_SECONDS else "quick"
            if lane in self._busy:
                continue
            at = query.began + query.pause
            if at > now:
                next_at = at if next_at is None else min(next_at, at)
            else:
                due.setdefault(lane, []).append(query)
        for lane, queries in due.items():
            self._start(_together(queries), lane)
        return None if next_at is None else max(0.0, next_at - now)

    def _start(self, queries: list[LiveQuery], lane: Lane | None) -> asyncio.Task[None]:
        """Begin to run these queries, in a lane or, for a first run, beside them."""
        for query in queries:
            query.running = True
        if lane is not None:
            self._busy.add(lane)
        task = asyncio.get_running_loop().create_task(
            self._run(queries), name=f"pubsub live queries: {self._name}", context=Context()
        )
        self._runs.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._runs.discard(task)
            if lane is not None:
                self._busy.discard(lane)
            self._wake.set()

        task.add_done_callback(ended)
        return task

    async def _run(self, queries: list[LiveQuery]) -> None:
        """Run each of these once, unless nothing that it reads can have changed."""
        now = asyncio.get_running_loop().time()
        for query in queries:
            # A commit that comes while it runs makes the query dirty again.
            query.dirty = False
            query.began = now
        try:
            changed: list[tuple[LiveQuery, object]] = []
            for query in queries:
                unchanged, stamp = await self._unchanged(query)
                if not unchanged:
                    query.runs += 1
                    self.ran += 1
                    changed.append((query, stamp))
            limits = self._limits()
            outcomes: Sequence[_Outcome | Exception] = ()
            if changed:
                try:
                    outcomes = await self._read(lambda conn: [_tried(conn, query, limits) for query, _ in changed])
                except PubsubError as error:
                    outcomes = [error] * len(changed)
            for (query, stamp), outcome in zip(changed, outcomes, strict=True):
                self._take(query, stamp, outcome)
        except Exception:
            logger.exception("database %s: live queries could not be run", self._name)
            for query in queries:
                query.failed(PubsubError("the query could not be run"))
        finally:
            for query in queries:
                query.running = False

    def _take(self, query: LiveQuery, stamp: object, outcome: _Outcome | Exception) -> None:
        """Take what came out of a run."""
        if isinstance(outcome, PubsubError):
            query.schema = None
            query.failed(outcome)
            # Whether the file can be read is not told by a commit.
            query.dirty = query.dirty or isinstance(outcome, Unavailable)
            self._ran(query, asyncio.get_running_loop().time() - query.began)
        elif isinstance(outcome, Exception):
            logger.error("database %s: a live query could not be run", self._name, exc_info=outcome)
            query.failed(PubsubError("the query could not be run"))
        else:
            query.schema, query.stamp = outcome.ran.schema, stamp
            if outcome.ran.result is not None:
                query.succeeded(outcome.ran.result, outcome.ran.change)
                self._ran(query, outcome.seconds)

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
        """Note how long a run took, and now and then share the time anew."""
        query.duration = seconds if query.runs == 1 else WEIGHT * seconds + (1 - WEIGHT) * query.duration
        interval = self._settings.live_query_interval_seconds
        query.pause = max(query.pause, interval)
        now = asyncio.get_running_loop().time()
        if query.runs > 1 and now - self._shared_at < SHARE_SECONDS and seconds < SLOW_SECONDS:
            return
        self._shared_at = now
        counted = [each for each in self._queries.values() if each.dirty or now - each.began < IDLE_SECONDS]
        for each, pause in zip(counted, shares.pauses([each.duration for each in counted], interval), strict=True):
            each.pause = pause


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A run, and how long it took in seconds."""

    ran: runs.Ran
    seconds: float


def _together(queries: list[LiveQuery]) -> list[LiveQuery]:
    """The first of these queries, and the next ones as long as all are expected to take ``TOGETHER_SECONDS``."""
    expected = 0.0
    found: list[LiveQuery] = []
    for query in queries:
        expected += query.duration
        if found and expected > TOGETHER_SECONDS:
            break
        found.append(query)
    return found


def _tried(conn: sqlite3.Connection, query: LiveQuery, limits: Limits) -> _Outcome | Exception:
    """One run. An error of this query is returned, so that it does not keep others from running."""
    began = time.monotonic()
    try:
        ran = runs.run(conn, query.question, limits, query.result, query.schema)
    except sqlite3.Error:
        # The file cannot be read: that holds for all of them.
        raise
    except Exception as error:
        clear_frames(error)
        return error
    return _Outcome(ran, time.monotonic() - began)
