"""One subscriber of a live query: its stream of frames, as one state machine.

Theory of operation. Each turn of :meth:`QuerySubscriber.frames` does the first of these that applies: *end* the stream,
if it was stopped; *re-check* permissions, if that is due; *send* what leads from the subscriber's version of the result
to the newest; else *wait* until the query wakes it, or until a heartbeat is due. A subscriber holds no queue: one that
is slow gets several changes in one send or, when these are no longer kept, the whole result again.

While its task waits, a change puts the subscriber into the query's line, which serves it directly
(:meth:`QuerySubscriber._serve`): it sends the change without running the task, as :mod:`.live.subscriber` does with
messages. The task is woken if the stream is to end, if a re-check is due, if more than one send is needed, or to finish
a send that did not end at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from ..core.events import End, Heartbeat, Revoked
from ..core.selector import Selector
from ..live.line import Line
from ..live.subscriber import SOON_SECONDS, Begin
from ..live.waiter import Waiter
from .query import Encoder, LiveQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySubscriberOptions:
    """Options of one subscriber.

    It counts for ``party``, an actor or address. ``heartbeat_seconds``: the silence after which a heartbeat is sent.
    ``allowed`` is called every ``recheck_seconds``, and once after ``expires_in`` seconds, to re-check permissions.
    ``send_bytes``: about the most bytes of one send of changes. ``direct_send``: whether changes may be sent without
    the subscriber's task.
    """

    party: str = ""
    heartbeat_seconds: float = 15.0
    send_bytes: int = 256 * 1024
    allowed: Callable[[], Awaitable[bool]] | None = None
    recheck_seconds: float = 60.0
    expires_in: float | None = None
    direct_send: bool = True


class QuerySubscriber:
    """One subscriber of a live query."""

    def __init__(self, query: LiveQuery, encoder: Encoder, options: QuerySubscriberOptions, line: Line) -> None:
        self._query = query
        self._line = line
        self._encoder = encoder
        self._options = options
        self._version = -1
        #: Its wait, with one timer for many; the hub, which else uses waiters, does not know it.
        self._waiter = Waiter(Selector())
        self._end: End | None = None
        self._begin: Begin | None = None
        #: A frame whose direct send did not end at once.
        self._begun = b""
        self._now = asyncio.get_running_loop().time
        self._checked = self._silent_since = self._now()
        self._expiry = math.inf if options.expires_in is None else self._now() + options.expires_in

    @property
    def end(self) -> End | None:
        """The reason why the stream was stopped, if it was."""
        return self._end

    def stop(self, reason: End) -> None:
        """End the stream with this reason, after the present send."""
        if self._end is None:
            self._end = reason
            self._waiter.wake()

    def wake(self) -> None:
        """The query has something new; the line serves the subscriber when it begins."""
        self._waiter.mark()
        self._line.put(self._waiter)

    def through(self, begin: Begin) -> None:
        """Enable the direct send: ``begin`` begins a send while the task waits, as for a live subscriber."""
        if self._options.direct_send:
            self._begin = begin
            self._waiter.serve = self._serve

    def close(self) -> None:
        """The stream has ended: no timer stays."""
        self._waiter.leave()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of each send, until the subscriber is stopped or the iterator is closed."""
        options = self._options
        while True:
            if self._begun:
                frame, self._begun = self._begun, b""
                yield frame
                self._silent_since = self._now()
                continue
            if self._end is not None:
                break
            now = self._now()
            if self._recheck_due(now):
                if not await self._recheck(now):
                    self.stop(Revoked())
                continue
            self._version, frame = self._query.since(self._version, self._encoder, options.send_bytes)
            if not frame and now - self._silent_since >= options.heartbeat_seconds:
                frame = self._encoder.event(Heartbeat(self._query.result.head if self._query.result else 0))
                self._silent_since = now
            if frame:
                yield frame
                self._silent_since = self._now()
                continue
            # Nothing was awaited since the version was looked at: so no wake-up is missed.
            await self._waiter.sleep(self._wait_seconds(now))
        frame = self._encoder.event(self._end)
        if frame:
            yield frame

    def _serve(self, now: float) -> float:
        """The direct send: see :attr:`.live.waiter.Waiter.serve`."""
        assert self._begin is not None
        if self._end is not None or self._recheck_due(now):
            return 0.0
        self._version, frame = self._query.since(self._version, self._encoder, self._options.send_bytes)
        if frame:
            self._silent_since = now
            if not self._begin(frame):
                self._begun = frame
                return 0.0
            if self._version != self._query.version:
                # The task sends the rest, so that other subscribers have their turn.
                return 0.0
        return max(self._wait_seconds(now), SOON_SECONDS)

    def _wait_seconds(self, now: float) -> float:
        return max(0.0, min(self._silent_since + self._options.heartbeat_seconds, self._next_check()) - now)

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
