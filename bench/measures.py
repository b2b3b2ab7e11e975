"""What the comparison with the peers lacks: SQL, other processes, catch-up, many subscribers, large logs.

Each part returns its numbers: a name, and one value for each repeat. What is
compared is measured in turns within a repeat. ``Sizes`` says how much of it all.
"""

from __future__ import annotations

import random
import select
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readers import FORMATS, PAYLOAD, connect, drain, seconds_until, subscribe_request, wait_ready
from server import HERE, Server, remove

Values = dict[str, list[float]]

#: Streams that one address may have open; the default of max_streams_per_actor.
STREAMS_PER_ADDRESS = 2_000


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the targets are for the defaults."""

    repeats: int = 5
    rows: int = 1_000_000
    commits: int = 400  # by another process, for its latency
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
    load_requests: int = 1_000  # of 100 messages each: about a second, longer than a checkpoint or a round of cursors


@contextmanager
def fresh(folder: Path, name: str, plugins: Path | None = None) -> Iterator[Server]:
    """A server of a new file."""
    path = folder / f"{name}.db"
    remove(path)
    with Server(path, plugins) as server:
        yield server
    remove(path)


def fill(path: Path, messages: int, channels: int, payload: str = PAYLOAD) -> None:
    """Messages in the file's log, spread over channels, by one statement of another process."""
    with closing(sqlite3.connect(path, timeout=30)) as conn:
        conn.execute("PRAGMA journal_mode = WAL").fetchone()
        conn.execute(
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO vpubsub (channel, payload) SELECT 'chan-' || (i % ?), ? FROM n",
            [messages - 1, channels, payload],
        )
        conn.commit()
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def prepared(folder: Path, name: str, messages: int, channels: int) -> Path:
    """A file with such a log; kept from one run to the next when it is large."""
    path = folder / f"{name}.db"
    if path.exists():
        # A run that was broken off may have left a file without a log.
        with closing(sqlite3.connect(path)) as conn, suppress(sqlite3.OperationalError):
            have = conn.execute("SELECT seq FROM sqlite_sequence").fetchone()
            if have and have[0] >= messages:
                return path
    remove(path)
    with Server(path) as server:
        server.publish("chan-0", PAYLOAD)  # installs the log
    fill(path, messages, channels)
    return path


def publish_rate(server: Server, channel: str, requests: int, batch: int = 100, connections: int = 4) -> float:
    """Messages per second until acknowledged, through load.c."""
    from targets import Project

    import bench

    project = Project(server.url, server.database, None, server.pid, "raw")
    publish = project.publish(channel, [PAYLOAD] * batch, push=False)
    with tempfile.TemporaryDirectory() as folder:
        report = bench.load(project, publish, connections, requests, Path(folder))
    return float(report["requests"] * batch / report["seconds"])


# -- SQL ---------------------------------------------------------------------


def sql(folder: Path, sizes: Sizes) -> Values:
    """Seconds of one transaction on Datasette's write connection, by what is done in it."""
    names = ("first", "log", "bare", "publish_batch", "executemany", "executemany_bare", "update", "update_trigger")
    values: Values = {name: [] for name in names}
    with fresh(folder, "sql", HERE / "plugins") as server:
        for repeat in range(sizes.repeats):
            for name in (*names[repeat % len(names) :], *names[: repeat % len(names)]):
                asked = {"database": "sql", "measure": name, "rows": sizes.rows, "payload": PAYLOAD}
                values[name].append(server.post("/-/bench-sql", asked)["seconds"])
    return values


# -- commits by other processes ----------------------------------------------


