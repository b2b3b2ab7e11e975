"""One publish stream: publishes in, and what became of each, in the same order.

The law of this module: it knows no HTTP and no wire format. What is taken is
answered, also when the server ends. It takes no more than it can hold: who puts
publishes in waits instead of being refused, and so reads no further.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from ..core.errors import PayloadTooLarge, PermissionDenied, PubsubError
from ..core.events import End, Revoked
from ..core.settings import Settings
from ..core.validation import check_items
from ..core.values import Item
from ..core.verdicts import Rights

#: What one publish stream may have in flight, in bytes: some commits' worth, so
#: that it never waits for its own answers, and a small part of what may wait in all.
STREAM_BYTES = 8 * 1024 * 1024

#: What a publish and each of its messages take in memory beside the payload, in bytes.
OVERHEAD_BYTES = 200

Outcome = Sequence[int] | PubsubError


#: The number of one publish, and what became of it: the ids of its messages, or why none of them is stored.
Answer = tuple[int, Outcome]


class Queue(Protocol):
    """Where publishes go: the batcher."""

    async def room(self, messages: int, size: int) -> None: ...

    def submit(
        self, publishes: Sequence[Sequence[Item]], messages: int, size: int
    ) -> asyncio.Future[list[Outcome]]: ...


class _Batch(NamedTuple):
    """Publishes that were put in together. Those that were refused at once are not in ``done``."""

    numbers: Sequence[int]
    refused: dict[int, PubsubError]
    done: asyncio.Future[list[Outcome]] | None
    weight: int


class PublishStream:
    """One publish stream. ``rights`` is asked at the beginning and then now and then; ``None`` ends the stream."""

    def __init__(
        self, queue: Queue, settings: Settings, database: str, rights: Callable[[], Awaitable[Rights | None]]
    ) -> None:
        #: The number of the newest publish that will be answered; those after it were not taken.
        self.taken = 0
        #: Why the stream was told to end, if it was.
        self.end: End | None = None
        self._queue = queue
        self._settings = settings
        self._database = database
        self._rights = rights
        self._verdicts: Rights | None = None
        self._checked = 0.0
        self._batches: deque[_Batch] = deque()
        self._weight = 0
        #: Set when there is something to answer, or nothing more to come.
        self._more = asyncio.Event()
        #: Set when something was answered.
        self._less = asyncio.Event()
        self._feed: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Ask for the first time. Raises :class:`~.core.errors.PermissionDenied` where nothing may be published."""
        self._verdicts = await self._rights()
        self._checked = asyncio.get_running_loop().time()
        if self._verdicts is None or self._verdicts.publish.nothing:
            raise PermissionDenied(f"permission denied: publish-message on database {self._database}")

    def stop(self, reason: End) -> None:
        """Take no more; what was taken is still answered."""
        if self.end is None:
            self.end = reason
            if self._feed is not None:
                self._feed.cancel()

    async def put(self, numbers: Sequence[int], publishes: Sequence[Sequence[Item] | PubsubError]) -> None:
        """Take publishes, with their numbers in the stream, which grow. Waits while there is no room.

        Each is all or none by itself; an error stands for one that could not be read.
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
        now = asyncio.get_running_loop().time()
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
        """What is accepted and what is refused, and the messages and payload bytes of what is accepted."""
        accepted: list[Sequence[Item]] = []
        refused: dict[int, PubsubError] = {}
        try:
            # As a whole first: nearly always nothing is wrong.
            items = [item for publish in publishes for item in publish]  # type: ignore[union-attr]
            size = self._check(verdicts, items)
        except (PubsubError, TypeError):
            # Below, one by one.
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
            raise PayloadTooLarge(f"{len(items)} messages in one publish; the limit is {limit} (max_batch_messages)")
        for channel in {item.channel for item in items}:
            if not verdicts.publish.allows(channel):
                raise PermissionDenied(
                    f"permission denied: publish-message on channel {channel!r} of database {self._database}"
                )
        # A condition tells of the channel, whether it is met or not.
        for channel in {item.channel for item in items if item.expected_last_id is not None}:
            if not verdicts.view.allows(channel):
                raise PermissionDenied(
                    f"permission denied: view-channel on channel {channel!r} of database {self._database}"
                )
        return check_items(items, self._settings)

    async def answers(self, feed: Coroutine[Any, Any, None]) -> AsyncGenerator[list[Answer]]:
        """Run ``feed``, which calls :meth:`put`, and yield answers until all that it put in are answered.

        What was put in is answered also when ``feed`` fails; then its exception is raised.
        """
        self._feed = asyncio.get_running_loop().create_task(feed, name="pubsub publish stream")
        self._feed.add_done_callback(lambda _: self._more.set())
        if self.end is not None:
            self._feed.cancel()
        try:
            # It begins to read before the first answer, which lets a client go on that waits to be asked.
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
        """Wait for the oldest batch; its answers, and those of all that are done by then."""
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
