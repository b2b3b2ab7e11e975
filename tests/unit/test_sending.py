"""Sends that are begun outside of the task that they belong to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from datasette_pubsub.asgi.frame_sender import FrameSender, SendTimeout

place: ContextVar[str] = ContextVar("place")


class Frames:
    """A stream for tests: it gives the frame_sender one frame, and then waits to be given another."""

    def __init__(self, send: Callable[[dict[str, Any]], Awaitable[None]], seconds: float = 60) -> None:
        self.more = asyncio.Event()
        self.next = b"first"
        self.frame_sender = FrameSender(send, seconds)
        self.task = self.frame_sender.start(self.all())

    async def all(self) -> AsyncGenerator[bytes, None]:
        while True:
            yield self.next
            self.more.clear()
            await self.more.wait()

    async def begin(self, data: bytes) -> bool:
        """As the hub does, in a call of the event loop's own."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: done.set_result(self.frame_sender.begin(data)))
        return await done

    def finish(self, data: bytes) -> None:
        """What was begun is given to the task."""
        self.next = data
        self.more.set()


@pytest.mark.asyncio
async def test_a_send_sees_its_own_task_and_context_whoever_begins_it() -> None:
    seen: list[tuple[bytes, object, str]] = []
    gate = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        seen.append((message["body"], asyncio.current_task(), place.get()))
        place.set("in the send")
        # Needs the task, as timers of other plugins' wrappers do.
        async with asyncio.timeout(60):
            await gate.wait()
        seen.append((b"end", asyncio.current_task(), place.get()))

    place.set("the request")
    gate.set()
    frames = Frames(send)
    await asyncio.sleep(0)
    place.set("elsewhere")
    assert await frames.begin(b"at once")
    gate.clear()
    assert not await frames.begin(b"waits")
    place.set("elsewhere still")
    frames.finish(b"waits")
    await asyncio.sleep(0)
    gate.set()
    while len(seen) < 6:  # noqa: ASYNC110 - the send ends by itself
        await asyncio.sleep(0)
    assert [body for body, _, _ in seen] == [b"first", b"end", b"at once", b"end", b"waits", b"end"]
    assert {task for _, task, _ in seen} == {frames.task}
    assert [name for _, _, name in seen] == ["the request"] + 5 * ["in the send"]
    assert place.get() == "elsewhere still"
    frames.task.cancel()


@pytest.mark.asyncio
async def test_a_send_that_fails_at_once_fails_its_task_and_not_who_began_it() -> None:
    async def send(message: dict[str, Any]) -> None:
        if message["body"] != b"first":
            raise OSError("the connection is gone")

    frames = Frames(send)
    await asyncio.sleep(0)
    assert not await frames.begin(b"lost")
    frames.finish(b"lost")
    with pytest.raises(OSError, match="the connection is gone"):
        await frames.task


@pytest.mark.asyncio
async def test_a_send_that_was_begun_does_not_wait_for_ever() -> None:
    async def send(message: dict[str, Any]) -> None:
        if message["body"] != b"first":
            await asyncio.Event().wait()

    frames = Frames(send, 0.01)
    await asyncio.sleep(0)
    assert not await frames.begin(b"never taken")
    frames.finish(b"never taken")
    with pytest.raises(SendTimeout):
        await frames.task


@pytest.mark.asyncio
async def test_a_send_that_was_begun_ends_with_its_task() -> None:
    ended: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        try:
            if message["body"] != b"first":
                await asyncio.Event().wait()
        finally:
            ended.append(message["body"].decode())

    frames = Frames(send)
    await asyncio.sleep(0)
    assert not await frames.begin(b"second")
    frames.task.cancel()
    await asyncio.wait([frames.task])
    assert ended == ["first", "second"]
