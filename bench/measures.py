"""The measurements that need no peers: SQL, other processes, catch-up, many subscribers, large logs.

Each part returns its measures by name, with one value for each repeat. Each repeat
measures both sides of a comparison, in alternating order. ``Sizes`` has the sizes.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import HERE, Server, remove_database
from subscribers import FORMATS, PAYLOAD, connect, drain, seconds_until, subscribe_request, wait_ready

Values = dict[str, list[float]]

#: Most streams that one address may have open, in streams; the default of max_streams_per_actor.
STREAMS_PER_ADDRESS = 2_000


@dataclass(frozen=True)
class Sizes:
    """The sizes of all parts. The targets are for the defaults."""

    repeats: int = 5
    rows: int = 1_000_000
    commits: int = 400  # by another process, for the latency
    idle_seconds: float = 5.0
    idle_subscribers: int = 10_000
    channels: int = 100_000
    subscriptions: int = 10_000
    log: int = 10_000_000
    small_log: int = 10_000
    direct_subscribers: int = 500
    direct_messages: int = 200
    filtered_subscribers: int = 1_000
    filtered_messages: int = 100_000
    filtered_repeats: int = 3  # each sends 100 million messages to those who filter for themselves
    live_subscribers: int = 1_000
    live_queries: int = 51
    live_pages: int = 100
    relayed: int = 1_000_000
    mixed_seconds: float = 600.0
    load_requests: int = 1_000  # of 100 messages each: about a second, longer than a checkpoint or saving the cursors


@contextmanager
def server_of_new_file(folder: Path, name: str, plugins: Path | None = None, **options: str) -> Iterator[Server]:
    """Serve a new database file; the file is deleted at the end."""
    path = folder / f"{name}.db"
    remove_database(path)
    with Server(path, plugins, **options) as server:
        yield server
    remove_database(path)


def fill_log(path: Path, messages: int, channels: int, payload: str = PAYLOAD) -> None:
    """Add messages to the log, spread over the channels, with one statement of this process."""
    with closing(sqlite3.connect(path, timeout=30)) as conn:
        conn.execute("PRAGMA journal_mode = WAL").fetchone()
        conn.execute(
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO vpubsub (channel, payload) SELECT 'chan-' || (i % ?), ? FROM n",
            [messages - 1, channels, payload],
        )
        conn.commit()
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def file_with_log(folder: Path, name: str, messages: int, channels: int) -> Path:
    """The path of a file whose log has that many messages; an existing file that is large enough is used again."""
    path = folder / f"{name}.db"
    if path.exists():
        # An interrupted run may have left a file without a log.
        with closing(sqlite3.connect(path)) as conn, suppress(sqlite3.OperationalError):
            sequence = conn.execute("SELECT seq FROM sqlite_sequence").fetchone()
            if sequence and sequence[0] >= messages:
                return path
    remove_database(path)
    with Server(path) as server:
        server.publish("chan-0", PAYLOAD)  # installs the log
    fill_log(path, messages, channels)
    return path


def publish_rate(server: Server, channel: str, requests: int, batch: int = 100, connections: int = 4) -> float:
    """Acknowledged messages per second, published by load.c."""
    from loading import load
    from targets import Project

    project = Project(server.url, server.database, None, server.pid, "raw")
    publish = project.publish(channel, [PAYLOAD] * batch, push=False)
    with tempfile.TemporaryDirectory() as folder:
        report = load(project, publish, connections, requests, Path(folder))
    return float(report["requests"] * batch / report["seconds"])


# -- SQL ---------------------------------------------------------------------


def sql(folder: Path, sizes: Sizes) -> Values:
    """The seconds that one transaction on Datasette's write connection takes, for each measure of bench_sql.py."""
    names = ("first", "log", "bare", "publish_batch", "executemany", "executemany_bare", "update", "update_trigger")
    values: Values = {name: [] for name in names}
    with server_of_new_file(folder, "sql", HERE / "plugins") as server:
        for repeat in range(sizes.repeats):
            for name in (*names[repeat % len(names) :], *names[: repeat % len(names)]):
                body = {"database": "sql", "measure": name, "rows": sizes.rows, "payload": PAYLOAD}
                values[name].append(server.post("/-/bench-sql", body)["seconds"])
    return values


# -- commits by other processes ----------------------------------------------


