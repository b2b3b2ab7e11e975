"""A subscriber's place at the hub: whether it has something to receive, and its wait for that.

Theory of operation. A waiter is in one of these states:

- *running*: no wait is under way; the subscriber's task looks at its state before it waits again.
- *waiting*: the task has called :meth:`Waiter.sleep` and awaits the future; ``woken`` is false.
- *marked*: it still waits, and ``woken`` is true: :meth:`Waiter.mark` was called by the hub, which has put it in line.

The hub moves it from waiting to marked, and then calls :meth:`Waiter.release`. That serves the subscriber directly
(``serve``), which moves the waiter back to waiting; if the task is needed, release ends the wait, and the waiter is
running. :meth:`Waiter.wake` ends the wait at once, from either state: for a stream that is to end, for an ack that
makes room, for a head that has skipped or moved back. The timer ends it at the deadline with ``woken`` still false:
the task then sends a heartbeat. :meth:`Waiter.leave` comes last, when the hub has removed the subscriber.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..core.selector import Selector


class Waiter:
    """One live subscriber, from :meth:`Hub.register` to :meth:`Hub.unregister`."""

    __slots__ = ("_deadline", "_future", "_loop", "_timer", "due", "resume", "selector", "serve", "woken")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        #: Whether something has happened since the last wait began. Set by the hub, cleared by :meth:`sleep`.
        self.woken = True
        #: Up to this id there is nothing for this subscriber, if it had read up to the head before it waited.
        self.resume: int | None = None
        #: Whether it is in the hub's line.
        self.due = False
        #: The direct send: serves the subscriber in place of its waiting task. It takes the time on the loop's clock,
        #: and returns how many seconds to wait for more, or 0 if the task is needed.
        self.serve: Callable[[float], float] | None = None
        #: Kept, since asking for the loop costs a system call on Python 3.11.
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        #: When the present wait times out, on the loop's clock.
        self._deadline = 0.0
        #: One timer for many waits, which compares the deadline when it fires: making and cancelling a timer for each
        #: wait costs more than the wait.
        self._timer: asyncio.TimerHandle | None = None

    def wake(self, resume: int | None = None) -> None:
        """Mark the waiter, and end its wait if it is waiting."""
        self.mark(resume)
        if self._waits():
            self._end()

    def mark(self, resume: int | None = None) -> None:
        """Note that something has happened; the hub calls :meth:`release` later."""
        if not self.woken:
            self.woken = True
            self.resume = resume

    def release(self, now: float) -> None:
        """Serve a marked subscriber directly, or end the wait of its task. Called outside of any task."""
        if not self.woken or not self._waits():
            return
        seconds = 0.0
        try:
            if self.serve is not None:
                seconds = self.serve(now)
        finally:
            if seconds:
                self._wait_until(now + seconds)
            else:
                self._end()

    def sleep(self, timeout: float) -> asyncio.Future[None]:
        """Begin a wait; returns the future to await.

        The subscriber calls this after :meth:`.subscriber.Subscriber._next` has found nothing to do, without awaiting
        anything in between. The future is done when the waiter is woken, or after ``timeout`` seconds; ``woken`` says
        which of the two.
        """
        self._future = self._loop.create_future()
        self._wait_until(self._loop.time() + timeout)
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        return self._future

    def _wait_until(self, deadline: float) -> None:
        self.woken = False
        self.resume = None
        self._deadline = deadline

    def _waits(self) -> bool:
        return self._future is not None and not self._future.done()

    def _end(self) -> None:
        assert self._future is not None
        self._future.set_result(None)

    def _expire(self) -> None:
        self._timer = None
        if not self._waits():
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        else:
            self._end()

    def leave(self) -> None:
        """End the waiter: the subscriber waits no more."""
        # This breaks a reference cycle: without it, the subscriber stays in memory until a garbage collection.
        self.serve = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
