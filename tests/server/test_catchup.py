"""A reader that is far behind becomes live while others publish and retention trims: nothing missing, nothing twice."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw import Raw, raw_stream
from servers import OPEN, Server, sqlite_shell, wait_for
from trims import TRIMMER, trim_elsewhere

#: How much a server may grow while one reader catches up, in KB: the tail has 16 MB by default, pages and
#: sends are small beside it, and Python keeps what it once had. A million messages are 200 MB and more.
GROWTH_KB = 120_000


def options(**plugin: Any) -> dict[str, Any]:
    return {**OPEN, "plugins": {"datasette-pubsub": plugin}}


def memory_kb(server: Server) -> int:
    """The server's resident memory."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def fill(server: Server, count: int, channels: str = "'a'", size: int = 60) -> None:
    """Messages made in the sqlite3 shell; ``channels`` is an expression of ``n``."""
    sqlite_shell(
        server.path,
        f"""WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT {count})
            INSERT INTO vpubsub (channel, payload)
            SELECT {channels}, format('%-{size}s', 'message ' || n) FROM numbers;""",
    )


@contextmanager
def publishing(server: Server, per_second: int) -> Iterator[list[int]]:
    """Publish at a rate, over HTTP, until the block ends; the ids that were acknowledged."""
    ids: list[int] = []
    stop = threading.Event()
    items = [{"channel": "a", "payload": f"live {n}".ljust(60)} for n in range(per_second // 20)]

    def run() -> None:
        due = time.monotonic()
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                answer = client.post(f"{server.pubsub}/-/publish", json={"items": items})
                assert answer.status_code == 200, answer.text
                ids.extend(answer.json()["message_ids"])
                due += 0.05
                # At a rate, not as a synchronisation.
                stop.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ids
    finally:
        stop.set()
        thread.join()


def catch_up(server: Server, edge: str, count: int, per_second: int, deadline: float) -> None:
    server.publish(channel="a", payload="installs the log")
    fill(server, count - 1)
    reader = raw_stream(server, edge, ["a"])
    reader.until(lambda: reader.ids, "the first message", deadline)
    before = peak = memory_kb(server)
    with publishing(server, per_second) as published:
        wait_for(lambda: published, "a publish")
        end = time.monotonic() + deadline
        while not reader.ready:
            assert time.monotonic() < end, f"{reader.ids} messages and not live"
            reader.take()
            peak = max(peak, memory_kb(server))
        assert reader.ids > count, "it was overtaken by none"
        fresh = server.publish(channel="a", payload="fresh")[0]
        reader.until(lambda: reader.last >= fresh, "a fresh message", deadline)
    final = server.publish(channel="a", payload="the last")[0]
    reader.until(lambda: reader.last == final, "the last message", deadline)
    reader.close()
    assert (reader.holes, reader.missed) == ([], 0)
    assert reader.ids == final == count + len(published) + 2
    assert peak - before < GROWTH_KB, f"{before} KB before, {peak} KB at most"


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    # Nobody acks here, and all is to come.
    return serve(config=options(max_unacked_messages=100_000_000))


@pytest.mark.parametrize("edge", ["sse", "connect"])
def test_a_reader_50_000_messages_behind_becomes_live(server: Server, edge: str) -> None:
    catch_up(server, edge, 50_000, 2_000, deadline=60)


@pytest.mark.slow
@pytest.mark.parametrize("edge", ["sse", "connect"])
def test_a_reader_a_million_messages_behind_becomes_live(server: Server, edge: str) -> None:
    catch_up(server, edge, 1_000_000, 5_000, deadline=300)


def read_to_the_end(server: Server, reader: Raw) -> None:
    final = server.publish(channel="a", payload="the last")[0]
    reader.until(lambda: reader.last == final, "the last message", 60)
    reader.close()


@pytest.mark.parametrize("edge", ["sse", "connect"])
def test_what_is_trimmed_during_catch_up_is_told_exactly(server: Server, edge: str) -> None:
    server.publish(channel="a", payload="installs the log")
    # 40 MB: far more than all buffers between the server and a reader that takes nothing.
    fill(server, 39_999, size=1000)
    reader = raw_stream(server, edge, ["a"])
    reader.until(lambda: reader.ids, "the first message", 30)
    trim_elsewhere(server, 35_000, "a")
    read_to_the_end(server, reader)
    ((last, resumed),) = reader.holes
    assert 0 < last < 35_000
    assert resumed == 35_001
    assert reader.missed == reader.told == 35_000 - last
    assert reader.ids + reader.missed == 40_001


@pytest.mark.parametrize("edge", ["sse", "connect"])
def test_of_several_channels_too(server: Server, edge: str) -> None:
    server.publish(channel="a", payload="installs the log")
    fill(server, 40_000, "substr('abc', n % 3 + 1, 1)", size=1000)
    reader = raw_stream(server, edge, ["a", "b"])
    reader.until(lambda: reader.ids, "the first message", 30)
    # All of b up to here, but of a and c only half.
    trim_elsewhere(server, 38_000, "b")
    trim_elsewhere(server, 19_000, "a", "c")
    read_to_the_end(server, reader)
    wanted = 2 + sum(1 for n in range(1, 40_001) if n % 3 != 2)
    assert reader.missed == reader.told > 0
    assert reader.ids + reader.missed == wanted


@pytest.mark.parametrize("edge", ["sse", "connect"])
def test_trims_that_run_beside_a_reader(server: Server, edge: str) -> None:
    """The reader and the trimmer race each other; whoever wins, nothing is unaccounted for."""
    server.publish(channel="a", payload="installs the log")
    fill(server, 59_999, size=300)
    reader = raw_stream(server, edge, ["a"])
    reader.until(lambda: reader.ids, "the first message", 30)
    command = [sys.executable, str(TRIMMER), str(server.path), "50000", "a"]
    with subprocess.Popen(command) as trimmer:
        reader.until(lambda: reader.ready, "live", 60)
        assert trimmer.wait(60) == 0
    read_to_the_end(server, reader)
    assert reader.missed == reader.told == sum(resumed - last - 1 for last, resumed in reader.holes)
    assert reader.ids + reader.missed == 60_001


def test_retention_of_the_server_itself(serve: Callable[..., Server]) -> None:
    config = options(
        channel_retention={"a": {"messages": 2_000}}, trim_interval_seconds=0.05, max_unacked_messages=10**8
    )
    server = serve(config=config)
    server.publish(channel="a", payload="installs the log")
    reader = raw_stream(server, "sse", ["a"])
    reader.until(lambda: reader.ready, "live", 30)
    for _ in range(10):
        fill(server, 4_000, size=1000)
        reader.take()
    wait_for(lambda: server.rows("SELECT count(*) FROM vpubsub") == [(2_000,)], "the trim")
    read_to_the_end(server, reader)
    assert reader.missed == reader.told == sum(resumed - last - 1 for last, resumed in reader.holes)
    assert reader.ids + reader.missed == 40_002
    assert reader.missed > 0
