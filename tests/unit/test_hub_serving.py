"""Live subscribers that the hub serves by itself: some at a time, and each message once."""

from __future__ import annotations

import asyncio
import gc
import weakref
from itertools import pairwise
from typing import Any

import pytest
from hub_world import Loud, Numbers, Reader, World, turns_until

from datasette_pubsub.asgi.frame_sender import FrameSender
from datasette_pubsub.core.events import Bye, Superseded
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.values import Message
from datasette_pubsub.live.hub import Hub
from datasette_pubsub.live.line import SERVED_AT_ONCE


@pytest.mark.asyncio
async def test_a_waiting_reader_costs_nothing_while_others_are_served() -> None:
    world = World(Hub(1 << 20, lambda idle: None))
    stream = world.stream(Selector.of(["quiet"]), 0, 1000)
    frames = stream.frames()
    task = asyncio.ensure_future(anext(frames))
    while stream.settled == stream.position:
        await asyncio.sleep(0)
        if world.hub.head == stream.position and not stream._waiter.woken:
            break
    world.commit(["busy"] * 5, told=True)
    assert stream.settled == 5, "it has passed by what is not for it"
    world.commit(["quiet"], told=True)
    assert await task == b"6 "
    await frames.aclose()


@pytest.mark.asyncio
async def test_many_are_served_some_at_a_time_and_the_last_get_what_came_meanwhile() -> None:
    world = World(Hub(1 << 20, lambda idle: None))
    readers = [Reader(world.stream(Selector.of(["a"]), 0, 1000, 60)) for _ in range(350)]
    for reader in readers:
        reader.stream._encoder = Loud()
    await turns_until(lambda: all(reader.waits for reader in readers))
    world.commit(["a"], told=True)
    served = []
    while not all(reader.got for reader in readers):
        await asyncio.sleep(0)
        served.append(sum(len(reader.got) for reader in readers))
        if served[-1] and world.hub.head == 1:
            world.commit(["a"], told=True)
    assert all(0 <= after - before <= SERVED_AT_ONCE for before, after in pairwise(served))
    await turns_until(lambda: all(reader.stream.position == 2 for reader in readers))
    # Who is woken for nothing says that nothing came: a heartbeat.
    assert {tuple(reader.got) for reader in readers} == {(b"1 ", b"2 "), (b"1 2 ",)}
    assert sum(reader.got == [b"1 ", b"2 "] for reader in readers) <= SERVED_AT_ONCE
    for reader in readers:
        reader.stream.stop(Bye())
    await asyncio.gather(*(reader.task for reader in readers))


@pytest.mark.asyncio
async def test_who_is_served_at_once_is_behind_nothing_and_who_must_wait_gets_it_once() -> None:
    world = World(Hub(1 << 20, lambda idle: None))
    reader = Reader(world.stream(Selector.of(["a"]), 0, 1000, 60))
    await turns_until(lambda: reader.waits)
    world.commit(["a", "b"], told=True)
    await turns_until(lambda: bool(reader.got))
    # In the very turn in which it was sent.
    assert (reader.got, reader.stream.position, reader.stream.sends, reader.waits) == ([b"1 "], 2, 1, True)
    reader.open.clear()
    world.commit(["a"], told=True)
    await turns_until(lambda: len(reader.got) == 2)
    world.commit(["a"], told=True)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (reader.got, reader.stream.position, reader.stream.sends) == ([b"1 ", b"3 "], 2, 1)
    reader.open.set()
    await turns_until(lambda: reader.stream.position == 4)
    assert (reader.got, reader.stream.sends) == ([b"1 ", b"3 ", b"4 "], 3)
    reader.stream.stop(Bye())
    await reader.task
    assert reader.got[3:] == [b"Bye"]


@pytest.mark.asyncio
async def test_a_reader_that_fails_does_not_keep_the_next_from_being_served() -> None:
    class Broken(Numbers):
        name = "broken"

        def message(self, message: Message, missed: int = 0) -> bytes:
            raise ValueError("no frame for this")

    world = World(Hub(1 << 20, lambda idle: None))
    readers = [Reader(world.stream(Selector.of([channel]), 0, 1000, 60)) for channel in "abc"]
    readers[1].stream._encoder = Broken()
    await turns_until(lambda: all(reader.waits for reader in readers))
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    world.commit(["a", "b", "c"], told=True)
    await turns_until(lambda: bool(readers[0].got and readers[2].got))
    with pytest.raises(ValueError, match="no frame"):
        await readers[1].task
    assert [str(error) for error in told] == ["no frame for this"]
    for reader in readers[::2]:
        reader.stream.stop(Bye())
        await reader.task


@pytest.mark.asyncio
async def test_a_stream_that_has_ended_is_freed_without_the_garbage_collector() -> None:
    world = World(Hub(1 << 20, lambda idle: None))
    got: list[bytes] = []

    async def send(message: dict[str, Any]) -> None:
        got.append(message["body"])

    stream = world.stream(Selector.of(["a"]), 0, 1000, 60)
    waiter, ended = stream._waiter, weakref.ref(stream)
    frame_sender = FrameSender(send, 60)
    stream.through(frame_sender.begin)
    task = frame_sender.start(stream.frames())
    await turns_until(lambda: not waiter.woken)
    world.commit(["a"], told=True)
    await turns_until(lambda: bool(got))
    stream.stop(Bye())
    await task
    world.hub.unregister(waiter)
    gc.disable()
    try:
        del stream
        assert ended() is None
    finally:
        gc.enable()


@pytest.mark.asyncio
async def test_a_stopped_stream_says_why_after_the_send_under_way() -> None:
    world = World(Hub(1 << 20, lambda idle: None))
    world.commit(["a"], told=False)
    stream = world.stream(Selector.of(["a"]), 0, 1000)
    frames = stream.frames()
    assert await anext(frames) == b"1 "
    stream.stop(Superseded())
    stream.stop(Bye())
    assert [data async for data in frames] == [b"Superseded"]
    assert stream.position == 1
