"""Any interleaving of writers, readers, trims and restarts: nothing skipped, everything in order."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promises import check
from property_tests import QUICK, channels
from world import World
from world_readers import readers

from datasette_pubsub.broker import broker
from datasette_pubsub.live import subscriber

some_channels = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True)
who = st.integers(0, 4)
action = st.one_of(
    st.tuples(st.just("publish"), channels, st.booleans()),
    st.tuples(st.just("publish elsewhere"), channels),
    st.tuples(st.just("publish and trim elsewhere"), channels, some_channels, st.integers(0, 9)),
    st.tuples(st.just("write in datasette"), channels, st.booleans()),
    st.tuples(st.just("trim"), some_channels, st.sampled_from([0.3, 0.7, 1.0]), st.booleans()),
    st.tuples(st.just("connect"), who, st.booleans()),
    st.tuples(st.just("leave"), who, st.booleans()),
    st.tuples(st.just("interrupt"), who),
    st.tuples(st.just("flow"), who, st.booleans()),
    st.tuples(st.just("ack"), who, st.integers(0, 9), st.booleans()),
)
step = st.one_of(
    # Several at once, in their own tasks and threads.
    st.lists(action, min_size=1, max_size=4),
    st.lists(action, min_size=1, max_size=4),
    st.lists(action, min_size=1, max_size=4),
    st.just("settle"),
    st.just("restart"),
)
options = st.fixed_dictionaries(
    {
        "tail_bytes": st.sampled_from([0, 1500, 4000, 1 << 20]),
        "max_unacked_messages": st.sampled_from([1, 3, 10_000]),
    }
)


async def act(world: World, name: str, *values: Any) -> None:
    if name == "publish":
        await world.publish(*values)
    elif name == "publish elsewhere":
        await world.publish_elsewhere(*values)
    elif name == "publish and trim elsewhere":
        await world.publish_and_trim_elsewhere(*values)
    elif name == "write in datasette":
        await world.write_in_datasette(*values)
    elif name == "trim":
        await world.trim(*values)
    else:
        reader, rest = world.readers[values[0]], values[1:]
        if name == "connect":
            await world.connect(reader, *rest)
        elif name == "leave":
            await world.leave(reader, *rest)
        elif name == "interrupt":
            await world.interrupt(reader)
        elif name == "ack":
            await world.acknowledge(reader, *rest)
        elif reader.current is not None:
            (reader.current.flows.set if rest[0] else reader.current.flows.clear)()


async def run(steps: list[Any], path: Path, **options: Any) -> None:
    async with World(path, readers(), **options) as world:
        for step in steps:
            if step == "settle":
                await world.settle(world.readers)
            elif step == "restart":
                await world.restart()
            else:
                busy: set[int] = set()
                together = []
                for name, *values in step:
                    if name in ("connect", "leave", "interrupt", "flow", "ack"):
                        # A reader does one thing at a time.
                        if values[0] in busy:
                            continue
                        busy.add(values[0])
                    together.append(act(world, name, *values))
                await asyncio.gather(*together)
        truth = await world.finish()
        await check(world, truth)


def run_in_file(steps: list[Any], fill_ids: int, options: dict[str, int]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        # The rest after a first message is for readers that leave after it; here it would only take time.
        patch.setattr(subscriber, "FIRST_MESSAGE_SECONDS", 0.0)
        patch.setattr(broker, "FILL_IDS", fill_ids)
        asyncio.run(run(steps, Path(folder) / "data.db", **options))


@settings(QUICK)
@given(st.lists(step, max_size=15), st.sampled_from([4, 5000]), options)
def test_any_interleaving_in_process(steps: list[Any], fill_ids: int, options: dict[str, int]) -> None:
    run_in_file(steps, fill_ids, options)


@pytest.mark.slow
@settings(QUICK, max_examples=1500)
@given(st.lists(step, max_size=40), st.sampled_from([4, 5000]), options)
def test_any_long_interleaving_in_process(steps: list[Any], fill_ids: int, options: dict[str, int]) -> None:
    run_in_file(steps, fill_ids, options)
