"""Sending frames of an endless response: straight to the server, and not for ever.

The law of this module: one frame in, one ASGI message out. It knows neither
the frames nor who reads them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing
from types import coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")

Send = Callable[[dict[str, Any]], Awaitable[None]]


class ReaderStuck(Exception):
    """The reader has taken nothing for too long."""


async def send_frames(send: Send, data: bytes, seconds: float) -> None:
    """Send a part of a response's body. Raises :class:`ReaderStuck` when that takes longer than ``seconds``.

    Most sends do not wait: the server hands the bytes to the socket. Only one
    that waits is given a timer, which costs as much as the send.
    """
    try:
        await within(send({"type": "http.response.body", "body": data, "more_body": True}), seconds)
    except TimeoutError:
        raise ReaderStuck from None


async def send_all(frames: AsyncGenerator[bytes, None], send: Send, seconds: float) -> None:
    """Send everything that a stream yields, as :func:`send_frames` does.

    Run it as a task of its own: who is woken goes through every coroutine that awaits him, and a server, Datasette
    and connectrpc have a dozen around a view, each somewhere else in memory.
    """
    async with aclosing(frames):
        async for data in frames:
            await send_frames(send, data, seconds)


async def within(work: Awaitable[T], seconds: float) -> T:
    """What a coroutine returns; a timer is made only for one that waits. Raises ``TimeoutError``."""
    steps = work.__await__()
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
