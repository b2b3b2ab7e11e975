"""Group commit: many publishes, one transaction.

The law of this module: while one transaction is being written, further
publishes gather; the next transaction takes all of them. No timer: no publish
waits for others to come. A publish is acknowledged after COMMIT and never
before. The queue is bounded in messages and bytes and pushes back with a clear
error when it is full.

Handing a write to Datasette's write thread costs as much as a small commit. So
that thread, once it has been called, goes on from one transaction to the next
while there is something to write, and for a moment longer (a session); it comes
back after the present transaction when others want to write. Publishes
are put into the queue by the event loop alone, and taken out of it by the write
thread alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue

from ..core.errors import PubsubError, TooManyRequests, Unavailable
from ..core.settings import Settings
from ..core.validation import check_items
from ..core.values import Item
from ..storage import subscriptions
from ..storage.append_batch import CommitResult, Outcome, append
from ..storage.subscriptions import Save

logger = logging.getLogger("datasette_pubsub")

#: Most messages in one transaction. Longer ones hold the write lock longer
#: than they gain: at 10,000 the commit's sync is already under 1 % of the time.
COMMIT_MESSAGES = 10_000

#: Most payload bytes in one transaction, unless a single publish has more.
COMMIT_BYTES = 16 * 1024 * 1024

#: How long a session may last, in seconds: many transactions. Others who want to write end it
#: (:meth:`Batcher.make_way`); who cannot be seen, as Datasette's own functions on a connection of their own, waits
#: for it, less than a visitor notices.
SESSION_SECONDS = 0.02

#: How long a session waits for more before it ends, in seconds. Publishers that wait for their answers, or publish
#: a hundred times a second, send the next publish within this time, and it is spared the hand-over.
LINGER_SECONDS = 0.01

#: How long after a failure cursors that were kept are tried again, in seconds, where nothing else is written before.
CURSOR_RETRY_SECONDS = 1.0

#: Runs a function in a transaction on the write connection; errors are handed back.
#: The number is when the first of those whose publishes it writes began to wait, by the monotonic clock.
Transaction = Callable[[Callable[[sqlite3.Connection], "CommitResult"], float], "CommitResult | PubsubError"]

#: Runs a session on the write thread; the number is as for a transaction. Raises :class:`PubsubError`.
Write = Callable[[Callable[[Transaction], None], float], Awaitable[None]]


@dataclass(slots=True)
class _Submission:
    """Publishes that were handed over together: each all or none by itself."""

    publishes: Sequence[Sequence[Item]]
    messages: int
    size: int
    done: asyncio.Future[list[Outcome]] = field(repr=False)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """The batcher of one database. Lives on the event loop; :meth:`run` is its supervised task."""

    def __init__(
        self, settings: Settings, write: Write, committed: Callable[[CommitResult], None], holder: str
    ) -> None:
        self._settings = settings
        #: Under which name the subscriptions are held whose cursors are saved.
        self._holder = holder
        self._write = write
        self._committed = committed
        self._waiting: deque[_Submission] = deque()
        self._cursors: dict[int, Save] = {}
        #: By subscription, the newest cursor ever handed over: at most one entry per row of theirs.
        self._newest: dict[int, Save] = {}
        self._messages = 0
        self._bytes = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        #: Set after every transaction: there may be room again.
        self._written = asyncio.Event()
        self._closed = False
        #: The newest id that the batcher has written, or 0. It is told of by the event loop a moment later.
        self.last = 0
        #: Whether the newest transaction has failed.
        self._failed = False
        #: Whether others want to write: set by them, cleared before a session is handed over, behind them.
        self._others = False
        #: Whether the session waits for more, and what ends its wait.
        self._lingers = False
        self._wake_session: SimpleQueue[None] = SimpleQueue()
        #: What the write thread is writing.
        self._writing: list[_Submission] = []
        self._loop: asyncio.AbstractEventLoop
        self._loop_thread = 0

    async def publish(self, items: Sequence[Item]) -> Sequence[int]:
        """Append the items, all or none; returns their ids once they are durable.

        Raises :class:`~.core.errors.InvalidArgument` or :class:`~.core.errors.PayloadTooLarge`
        for a bad item, :class:`~.core.errors.TooManyRequests` when the queue is full, and
        :class:`~.core.errors.Unavailable` while shutting down.
        """
        if not items:
            return []
        settings = self._settings
        size = check_items(items, settings)
        if not self._closed and not self._fits(len(items), size):
            raise TooManyRequests(
                f"the database is behind: {self._messages} messages ({self._bytes} bytes) are waiting to be "
                f"written; the limits are {settings.max_pending_messages} messages (max_pending_messages) and "
                f"{settings.max_pending_bytes} bytes (max_pending_bytes); nothing was published"
            )
        (outcome,) = await self.submit([items], len(items), size)
        if isinstance(outcome, PubsubError):
            raise outcome
        return outcome

    def submit(self, publishes: Sequence[Sequence[Item]], messages: int, size: int) -> asyncio.Future[list[Outcome]]:
        """Take publishes, whose items have been checked; what became of each, once that is durable.

        ``messages`` and ``size`` (bytes of payload) are those of all of them.
        The future may also raise :class:`~.core.errors.PubsubError`, for them all.
        Raises :class:`~.core.errors.Unavailable` while shutting down.
        """
        if self._closed:
            raise Unavailable("the server is going away; nothing was published")
        done: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Submission(publishes, messages, size, done))
        self._messages += messages
        self._bytes += size
        self._wake()
        return done

    async def room(self, messages: int, size: int) -> None:
        """Wait until so many messages, of so many bytes, fit into the queue."""
        while not self._closed and not self._fits(messages, size):
            self._written.clear()
            await self._written.wait()

    def _fits(self, messages: int, size: int) -> bool:
        # An empty queue takes anything: what is allowed at all must fit once.
        return not self._waiting or (
            self._messages + messages <= self._settings.max_pending_messages
            and self._bytes + size <= self._settings.max_pending_bytes
        )

    def move_cursor(self, subscription_id: int, save: Save) -> None:
        """Save a subscription's cursor with the next transaction, while it is held by that claim. Does not wait."""
        known = self._newest.get(subscription_id)
        if known is not None and known.claim == save.claim:
            if save.cursor <= known.cursor and save.release <= known.release:
                return
            save = Save(save.claim, max(save.cursor, known.cursor), save.release or known.release)
        self._newest[subscription_id] = self._cursors[subscription_id] = save
        self._wake()

    def newest_cursor(self, subscription_id: int, claim: int) -> int:
        """The newest cursor that was handed over for a subscription under this claim, written already or not."""
        known = self._newest.get(subscription_id)
        return known.cursor if known is not None and known.claim == claim else 0

    def forget_cursor(self, subscription_id: int) -> None:
        """Drop a cursor that has not been written yet."""
        self._cursors.pop(subscription_id, None)
        self._newest.pop(subscription_id, None)

    def forget_log(self) -> None:
        """Drop all cursors, and the newest id: they are of a log that was replaced."""
        self.last = 0
        self._cursors.clear()
        self._newest.clear()

    def _wake(self) -> None:
        self._idle.clear()
        self._work.set()
        self._rouse()

    def make_way(self) -> None:
        """Let the session end after its present transaction: called by who is about to write through Datasette."""
        self._others = True
        self._rouse()

    def _rouse(self) -> None:
        """Let a session that waits for more look again."""
        if self._lingers:
            self._lingers = False
            self._wake_session.put(None)

    async def run(self) -> None:
        """Write what is waiting, for ever. Cancelled at shutdown, after :meth:`drain`."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        while True:
            await self._work.wait()
            self._work.clear()
            self._failed = False
            # After a failure, cursors that were kept wait for the next wake-up, or a moment.
            while self._waiting or (self._cursors and not self._failed):
                await self._write_all()
            self._idle.set()
            if self._cursors and not self._closed:
                self._loop.call_later(CURSOR_RETRY_SECONDS, self._wake)

    async def _write_all(self) -> None:
        self._others = False
        try:
            await self._write(self._session, self._waiting[0].since if self._waiting else time.monotonic())
        except asyncio.CancelledError:
            unknown = Unavailable("the server is going away; whether this was published is not known")
            for submission in self._writing:
                _refuse(submission, unknown)
            self._fail(unknown)
            raise
        except Exception as error:
            # No session has begun, or the write thread has died in it.
            self._failed = True
            self._fail(_known(error))

    async def drain(self, timeout: float) -> bool:
        """Take no more publishes and wait until all that were taken are written; whether they were."""
        self._closed = True
        self._written.set()
        self.make_way()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _session(self, transaction: Transaction) -> None:
        """On the write thread: one transaction after the other, while there is something to write."""
        end = time.monotonic() + SESSION_SECONDS
        while True:
            taken, cursors = self._take(), self._take_cursors()
            if not taken and not cursors:
                # Without SQL threads (num_sql_threads) this is the event loop, which must not wait.
                if self._closed or threading.get_ident() == self._loop_thread or not self._linger():
                    return
                continue
            self._writing = taken
            try:
                result = transaction(partial(_write_one, taken, cursors, self._holder), _since(taken))
            except Exception as error:
                result = _known(error)
            if isinstance(result, CommitResult) and result.last:
                self.last = result.last
            try:
                self._loop.call_soon_threadsafe(self._finish, taken, cursors, result)
            except RuntimeError:
                # The loop has ended, and with it whoever waited.
                return
            # Not looked at before: beside others who write all the time, each session writes something.
            if isinstance(result, PubsubError) or self._others or time.monotonic() >= end:
                return

    def _linger(self) -> bool:
        """Wait a moment for something to write; whether there is something."""
        self._lingers = True
        # Looked at after that is set: what came before it woke nobody.
        if not (self._waiting or self._cursors or self._others):
            with contextlib.suppress(Empty):
                self._wake_session.get(timeout=LINGER_SECONDS)
        self._lingers = False
        return bool(self._waiting or self._cursors)

    def _take_all(self) -> list[_Submission]:
        taken: list[_Submission] = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def _take(self) -> list[_Submission]:
        taken: list[_Submission] = []
        messages = size = 0
        # Cut short at shutdown, where the event loop empties the queue.
        with contextlib.suppress(IndexError):
            while first := self._waiting[0]:
                if taken and (messages + first.messages > COMMIT_MESSAGES or size + first.size > COMMIT_BYTES):
                    break
                taken.append(self._waiting.popleft())
                messages += first.messages
                size += first.size
        return taken

    def _take_cursors(self) -> dict[int, Save]:
        taken: dict[int, Save] = {}
        # One by one: the event loop may be adding more.
        with contextlib.suppress(KeyError):
            while True:
                subscription_id, cursor = self._cursors.popitem()
                taken[subscription_id] = cursor
        return taken

    def _finish(self, taken: list[_Submission], cursors: dict[int, Save], result: CommitResult | PubsubError) -> None:
        """On the event loop: tell everybody what became of one transaction."""
        self._messages -= sum(submission.messages for submission in taken)
        self._bytes -= sum(submission.size for submission in taken)
        self._written.set()
        if isinstance(result, PubsubError):
            self._failed = True
            self._keep(cursors, result)
            for submission in taken:
                _refuse(submission, result)
            return
        self._failed = False
        if result.last:
            self._committed(result)
        outcomes = iter(result.outcomes)
        for submission in taken:
            found = list(islice(outcomes, len(submission.publishes)))
            if not submission.done.done():
                submission.done.set_result(found)

    def _fail(self, error: PubsubError) -> None:
        """Nothing of what waits will be written."""
        left = [submission for submission in self._writing if not submission.done.done()]
        self._writing = []
        for submission in [*left, *self._take_all()]:
            self._messages -= submission.messages
            self._bytes -= submission.size
            _refuse(submission, error)
        self._written.set()

    def _keep(self, cursors: dict[int, Save], error: PubsubError) -> None:
        """Keep cursors that could not be written now; the next transaction takes them along."""
        if isinstance(error, Unavailable) and not self._closed:
            for subscription_id, save in cursors.items():
                # One that came meanwhile is newer.
                if subscription_id in self._newest:
                    self._cursors.setdefault(subscription_id, save)


def _known(error: Exception) -> PubsubError:
    if isinstance(error, PubsubError):
        return error
    logger.error("could not write", exc_info=error)
    return Unavailable("the messages could not be written; nothing was published")


def _since(taken: list[_Submission]) -> float:
    return taken[0].since if taken else time.monotonic()


def _refuse(submission: _Submission, error: PubsubError) -> None:
    if not submission.done.done():
        submission.done.set_exception(error)


def _write_one(
    taken: list[_Submission], cursors: dict[int, Save], holder: str, conn: sqlite3.Connection
) -> CommitResult:
    """What is written in one transaction."""
    result = append(conn, [publish for submission in taken for publish in submission.publishes])
    if cursors:
        subscriptions.save(conn, holder, cursors.values())
    return replace(result, claims=subscriptions.claims(conn)) if result.last else result
