"""One live subscriber: from its position to live, as one state machine.

Theory of operation. :meth:`Subscriber._next` looks at the state and says what is to be done now; it waits for nothing
and changes nothing but what it says. The steps, the first that applies:

- ``END``: the stream was told to end; its last frame says why.
- ``CHECK``: the reader's rights are to be looked at again.
- ``SEND``: frames are ready: of messages in the hub's tail, or of an event.
- ``READ``: the position is behind the tail, or a gap is to be told; the next page of the log is read.
- ``WAIT``: there is nothing for this reader, or it must acknowledge first. The hub wakes it.

Two drivers take the steps. :meth:`Subscriber.frames`, an iterator in a task of its own, takes all of them. While it
waits, the hub may call :meth:`Subscriber._serve`, which takes ``SEND`` steps without a turn of that task (the *direct
send*), until there is nothing to send (``WAIT``: the task waits on) or anything else is due (the task is woken). A
send that does not end at once is left to the task, with its step. So exactly one driver acts at a time, and both by
the same rules.

Catch-up and live delivery are the same steps, so there is no hand-over to race (DESIGN.md, decision 4). A stream
holds never more than one send's worth of bytes.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from ..asgi.acknowledged import Acknowledged, Delivery
from ..core.events import AHEAD, End, Gap, Heartbeat, Ready, Revoked
from ..core.values import Page
from .hub import Hub
from .tail import Encoder, Span
from .waiter import Waiter

#: Reads one page of the log after a position, of at most so many messages.
ReadPage = Callable[[int, int], Awaitable[Page]]

#: Begins to send something, outside of the consumer's task; whether it was sent at once. What was not is also yielded.
Begin = Callable[[bytes], bool]

#: How long a subscription with an automatic cursor rests after its very first
#: message, in seconds. A reader that takes one message and leaves (``break``,
#: ``head -1``) is common, and in this mode what has arrived counts as read;
#: so the second message is not sent before the first could have made it leave.
FIRST_MESSAGE_SECONDS = 0.2

#: The shortest wait after a direct send, in seconds: none means that the task is needed.
SOON_SECONDS = 0.001

_ALL = 1 << 30


class What(Enum):
    """The kinds of steps; see the top of this module."""

    END = auto()
    CHECK = auto()
    SEND = auto()
    READ = auto()
    WAIT = auto()


class Step(NamedTuple):
    """What is to be done: of a ``SEND``, the frame of an event or a span of messages; of a ``READ``, how many."""

    what: What
    frame: bytes = b""
    span: Span | None = None
    room: int = 0

    @property
    def data(self) -> bytes:
        """The bytes of a ``SEND``; none where all messages of the span are for others."""
        return self.frame if self.span is None else self.span.data


_END, _CHECK, _WAIT = Step(What.END), Step(What.CHECK), Step(What.WAIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberOptions:
    """How one subscriber is served.

    ``send_bytes``: how much one send carries at most. ``heartbeat_seconds``: after how long without a message it is
    told that the stream lives. ``automatic``: its cursor follows what its machine has acknowledged. ``ahead``: it came
    with a position ahead of the head. ``max_unacked``: no more than so many messages are handed over before
    :meth:`Subscriber.acknowledged` is called (``None``: no limit). ``allowed`` is asked every ``recheck_seconds``, and
    after ``expires_in`` seconds, whether the subscriber keeps its rights (``None``: nobody is asked).
    ``direct_send``: the hub may send in its name; see the top of this module.
    """

    send_bytes: int
    heartbeat_seconds: float
    automatic: bool = False
    ahead: bool = False
    max_unacked: int | None = None
    allowed: Callable[[], Awaitable[bool]] | None = None
    recheck_seconds: float = 60.0
    expires_in: float | None = None
    direct_send: bool = True


class Subscriber:
    """A subscriber's loop. ``position`` is the last id that was handed over or passed by.

    It moves when the consumer asks for the next send, so when the last was taken. With an automatic cursor, what the
    reader's machine has acknowledged is asked for with :meth:`finished`.
    """

    def __init__(
        self,
        hub: Hub,
        waiter: Waiter,
        read_page: ReadPage,
        encoder: Encoder,
        position: int,
        options: SubscriberOptions,
    ) -> None:
        self.position = position
        #: How many sends have told this reader of something: messages, or a gap.
        self.sends = 0
        self._hub = hub
        self._waiter = waiter
        self._read_page = read_page
        self._encoder = encoder
        self._send_bytes = options.send_bytes
        #: How long a wait lasts: until a heartbeat is due, or the next look at the reader's rights.
        self._patience = options.heartbeat_seconds
        if options.allowed is not None:
            self._patience = min(options.heartbeat_seconds, options.recheck_seconds)
        self._direct_send = options.direct_send
        #: Whether the reader's cursor follows what is sent.
        self.automatic = options.automatic
        self._first_alone = options.automatic
        self._acknowledged: Acknowledged | None = None
        #: What the next message is to say about a gap before it.
        self._missed = AHEAD if options.ahead else 0
        #: Where a gap began that the wire format has no event for: it counts as told with the next message.
        self._untold: int | None = None
        self._rewinds = hub.rewinds
        self._max_unacked = options.max_unacked
        self._allowed = options.allowed
        self._recheck_seconds = options.recheck_seconds
        #: The loop's clock, kept for the reason that is told at the waiter's loop.
        self._now = asyncio.get_running_loop().time
        #: When the reader's token ends, on the loop's clock; then its rights are looked at, too.
        self._expiry = math.inf if options.expires_in is None else self._now() + options.expires_in
        self._checked = self._now()
        #: Sends whose messages are not all acknowledged: their last position and how many messages they had.
        self._unacked: deque[tuple[int, int]] | None = None if options.max_unacked is None else deque()
        self._in_flight = 0
        self._end: End | None = None
        self._begin: Begin | None = None
        #: What was given to it and is not sent yet.
        self._begun: Step | None = None
        #: Whether the reader was told that it has caught up; and whether it is yet to be told that it came ahead.
        self._ready = False
        self._tell_ahead = options.ahead
        #: Since when nothing was sent, on the loop's clock; ``None`` until the next wait begins.
        self._idle_since: float | None = None
        #: Whether the wait began when everything up to the head had been read; not so one for acknowledgements.
        self._at_head = False
        #: Ends the pause after a first message; made for it.
        self._ended: asyncio.Event | None = None

    @property
    def settled(self) -> int:
        """Up to here nothing is left to hand over or to tell: the hub's head while the stream waits for more."""
        if self._rewinds != self._hub.rewinds:
            return min(self.position, self._hub.rewound_to)
        if self._untold is not None:
            return self._untold
        waits = self._at_head and not self._waiter.woken
        return max(self.position, self._hub.head) if waits else self.position

    def finished(self) -> tuple[int, bool]:
        """Up to where the reader has everything, as far as that can be known, and whether there is nothing more.

        Where what has arrived cannot be known, that is what was handed over.
        """
        acknowledged = self._acknowledged
        if acknowledged is None or not acknowledged.known or acknowledged.look():
            return self.settled, True
        return min(self.settled, acknowledged.position), False

    @property
    def delivery(self) -> Delivery:
        """What moves the reader's cursor."""
        if not self.automatic:
            return "explicit"
        known = self._acknowledged is not None and self._acknowledged.known
        return "tcp-acknowledged" if known else "handed-over"

    @property
    def end(self) -> End | None:
        """Why the stream was told to end, if it was."""
        return self._end

    def stop(self, reason: End) -> None:
        """Let the stream end with this reason after the send that is under way."""
        if self._end is None:
            self._end = reason
            if self._ended is not None:
                self._ended.set()
            self._waiter.wake()

    def through(self, begin: Begin, acknowledged: Acknowledged | None = None) -> None:
        """Let the hub serve this reader while :meth:`frames` waits, which saves a turn of the consumer's task.

        ``acknowledged`` knows of what was sent how much has arrived.
        """
        if self._direct_send:
            self._begin = begin
            self._waiter.serve = self._serve
        if acknowledged is not None:
            acknowledged.position = self.position
            self._acknowledged = acknowledged

    async def last_looks(self) -> None:
        """Give what was sent last a moment to arrive, before the end of the connection is not waited for."""
        if self._acknowledged is not None:
            await self._acknowledged.last_looks()

    def close(self) -> None:
        """The stream has ended, and its cursor was saved."""
        if self._acknowledged is not None:
            self._acknowledged.close()

    def acknowledged(self, cursor: int) -> None:
        """The reader has finished everything up to here."""
        full = not self._room()
        while self._unacked and self._unacked[0][0] <= cursor:
            self._in_flight -= self._unacked.popleft()[1]
        if full and self._room():
            self._waiter.wake()

    def _room(self) -> int:
        """How many messages may be handed over now."""
        if self._first_alone:
            return 1
        return _ALL if self._max_unacked is None else max(0, self._max_unacked - self._in_flight)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield what is to be sent, until the stream is stopped or the iterator closed.

        Each item is one send; the next is made only when the consumer asks, so
        a slow reader costs no memory and loses nothing.
        """
        while True:
            step, self._begun = self._begun or self._next(self._now()), None
            match step.what:
                case What.END:
                    break
                case What.CHECK:
                    if not await self._recheck(self._now()):
                        self.stop(Revoked())
                    continue
                case What.WAIT:
                    await self._waiter.sleep(self._wait_seconds(self._now()))
                    if self._begun is None:
                        frame = self._woken()
                        if frame:
                            self._idle_since = None
                            yield frame
                    continue
                case What.READ:
                    step = Step(What.SEND, span=await self._from_log(step.room))
                    if self._end is not None:
                        break
            if step.data:
                self._idle_since = None
                yield step.data
            if step.span is not None:
                self._taken(step.span)
                if step.span.messages and self._first_alone:
                    self._first_alone = False
                    await self._first_message()
        frame = self._encoder.event(self._end) if self._end is not None else b""
        if frame:
            yield frame

    def _next(self, now: float) -> Step:
        """What is to be done now; see the top of this module."""
        hub, position = self._hub, self.position
        if self._end is not None:
            return _END
        if self._recheck_due(now):
            return _CHECK
        if self._tell_ahead:
            self._tell_ahead = False
            return Step(What.SEND, self._encoder.event(Gap(AHEAD, position)))
        if self._rewinds != hub.rewinds:
            return Step(What.SEND, self._rewound())
        self._at_head = False
        room = self._room()
        if not room:
            return _WAIT
        if position < hub.tail.base or (self._missed and position < hub.head):
            return Step(What.READ, room=room)
        if position < hub.head:
            return Step(What.SEND, span=self._from_tail(room))
        if not self._ready:
            self._ready = True
            return Step(What.SEND, self._encoder.event(Ready(position)))
        self._at_head = True
        return _WAIT

    def _serve(self, now: float) -> float:
        """The direct send: the steps that need no turn of the task; see :attr:`.live.waiter.Waiter.serve`."""
        assert self._begin is not None
        if self._first_alone:
            return 0.0
        self._resume()
        while (step := self._next(now)).what is What.SEND:
            if step.data:
                self._idle_since = None
                if not self._begin(step.data):
                    self._begun = step
                    return 0.0
            if step.span is not None:
                self._taken(step.span)
                if step.span.data and self.position < self._hub.head:
                    # Others have their turn: the task goes on with what one send did not hold.
                    return 0.0
        return max(self._wait_seconds(now), SOON_SECONDS) if step.what is What.WAIT else 0.0

    def _resume(self) -> None:
        """Skip what was committed for others while this reader waited, having read all before."""
        if self._at_head and self._waiter.resume is not None:
            self._move(self._waiter.resume)

    def _woken(self) -> bytes:
        """A wait has ended, and nothing was sent meanwhile: the heartbeat, if nothing has happened."""
        if self._waiter.woken:
            self._resume()
            return b""
        if self._at_head:
            # Everything up to the head was for others.
            self._move(self._hub.head)
        self._idle_since = None
        return self._encoder.event(Heartbeat(self.position))

    def _from_tail(self, room: int) -> Span:
        hub = self._hub
        return hub.tail.span(self._waiter.selector, self._encoder, self.position, hub.head, self._send_bytes, room)

    def _taken(self, span: Span) -> None:
        """The consumer has taken this; all up to where it ends has been handed over or passed by."""
        if span.data:
            self.sends += 1
        self._move(span.position)
        if not self._missed:
            self._untold = None
        if span.data and self._acknowledged is not None:
            self._acknowledged.mark(self.position)
        if span.messages and self._unacked is not None:
            self._unacked.append((span.last, span.messages))
            self._in_flight += span.messages

    def _wait_seconds(self, now: float) -> float:
        """How long to wait: until a heartbeat is due, however often the reader is woken for nothing meanwhile."""
        if self._idle_since is None:
            self._idle_since = now
        return max(0.0, min(self._idle_since + self._patience, self._expiry) - now)

    def _recheck_due(self, now: float) -> bool:
        """Whether the reader's rights are to be looked at: every ``recheck_seconds``, and when its token ends."""
        return self._allowed is not None and (now >= self._expiry or now - self._checked >= self._recheck_seconds)

    async def _recheck(self, now: float) -> bool:
        """Whether the reader still has them."""
        assert self._allowed is not None
        self._checked = now
        if now >= self._expiry:
            self._expiry = math.inf
        return await self._allowed()

    def _move(self, position: int) -> None:
        if position > self.position:
            self.position = position

    def _rewound(self) -> bytes:
        """The log was restored from a backup: what tells of it, if this reader is ahead of where it ended then."""
        self._rewinds = self._hub.rewinds
        if self.position <= self._hub.rewound_to:
            return b""
        self.position = self._hub.rewound_to
        self._missed, self._untold = AHEAD, None
        if self._unacked is not None:
            self._unacked.clear()
        self._in_flight = 0
        if self._acknowledged is not None:
            self._acknowledged.rewind(self.position)
        return self._encoder.event(Gap(AHEAD, self.position))

    async def _from_log(self, room: int) -> Span:
        page = await self._read_page(self.position, room)
        messages, position = page.messages, page.position
        parts: list[bytes] = []
        if page.missed:
            if self._missed != AHEAD:
                self._missed += page.missed
            frame = self._encoder.event(Gap(page.missed, messages[0].id - 1 if messages else position))
            if not frame and self._untold is None:
                self._untold = self.position
            parts.append(frame)
        for message in messages:
            parts.append(self._encoder.message(message, self._missed))
            self._missed = 0
        return Span(b"".join(parts), position, len(messages), messages[-1].id if messages else 0)

    async def _first_message(self) -> None:
        if self._end is not None:
            return
        self._ended = asyncio.Event()
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            pass
        self._ended = None
