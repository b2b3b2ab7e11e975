"""Group commit: many publishes, one transaction.

The law of this module: while one transaction is being written, further
publishes gather; the next transaction takes all of them. No timer. A publish
is acknowledged after COMMIT and never before. The queue is bounded in messages
and bytes and pushes back with a clear error when it is full.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from . import log, subscriptions
from .config import Settings
from .errors import InvalidArgument, PubsubError, TooMany, Unavailable
from .models import Item, Message, check_item

logger = logging.getLogger("datasette_pubsub")

#: Most messages in one transaction. Longer ones hold the write lock longer
#: than they gain: at 10,000 the commit's sync is already under 1 % of the time.
COMMIT_MESSAGES = 10_000

#: Most payload bytes in one transaction, unless a single publish has more.
COMMIT_BYTES = 16 * 1024 * 1024

#: Runs a function in a transaction on the database's write connection.
Write = Callable[[Callable[[sqlite3.Connection], "Committed"]], Awaitable["Committed"]]


Outcome = list[int] | PubsubError


@dataclass(frozen=True, slots=True)
class Committed:
    """What one transaction wrote: the head before it, its new messages, and for each publish its ids or error."""

    before: int
    messages: list[Message]
    outcomes: list[Outcome]


@dataclass(slots=True)
class _Publish:
    items: Sequence[Item]
    size: int
    done: asyncio.Future[list[int]] = field(repr=False)


class Batcher:
    """The batcher of one database. Lives on the event loop; :meth:`run` is its supervised task."""

    def __init__(self, settings: Settings, write: Write, committed: Callable[[Committed], None]) -> None:
        self._settings = settings
        self._write = write
        self._committed = committed
        self._waiting: deque[_Publish] = deque()
        self._cursors: dict[int, int] = {}
        #: By subscription, the newest cursor ever handed over: at most one entry per row of theirs.
        self._newest: dict[int, int] = {}
        self._messages = 0
        self._bytes = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def publish(self, items: Sequence[Item]) -> list[int]:
        """Append the items, all or none; returns their ids once they are durable.

        Raises :class:`~.errors.InvalidArgument` or :class:`~.errors.TooLarge`
        for a bad item, :class:`~.errors.TooMany` when the queue is full, and
        :class:`~.errors.Unavailable` while shutting down.
        """
        if not items:
            return []
        settings = self._settings
        size = sum(check_item(item, settings) for item in items)
        if self._closed:
            raise Unavailable("the server is going away; nothing was published")
        if self._waiting and (
            self._messages + len(items) > settings.max_pending_messages
            or self._bytes + size > settings.max_pending_bytes
        ):
            raise TooMany(
                f"the database is behind: {self._messages} messages ({self._bytes} bytes) are waiting to be "
                f"written; the limits are {settings.max_pending_messages} messages (max_pending_messages) and "
                f"{settings.max_pending_bytes} bytes (max_pending_bytes); nothing was published"
            )
        publish = _Publish(items, size, asyncio.get_running_loop().create_future())
        self._waiting.append(publish)
        self._messages += len(items)
        self._bytes += size
        self._wake()
        return await publish.done

    def move_cursor(self, subscription_id: int, cursor: int) -> None:
        """Save a subscription's cursor with the next transaction. Does not wait, raises nothing."""
        if cursor > self._newest.get(subscription_id, 0):
            self._newest[subscription_id] = self._cursors[subscription_id] = cursor
            self._wake()

    def newest_cursor(self, subscription_id: int) -> int:
        """The newest cursor that was handed over for a subscription, written already or not."""
        return self._newest.get(subscription_id, 0)

    def forget_cursor(self, subscription_id: int) -> None:
        """Drop a cursor that has not been written yet."""
        self._cursors.pop(subscription_id, None)
        self._newest.pop(subscription_id, None)

    def forget_cursors(self) -> None:
        """Drop all of them: they are of a log that was replaced."""
        self._cursors.clear()
        self._newest.clear()

    def _wake(self) -> None:
        self._idle.clear()
        self._work.set()

    async def run(self) -> None:
        """Write what is waiting, for ever. Cancelled at shutdown, after :meth:`drain`."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting or self._cursors:
                # After a failure, cursors that were kept wait for the next wake-up.
                if not await self._flush() and not self._waiting:
                    break
            self._idle.set()

    async def drain(self, timeout: float) -> bool:
        """Take no more publishes and wait until all that were taken are written; whether they were."""
        self._closed = True
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _take(self) -> list[_Publish]:
        taken: list[_Publish] = []
        messages = size = 0
        while self._waiting:
            publish = self._waiting[0]
            if taken and (messages + len(publish.items) > COMMIT_MESSAGES or size + publish.size > COMMIT_BYTES):
                break
            self._waiting.popleft()
            messages += len(publish.items)
            size += publish.size
            taken.append(publish)
        return taken

    async def _flush(self) -> bool:
        taken = self._take()
        cursors, self._cursors = self._cursors, {}

        def transaction(conn: sqlite3.Connection) -> Committed:
            before = log.head(conn) if taken else 0
            outcomes, messages = _append(conn, [publish.items for publish in taken])
            if cursors:
                subscriptions.move(conn, cursors)
            return Committed(before, messages, outcomes)

        try:
            result = await self._write(transaction)
        except asyncio.CancelledError:
            self._fail(taken, Unavailable("the server is going away; whether this was published is not known"))
            raise
        except Exception as error:
            if not isinstance(error, PubsubError):
                logger.exception("could not write %d publishes", len(taken))
                error = Unavailable("the messages could not be written; nothing was published")
            self._fail(taken, error)
            self._keep(cursors, error)
            return False
        finally:
            self._messages -= sum(len(publish.items) for publish in taken)
            self._bytes -= sum(publish.size for publish in taken)
        if result.messages:
            self._committed(result)
        for publish, outcome in zip(taken, result.outcomes, strict=True):
            if publish.done.done():
                continue
            if isinstance(outcome, PubsubError):
                publish.done.set_exception(outcome)
            else:
                publish.done.set_result(outcome)
        return True

    @staticmethod
    def _fail(taken: list[_Publish], error: PubsubError) -> None:
        for publish in taken:
            if not publish.done.done():
                publish.done.set_exception(error)

    def _keep(self, cursors: dict[int, int], error: PubsubError) -> None:
        """Keep cursors that could not be written now; the next transaction takes them along."""
        if isinstance(error, Unavailable) and not self._closed:
            for subscription_id, cursor in cursors.items():
                if cursor > self._cursors.get(subscription_id, 0) and subscription_id in self._newest:
                    self._cursors[subscription_id] = cursor


def _append(conn: sqlite3.Connection, publishes: list[Sequence[Item]]) -> tuple[list[Outcome], list[Message]]:
    """Append the items of several publishes, together if nothing is refused, else each by itself."""
    if not publishes:
        return [], []
    conditional = any(item.expected_last_id is not None for items in publishes for item in items)
    if len(publishes) == 1 and not conditional:
        ids, messages = log.append(conn, publishes[0], log.now())
        return [ids], messages
    if not conditional:
        conn.execute("SAVEPOINT pubsub_together")
        try:
            ids, messages = log.append(conn, [item for items in publishes for item in items], log.now())
        except sqlite3.IntegrityError:
            conn.execute("ROLLBACK TO pubsub_together")
            conn.execute("RELEASE pubsub_together")
        else:
            conn.execute("RELEASE pubsub_together")
            split = iter(ids)
            return [[next(split) for _ in items] for items in publishes], messages
    outcomes: list[Outcome] = []
    new: list[Message] = []
    for items in publishes:
        conn.execute("SAVEPOINT pubsub_alone")
        try:
            ids, messages = log.append(conn, items, log.now())
        except (PubsubError, sqlite3.IntegrityError) as error:
            conn.execute("ROLLBACK TO pubsub_alone")
            outcomes.append(error if isinstance(error, PubsubError) else InvalidArgument(str(error)))
        else:
            outcomes.append(ids)
            new.extend(messages)
        conn.execute("RELEASE pubsub_alone")
    return outcomes, new
