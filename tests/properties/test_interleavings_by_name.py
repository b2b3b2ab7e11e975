"""Interleavings that a property test has come to, or may come to, each by its name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from world import DEADLINE, World
from world_readers import readers

from datasette_pubsub.broker import batcher
from datasette_pubsub.live import subscriber

# -- cases that any of these may come to, by name ------------------------------


def in_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> World:
    monkeypatch.setattr(subscriber, "FIRST_MESSAGE_SECONDS", 0.0)
    return World(tmp_path / "data.db", readers(), **options)


@pytest.mark.asyncio
async def test_what_datasette_wrote_while_nobody_was_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with in_world(tmp_path, monkeypatch) as world:
        reader = world.readers[0]
        await world.write_in_datasette(["a"] * 3, fails=False)
        await world.connect(reader)
        await world.settle([reader])
        await world.leave(reader, clean=True)
        await world.write_in_datasette(["a"] * 3, fails=False)
        await world.connect(reader)
        await world.settle([reader])
        assert reader.connections[0].order + reader.connections[1].order == [1, 2, 3, 4, 5, 6]


@pytest.mark.asyncio
@pytest.mark.parametrize("tail_bytes", [0, 1 << 20])
async def test_an_ack_makes_room_though_other_channels_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail_bytes: int
) -> None:
    options = {"max_unacked_messages": 3, "tail_bytes": tail_bytes, "max_send_bytes": 1 << 16}
    async with in_world(tmp_path, monkeypatch, **options) as world:
        reader = world.readers[1]
        await world.publish(["a", "a", "a", "b", "c"], wait=True)
        await world.connect(reader)
        await world.settle([reader])
        await world.acknowledge(reader, 0, by_sql=False)
        await world.publish(["a", "b", "a", "b", "a", "b", "a", "b"], wait=True)
        await world.settle([reader])
        assert reader.connections[0].order == [1, 2, 3, 6, 8, 10, 12]


@pytest.mark.asyncio
async def test_a_reader_that_is_back_before_its_cursor_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_world(tmp_path, monkeypatch) as world:
        reader = world.readers[0]
        for _ in range(30):
            await world.connect(reader)
            await world.publish(["a"], wait=True)
            await world.settle([reader])
            # Keeps the batcher busy, so that the cursor has to wait for the next transaction.
            await world.publish(["b"] * 2000, wait=False)
            await asyncio.sleep(0)
            await world.leave(reader, clean=True)
        assert [number for connection in reader.connections for number in connection.order] == sorted(reader.received)


@pytest.mark.asyncio
async def test_the_batcher_commits_before_another_program_was_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_world(tmp_path, monkeypatch, watch_interval_seconds=0.3) as world:
        reader = world.readers[0]
        await world.connect(reader)
        for _ in range(3):
            await world.publish_elsewhere(["a", "b", "a"])
            await world.publish(["a"], wait=True)
            await world.settle([reader])
        assert reader.connections[0].order == [1, 3, 4, 5, 7, 8, 9, 11, 12]


@pytest.mark.asyncio
async def test_the_batcher_makes_way_for_other_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It would keep Datasette's write thread for an hour, waiting for more or going on with it.
    monkeypatch.setattr(batcher, "SESSION_SECONDS", 3600.0)
    monkeypatch.setattr(batcher, "LINGER_SECONDS", 3600.0)
    async with in_world(tmp_path, monkeypatch) as world:
        for publishers in (1, 8):
            await asyncio.gather(*[world.publish(["a"], wait=True) for _ in range(publishers)])
            async with asyncio.timeout(DEADLINE):
                await world.write_in_datasette(["b"], fails=False)
        written = False

        async def publish_on() -> int:
            rounds = 0
            while not written:
                await world.publish(["a"], wait=True)
                rounds += 1
            return rounds

        tasks = [asyncio.create_task(publish_on()) for _ in range(4)]
        async with asyncio.timeout(DEADLINE):
            for _ in range(20):
                await world.write_in_datasette(["b"], fails=False)
        written = True
        assert min(await asyncio.gather(*tasks)) > 1


@pytest.mark.asyncio
async def test_nothing_is_sent_after_a_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with in_world(tmp_path, monkeypatch, tail_bytes=0) as world:
        reader = world.readers[0]
        await world.publish(["a"] * 50, wait=True)
        for _ in range(20):
            await world.connect(reader)
        await world.settle([reader])
        assert [fault for connection in reader.connections for fault in connection.faults] == []
        assert [number for connection in reader.connections for number in connection.order] == list(range(1, 51))


@pytest.mark.asyncio
async def test_what_was_told_as_missed_is_not_delivered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with in_world(tmp_path, monkeypatch, tail_bytes=4000) as world:
        reader = world.readers[2]
        await world.connect(reader)
        await world.publish(["b"], wait=True)
        await world.settle([reader])
        world.readers[2].connections[0].flows.clear()
        await world.publish(["b"] * 30 + ["c"] * 5, wait=True)
        await world.trim(["c"], 1.0, inside=False)
        world.readers[2].connections[0].flows.set()
        await world.publish(["b"], wait=True)
        await world.settle([reader])
        (connection,) = reader.connections
        assert len(connection.order) + connection.missed == 37


@pytest.mark.asyncio
async def test_a_subscription_is_never_told_of_what_was_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_world(tmp_path, monkeypatch) as world:
        reader = world.readers[1]
        await world.publish(["b", "a", "a", "a"], wait=True)
        await world.trim(["a"], 1.0, inside=False)
        await world.publish(["a"], wait=True)
        for _ in range(3):
            await world.connect(reader)
            await world.until(lambda: reader.connections[-1].order, "a message")
            await world.leave(reader, clean=True)
        assert [connection.missed for connection in reader.connections] == [0, 0, 0]
