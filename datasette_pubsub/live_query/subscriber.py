"""One subscriber of a live query: its stream of frames, as one state machine.

Theory of operation. Each turn of :meth:`QuerySubscriber.frames` does the first of these that applies: *end* the stream,
if it was stopped; *re-check* permissions, if that is due; *send* what leads from the subscriber's version of the result
to the newest; else *wait* until the query wakes it, or until a heartbeat is due. A subscriber holds no queue: one that
is slow gets several changes in one send or, when these are no longer kept, the whole result again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from ..core.events import End, Heartbeat, Revoked
from ..core.selector import Selector
from ..live.waiter import Waiter
from .query import Encoder, LiveQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySubscriberOptions:
    """Options of one subscriber.

    It counts for ``party``, an actor or address. ``heartbeat_seconds``: the silence after which a heartbeat is sent.
    ``allowed`` is called every ``recheck_seconds``, and once after ``expires_in`` seconds, to re-check permissions.
    ``send_bytes``: about the most bytes of one send of changes.
    """

    party: str = ""
    heartbeat_seconds: float = 15.0
    send_bytes: int = 256 * 1024
    allowed: Callable[[], Awaitable[bool]] | None = None
    recheck_seconds: float = 60.0
    expires_in: float | None = None


class QuerySubscriber:
    """One subscriber of a live query."""

    def __init__(self, query: LiveQuery, encoder: Encoder, options: QuerySubscriberOptions) -> None:
        self._query = query
        self._encoder = encoder
        self._options = options
        self._version = -1
        #: Its wait, with one timer for many; the hub, which else uses waiters, does not know it.
        self._waiter = Waiter(Selector())
        self._end: End | None = None
        self._now = asyncio.get_running_loop().time
        self._checked = self._now()
        self._expiry = math.inf if options.expires_in is None else self._now() + options.expires_in

    @property
    def end(self) -> End | None:
        """The reason why the stream was stopped, if it was."""
        return self._end

    def stop(self, reason: End) -> None:
        """End the stream with this reason, after the present send."""
        if self._end is None:
            self._end = reason
            self.wake()

    def wake(self) -> None:
        """The query has something new."""
        self._waiter.wake()

    def close(self) -> None:
        """The stream has ended: no timer stays."""
        self._waiter.leave()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of each send, until the subscriber is stopped or the iterator is closed."""
        options = self._options
        silent_since = self._now()
        while self._end is None:
            now = self._now()
            if self._recheck_due(now):
                if not await self._recheck(now):
                    self.stop(Revoked())
                continue
            self._version, frame = self._query.since(self._version, self._encoder, options.send_bytes)
            if not frame and now - silent_since >= options.heartbeat_seconds:
                frame = self._encoder.event(Heartbeat(self._query.result.head if self._query.result else 0))
                silent_since = now
            if frame:
                yield frame
                silent_since = self._now()
                continue
            until = min(silent_since + options.heartbeat_seconds, self._next_check())
            # Nothing was awaited since the version was looked at: so no wake-up is missed.
            await self._waiter.sleep(max(0.0, until - now))
        frame = self._encoder.event(self._end)
        if frame:
            yield frame

    def _next_check(self) -> float:
        if self._options.allowed is None:
            return math.inf
        return min(self._checked + self._options.recheck_seconds, self._expiry)

    def _recheck_due(self, now: float) -> bool:
        return now >= self._next_check()

    async def _recheck(self, now: float) -> bool:
        assert self._options.allowed is not None
        self._checked = now
        if now >= self._expiry:
            self._expiry = math.inf
        return await self._options.allowed()