def other_process(folder: Path, sizes: Sizes) -> Values:
    """Milliseconds from a commit here to its arrival; the server's share of a core with nobody and with somebody."""
    values: Values = {"latency_ms": [], "cpu_nobody": [], "cpu_somebody": []}

    def share(server: Server) -> float:
        cpu, start = server.cpu_seconds(), time.perf_counter()
        time.sleep(sizes.idle_seconds)
        return (server.cpu_seconds() - cpu) / (time.perf_counter() - start)

    with fresh(folder, "other") as server, closing(sqlite3.connect(server.path, isolation_level=None)) as conn:
        server.publish("live", PAYLOAD)
        conn.execute("PRAGMA synchronous = FULL")
        for _ in range(sizes.repeats):
            time.sleep(1.0)  # what follows from the last subscriber's leaving is over
            values["cpu_nobody"].append(share(server))
            with connect(server.port, subscribe_request("other", "live", "sse")) as reader:
                wait_ready([reader])
                time.sleep(1.0)
                values["cpu_somebody"].append(share(server))
                reader.settimeout(10)
                for _ in range(max(1, sizes.commits // sizes.repeats)):
                    drain(reader)
                    # Anywhere between two looks of the watcher.
                    time.sleep(random.uniform(0.005, 0.015))
                    conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('live', ?)", [PAYLOAD])
                    start = time.perf_counter()
                    while b"~" not in reader.recv(1 << 16):
                        pass
                    values["latency_ms"].append((time.perf_counter() - start) * 1000)
    return values


# -- catch-up ----------------------------------------------------------------


def catch_up(folder: Path, sizes: Sizes) -> Values:
    """Messages per second to one subscriber, and of the same SELECT in pages by Python alone."""
    values: Values = {name: [] for name in (*FORMATS, "select")}
    path = prepared(folder, "catchup", sizes.rows, 1)
    with Server(path) as server, closing(sqlite3.connect(path)) as conn:
        for repeat in range(sizes.repeats):
            names = (*FORMATS, "select")
            for name in (*names[repeat % 4 :], *names[: repeat % 4]):
                if name == "select":
                    values[name].append(sizes.rows / _select(conn, sizes.rows))
                else:
                    request = subscribe_request("catchup", "chan-0", name, after=0)
                    values[name].append(sizes.rows / seconds_until(server.port, request, sizes.rows))
    remove(path)
    return values


def _select(conn: sqlite3.Connection, rows: int) -> float:
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
    """So many loopback addresses, none more often than it may have streams."""
    for number in range(count):
        yield f"127.0.0.{2 + number // STREAMS_PER_ADDRESS}"


def subscribe_all(stack: ExitStack, server: Server, count: int, named: bool = False) -> list[Any]:
    """Subscribers, each on a channel of its own, connected and answered."""
    socks: list[Any] = []
    for number, address in enumerate(addresses(count)):
        name = f"reader-{number}" if named else None
        request = subscribe_request(server.database, f"chan-{number}", "sse", name=name)
        socks.append(stack.enter_context(connect(server.port, request, address)))
        if len(socks) % 200 == 0:
            wait_ready(socks[-200:])
    wait_ready(socks[len(socks) - len(socks) % 200 :])
    return socks


def _one_message(server: Server, sock: Any, channel: str) -> float:
    """Milliseconds from a publish request to the message's arrival at a subscriber.

    The second of two messages, as who may publish to the channel is asked about with the first.
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
    """KiB of the server's memory for each idle subscriber, and a message to one of many and to one of ten."""
    values: Values = {"kib": [], "many_ms": [], "ten_ms": []}
    with ExitStack() as stack:
        few = stack.enter_context(fresh(folder, "few"))
        many = stack.enter_context(fresh(folder, "many"))
        for server in (few, many):
            server.publish("first", PAYLOAD)
            for _ in range(3):  # what only the first ones need
                with connect(server.port, subscribe_request(server.database, "first", "sse")) as sock:
                    wait_ready([sock])
        tens = subscribe_all(stack, few, 10)
        before = many.memory_kib()
        socks = subscribe_all(stack, many, sizes.idle_subscribers)
        values["kib"].append((many.memory_kib() - before) / len(socks))
        for _ in range(sizes.repeats * 20):
            number = random.randrange(10)
            values["ten_ms"].append(_one_message(few, tens[number], f"chan-{number}"))
            number = random.randrange(len(socks))
            values["many_ms"].append(_one_message(many, socks[number], f"chan-{number}"))
    return values


# -- many channels and subscriptions, and large logs --------------------------


def settle(server: Server, seconds: float = 0.01) -> None:
    """Wait until the server does nothing: uses less than a tenth of so many seconds."""
    before = -1.0
    while (now := server.cpu_seconds()) - before > seconds / 10:
        before = now
        time.sleep(seconds)


def _turns(repeats: int, first: Callable[[], float], second: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Two measures in turns, each first every other time."""
    ones: list[float] = []
    twos: list[float] = []
    for repeat in range(repeats + 1):
        pairs = [(ones, first), (twos, second)]
        for values, measure in pairs if repeat % 2 else pairs[::-1]:
            value = measure()
            if repeat:  # the first round warms up
                values.append(value)
    return ones, twos


def channels(folder: Path, sizes: Sizes) -> Values:
    """Messages per second published, with many channels and connected subscriptions, and with ten of each."""
    with ExitStack() as stack:
        servers = []
        for name, count, subscriptions in (
            ("tens", 10, 10),
            ("thousands", sizes.channels, sizes.subscriptions),
        ):
            path = folder / f"{name}.db"
            remove(path)
            prepared(folder, name, count, count)
            server = stack.enter_context(Server(path))
            subscribe_all(stack, server, subscriptions, named=True)
            servers.append(server)
        few, many = servers
        tens, thousands = _turns(
            sizes.repeats * 2,
            lambda: publish_rate(few, "chan-5", sizes.load_requests),
            lambda: publish_rate(many, "chan-5", sizes.load_requests),
        )
    return {"tens": tens, "thousands": thousands}


def large_log(folder: Path, sizes: Sizes) -> Values:
    """Publishing and catch-up with a log of ten million messages, and with one of ten thousand; no disk is read."""
    large = prepared(folder, "large", sizes.log, 10)
    small = prepared(folder, "small", sizes.small_log, 10)
    read = sizes.small_log // 10
    requests = max(1, sizes.load_requests // 4)  # the small log is to stay small
    with large.open("rb") as file:  # into the system's cache, where the small one is anyway
        while file.read(1 << 24):
            pass

    def catch_up_rate(server: Server, after: int) -> float:
        """A stream goes on after the messages that are waited for; the one before it must have come to its end."""
        settle(server)
        request = subscribe_request(server.database, "chan-3", "sse", after=after)
        return read / seconds_until(server.port, request, read)

    with Server(large) as many, Server(small) as few:
        publish_small, publish_large = _turns(
            sizes.repeats * 2,
            lambda: publish_rate(few, "published", requests),
            lambda: publish_rate(many, "published", requests),
        )
        read_small, read_large = _turns(
            sizes.repeats * 40,  # each takes milliseconds
            lambda: catch_up_rate(few, 0),
            lambda: catch_up_rate(many, random.randrange(sizes.log - sizes.small_log)),
        )
    remove(small)
    return {
        "publish_small": publish_small,
        "publish_large": publish_large,
        "read_small": read_small,
        "read_large": read_large,
    }


# -- the peers ---------------------------------------------------------------

# -- the direct send ----------------------------------------------------------


def direct_send(folder: Path, sizes: Sizes) -> Values:
    """CPU time of the server, in microseconds for each message to each subscriber, with the direct send and without.

    Single publishes to many subscribers of one channel, each sent before the next.
    """
    with ExitStack() as stack:
        measures = []
        for name, on in (("direct", "true"), ("tasks", "false")):
            path = folder / f"{name}.db"
            remove(path)
            server = stack.enter_context(Server(path, direct_send=on))
            server.publish("all", PAYLOAD)
            request = subscribe_request(server.database, "all", "sse")
            socks = [stack.enter_context(connect(server.port, request)) for _ in range(sizes.direct_subscribers)]
            wait_ready(socks)
            measures.append(_microseconds_each(server, socks, sizes.direct_messages))
        direct, tasks = _turns(sizes.repeats * 2, *measures)
    return {"direct": direct, "tasks": tasks}


def _microseconds_each(server: Server, socks: list[Any], messages: int) -> Callable[[], float]:
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    by_number = {sock.fileno(): sock for sock in socks}

    def measure() -> float:
        settle(server)
        before = server.cpu_seconds()
        for _ in range(messages):
            server.publish("all", PAYLOAD)
            waiting = set(by_number)
            while waiting:
                for number, _ in poll.poll(20_000):
                    if b"~" in by_number[number].recv(1 << 16):
                        waiting.discard(number)
        return (server.cpu_seconds() - before) / messages / len(socks) * 1e6

    return measure


PARTS: dict[str, Callable[[Path, Sizes], Values]] = {
    "sql": sql,
    "other_process": other_process,
    "catch_up": catch_up,
    "idle": idle,
    "channels": channels,
    "large_log": large_log,
    "direct_send": direct_send,
}


def make_programs() -> None:
    """The load generator and the subscribers, which are written in C."""
    subprocess.run(["make", "-s", "-C", str(HERE / "peers")], check=True)


def median_ratio(values: list[float], others: list[float]) -> float:
    """The median of the ratios within each repeat."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))
