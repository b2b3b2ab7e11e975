"""Subscribers of a live query that the line serves by itself: each change once, whoever sends it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hub_world import turns_until

from datasette_pubsub.core.errors import FailedPrecondition
from datasette_pubsub.core.events import Bye
from datasette_pubsub.core.result import Change, Placed, Result
from datasette_pubsub.live.line import SERVED_AT_ONCE, Line
from datasette_pubsub.live_query.query import LiveQuery
from datasette_pubsub.live_query.subscriber import QuerySubscriber, QuerySubscriberOptions
from datasette_pubsub.protocol.query_frames import SseQueryEncoder
from datasette_pubsub.storage.query import Question

pytestmark = pytest.mark.asyncio

ENCODER = SseQueryEncoder()


class World:
    """A query whose result grows by a row with each change."""

    def __init__(self) -> None:
        self.line = Line()
        self.query = LiveQuery(Question(sql="SELECT n FROM t"), 1_000_000, self.line)
        self.query.succeeded(Result(("n",), [], 0), None)

    def grow(self) -> None:
        assert self.query.result is not None
        rows = self.query.result.rows
        row = b"[%d]" % len(rows)
        head = self.query.result.head + 1
        self.query.succeeded(Result(("n",), [*rows, row], head), Change(head, inserted=[Placed(len(rows), row)]))

    def reader(self, **options: Any) -> Reader:
        return Reader(QuerySubscriber(self.query, ENCODER, QuerySubscriberOptions(**options), self.line))


class Reader:
    """A subscriber with its task; ``ends`` says whether a direct send ends at once."""

    def __init__(self, subscriber: QuerySubscriber) -> None:
        self.subscriber = subscriber
        self.by_task: list[bytes] = []
        self.direct: list[bytes] = []
        self.begun: list[bytes] = []
        self.ends = True
        subscriber._query.subscribers.add(subscriber)
        subscriber.through(self.begin)
        self.task = asyncio.ensure_future(self._read())

    def begin(self, frame: bytes) -> bool:
        (self.direct if self.ends else self.begun).append(frame)
        return self.ends

    async def _read(self) -> None:
        async for frame in self.subscriber.frames():
            self.by_task.append(frame)

    @property
    def waits(self) -> bool:
        return self.subscriber._waiter._waits()

    async def end(self) -> None:
        self.subscriber.stop(Bye())
        await self.task
        self.subscriber.close()


def added(frames: list[bytes]) -> list[int]:
    """The rows of these changes."""
    text = b"".join(frames).decode()
    return [int(part.split("]")[0]) for part in text.split('"row":[')[1:]]


async def test_a_change_is_sent_without_the_task() -> None:
    world = World()
    reader = world.reader()
    await turns_until(lambda: reader.waits)
    before = list(reader.by_task)
    assert len(before) == 1, "the whole result"
    for _ in range(3):
        world.grow()
        await turns_until(lambda: not world.line._due)
    assert added(reader.direct) == [0, 1, 2]
    assert reader.by_task == before
    await reader.end()
    assert b"bye" in reader.by_task[-1]


async def test_a_send_that_does_not_end_is_finished_by_the_task_and_made_once() -> None:
    world = World()
    reader = world.reader()
    await turns_until(lambda: reader.waits)
    reader.ends = False
    world.grow()
    await turns_until(lambda: len(reader.by_task) == 2)
    assert reader.begun == reader.by_task[1:]
    reader.ends = True
    await turns_until(lambda: reader.waits)
    world.grow()
    await turns_until(lambda: bool(reader.direct))
    assert (added(reader.by_task[1:]), added(reader.direct)) == ([0], [1])
    await reader.end()


async def test_many_are_served_some_at_a_time() -> None:
    world = World()
    readers = [world.reader() for _ in range(100)]
    await turns_until(lambda: all(reader.waits for reader in readers))
    world.grow()
    counts = []
    while not all(reader.direct for reader in readers):
        await asyncio.sleep(0)
        counts.append(sum(bool(reader.direct) for reader in readers))
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= SERVED_AT_ONCE
    await asyncio.gather(*(reader.end() for reader in readers))


async def test_one_that_is_stopped_while_in_line_ends() -> None:
    world = World()
    readers = [world.reader() for _ in range(40)]
    await turns_until(lambda: all(reader.waits for reader in readers))
    world.grow()
    await asyncio.gather(*(reader.end() for reader in readers))
    for reader in readers:
        assert added([*reader.direct, *reader.by_task]) in ([], [0])
        assert b"bye" in reader.by_task[-1]


async def test_a_heartbeat_is_due_so_long_after_the_last_send() -> None:
    world = World()
    reader = world.reader(heartbeat_seconds=20.0)
    await turns_until(lambda: reader.waits)
    later = asyncio.get_running_loop().time() + 15.0
    assert reader.subscriber._serve(later) < 5.1, "nothing is new, and it has been silent for 15 seconds"
    world.grow()
    assert reader.subscriber._serve(later) == 20.0
    assert added(reader.direct) == [0]
    assert reader.subscriber._serve(later + 19.0) == 1.0
    await reader.end()


async def test_a_broken_query_is_told_and_then_sent_whole() -> None:
    world = World()
    reader = world.reader()
    await turns_until(lambda: reader.waits)
    world.query.failed(FailedPrecondition("the view is broken"))
    await turns_until(lambda: bool(reader.direct))
    assert b"the view is broken" in reader.direct[0]
    world.query.succeeded(Result(("n",), [b"[7]"], 1), None)
    await turns_until(lambda: len(reader.direct) == 2)
    assert reader.direct[1].startswith(b"event: snapshot")
    await reader.end()
