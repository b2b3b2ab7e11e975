"""Any interleaving of writers, readers, trims and restarts: nothing skipped, everything in order."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from places import SUPPORT
from servers import OPEN, Server, Sse, sqlite_shell, wait_for
from world import DEADLINE, Reader, Truth, World, check, make_file

from datasette_pubsub.broker import batcher, broker
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.live import subscriber

TRIMMER = SUPPORT / "trimmer.py"

#: A failure in real threads is not shrunk: each attempt at one that hangs would cost its deadline.
QUICK = settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

channels = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=12)
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


def readers() -> list[Reader]:
    return [
        Reader("auto a", ["a"], [], "auto"),
        Reader("explicit a", ["a"], [], "explicit"),
        Reader("auto b and c", ["b", "c"], [], "auto"),
        Reader("explicit, by pattern", [], ["[ab]"], "explicit"),
        Reader("auto, everything", [], ["*"], "auto"),
    ]


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


# -- the same with a real server, that is killed and started again ---------------


class Processes:
    """A server, programs that write beside it, and two readers of channel ``a``: one acks, one does not."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.count = 0
        self.accepted: dict[int, str] = {}
        self.seen: dict[str, dict[int, str]] = {"explicit": {}, "auto": {}}
        self.missed = 0

    def truth(self) -> Truth:
        with closing(sqlite3.connect(self.server.path, isolation_level=None)) as conn:
            return Truth.of(conn)

    def items(self, channels: list[str]) -> list[dict[str, str]]:
        self.count += 1
        return [{"channel": channel, "payload": f"{self.count} {n}"} for n, channel in enumerate(channels)]

    def publish(self, channels: list[str]) -> None:
        items = self.items(channels)
        try:
            ids = self.server.publish(*items)
        except httpx.TransportError:
            # Killed: it may have been stored, but was not acknowledged.
            return
        self.accepted.update(zip(ids, (item["payload"] for item in items), strict=True))

    def publish_elsewhere(self, channels: list[str]) -> None:
        """In the sqlite3 shell: a transaction that is rolled back, and one that is not."""
        values = ", ".join(f"('{item['channel']}', '{item['payload']}')" for item in self.items(channels))
        insert = "INSERT INTO vpubsub (channel, payload)"
        sqlite_shell(
            self.server.path,
            f"BEGIN IMMEDIATE; {insert} VALUES ('a', 'never'); ROLLBACK;"
            f"BEGIN IMMEDIATE; {insert} VALUES {values}; COMMIT;",
        )

    def trim(self, share: float) -> None:
        up_to = int(max(self.truth().said, default=0) * share)
        subprocess.run([sys.executable, str(TRIMMER), str(self.server.path), str(up_to), "a", "b"], check=True)

    def kill(self, channels: list[str]) -> None:
        """Kill the server while somebody publishes, and start it again."""
        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(lambda: [self.publish(channels) for _ in range(5)])
            wait_for(lambda: publishing.done() or self.accepted, "the first of them")
            self.server.kill()
            publishing.result()
        self.server.start()

    def read(self, ack: str, most: int, acks: bool) -> None:
        """Connect and read: the auto reader to the end, so that it ends cleanly; the other one as it likes."""
        before, start = self.truth(), self.cursor(ack)
        missed, got, end = 0, dict[int, str](), None
        with Sse(f"{self.server.pubsub}/-/stream", channel="a", subscription=ack, ack=ack) as reader:
            while end is None and (ack == "auto" or len(got) < most):
                event = reader.event()
                if event["event"] == "gap":
                    missed += int(event["data"]["missed"])
                elif event["event"] == "ready":
                    end = int(event["data"]["head"])
                elif event["event"] == "message":
                    number = int(event["data"]["messageId"])
                    assert number > max(got, default=0), "in order"
                    got[number] = event["data"]["payload"]
        if ack == "auto":
            wait_for(lambda: self.cursor("auto") == end, "its cursor is saved")
            assert not got.keys() & self.seen["auto"].keys(), "once"
            self.missed += missed
        elif acks and got:
            answer = httpx.post(
                f"{self.server.pubsub}/-/ack", json={"subscription": ack, "message_id": max(got)}, timeout=30
            )
            assert answer.json()["cursor"] == max(got)
        self.seen[ack].update(got)
        if start is not None:
            passed = before.ids(A, start, end or max(got, default=start)) - got.keys()
            assert passed <= before.gone, f"skipped {passed - before.gone}"
            assert missed == len(passed), "each trimmed message is told"

    def cursor(self, name: str) -> int | None:
        """Where a subscription stands, if it exists."""
        rows = self.server.rows("SELECT cursor FROM pubsub_subscriptions WHERE name = ?", name)
        return rows[0][0] if rows else None


A = Selector.of(["a"])
in_processes = st.one_of(
    st.tuples(st.just("publish"), channels),
    st.tuples(st.just("publish_elsewhere"), channels),
    st.tuples(st.just("trim"), st.sampled_from([0.5, 1.0])),
    st.tuples(st.just("read"), st.sampled_from(["auto", "explicit"]), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("read"), st.sampled_from(["auto", "explicit"]), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("kill"), channels),
    st.tuples(st.just("restart")),
)


def run_processes(serve: Callable[..., Server], tmp_path: Path, steps: list[Any]) -> None:
    name = f"data{len(list(tmp_path.glob('data*.db')))}"
    make_file(tmp_path / f"{name}.db")
    server = serve(
        databases=[name], config={**OPEN, "plugins": {"datasette-pubsub": {"cursor_save_interval_seconds": 0.05}}}
    )
    world = Processes(server)
    # Both subscriptions exist before anything is trimmed, so that everything is owed to them.
    world.publish(["a"])
    world.read("auto", 1, acks=False)
    world.read("explicit", 1, acks=False)
    for step, *values in steps:
        if step == "restart":
            server.restart()
        else:
            getattr(world, step)(*values)
    world.publish(["a", "b"])
    world.read("auto", 1, acks=False)
    world.read("explicit", 1_000_000, acks=True)
    server.stop()
    truth = world.truth()
    assert all(truth.said[number][1] == payload for number, payload in world.accepted.items())
    assert all(payload != "never" for _, payload in truth.said.values())
    for seen in world.seen.values():
        assert all(truth.said[number] == ("a", payload) for number, payload in seen.items())
        assert truth.ids(A) - seen.keys() <= truth.gone
    assert world.missed == len(truth.ids(A) - world.seen["auto"].keys())
    moved = server.rows("SELECT was, became FROM moved")
    assert all(became >= was for was, became in moved), "a cursor moved back"
    assert "Traceback" not in server.log
    assert server.rows("PRAGMA integrity_check") == [("ok",)]


@settings(QUICK, max_examples=2)
@given(steps=st.lists(in_processes, min_size=5, max_size=10))
def test_any_interleaving_in_processes(serve: Callable[..., Server], tmp_path: Path, steps: list[Any]) -> None:
    run_processes(serve, tmp_path, steps)


@pytest.mark.slow
@settings(QUICK, max_examples=40)
@given(steps=st.lists(in_processes, min_size=5, max_size=30))
def test_any_long_interleaving_in_processes(serve: Callable[..., Server], tmp_path: Path, steps: list[Any]) -> None:
    run_processes(serve, tmp_path, steps)


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
