"""Subscribers that are ahead of a copy: they wait until it has reached them, and get nothing twice."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hub_world import Numbers, World, turns, turns_until
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_pubsub.asgi.frame_sender import FrameSender
from datasette_pubsub.core.events import Bye, Event, Gap, Heartbeat, Ready
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.values import Message
from datasette_pubsub.live.hub import Hub
from datasette_pubsub.live.subscriber import Subscriber

ORIGIN = ("orders", "0123")
EVERYTHING = Selector(patterns=("*",))
#: Longer than any test: in these tests the time ends no wait.
FOREVER = 3600.0


class Telling(Numbers):
    """A wire format that says everything."""

    def message(self, message: Message, missed: int = 0) -> bytes:
        return b"%d%s " % (message.id, b"!" if missed else b"")

    def event(self, event: Event) -> bytes:
        match event:
            case Gap(missed, resumed_at):
                return b"gap%d@%d " % (missed, resumed_at)
            case Ready(head):
                return b"ready@%d " % head
            case Heartbeat():
                return b"heartbeat "
        return b""


@dataclass
class Told:
    """A live subscriber and what it was sent, in words; heartbeats are counted."""

    stream: Subscriber
    direct: bool
    got: list[str] = field(default_factory=list)
    heartbeats: int = 0

    def __post_init__(self) -> None:
        self.stream._encoder = Telling()
        frame_sender = FrameSender(self.send, 60)
        if self.direct:
            self.stream.through(frame_sender.begin)
        self.task = frame_sender.start(self.stream.frames())

    async def send(self, message: dict[str, Any]) -> None:
        words = message["body"].decode().split()
        self.heartbeats += words.count("heartbeat")
        self.got += [word for word in words if word != "heartbeat"]

    async def end(self) -> None:
        self.stream.stop(Bye())
        await self.task


def copy(messages: int) -> World:
    world = World(Hub(1 << 20, lambda idle: None))
    world.hub.origin = ORIGIN
    world.commit(["a"] * messages, told=False)
    return world


def ahead(world: World, position: int, floor: int, seconds: float = FOREVER, **more: Any) -> Subscriber:
    heartbeat = more.pop("heartbeat", 60)
    return world.stream(EVERYTHING, position, 1000, heartbeat, floor=floor, await_seconds=seconds, **more)


both = pytest.mark.parametrize("direct", [False, True], ids=["task", "direct send"])


@both
@pytest.mark.asyncio
async def test_it_waits_and_goes_on_after_its_position(direct: bool) -> None:
    world = copy(3)
    told = Told(ahead(world, 7, 3), direct)
    await turns()
    world.commit(["a", "b"], told=True)
    await turns()
    assert (told.got, told.stream.ahead, told.stream.settled) == ([], True, 3)
    world.commit(["a", "b", "a", "b"], told=True)
    await turns_until(lambda: len(told.got) == 3)
    # What it had is not sent, and the copy's being ready is told when it has reached it.
    assert told.got == ["8", "9", "ready@9"]
    assert (told.stream.ahead, told.stream.settled) == (False, 9)
    await told.end()


@both
@pytest.mark.asyncio
async def test_the_head_alone_wakes_it(direct: bool) -> None:
    """The messages up to its position are on channels that it does not follow."""
    world = copy(3)
    stream = world.stream(Selector.of(["quiet"]), 5, 1000, 60, floor=3, await_seconds=FOREVER)
    told = Told(stream, direct)
    await turns()
    world.commit(["a", "a"], told=True)
    await turns_until(lambda: told.got == ["ready@5"])
    world.commit(["a", "quiet"], told=True)
    await turns_until(lambda: told.got == ["ready@5", "7"])
    assert not world.hub._awaiting
    await told.end()


@both
@pytest.mark.asyncio
async def test_heartbeats_go_on_and_it_is_not_ready(direct: bool) -> None:
    world = copy(3)
    told = Told(ahead(world, 7, 3, heartbeat=0.002), direct)
    async with asyncio.timeout(30):
        while told.heartbeats < 3:  # noqa: ASYNC110 - the time makes them
            await asyncio.sleep(0.001)
    assert told.got == []
    await told.end()


@both
@pytest.mark.asyncio
async def test_it_goes_back_when_its_time_is_over(direct: bool) -> None:
    world = copy(3)
    told = Told(ahead(world, 7, 2, seconds=0.01), direct)
    async with asyncio.timeout(30):
        while len(told.got) < 3:  # noqa: ASYNC110 - the time makes them
            await asyncio.sleep(0.001)
    assert told.got == ["gap-1@2", "3!", "ready@3"]
    world.commit(["a"], told=True)
    await turns_until(lambda: told.got[-1] == "4")
    await told.end()


@both
@pytest.mark.asyncio
async def test_a_log_that_was_promoted_meanwhile(direct: bool) -> None:
    """Its next ids are other messages, which the subscriber has not had."""
    world = copy(3)
    told = Told(ahead(world, 5, 3), direct)
    await turns()
    world.hub.origin = None
    world.commit(["a"] * 4, told=True)
    await turns_until(lambda: "ready@7" in told.got)
    assert told.got == ["gap-1@3", "4!", "5", "6", "7", "ready@7"]
    await told.end()


@both
@pytest.mark.asyncio
@pytest.mark.parametrize("unacked", [None, 100])
async def test_a_restored_copy_of_the_same_stream(direct: bool, unacked: int | None) -> None:
    world = copy(9)
    told = Told(world.stream(EVERYTHING, 0, 1000, 60, unacked=unacked, await_seconds=FOREVER), direct)
    await turns_until(lambda: "ready@9" in told.got)
    del world.messages[4:]
    world.hub.rewind(4, ORIGIN)
    await turns()
    assert (told.stream.ahead, told.stream.settled) == (True, 4)
    world.commit(["a"] * 6, told=True)
    await turns_until(lambda: told.got[-1] == "10")
    assert told.got == [*map(str, range(1, 10)), "ready@9", "10"]
    await told.end()


@both
@pytest.mark.asyncio
@pytest.mark.parametrize("origin", [None, ("orders", "another"), ("others", "0123")])
async def test_a_restored_file_that_is_another_log(direct: bool, origin: tuple[str, str] | None) -> None:
    world = copy(9)
    told = Told(world.stream(EVERYTHING, 0, 1000, 60, await_seconds=FOREVER), direct)
    await turns_until(lambda: "ready@9" in told.got)
    del world.messages[4:]
    world.hub.rewind(4, origin)
    world.commit(["a"], told=True)
    await turns_until(lambda: told.got[-1] == "5!")
    assert told.got[-2:] == ["gap-1@4", "5!"]
    await told.end()


@both
@pytest.mark.asyncio
async def test_no_wait_is_configured(direct: bool) -> None:
    world = copy(9)
    told = Told(world.stream(EVERYTHING, 0, 1000, 60), direct)
    await turns_until(lambda: "ready@9" in told.got)
    del world.messages[4:]
    world.hub.rewind(4, ORIGIN)
    await turns_until(lambda: told.got[-1] == "gap-1@4")
    await told.end()


@pytest.mark.asyncio
async def test_one_that_waits_is_forgotten_when_it_leaves() -> None:
    world = copy(3)
    stream = ahead(world, 7, 3)
    assert len(world.hub._awaiting) == 1
    world.hub.unregister(stream._waiter)
    assert not world.hub._awaiting


channels = st.sampled_from(["a", "b"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("copy"), st.integers(1, 9), st.booleans()),
        st.tuples(st.just("restore"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("rest"), st.integers(1, 3), st.booleans()),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(channels, min_size=1, max_size=60), st.lists(st.integers(0, 60), min_size=3, max_size=3), steps)
def test_any_interleaving_of_copies_and_restores(
    stream: list[str], positions: list[int], taken: list[tuple[str, int, bool]]
) -> None:
    """Wherever they begin, each gets what comes after its position: once, and in order."""

    async def main() -> None:
        world = copy(0)
        selectors = [Selector.of(["a"]), Selector.of(["b"]), EVERYTHING]
        begun: list[tuple[Told, list[str]]] = []

        def begin(direct: bool) -> None:
            selector, position = selectors[len(begun)], min(positions[len(begun)], len(stream))
            head = len(world.messages)
            floor = min(position, head) if position > head else None
            options: dict[str, Any] = {"floor": floor, "await_seconds": FOREVER}
            told = Told(world.stream(selector, position, 30, 60, **options), direct)
            expected = [str(n) for n, channel in enumerate(stream, 1) if n > position and selector.matches(channel)]
            begun.append((told, expected))

        for name, number, flag in taken:
            head = len(world.messages)
            if name == "copy":
                world.commit(stream[head : head + number], told=flag)
                world.refresh()
            elif name == "restore" and number < head:
                del world.messages[number:]
                world.hub.rewind(number, ORIGIN)
            else:
                for _ in range(number):
                    await asyncio.sleep(0)
            if len(begun) < 3 and flag:
                begin(direct=number % 2 == 0)
        while len(begun) < 3:
            begin(direct=True)
        world.commit(stream[len(world.messages) :], told=True)
        world.refresh()
        async with asyncio.timeout(30):
            for told, expected in begun:
                await turns_until(lambda told=told: told.stream.settled >= len(stream))  # type: ignore[misc]
                await turns()
                found = [word for word in told.got if not word.startswith("ready")]
                assert found == expected
                await told.end()

    asyncio.run(main())
