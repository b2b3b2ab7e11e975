"""Sending frames of an endless response: straight to the server, and not for ever.

The law of this module: one frame in, one ASGI message out. It knows neither
the frames nor who reads them.
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
    """The reader has taken nothing for too long."""


async def send_frames(send: Send, data: bytes, seconds: float) -> None:
    """Send a part of a response's body. Raises :class:`SendTimeout` when that takes longer than ``seconds``.

    Most sends do not wait: the server hands the bytes to the socket. Only one
    that waits is given a timer, which costs as much as the send.
    """
    try:
        await within(send(_body(data)), seconds)
    except TimeoutError:
        raise SendTimeout from None


def _body(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


class FrameSender:
    """Where the frames of one stream go, and the task that sends them.

    It is a task of its own: who is woken goes through every coroutine that awaits him, and a server, Datasette and
    connectrpc have a dozen around a view, each somewhere else in memory. And a send that does not wait needs no turn
    of the task at all: see :meth:`begin`.
    """

    __slots__ = ("_acknowledged", "_begun", "_context", "_loop", "_seconds", "_send", "_task")

    def __init__(self, send: Send, seconds: float, acknowledged: Acknowledged | None = None) -> None:
        self._send = send
        self._seconds = seconds
        #: Is told of what was sent, where somebody asks what of it has arrived.
        self._acknowledged = acknowledged
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None]
        #: A send that has been begun outside of the task: what is left of it, and what that waits for.
        self._begun: _Begun | None = None

    def start(self, frames: AsyncGenerator[bytes, None]) -> asyncio.Task[None]:
        """The task, which sends all that ``frames`` yields. It raises what :func:`send_frames` raises."""
        self._task = self._loop.create_task(self._send_all(frames), context=self._context)
        return self._task

    def begin(self, data: bytes) -> bool:
        """Send this, if that does not wait; whether it was sent. While the task waits for more, and outside of any.

        A send that waits has begun then, and one that fails has failed: the task goes on with it when it is given
        something to send. To the send all is as if its task had called it
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
    """Begin to send; what is left of it, which also tells of an error."""
    try:
        steps = _steps(send(_body(data)))
        return steps, next(steps)
    except StopIteration:
        return None
    except (Exception, asyncio.CancelledError) as error:
        return _fail(error), None


def _steps(work: Awaitable[T]) -> Generator[Any, Any, T]:
    """The steps of what can be awaited: a coroutine's own, or those of an iterator (granian's awaitables)."""
    steps = work.__await__()
    return steps if hasattr(steps, "send") else _of_iterator(steps)


def _of_iterator(steps: Iterator[Any]) -> Generator[Any, Any, Any]:
    return (yield from steps)


async def within(work: Awaitable[T], seconds: float) -> T:
    """What a coroutine returns; a timer is made only for one that waits. Raises ``TimeoutError``."""
    steps = _steps(work)
    try:
        waits_for = next(steps)
    except StopIteration as done:
        return cast(T, done.value)
    async with asyncio.timeout(seconds):
        return await _go_on(steps, waits_for)


@coroutine
def _go_on(steps: Generator[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that has been begun and now waits."""
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
