"""A mixed load for ten minutes: requests, batches, another program's commits, pages, and a hundred subscribers."""

from __future__ import annotations

import http.client
import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from measures import Sizes, Values, server_of_new_file
from server import HERE, Server
from subscribers import connect, subscribe_request, wait_ready

#: How often each part of the load does its work, per second.
SINGLES, BATCHES, COMMITS, PAGES = 100.0, 10.0, 20.0, 5.0

BATCH = 100

#: Subscribers beside the one whose messages are timed.
OTHERS = 99

#: Opens subscribers and reads what they get: argv is the port, their number and the request. Ends with its input.
READERS = """
import selectors, socket, sys, threading
port, number, request = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
poll = selectors.DefaultSelector()
for _ in range(number):
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(request)
    poll.register(sock, selectors.EVENT_READ)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
print("ready", flush=True)
while not ended.is_set():
    for key, _ in poll.select(0.5):
        key.fileobj.recv(1 << 18)
"""

_STAMP = re.compile(rb"stamp (\d+)")


def stamp() -> str:
    """A payload with the present time in it."""
    return f"stamp {time.monotonic_ns()}"


class Load:
    """The threads of the load, and what they measured, in milliseconds."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.measured: Values = {"receive_ms": [], "publish_ms": [], "page_ms": []}
        self.problems: list[str] = []
        self._ended = threading.Event()

    def _paced(self, per_second: float, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            due = time.monotonic()
            while not self._ended.is_set():
                try:
                    work()
                except (OSError, http.client.HTTPException, sqlite3.Error, RuntimeError) as error:
                    self.problems.append(repr(error))
                    return
                due = max(due + 1 / per_second, time.monotonic() - 1)
                time.sleep(max(0.0, due - time.monotonic()))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _publisher(self, messages: int) -> Callable[[], None]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)

        def work() -> None:
            payloads = [stamp()] + ["x" * 100] * (messages - 1)
            body = json.dumps({"items": [{"channel": "live", "payload": payload} for payload in payloads]})
            began = time.perf_counter()
            connection.request("POST", "/mixed/-/pubsub/-/publish", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {text[:300]!r}")
            if messages == 1:
                self.measured["publish_ms"].append((time.perf_counter() - began) * 1000)

        return work

    def _page(self) -> None:
        began = time.perf_counter()
        with urllib.request.urlopen(f"{self.server.url}/mixed/t", timeout=30) as answer:
            answer.read()
        self.measured["page_ms"].append((time.perf_counter() - began) * 1000)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The whole load, with one subscriber that times what it receives."""
        with ExitStack() as stack:
            conn = stack.enter_context(
                closing(sqlite3.connect(self.server.path, timeout=30, isolation_level=None, check_same_thread=False))
            )
            conn.execute("PRAGMA synchronous = FULL")
            sock = stack.enter_context(connect(self.server.port, subscribe_request("mixed", "live", "sse")))
            wait_ready([sock])

            def commit() -> None:
                conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('live', ?)", [stamp()])

            def receive() -> None:
                sock.settimeout(1)
                while not self._ended.is_set():
                    try:
                        data = sock.recv(1 << 18)
                    except TimeoutError:
                        continue
                    now = time.monotonic_ns()
                    self.measured["receive_ms"] += [(now - int(sent)) / 1e6 for sent in _STAMP.findall(data)]

            reading = threading.Thread(target=receive, daemon=True)
            reading.start()
            threads = [
                self._paced(SINGLES, self._publisher(1)),
                self._paced(BATCHES, self._publisher(BATCH)),
                self._paced(COMMITS, commit),
                self._paced(PAGES, self._page),
            ]
            yield
            self._ended.set()
            for thread in (*threads, reading):
                thread.join(60)


def mixed(folder: Path, sizes: Sizes) -> Values:
    """Milliseconds of receiving, publishing and pages under the load, and how late the event loop ran timers."""
    with server_of_new_file(folder, "mixed", HERE / "plugins") as server:
        server.publish("live", "installs the log")
        command = [sys.executable, "-c", READERS, str(server.port), str(OTHERS)]
        command.append(subscribe_request("mixed", "live", "sse").decode())
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as readers:
            assert readers.stdout is not None
            readers.stdout.readline()
            load = Load(server)
            with load.running():
                time.sleep(1)
                for values in load.measured.values():
                    values.clear()
                server.post("/-/bench-stalls", {})
                time.sleep(sizes.mixed_seconds)
                late = server.post("/-/bench-stalls", {})["late"]
            readers.communicate()
    if load.problems:
        raise RuntimeError(load.problems[0])
    return {**load.measured, "late_ms": [seconds * 1000 for seconds in late]}
