"""A subscriber's place at the hub: whether there is something for it, and its wait for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..core.selector import Selector


class Waiter:
    """One live subscriber, from :meth:`Hub.register` to :meth:`Hub.unregister`."""

    __slots__ = ("_deadline", "_future", "_loop", "_timer", "due", "resume", "selector", "serve", "woken")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        #: Set by the hub, cleared by :meth:`sleep`: something has happened since the last wait began.
        self.woken = True
        #: Up to here there is nothing for this subscriber, if it had read all before it waited.
        self.resume: int | None = None
        #: Whether the hub will serve this one; it is then in the hub's line.
        self.due = False
        #: Serves the subscriber in place of the task that waits. Given the time on the loop's clock, it says how long
        #: to wait for more, in seconds, or 0 when the task is needed.
        self.serve: Callable[[float], float] | None = None
        #: Asked for once: on Python 3.11 that is a system call.
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        #: When the wait that is under way ends by itself, on the loop's clock.
        self._deadline = 0.0
        #: Outlives the waits that are woken, and looks at the deadline when it fires: a
        #: timer made and cancelled for each wait costs more than the wait.
        self._timer: asyncio.TimerHandle | None = None

    def wake(self, resume: int | None = None) -> None:
        """End the present or the next wait."""
        self.mark(resume)
        if self._waits():
            self._end()

    def mark(self, resume: int | None = None) -> None:
        """Something has happened; :meth:`release` is to follow."""
        if not self.woken:
            self.woken = True
            self.resume = resume

    def release(self, now: float) -> None:
        """Serve who waits, if something has happened since, or let him look himself. Called outside of any task."""
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
        """Say that everything up to the hub's head has been read; what to await then, without a look at anything else.

        It is done when woken, and after ``timeout`` seconds; ``woken`` says which of the two it was.
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
        """There will be no further wait."""
        # It knows the stream, which knows this: neither would be freed before a garbage collection.
        self.serve = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
