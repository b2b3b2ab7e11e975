"""One publish stream: it accepts publishes and answers each, in the same order.

Every publish that it has taken is answered, even when the server shuts down. It holds a bounded number of bytes: when
it is full, :meth:`PublishStream.put` waits, and the protocol reads no further from the publisher (back-pressure).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from ..core.errors import PayloadTooLarge, PermissionDenied, PubsubError
from ..core.events import End, Revoked
from ..core.settings import Settings
from ..core.validation import check_items
from ..core.values import Item
from ..core.verdicts import Rights

#: The most bytes that one publish stream may have in flight: enough for several commits, so that it never waits for
#: its own answers, and a small part of ``max_pending_bytes``.
STREAM_BYTES = 8 * 1024 * 1024

#: The memory that a publish, and each of its messages, takes beside the payload, in bytes.
OVERHEAD_BYTES = 200

Outcome = Sequence[int] | PubsubError


#: The number of one publish and its result: the ids of its messages, or the error that refused them all.
Answer = tuple[int, Outcome]


class Queue(Protocol):
    """The batcher, as a publish stream uses it."""

    async def room(self, messages: int, size: int) -> None: ...

    def submit(
        self, publishes: Sequence[Sequence[Item]], messages: int, size: int
    ) -> asyncio.Future[list[Outcome]]: ...


class _Batch(NamedTuple):
    """Publishes that one call of :meth:`PublishStream.put` has taken. Those in ``refused`` are not in ``done``."""

    numbers: Sequence[int]
    refused: dict[int, PubsubError]
    done: asyncio.Future[list[Outcome]] | None
    weight: int


class PublishStream:
    """One publish stream. ``rights`` returns what it may publish, and is called again to re-check permissions.

    The stream ends when ``rights`` returns ``None``.
    """

    def __init__(
        self, queue: Queue, settings: Settings, database: str, rights: Callable[[], Awaitable[Rights | None]]
    ) -> None:
        #: The number of the newest publish that will be answered; the publishes after it were not taken.
        self.taken = 0
        #: The reason why the stream was stopped, if it was.
        self.end: End | None = None
        self._queue = queue
        self._settings = settings
        self._database = database
        self._rights = rights
        self._verdicts: Rights | None = None
        self._checked = 0.0
        self._batches: deque[_Batch] = deque()
        self._weight = 0
        #: Set when there is a batch to answer, or when the feed has ended.
        self._more = asyncio.Event()
        #: Set when a batch was answered.
        self._less = asyncio.Event()
        self._feed: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Check permissions for the first time.

        Raises :class:`~.core.errors.PermissionDenied` if the publisher may publish to no channel.
        """
        self._verdicts = await self._rights()
        self._checked = time.monotonic()
        if self._verdicts is None or self._verdicts.publish.nothing:
            raise PermissionDenied(f"permission denied: publish-message on database {self._database}")

    def stop(self, reason: End) -> None:
        """Take no more publishes; those that were taken are still answered."""
        if self.end is None:
            self.end = reason
            if self._feed is not None:
                self._feed.cancel()

    async def put(self, numbers: Sequence[int], publishes: Sequence[Sequence[Item] | PubsubError]) -> None:
        """Take publishes, with their increasing numbers in the stream. Waits while the stream or the batcher is full.

        Each publish is stored whole or not at all. An error stands for a publish that could not be read.
        """
        verdicts = await self._current()
        accepted, refused, messages, size = self._sift(verdicts, numbers, publishes)
        weight = size + OVERHEAD_BYTES * (messages + len(publishes))
        while self._batches and self._weight + weight > STREAM_BYTES:
            self._less.clear()
            await self._less.wait()
        done = None
        if accepted:
            await self._queue.room(messages, size)
            done = self._queue.submit(accepted, messages, size)
        self._batches.append(_Batch(numbers, refused, done, weight))
        self._weight += weight
        self.taken = numbers[-1]
        self._more.set()

    async def _current(self) -> Rights:
        now = time.monotonic()
        if self._verdicts is None or now - self._checked >= self._settings.permission_recheck_seconds:
            self._checked = now
            self._verdicts = await self._rights()
            if self._verdicts is None:
                self.stop(Revoked())
                raise asyncio.CancelledError
        return self._verdicts

    def _sift(
        self, verdicts: Rights, numbers: Sequence[int], publishes: Sequence[Sequence[Item] | PubsubError]
    ) -> tuple[list[Sequence[Item]], dict[int, PubsubError], int, int]:
        """The accepted publishes, the refused ones, and how many messages and payload bytes the accepted ones have."""
        accepted: list[Sequence[Item]] = []
        refused: dict[int, PubsubError] = {}
        try:
            # Check all together first: nearly always nothing is wrong.
            items = [item for publish in publishes for item in publish]  # type: ignore[union-attr]
            size = self._check(verdicts, items)
        except (PubsubError, TypeError):
            # Something is wrong: check one by one, below.
            pass
        else:
            return list(publishes), refused, len(items), size  # type: ignore[arg-type]
        messages = size = 0
        for number, publish in zip(numbers, publishes, strict=True):
            if isinstance(publish, PubsubError):
                refused[number] = publish
                continue
            try:
                size += self._check(verdicts, publish)
            except PubsubError as error:
                refused[number] = error.bare()
            else:
                messages += len(publish)
                accepted.append(publish)
        return accepted, refused, messages, size

    def _check(self, verdicts: Rights, items: Sequence[Item]) -> int:
        limit = self._settings.max_batch_messages
        if len(items) > limit:
            raise PayloadTooLarge(
                f"{len(items)} messages in one publish; the limit is {limit} (max_batch_messages)",
                limit="max_batch_messages",
            )
        for channel in {item.channel for item in items}:
            if not verdicts.publish.allows(channel):
                raise PermissionDenied(
                    f"permission denied: publish-message on channel {channel!r} of database {self._database}"
                )
        # A condition reveals the channel's newest id, whether it is met or not.
        for channel in {item.channel for item in items if item.expected_last_id is not None}:
            if not verdicts.view.allows(channel):
                raise PermissionDenied(
                    f"permission denied: view-channel on channel {channel!r} of database {self._database}"
                )
        return check_items(items, self._settings)

    async def answers(self, feed: Coroutine[Any, Any, None]) -> AsyncGenerator[list[Answer]]:
        """Run ``feed``, which calls :meth:`put`, and yield answers until every publish that it put is answered.

        This also holds if ``feed`` fails; its exception is raised after the last answer.
        """
        self._feed = asyncio.get_running_loop().create_task(feed, name="pubsub publish stream")
        self._feed.add_done_callback(lambda _: self._more.set())
        if self.end is not None:
            self._feed.cancel()
        try:
            # The feed begins to read before the first answer: some clients wait for that before they send anything.
            await asyncio.sleep(0)
            yield []
            while True:
                self._more.clear()
                if self._batches:
                    yield await self._next()
                elif self._feed.done():
                    break
                else:
                    await self._more.wait()
            if not self._feed.cancelled():
                self._feed.result()
        finally:
            self._feed.cancel()

    async def _next(self) -> list[Answer]:
        """Wait for the oldest batch; returns its answers, and those of all batches that are done by then."""
        first = self._batches[0]
        if first.done is not None:
            with contextlib.suppress(PubsubError):
                await first.done
        answers: list[Answer] = []
        while self._batches and ((done := self._batches[0].done) is None or done.done()):
            batch = self._batches.popleft()
            self._weight -= batch.weight
            answers += _answers(batch)
        self._less.set()
        return answers


def _answers(batch: _Batch) -> list[Answer]:
    outcomes: Sequence[Outcome] = ()
    if batch.done is not None:
        error = batch.done.exception()
        if error is None:
            outcomes = batch.done.result()
        elif isinstance(error, PubsubError):
            outcomes = [error] * (len(batch.numbers) - len(batch.refused))
        else:
            raise error
    if not batch.refused:
        return list(zip(batch.numbers, outcomes, strict=True))
    rest = iter(outcomes)
    return [(number, batch.refused.get(number) or next(rest)) for number in batch.numbers]
