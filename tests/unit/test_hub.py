"""Hub, tail and stream against a log in a list: any interleaving, everything once, in order."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_pubsub.asgi.frame_sender import FrameSender
from datasette_pubsub.core.events import Bye, Event, Superseded
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.values import Message, Page
from datasette_pubsub.live.hub import SERVED_AT_ONCE, Hub
from datasette_pubsub.live.subscriber import Subscriber, SubscriberOptions


class Numbers:
    """A wire format for tests: ids, and events by name."""

    name = "numbers"

    def message(self, message: Message, missed: int = 0) -> bytes:
        return b"%d " % message.id

    def event(self, event: Event) -> bytes:
        return b"" if type(event).__name__ in ("Ready", "Heartbeat") else type(event).__name__.encode()


class Loud(Numbers):
    """As :class:`Numbers`, and heartbeats."""

    def event(self, event: Event) -> bytes:
        return b"Heartbeat" if type(event).__name__ == "Heartbeat" else super().event(event)


@dataclass
class World:
    """A log, a hub, and the readers of it."""

    hub: Hub
    messages: list[Message] = field(default_factory=list)

    def commit(self, channels: list[str], told: bool) -> None:
        before = len(self.messages)
        new = [Message(before + n, channel, f"{channel}", "") for n, channel in enumerate(channels, 1)]
        self.messages.extend(new)
        if told and not self.hub.committed(before, new):
            self.refresh()

    def refresh(self) -> None:
        known = self.hub.head
        if len(self.messages) - known > 6:
            self.hub.skip_to(len(self.messages))
        else:
            self.hub.fill(self.messages[known:], len(self.messages))

    def stream(
        self, selector: Selector, position: int, size: int, heartbeat: float = 0.005, unacked: int | None = None
    ) -> Subscriber:
        waiter = self.hub.register(selector)
        self.refresh()

        async def read(after: int, limit: int) -> Page:
            await asyncio.sleep(0)
            head = len(self.messages)
            found = [m for m in self.messages[after:head] if selector.matches(m.channel)][: min(limit, 3)]
            position = found[-1].id if len(found) == min(limit, 3) else head
            return Page(found, position, head)

        options = SubscriberOptions(send_bytes=size, heartbeat_seconds=heartbeat, max_unacked=unacked)
        return Subscriber(self.hub, waiter, read, Numbers(), position, options)


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


async def turns() -> None:
    """Let everything happen that does not wait for the time."""
    for _ in range(20):
        await asyncio.sleep(0)


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


async def turns_until(done: Callable[[], bool]) -> None:
    """Let the event loop turn, no further than needed."""
    while not done():  # noqa: ASYNC110 - each turn counts
        await asyncio.sleep(0)


@dataclass
class Reader:
    """A live subscriber whose send does not wait while ``open``, and what it was sent."""

    stream: Subscriber
    got: list[bytes] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open.set()
        frame_sender = FrameSender(self.send, 60)
        self.stream.through(frame_sender.begin)
        self.task = frame_sender.start(self.stream.frames())

    async def send(self, message: dict[str, Any]) -> None:
        self.got.append(message["body"])
        await self.open.wait()

    @property
    def waits(self) -> bool:
        return not self.stream._waiter.woken


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
