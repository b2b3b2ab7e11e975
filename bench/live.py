"""Live queries: what they cost publishers and pages, and how late their changes are, while another process writes."""

from __future__ import annotations

import json
import re
import select
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from measures import Sizes, Values, publish_rate, server_of_new_file, wait_idle
from server import Server
from subscribers import connect, wait_ready

#: Commits of the other process, per second.
COMMITS = 200

#: Rows of the table that the queries read.
ROWS = 10_000

#: Writes to the table: argv is the file, commits per second, and the number of regions. Ends with its input.
WRITER = """
import sqlite3, sys, threading, time
conn = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
pace, regions = 1 / float(sys.argv[2]), int(sys.argv[3])
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
count, begin = 0, time.time()
while not ended.is_set():
    conn.execute("UPDATE orders SET total = total + 1, at = ? WHERE id = ?", [time.time(), count % regions + 1])
    count += 1
    time.sleep(max(0, begin + count * pace - time.time()))
print(count / (time.time() - begin))
"""

_AT = re.compile(rb'"row":\[\d+,[\d.]+,([\d.]+)\]')


def fill(path: Path, regions: int) -> None:
    """Make the table; the rows with the first ids are those that change, one for each region."""
    with closing(sqlite3.connect(path, timeout=30)) as conn:
        conn.executescript(
            "PRAGMA journal_mode = WAL;"
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, region INTEGER, total REAL, at REAL);"
            "CREATE INDEX orders_region ON orders (region)"
        )
        conn.executemany(
            "INSERT INTO orders VALUES (?, ?, 1, 0)", ((number + 1, number % regions) for number in range(ROWS))
        )
        conn.commit()


def live_request(database: str, region: int) -> bytes:
    """The request of a subscriber of one region's query."""
    sql = f"SELECT count(*) AS orders, sum(total) AS total, max(at) AS at FROM orders WHERE region = {region}"
    path = f"/{database}/-/pubsub/-/live?{urllib.parse.urlencode({'sql': sql})}"
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()


class Subscribers:
    """All subscribers; one thread takes what they get, and notes how late each change is."""

    def __init__(self, socks: list[socket.socket]) -> None:
        self._socks = {sock.fileno(): sock for sock in socks}
        self._ended = False
        #: Seconds from a commit to the arrival of the newest change that it belongs to.
        self.delays: list[float] = []
        self.changes = 0
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        poll = select.epoll()
        for number in self._socks:
            poll.register(number, select.EPOLLIN)
        while not self._ended:
            for number, _ in poll.poll(0.1):
                data = self._socks[number].recv(1 << 16)
                found = _AT.findall(data)
                self.changes += data.count(b"event: change")
                if found and float(found[-1]):
                    self.delays.append(time.time() - float(found[-1]))
        poll.close()

    def end(self) -> None:
        self._ended = True
        self._thread.join()


@contextmanager
def writing(path: Path, commits: int, regions: int) -> Iterator[None]:
    """Another process changes the table, so often per second."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(commits), str(regions)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield
    finally:
        process.communicate()


def page_milliseconds(server: Server, times: int) -> float:
    """The median time of Datasette's page of the table, as JSON."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        with urllib.request.urlopen(f"{server.url}/{server.database}/orders.json?_size=100", timeout=60) as response:
            json.load(response)
        found.append((time.perf_counter() - begin) * 1000)
    return statistics.median(found)


def live_queries(folder: Path, sizes: Sizes) -> Values:
    """Publishing and pages with and without live queries, while another process writes; each repeat measures both.

    With them, ``sizes.live_subscribers`` follow one query, and one each follows ``sizes.live_queries`` - 1 others.
    """
    values: Values = {"runs": [], "delay_ms": []}
    for name in ("publish", "page_ms", "cpu"):
        values |= {f"{name}_{side}": [] for side in ("with", "without")}
    with server_of_new_file(folder, "live", max_live_queries_per_actor="1000") as server:
        fill(server.path, sizes.live_queries)
        server.publish("live", "x")
        for repeat in range(sizes.repeats):
            sides = {"with": sizes.live_subscribers, "without": 0}
            for side in sorted(sides, reverse=bool(repeat % 2)):
                found = measure(server, sides[side], sizes)
                for name in ("publish", "page_ms", "cpu"):
                    values[f"{name}_{side}"].append(found.pop(name))
                for name, value in found.items():
                    values[name].append(value)
                wait_idle(server, 0.05)
    return values


def measure(server: Server, subscribers: int, sizes: Sizes) -> dict[str, float]:
    """Publishing and pages while another process writes 200 times per second, and what subscribers get meanwhile."""
    queries = sizes.live_queries if subscribers else 0
    found: dict[str, float] = {}
    with ExitStack() as stack:
        socks = [
            stack.enter_context(connect(server.port, live_request(server.database, region)))
            for region in [*([0] * subscribers), *range(1, queries)]
        ]
        wait_ready(socks)
        stack.enter_context(writing(server.path, COMMITS, sizes.live_queries))
        readers = Subscribers(socks)
        stack.callback(readers.end)
        time.sleep(2)
        cpu, begin, changes = server.cpu_seconds(), time.perf_counter(), readers.changes
        time.sleep(sizes.idle_seconds)
        seconds = time.perf_counter() - begin
        found["cpu"] = (server.cpu_seconds() - cpu) / seconds
        if socks:
            # Each run is a change for every subscriber of its query, and all queries run equally often.
            found["runs"] = (readers.changes - changes) / len(socks) * queries / seconds
        found["page_ms"] = page_milliseconds(server, sizes.live_pages)
        found["publish"] = publish_rate(server, "live", sizes.load_requests)
        if readers.delays:
            found["delay_ms"] = statistics.median(readers.delays) * 1000
    return found
