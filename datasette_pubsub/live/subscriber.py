"""One live subscriber: from its position to live, as one state machine.

Theory of operation. :meth:`Subscriber._next` looks at the state and says what is to be done now; it waits for nothing
and changes nothing but what it says. The steps, the first that applies:

- ``END``: the stream was stopped; its last frame says why.
- ``CHECK``: it is time to re-check permissions.
- ``SEND``: frames are ready: of messages in the hub's tail, or of an event.
- ``READ``: the tail cannot serve the position, or not this filter, or a gap has to be reported; a page is read.
- ``WAIT``: there is nothing to send, or the subscriber must acknowledge first, or it is *ahead*. The hub wakes it.

Two drivers take the steps. :meth:`Subscriber.frames`, an iterator in a task of its own, takes all of them. While it
waits, the hub may call :meth:`Subscriber._serve`, which takes ``SEND`` steps without running that task (the *direct
send*), until there is nothing to send (``WAIT``: the task waits on) or another step is due (the task is woken). If a
send does not end at once, the task finishes it. So exactly one driver acts at a time, and both follow the same rules.

A subscriber is *ahead* while its position is one that a copy (:attr:`.hub.Hub.origin`) has not reached yet: it has come
from another copy of the same log that had more, or the copy's file was restored. It waits, with heartbeats and without
``Ready``. When the head has reached its position, it goes on after it, and gets nothing twice. It goes back to the
``floor``, as the subscriber of any other log does at once, and reports a gap of ``AHEAD``:

- when the time for the wait is over;
- when the log is no copy any more, which the hub knows before it gives out a message of the log's own. After
  ``promote``, the ids after the floor are those of other messages, which this subscriber has not had;
- when the log was restored, and is not a copy of the same stream as before. (If it is, the ids that went come again
  with the same messages, so that a subscriber which is ahead by the restore waits, too.)

Until then nothing moves its cursor: it is settled up to the floor.

Catch-up and live delivery are the same steps, so there is no hand-over between them that could race
(docs/architecture.md). A subscriber never holds more bytes than one send.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable

from ..asgi.acknowledged import Acknowledged, Delivery
from ..core.events import AHEAD, End, Gap, Heartbeat, Ready, Revoked
from ..core.values import Page
from .hub import Hub
from .options import Ahead, SubscriberOptions
from .revalidation import Revalidation
from .steps import CHECK, END, WAIT, Step, What
from .tail import Encoder, Span
from .unacked import Unacked
from .waiter import Waiter

#: Reads one page of the log: the messages after a position, at most this many.
ReadPage = Callable[[int, int], Awaitable[Page]]

#: Begins a send outside of the consumer's task; returns whether it ended at once. If not, the iterator yields it too.
Begin = Callable[[bytes], bool]

#: How long a subscription with an automatic cursor pauses after its first message, in seconds. A client often takes one
#: message and leaves (``break``, ``head -1``), and in this mode an arrived message counts as processed; so the second
#: message is not sent before the client has had time to leave.
FIRST_MESSAGE_SECONDS = 0.2

#: The shortest wait after a direct send, in seconds: 0 would mean that the task is needed.
SOON_SECONDS = 0.001


class Subscriber:
    """One subscriber. ``position`` is the last id that was sent, or skipped since the subscriber does not follow it.

    ``position`` moves when the consumer asks for the next send, so after it has taken the last one. With an automatic
    cursor, :meth:`finished` returns the position that the subscriber's machine has acknowledged.
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
        #: How many sends had messages or reported a gap, and how many messages were sent.
        self.sends = self.delivered = 0
        self._hub = hub
        self._waiter = waiter
        self._read_page = read_page
        self._encoder = encoder
        self._send_bytes = options.send_bytes
        #: The longest wait: until the next heartbeat or the next re-check of permissions is due.
        self._patience = options.heartbeat_seconds
        if options.allowed is not None:
            self._patience = min(options.heartbeat_seconds, options.recheck_seconds)
        self._direct_send = options.direct_send
        self._read_to = options.read_to
        #: Whether the subscription's cursor follows what is sent.
        self.automatic = options.automatic
        self._first_alone = options.automatic
        self._acknowledged: Acknowledged | None = None
        #: The number of missed messages that the next message reports.
        self._missed = AHEAD if options.ahead else 0
        #: Where a gap began, if the wire format has no event for it: the next message reports the gap.
        self._untold: int | None = None
        self._rewinds = hub.rewinds
        self._await_seconds = options.await_seconds
        #: The loop's clock, kept because asking for the loop costs a system call on Python 3.11.
        self._now = asyncio.get_running_loop().time
        now = self._now()
        self._revalidation = Revalidation(options.allowed, options.recheck_seconds, options.expires_in, now)
        #: Set while the subscriber is ahead.
        self._ahead = None if options.floor is None else self._await(options.floor, now + self._await_seconds)
        self._unacked = Unacked(options.max_unacked)
        self._end: End | None = None
        self._begin: Begin | None = None
        #: The step of a direct send that did not end at once.
        self._begun: Step | None = None
        #: Whether ``Ready`` was sent; and whether the gap of a position ahead of the head is still to be reported.
        self._ready = False
        self._tell_ahead = options.ahead
        #: The time of the last send, on the loop's clock; ``None`` until the next wait begins.
        self._idle_since: float | None = None
        #: Whether the present wait began at the head; a wait for acknowledgements may begin before it.
        self._at_head = False
        #: Ends the pause after the first message; ``None`` outside of that pause.
        self._ended: asyncio.Event | None = None

    @property
    def settled(self) -> int:
        """Up to this id nothing is left to send or to report: the hub's head while the subscriber waits for more."""
        if self._rewinds != self._hub.rewinds:
            return min(self.position if self._ahead is None else self._ahead.floor, self._hub.rewound_to)
        if self._ahead is not None:
            return self._ahead.floor
        if self._untold is not None:
            return self._untold
        waits = self._at_head and not self._waiter.woken
        return max(self.position, self._hub.head) if waits else self.position

    def finished(self) -> tuple[int, bool]:
        """The position up to which everything has arrived, and whether everything that was sent has arrived.

        If the server cannot know what has arrived, everything that was sent counts as arrived.
        """
        acknowledged = self._acknowledged
        if acknowledged is None or not acknowledged.known or acknowledged.look():
            return self.settled, True
        return min(self.settled, acknowledged.position), False

    @property
    def passed(self) -> int:
        """With explicit acks: up to this id everything was acknowledged, or was not for this subscriber; 0: unknown."""
        return 0 if self._unacked else self.settled

    @property
    def delivery(self) -> Delivery:
        """What moves the subscription's cursor."""
        if not self.automatic:
            return "explicit"
        known = self._acknowledged is not None and self._acknowledged.known
        return "tcp-acknowledged" if known else "handed-over"

    @property
    def ahead(self) -> bool:
        """Whether it waits until the log has reached its position."""
        return self._ahead is not None

    @property
    def end(self) -> End | None:
        """The reason why the subscriber was stopped, if it was."""
        return self._end

    def stop(self, reason: End) -> None:
        """End the stream with this reason, after the present send."""
        if self._end is None:
            self._end = reason
            if self._ended is not None:
                self._ended.set()
            self._waiter.wake()

    def through(self, begin: Begin, acknowledged: Acknowledged | None = None) -> None:
        """Enable the direct send: while :meth:`frames` waits, the hub sends without waking the consumer's task.

        ``acknowledged`` knows how many of the sent bytes have arrived.
        """
        if self._direct_send:
            self._begin = begin
            self._waiter.serve = self._serve
        if acknowledged is not None:
            acknowledged.position = self.position
            self._acknowledged = acknowledged

    async def last_looks(self) -> None:
        """Wait a moment for the last send to arrive, before the stream ends."""
        if self._acknowledged is not None:
            await self._acknowledged.last_looks()

    def close(self) -> None:
        """Release what the subscriber holds; called when its stream has ended and its cursor was saved."""
        if self._acknowledged is not None:
            self._acknowledged.close()

    def acknowledged(self, cursor: int) -> None:
        """Note that the subscriber has acknowledged every message up to this cursor."""
        full = not self._unacked.room
        self._unacked.acknowledge(cursor)
        if full and self._unacked.room:
            self._waiter.wake()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of each send, until the subscriber is stopped or the iterator is closed.

        The next send is made when the consumer asks for it: a slow one takes no memory and loses no message.
        """
        while True:
            step, self._begun = self._begun or self._next(self._now()), None
            match step.what:
                case What.END:
                    break
                case What.CHECK:
                    if not await self._revalidation.ask(self._now()):
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
                if not step.span.data and self.position < self._hub.head:
                    await asyncio.sleep(0)  # a filter lets nothing pass: others have their turn
                if step.span.messages and self._first_alone:
                    self._first_alone = False
                    await self._first_message()
        frame = self._encoder.event(self._end) if self._end is not None else b""
        if frame:
            yield frame

    def _next(self, now: float) -> Step:
        """The step that is due now; the module's docstring explains the steps."""
        hub, position = self._hub, self.position
        if self._end is not None:
            return END
        if self._revalidation.due(now):
            return CHECK
        if self._tell_ahead:
            self._tell_ahead = False
            return Step(What.SEND, self._encoder.event(Gap(AHEAD, position)))
        if self._rewinds != hub.rewinds:
            return Step(What.SEND, self._rewound(now))
        self._at_head = False
        if self._ahead is not None:
            if hub.origin is not None and position > hub.head and now < self._ahead.until:
                return WAIT
            return Step(What.SEND, self._reached(self._ahead.floor))
        room = 1 if self._first_alone else self._unacked.room
        if not room:
            return WAIT
        if position < hub.tail.base or position < self._read_to or (self._missed and position < hub.head):
            return Step(What.READ, room=room)
        if position < hub.head:
            tail, selector = hub.tail, self._waiter.selector
            span = tail.span(selector, self._encoder, position, hub.head, self._send_bytes, room)
            return Step(What.READ, room=room) if span is None else Step(What.SEND, span=span)
        if not self._ready:
            self._ready = True
            return Step(What.SEND, self._encoder.event(Ready(position)))
        self._at_head = True
        return WAIT

    def _serve(self, now: float) -> float:
        """The direct send: take the steps that do not need the task; see :attr:`.live.waiter.Waiter.serve`."""
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
                if self.position < self._hub.head and (step.span.data or self._waiter.selector.filter):
                    # The rest did not fit into one span. The task sends it, so that other subscribers have their turn.
                    return 0.0
        return max(self._wait_seconds(now), SOON_SECONDS) if step.what is What.WAIT else 0.0

    def _resume(self) -> None:
        """Skip messages that were committed during a wait at the head and that this subscriber does not follow."""
        if self._at_head and self._waiter.resume is not None:
            self._move(self._waiter.resume)

    def _woken(self) -> bytes:
        """The frame to send after a wait in which nothing was sent: a heartbeat if the wait timed out, else nothing."""
        if self._waiter.woken:
            self._resume()
            return b""
        if self._ahead is not None and self._now() >= self._ahead.until:
            return b""
        if self._at_head:
            # The subscriber follows no message up to the head.
            self._move(self._hub.head)
        self._idle_since = None
        return self._encoder.event(Heartbeat(self.position))

    def _taken(self, span: Span) -> None:
        """Move the position to the end of a span that the consumer has taken."""
        if span.data:
            self.sends += 1
        self._move(span.position)
        if not self._missed:
            self._untold = None
        if span.data and self._acknowledged is not None:
            self._acknowledged.mark(self.position)
        if span.messages:
            self.delivered += span.messages
            self._hub.delivered += span.messages
            self._unacked.add(span.last, span.messages)

    def _wait_seconds(self, now: float) -> float:
        """How long to wait: until the next heartbeat is due, even if waits without a send came in between."""
        if self._idle_since is None:
            self._idle_since = now
        until = math.inf if self._ahead is None else self._ahead.until
        return max(0.0, min(self._idle_since + self._patience, self._revalidation.expiry, until) - now)

    def _move(self, position: int) -> None:
        if position > self.position:
            self.position = position

    def _rewound(self, now: float) -> bytes:
        """The log was restored from a backup: the frame that reports a gap, if this subscriber was ahead of the log."""
        hub, ahead = self._hub, self._ahead
        self._rewinds = hub.rewinds
        self._read_to = 0
        if ahead is None and self.position <= hub.rewound_to:
            return b""
        floor = hub.rewound_to if ahead is None else min(ahead.floor, hub.rewound_to)
        if not hub.returns or not self._await_seconds:
            return self._go_back(floor)
        self._ahead = self._await(floor, now + self._await_seconds if ahead is None else ahead.until)
        return b""

    def _await(self, floor: int, until: float) -> Ahead:
        self._hub.await_head(self._waiter, self.position)
        return Ahead(floor, until)

    def _reached(self, floor: int) -> bytes:
        """The wait for the head has ended: the frame that reports a gap, unless the head has reached the position."""
        self._ahead = None
        reached = self._hub.origin is not None and self.position <= self._hub.head
        return b"" if reached else self._go_back(floor)

    def _go_back(self, position: int) -> bytes:
        """What was sent after this position belongs to another log: the frame that reports the gap."""
        self._ahead = None
        self.position = position
        self._missed, self._untold = AHEAD, None
        self._unacked.clear()
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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                await self._ended.wait()
        self._ended = None
