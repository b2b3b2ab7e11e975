"""The batcher: groups publishes into transactions (group commit).

Theory of operation. A submission is *waiting* in the queue, then *being written*, then *answered*. The event loop puts
it into the queue; only the write thread takes it out. While one transaction is written, further publishes wait, and
the next transaction takes as many as its limits allow. No publish waits for a timer, and none is answered before
COMMIT. The queue is bounded in messages and bytes: when it is full, :meth:`Batcher.publish` raises an error and
:meth:`Batcher.room` waits (back-pressure).

Calling Datasette's write thread costs as much as a small commit, so one call runs a *session* of many transactions:

- *idle*: nothing waits. A publish or a cursor wakes :meth:`Batcher.run`, which calls the write thread.
- *writing*: :meth:`Batcher._session` takes submissions and cursors and runs a transaction. It then hands the result to
  the event loop, where :meth:`Batcher._finish` answers the publishers, and takes the next ones.
- *lingering*: nothing waits; the session waits up to ``LINGER_SECONDS`` for more, and writes again or ends.

A session ends after its present transaction when another write waits (:meth:`Batcher.make_way`), after
``SESSION_SECONDS``, or when a transaction has failed; :meth:`Batcher.run` begins the next one if anything waits. If
no session could begin, or the write thread died in it, :meth:`Batcher._fail` refuses everything that waits. Cursors
whose write failed are kept for the next transaction. :meth:`Batcher.drain` closes the queue at shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from queue import Empty, SimpleQueue

from ..core.errors import PubsubError, TooManyRequests, Unavailable
from ..core.settings import Settings
from ..core.validation import check_items
from ..core.values import Item
from ..storage.append_batch import Batch, CommitResult, Outcome
from ..storage.subscriptions import Save
from .commits import Commits, Submission, since

logger = logging.getLogger("datasette_pubsub")

#: The most messages in one transaction. A longer one would hold the write lock longer for little gain: at 10,000
#: messages, the commit's sync takes less than 1 % of the time.
COMMIT_MESSAGES = 10_000

#: The most payload bytes in one transaction, unless a single publish has more.
COMMIT_BYTES = 16 * 1024 * 1024

#: The longest session, in seconds: many transactions. Another write ends it (:meth:`Batcher.make_way`). A write that
#: the batcher does not learn of, such as Datasette's own functions on a separate connection, waits until it ends, which
#: is too short for a visitor to notice.
SESSION_SECONDS = 0.02

#: How long a session lingers, in seconds. A publisher that waits for each answer, or publishes a hundred times a
#: second, sends its next publish within this time, and that needs no new call of the write thread.
LINGER_SECONDS = 0.01

#: How long after a failure the kept cursors are tried again, in seconds, if nothing else is written before.
CURSOR_RETRY_SECONDS = 1.0

#: Writes a batch in one transaction on the write thread; returns errors instead of raising them.
#: The number is the time since which the oldest of its publishes has waited, by the monotonic clock.
Transaction = Callable[[Batch, float], CommitResult | PubsubError]

#: Runs a session on the write thread; the number is as for a transaction. Raises :class:`PubsubError`.
Write = Callable[[Callable[[Transaction], None], float], Awaitable[None]]


class Batcher:
    """The batcher of one database. Lives on the event loop; :meth:`run` is its supervised task."""

    def __init__(
        self, name: str, settings: Settings, write: Write, committed: Callable[[CommitResult], None], holder: str
    ) -> None:
        self._settings = settings
        #: Measures what is committed.
        self.commits = Commits(name)
        #: The name under which this process holds the subscriptions whose cursors it saves.
        self._holder = holder
        self._write = write
        self._committed = committed
        self._waiting: deque[Submission] = deque()
        self._cursors: dict[int, Save] = {}
        #: For each subscription, the newest cursor that :meth:`move_cursor` was given: one entry for each row at most.
        self._newest: dict[int, Save] = {}
        self._messages = 0
        self._bytes = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        #: Set after every transaction: there may be room again.
        self._written = asyncio.Event()
        self._closed = False
        #: The newest id that the batcher has written, or 0. The event loop tells the hub a moment later.
        self.last = 0
        #: Whether a transaction runs: its messages may be in the file before :attr:`last` says so.
        self.writing = False
        #: Whether the newest transaction has failed.
        self._failed = False
        #: Whether another write waits: set by :meth:`make_way`, cleared before the next session is queued behind it.
        self._others = False
        #: Whether the session lingers, and the queue whose items end that. The lock puts the session's "nothing waits"
        #: and the event loop's "nobody lingers" in one order, so that they are never both said of one publish.
        self._lingers = False
        self._lingering = threading.Lock()
        self._wake_session: SimpleQueue[None] = SimpleQueue()
        #: The submissions that the write thread is writing.
        self._writing: list[Submission] = []
        #: Kept, since asking for the loop is a system call on Python 3.11; ``None`` until :meth:`run`.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    async def publish(self, items: Sequence[Item]) -> Sequence[int]:
        """Append all items or none; returns their ids when they are durable.

        Raises :class:`~.core.errors.InvalidArgument` or :class:`~.core.errors.PayloadTooLarge`
        for a bad item, :class:`~.core.errors.TooManyRequests` when the queue is full, and
        :class:`~.core.errors.Unavailable` while the server shuts down.
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
        """Queue publishes whose items have been checked; the future has the outcome of each when they are durable.

        ``messages`` and ``size`` (bytes of payload) count all of them. The
        future may also raise :class:`~.core.errors.PubsubError`, for all of them.
        Raises :class:`~.core.errors.Unavailable` while the server shuts down.
        """
        if self._closed:
            raise Unavailable("the server is shutting down; nothing was published")
        done: asyncio.Future[list[Outcome]] = (self._loop or asyncio.get_running_loop()).create_future()
        self._waiting.append(Submission(publishes, messages, size, done))
        self._messages += messages
        self._bytes += size
        self._wake()
        return done

    @property
    def pending(self) -> int:
        """How many messages wait to be written, or are being written."""
        return self._messages

    async def room(self, messages: int, size: int) -> None:
        """Wait until this many messages, with this many bytes of payload, fit into the queue."""
        while not self._closed and not self._fits(messages, size):
            self._written.clear()
            await self._written.wait()

    def _fits(self, messages: int, size: int) -> bool:
        # An empty queue takes any publish: one that is within the other limits must fit.
        return not self._waiting or (
            self._messages + messages <= self._settings.max_pending_messages
            and self._bytes + size <= self._settings.max_pending_bytes
        )

    def move_cursor(self, subscription_id: int, save: Save) -> None:
        """Save a subscription's cursor with the next transaction, if that claim still holds it. Does not wait."""
        known = self._newest.get(subscription_id)
        if known is not None and known.claim == save.claim:
            if save.cursor <= known.cursor and save.release <= known.release:
                return
            save = Save(save.claim, max(save.cursor, known.cursor), save.release or known.release)
        self._newest[subscription_id] = self._cursors[subscription_id] = save
        self._wake()

    def newest_cursor(self, subscription_id: int, claim: int) -> int:
        """The newest cursor that :meth:`move_cursor` was given for a subscription under this claim, written or not."""
        known = self._newest.get(subscription_id)
        return known.cursor if known is not None and known.claim == claim else 0

    def forget_cursor(self, subscription_id: int) -> None:
        """Drop a cursor that has not been written yet."""
        self._cursors.pop(subscription_id, None)
        self._newest.pop(subscription_id, None)

    def forget_log(self) -> None:
        """Drop all cursors, and the newest id: they belong to a log that was replaced."""
        self.last = 0
        self._cursors.clear()
        self._newest.clear()

    def _wake(self) -> None:
        self._idle.clear()
        self._work.set()
        self._rouse()

    def make_way(self) -> None:
        """End the session after its present transaction; called before another write through Datasette is queued."""
        self._others = True
        self._rouse()

    def _rouse(self) -> None:
        """Wake a session that lingers; called after something was put into the queue."""
        with self._lingering:
            if self._lingers:
                self._lingers = False
                self._wake_session.put(None)

    async def run(self) -> None:
        """Write everything that waits, for ever. Cancelled at shutdown, after :meth:`drain`."""
        loop = self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        while True:
            await self._work.wait()
            self._work.clear()
            self._failed = False
            # After a failure, the kept cursors wait for the next wake-up, or for CURSOR_RETRY_SECONDS.
            while self._waiting or (self._cursors and not self._failed):
                await self._write_all()
            self._idle.set()
            if self._cursors and not self._closed:
                loop.call_later(CURSOR_RETRY_SECONDS, self._wake)

    async def _write_all(self) -> None:
        self._others = False
        try:
            await self._write(self._session, self._waiting[0].since if self._waiting else time.monotonic())
        except asyncio.CancelledError:
            unknown = Unavailable("the server is shutting down; whether this was published is not known")
            for submission in self._writing:
                submission.refuse(unknown)
            self._fail(unknown)
            raise
        except Exception as error:
            # The session has not begun, or the write thread died in it.
            self._failed = True
            self._fail(_known(error))

    async def drain(self, timeout: float) -> bool:
        """Refuse new publishes and wait until all queued ones are written; returns whether they were."""
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
        """Run one transaction after the other while there is something to write. Runs on the write thread."""
        end = time.monotonic() + SESSION_SECONDS
        while True:
            taken, cursors = self._take(), self._take_cursors()
            if not taken and not cursors:
                # Without SQL threads (num_sql_threads) this runs on the event loop, which must not wait.
                if self._closed or threading.get_ident() == self._loop_thread or not self._linger():
                    return
                continue
            self._writing = taken
            self.writing = True
            began = time.monotonic()
            try:
                publishes = [publish for submission in taken for publish in submission.publishes]
                result = transaction(Batch(publishes, cursors.values(), self._holder), since(taken))
            except Exception as error:
                result = _known(error)
            if isinstance(result, CommitResult) and result.last:
                self.last = result.last
            self.writing = False
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._finish, taken, cursors, result, began, time.monotonic())
            except RuntimeError:
                # The event loop has ended, so nothing waits for the answers.
                return
            # Checked only after a transaction: so each session writes something, even while other writes always wait.
            if isinstance(result, PubsubError) or self._others or time.monotonic() >= end:
                return

    def _linger(self) -> bool:
        """Wait a moment for something to write; returns whether there is something."""
        end = time.monotonic() + LINGER_SECONDS
        while True:
            with self._lingering:
                if self._waiting or self._cursors or self._others:
                    break
                self._lingers = True
            try:
                # It may be woken for what it has taken already, and then lingers on.
                self._wake_session.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                with self._lingering:
                    if not self._lingers:
                        # It was woken just as the time ended: the next time begins without that item.
                        self._wake_session.get()
                    self._lingers = False
                break
        return bool(self._waiting or self._cursors)

    def _take_all(self) -> list[Submission]:
        taken: list[Submission] = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def _take(self) -> list[Submission]:
        taken: list[Submission] = []
        messages = size = 0
        # At shutdown the event loop may empty the queue at the same time.
        with contextlib.suppress(IndexError):
            while first := self._waiting[0]:
                if taken and (messages + first.messages > COMMIT_MESSAGES or size + first.size > COMMIT_BYTES):
                    break
                # Not always the first any more; what counts is what was taken.
                taken.append(self._waiting.popleft())
                messages += taken[-1].messages
                size += taken[-1].size
        return taken

    def _take_cursors(self) -> dict[int, Save]:
        taken: dict[int, Save] = {}
        # One by one, since the event loop may add more at the same time.
        with contextlib.suppress(KeyError):
            while True:
                subscription_id, cursor = self._cursors.popitem()
                taken[subscription_id] = cursor
        return taken

    def _finish(
        self,
        taken: list[Submission],
        cursors: dict[int, Save],
        result: CommitResult | PubsubError,
        began: float,
        ended: float,
    ) -> None:
        """Answer the publishers of one transaction, and measure it. Runs on the event loop."""
        self._answer(taken, cursors, result)
        if taken:
            self.commits.done(taken, result, began, ended)

    def _answer(self, taken: list[Submission], cursors: dict[int, Save], result: CommitResult | PubsubError) -> None:
        self._messages -= sum(submission.messages for submission in taken)
        self._bytes -= sum(submission.size for submission in taken)
        self._written.set()
        if isinstance(result, PubsubError):
            self._failed = True
            self._keep(cursors, result)
            for submission in taken:
                submission.refuse(result)
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
        """Refuse every publish that waits or is being written."""
        left = [submission for submission in self._writing if not submission.done.done()]
        self._writing = []
        for submission in [*left, *self._take_all()]:
            self._messages -= submission.messages
            self._bytes -= submission.size
            submission.refuse(error)
        self._written.set()

    def _keep(self, cursors: dict[int, Save], error: PubsubError) -> None:
        """Keep cursors that could not be written, for the next transaction."""
        if isinstance(error, Unavailable) and not self._closed:
            for subscription_id, save in cursors.items():
                # A cursor that came meanwhile is newer.
                if subscription_id in self._newest:
                    self._cursors.setdefault(subscription_id, save)


def _known(error: Exception) -> PubsubError:
    if isinstance(error, PubsubError):
        return error
    logger.error("could not write", exc_info=error)
    return Unavailable("the messages could not be written; nothing was published")
