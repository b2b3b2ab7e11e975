"""Hub, tail and stream against a log in a list: any interleaving, everything once, in order."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hub_world import Loud, Numbers, World, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_pubsub.asgi.frame_sender import FrameSender
from datasette_pubsub.core.events import Bye
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.values import Message
from datasette_pubsub.live.hub import Hub

channel = st.sampled_from(["a", "b", "c"])
step = st.one_of(
    st.tuples(st.just("publish"), st.lists(channel, min_size=1, max_size=5)),
    st.tuples(st.just("elsewhere"), st.lists(channel, min_size=1, max_size=9)),
    st.tuples(st.just("notice"), st.just(None)),
    st.tuples(st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("rest"), st.just(None)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(step, max_size=40), st.integers(0, 900), st.integers(1, 20), st.booleans())
def test_any_interleaving(steps: list[tuple[str, object]], tail_bytes: int, send_bytes: int, served: bool) -> None:
    asyncio.run(run(steps, tail_bytes, send_bytes, served))


@pytest.mark.parametrize("served", [False, True])
def test_a_reader_that_must_acknowledge_first_misses_nothing(served: bool) -> None:
    """What is committed while it may have no more does not stand for what it has not had yet."""

    async def main() -> list[int]:
        world = World(Hub(10_000, lambda idle: None))
        stream = world.stream(Selector.of(["a"]), 0, 1000, heartbeat=60, unacked=2)
        got: list[int] = []

        async def send(message: dict[str, Any]) -> None:
            got.extend(int(part) for part in message["body"].split() if part.isdigit())

        frame_sender = FrameSender(send, 60)
        if served:
            stream.through(frame_sender.begin)
        sending = frame_sender.start(stream.frames())
        await turns()
        for count in (5, 1, 1):
            world.commit(["a"] * count, told=True)
            await turns()
            assert got == [1, 2]
        for cursor in (2, 4, 6):
            stream.acknowledged(cursor)
            await turns()
            assert got == list(range(1, min(cursor + 2, 7) + 1))
        stream.stop(Bye())
        await sending
        return got

    assert asyncio.run(main()) == list(range(1, 8))


@pytest.mark.parametrize("served", [False, True])
def test_a_reader_that_is_woken_for_nothing_gets_its_heartbeats(served: bool) -> None:
    async def main() -> None:
        world = World(Hub(10_000, lambda idle: None))
        stream = world.stream(Selector.of(["a"]), 0, 1000, heartbeat=0.05, unacked=1)
        stream._encoder = Loud()
        got: list[bytes] = []

        async def send(message: dict[str, Any]) -> None:
            got.append(message["body"])

        frame_sender = FrameSender(send, 60)
        if served:
            stream.through(frame_sender.begin)
        sending = frame_sender.start(stream.frames())
        end = asyncio.get_running_loop().time() + 30
        while b"Heartbeat" not in got[1:] and asyncio.get_running_loop().time() < end:
            # Each of these would once have begun the wait for the heartbeat anew.
            world.commit(["a"], told=True)
            await asyncio.sleep(0.005)
        stream.stop(Bye())
        await sending
        assert got[0] == b"1 "
        assert b"Heartbeat" in got[1:]

    asyncio.run(main())


async def run(steps: list[tuple[str, object]], tail_bytes: int, send_bytes: int, served: bool) -> None:
    world = World(Hub(tail_bytes, lambda idle: None))
    world.commit(["a", "b"], told=False)
    selectors = [Selector.of(["a"]), Selector.of(["c"], ["[ab]"]), Selector.of((), ["*"])]
    streams = [world.stream(selector, n, send_bytes) for n, selector in enumerate(selectors)]
    got: list[list[int]] = [[], [], []]
    may_read = [asyncio.Semaphore(0) for _ in streams]

    async def take(n: int, data: bytes) -> None:
        got[n].extend(int(part) for part in data.split() if part.isdigit())
        await may_read[n].acquire()

    async def reader(n: int) -> None:
        if served:
            frame_sender = FrameSender(lambda message: take(n, message["body"]), 60)
            streams[n].through(frame_sender.begin)
            await frame_sender.start(streams[n].frames())
            return
        async for data in streams[n].frames():
            await take(n, data)

    readers = [asyncio.ensure_future(reader(n)) for n in range(3)]
    for name, value in steps:
        if name in ("publish", "elsewhere"):
            world.commit(value, told=name == "publish")  # type: ignore[arg-type]
        elif name == "notice":
            world.refresh()
        elif name == "read":
            may_read[cast(int, value)].release()
        else:
            await asyncio.sleep(0)
    world.refresh()
    for semaphore in may_read:
        for _ in range(500):
            semaphore.release()
    expected = [
        [m.id for m in world.messages[n:] if selector.matches(m.channel)] for n, selector in enumerate(selectors)
    ]
    async with asyncio.timeout(20):
        while got != expected or any(stream.settled != len(world.messages) for stream in streams):  # noqa: ASYNC110 - any state may be the last to come right
            await asyncio.sleep(0)
    for stream in streams:
        stream.stop(Bye())
    await asyncio.gather(*readers)
    assert got == expected


@pytest.mark.asyncio
async def test_frames_are_encoded_and_joined_once_for_all() -> None:
    world = World(Hub(1 << 20, lambda idle: None))
    calls: list[int] = []

    class Counting(Numbers):
        def message(self, message: Message, missed: int = 0) -> bytes:
            calls.append(message.id)
            return super().message(message)

    waiters = [world.hub.register(Selector.of(["a"])) for _ in range(50)]
    world.commit(["a"] * 10, told=True)
    spans = [
        world.hub.tail.span(waiter.selector, Counting(), 0, world.hub.head, 1 << 20, 1 << 20) for waiter in waiters
    ]
    assert calls == list(range(1, 11))
    assert all(span.data is spans[0].data for span in spans)


@pytest.mark.asyncio
async def test_the_tail_is_bounded() -> None:
    world = World(Hub(2000, lambda idle: None))
    world.hub.register(Selector.of(["a"]))
    for _ in range(100):
        world.commit(["a"], told=True)
    assert 0 < world.hub.head - world.hub.tail.base < 10


@pytest.mark.asyncio
async def test_what_came_before_the_first_subscriber_is_in_the_log() -> None:
    world = World(Hub(1 << 20, lambda idle: None))
    world.commit(["a", "a"], told=False)
    world.refresh()
    world.commit(["a"], told=True)
    frames = world.stream(Selector.of(["a"]), 0, 1000).frames()
    assert await anext(frames) == b"1 2 3 "
    await frames.aclose()


@pytest.mark.asyncio
async def test_the_hub_forgets_who_has_left() -> None:
    idle: list[bool] = []
    hub = Hub(1 << 20, idle.append)
    waiters = [hub.register(Selector.of([f"c{n}"], ["x*"])) for n in range(10)]
    for waiter in waiters:
        hub.unregister(waiter)
        hub.unregister(waiter)
    assert idle == [False, True]
    assert len(hub) == 0
    assert not hub._by_channel
    assert not hub._by_pattern
