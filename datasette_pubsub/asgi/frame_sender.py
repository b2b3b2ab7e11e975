"""Sends the frames of a stream to the server, each within a time limit.

Theory of operation of the direct send. A frame sender has one task, which takes frames from an iterator and sends them.
Its states:

- *sending*: the task awaits a send.
- *waiting*: the task waits in the iterator for the next frame. Only now may the hub call :meth:`FrameSender.begin`,
  which runs the first step of a send as if the task had called it. If the send ends in that step, the sender is waiting
  again, and the task has not run at all.
- *begun*: the send did not end in its first step, or it failed. The subscriber then wakes the task, and the iterator
  yields the same frame; the task does not send it again, but finishes the send that was begun, or raises its error.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from types import coroutine
from typing import Any, TypeVar, cast

from .. import compat
from .acknowledged import Acknowledged

T = TypeVar("T")

Send = Callable[[dict[str, Any]], Awaitable[None]]

_Begun = tuple[Generator[Any, Any, None], Any]


class SendTimeout(Exception):
    """The client has not accepted data for too long."""


async def send_frames(send: Send, data: bytes, seconds: float) -> None:
    """Send a part of a response's body. Raises :class:`SendTimeout` if that takes longer than ``seconds``.

    Most sends do not wait: the server passes the bytes to the socket. Only a
    send that waits gets a timer, which costs as much as the send.
    """
    try:
        await within(send(_body(data)), seconds)
    except TimeoutError:
        raise SendTimeout from None


def _body(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


class FrameSender:
    """Sends the frames of one stream, in its own task.

    Waking a task resumes every coroutine in its chain of awaits, and a server, Datasette and connectrpc have a dozen of
    them around a view, each elsewhere in memory; so the sender has a separate, short task. A send that does not wait
    does not even need that task: see :meth:`begin`.
    """

    __slots__ = ("_acknowledged", "_begun", "_context", "_loop", "_seconds", "_send", "_task")

    def __init__(self, send: Send, seconds: float, acknowledged: Acknowledged | None = None) -> None:
        self._send = send
        self._seconds = seconds
        #: Counts the sent bytes, if the subscriber needs to know what has arrived.
        self._acknowledged = acknowledged
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None]
        #: A send that was begun outside of the task: its remaining steps, and the future that it waits for.
        self._begun: _Begun | None = None

    def start(self, frames: AsyncGenerator[bytes, None]) -> asyncio.Task[None]:
        """Start the task, which sends everything that ``frames`` yields. It raises what :func:`send_frames` raises."""
        self._task = self._loop.create_task(self._send_all(frames), context=self._context)
        return self._task

    def begin(self, data: bytes) -> bool:
        """Begin a send; returns whether it has ended. Call it outside of any task, while the sender's task waits.

        If the send waits or has failed, the task finishes it when the iterator yields the next frame. The send runs as
        if its own task had called it
        (https://docs.python.org/3/library/asyncio-extending.html#task-lifetime-support).
        """
        compat.enter_task(self._loop, self._task)
        try:
            self._begun = self._context.run(_first_step, self._send, data)
        finally:
            compat.leave_task(self._loop, self._task)
        if self._begun is not None:
            return False
        if self._acknowledged is not None:
            self._acknowledged.sent(len(data))
        return True

    async def _send_all(self, frames: AsyncGenerator[bytes, None]) -> None:
        try:
            async with aclosing(frames):
                async for data in frames:
                    if self._begun is None:
                        await send_frames(self._send, data, self._seconds)
                    else:
                        await self._finish(*self._begun)
                    if self._acknowledged is not None:
                        self._acknowledged.sent(len(data))
        finally:
            if self._begun is not None:
                self._begun[0].close()

    async def _finish(self, steps: Generator[Any, Any, None], waits_for: Any) -> None:
        self._begun = None
        try:
            async with asyncio.timeout(self._seconds):
                await _go_on(steps, waits_for)
        except TimeoutError:
            raise SendTimeout from None


def _first_step(send: Send, data: bytes) -> _Begun | None:
    """Run the first step of a send; returns its remaining steps, which raise its error if it has failed."""
    try:
        steps = _steps(send(_body(data)))
        return steps, next(steps)
    except StopIteration:
        return None
    except (Exception, asyncio.CancelledError) as error:
        return _fail(error), None


def _steps(work: Awaitable[T]) -> Generator[Any, Any, T]:
    """The steps of an awaitable: a coroutine's own, or those of an iterator (granian's awaitables)."""
    steps = work.__await__()
    return steps if hasattr(steps, "send") else _of_iterator(steps)


def _of_iterator(steps: Iterator[Any]) -> Generator[Any, Any, Any]:
    return (yield from steps)


async def within(work: Awaitable[T], seconds: float) -> T:
    """Await something with a time limit; a timer is made only if it waits. Raises ``TimeoutError``."""
    steps = _steps(work)
    try:
        waits_for = next(steps)
    except StopIteration as done:
        return cast(T, done.value)
    async with asyncio.timeout(seconds):
        return await _go_on(steps, waits_for)


@coroutine
def _go_on(steps: Generator[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Run the remaining steps of a coroutine that was begun and now waits."""
    while True:
        try:
            try:
                value = yield waits_for
            except BaseException as error:
                waits_for = steps.throw(error)
            else:
                waits_for = steps.send(value)
        except StopIteration as done:
            return cast(T, done.value)


def _fail(error: BaseException) -> Generator[Any, Any, None]:
    raise error
    yield