def other_process(folder: Path, sizes: Sizes) -> Values:
    """Milliseconds from a commit of this process until the subscriber receives it; the server's share of a core.

    The share is measured while the server is idle, without a subscriber and with one.
    """
    values: Values = {"latency_ms": [], "cpu_without_subscriber": [], "cpu_with_subscriber": []}

    def cpu_share(server: Server) -> float:
        cpu, start = server.cpu_seconds(), time.perf_counter()
        time.sleep(sizes.idle_seconds)
        return (server.cpu_seconds() - cpu) / (time.perf_counter() - start)

    with (
        server_of_new_file(folder, "other") as server,
        closing(sqlite3.connect(server.path, isolation_level=None)) as conn,
    ):
        server.publish("live", PAYLOAD)
        conn.execute("PRAGMA synchronous = FULL")
        for _ in range(sizes.repeats):
            time.sleep(1.0)  # the server finishes its work for the last subscriber, which has disconnected
            values["cpu_without_subscriber"].append(cpu_share(server))
            with connect(server.port, subscribe_request("other", "live", "sse")) as subscriber:
                wait_ready([subscriber])
                time.sleep(1.0)
                values["cpu_with_subscriber"].append(cpu_share(server))
                subscriber.settimeout(10)
                for _ in range(max(1, sizes.commits // sizes.repeats)):
                    drain(subscriber)
                    # A random moment between two checks of the watcher.
                    time.sleep(random.uniform(0.005, 0.015))
                    conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('live', ?)", [PAYLOAD])
                    start = time.perf_counter()
                    while b"~" not in subscriber.recv(1 << 16):
                        pass
                    values["latency_ms"].append((time.perf_counter() - start) * 1000)
    return values


# -- catch-up ----------------------------------------------------------------


def catch_up(folder: Path, sizes: Sizes) -> Values:
    """Messages per second to one subscriber in each format, and the same SELECT in pages by Python alone."""
    values: Values = {name: [] for name in (*FORMATS, "select")}
    path = file_with_log(folder, "catchup", sizes.rows, 1)
    with Server(path) as server, closing(sqlite3.connect(path)) as conn:
        for repeat in range(sizes.repeats):
            names = (*FORMATS, "select")
            for name in (*names[repeat % 4 :], *names[: repeat % 4]):
                if name == "select":
                    values[name].append(sizes.rows / _select_seconds(conn, sizes.rows))
                else:
                    request = subscribe_request("catchup", "chan-0", name, after=0)
                    values[name].append(sizes.rows / seconds_until(server.port, request, sizes.rows))
    remove_database(path)
    return values


def _select_seconds(conn: sqlite3.Connection, rows: int) -> float:
    start, last, count = time.perf_counter(), 0, 0
    while count < rows:
        page = conn.execute(
            "SELECT id, channel, payload, created_at FROM vpubsub WHERE channel = ? AND id > ? ORDER BY id LIMIT 1000",
            ["chan-0", last],
        ).fetchall()
        count, last = count + len(page), page[-1][0]
    return time.perf_counter() - start


# -- many idle subscribers ---------------------------------------------------


def addresses(count: int) -> Iterator[str]:
    """That many loopback addresses; no address comes more often than it may have streams."""
    for number in range(count):
        yield f"127.0.0.{2 + number // STREAMS_PER_ADDRESS}"


def subscribe_all(stack: ExitStack, server: Server, count: int, named: bool = False) -> list[Any]:
    """Connect subscribers, each to a separate channel, and wait until the server has answered all of them."""
    socks: list[Any] = []
    for number, address in enumerate(addresses(count)):
        name = f"reader-{number}" if named else None
        request = subscribe_request(server.database, f"chan-{number}", "sse", name=name)
        socks.append(stack.enter_context(connect(server.port, request, address)))
        if len(socks) % 200 == 0:
            wait_ready(socks[-200:])
    wait_ready(socks[len(socks) - len(socks) % 200 :])
    return socks


def _delivery_milliseconds(server: Server, sock: Any, channel: str) -> float:
    """Milliseconds from a publish request until a subscriber receives the message.

    It measures the second of two messages: with the first, the server checks the publish permission for the channel.
    """
    for _ in range(2):
        drain(sock)
        start = time.perf_counter()
        server.publish(channel, PAYLOAD)
        sock.settimeout(20)
        while b"~" not in sock.recv(1 << 16):
            pass
    return (time.perf_counter() - start) * 1000


def idle(folder: Path, sizes: Sizes) -> Values:
    """KiB of memory for each idle subscriber, and the milliseconds of a message to one of many and to one of ten."""
    values: Values = {"kib": [], "many_ms": [], "ten_ms": []}
    with ExitStack() as stack:
        few = stack.enter_context(server_of_new_file(folder, "few"))
        many = stack.enter_context(server_of_new_file(folder, "many"))
        for server in (few, many):
            server.publish("first", PAYLOAD)
            for _ in range(3):  # the first subscribers make the server import modules and fill caches
                with connect(server.port, subscribe_request(server.database, "first", "sse")) as sock:
                    wait_ready([sock])
        tens = subscribe_all(stack, few, 10)
        before = many.memory_kib()
        socks = subscribe_all(stack, many, sizes.idle_subscribers)
        values["kib"].append((many.memory_kib() - before) / len(socks))
        for _ in range(sizes.repeats * 20):
            number = random.randrange(10)
            values["ten_ms"].append(_delivery_milliseconds(few, tens[number], f"chan-{number}"))
            number = random.randrange(len(socks))
            values["many_ms"].append(_delivery_milliseconds(many, socks[number], f"chan-{number}"))
    return values


# -- many channels and subscriptions, and large logs --------------------------


def wait_idle(server: Server, seconds: float = 0.01) -> None:
    """Wait until the server is idle: until it uses less than a tenth of a core for that many seconds."""
    before = -1.0
    while (now := server.cpu_seconds()) - before > seconds / 10:
        before = now
        time.sleep(seconds)


def alternate(repeats: int, first: Callable[[], float], second: Callable[[], float]) -> tuple[list[float], list[float]]:
    """The values of two measures, taken in alternating order."""
    first_values: list[float] = []
    second_values: list[float] = []
    for repeat in range(repeats + 1):
        pairs = [(first_values, first), (second_values, second)]
        for values, measure in pairs if repeat % 2 else pairs[::-1]:
            value = measure()
            if repeat:  # the first repeat only warms up
                values.append(value)
    return first_values, second_values


def channels(folder: Path, sizes: Sizes) -> Values:
    """Messages per second published, with many channels and connected subscriptions, and with ten of each."""
    with ExitStack() as stack:
        servers = []
        for name, count, subscriptions in (
            ("tens", 10, 10),
            ("thousands", sizes.channels, sizes.subscriptions),
        ):
            path = folder / f"{name}.db"
            remove_database(path)
            file_with_log(folder, name, count, count)
            # All of them are of the same anonymous visitor.
            bounds = {"max_anonymous_subscriptions": "100000", "max_subscription_bytes_per_actor": "100000000"}
            server = stack.enter_context(Server(path, None, **bounds))
            subscribe_all(stack, server, subscriptions, named=True)
            servers.append(server)
        few, many = servers
        tens, thousands = alternate(
            sizes.repeats * 2,
            lambda: publish_rate(few, "chan-5", sizes.load_requests),
            lambda: publish_rate(many, "chan-5", sizes.load_requests),
        )
    return {"tens": tens, "thousands": thousands}


def large_log(folder: Path, sizes: Sizes) -> Values:
    """The rates of publishing and of catch-up, with a log of ten million messages and with one of ten thousand.

    Both files are in the system's cache, so that no disk is read.
    """
    large = file_with_log(folder, "large", sizes.log, 10)
    small = file_with_log(folder, "small", sizes.small_log, 10)
    read = sizes.small_log // 10
    requests = max(1, sizes.load_requests // 4)  # few requests, so that the small log stays small
    with large.open("rb") as file:  # reads the file into the system's cache, which has the small file already
        while file.read(1 << 24):
            pass

    def catch_up_rate(server: Server, after: int) -> float:
        """The server must have finished the stream before: it sends more messages than the measure waits for."""
        wait_idle(server)
        request = subscribe_request(server.database, "chan-3", "sse", after=after)
        return read / seconds_until(server.port, request, read)

    with Server(large) as many, Server(small) as few:
        publish_small, publish_large = alternate(
            sizes.repeats * 2,
            lambda: publish_rate(few, "published", requests),
            lambda: publish_rate(many, "published", requests),
        )
        read_small, read_large = alternate(
            sizes.repeats * 40,  # each measure takes milliseconds
            lambda: catch_up_rate(few, 0),
            lambda: catch_up_rate(many, random.randrange(sizes.log - sizes.small_log)),
        )
    remove_database(small)
    return {
        "publish_small": publish_small,
        "publish_large": publish_large,
        "read_small": read_small,
        "read_large": read_large,
    }


PARTS: dict[str, Callable[[Path, Sizes], Values]] = {
    "sql": sql,
    "other_process": other_process,
    "catch_up": catch_up,
    "idle": idle,
    "channels": channels,
    "large_log": large_log,
}


def make_programs() -> None:
    """Compile the load generator and the subscribers, which are written in C."""
    subprocess.run(["make", "-s", "-C", str(HERE / "peers")], check=True)
