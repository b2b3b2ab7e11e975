"""A link to a reader's machine that can go down without a word, and what the reader gets over it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import SUPPORT
from servers import DEADLINE, Server, wait_for

_numbers = itertools.count()

#: How often a publisher commits, in seconds.
TICK = 0.1


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _namespaces() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"pubsub{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    made = subprocess.run(["ip", "-n", name, "link", "add", "br0", "type", "bridge"], capture_output=True, check=False)
    ip("netns", "delete", name)
    return made.returncode == 0


needs_namespaces = pytest.mark.skipif(not _namespaces(), reason="needs root, iproute2 and network namespaces")


class Links:
    """A bridge, the server's machine on one port, and readers' machines on others."""

    def __init__(self) -> None:
        number = next(_numbers)
        self._name = f"ps{os.getpid() % 1_000_000}n{number}"
        self._net = f"10.{200 + number % 50}.{os.getpid() % 250}"
        self.address = f"{self._net}.1"
        self._middle = f"{self._name}m"
        self._readers: list[str] = []
        ip("netns", "add", self._middle)
        ip("-n", self._middle, "link", "add", "br0", "type", "bridge")
        ip("-n", self._middle, "link", "set", "br0", "up")
        ip("link", "add", self._name, "type", "veth", "peer", "name", "srv0", "netns", self._middle)
        ip("-n", self._middle, "link", "set", "srv0", "master", "br0", "up")
        ip("addr", "add", f"{self.address}/24", "dev", self._name)
        ip("link", "set", self._name, "up")

    def add(self) -> str:
        """A reader's machine; its namespace. Its port in the middle has the same name."""
        number = len(self._readers)
        name = f"{self._name}r{number}"
        ip("netns", "add", name)
        self._readers.append(name)
        ip("-n", name, "link", "add", "rdr0", "type", "veth", "peer", "name", f"r{number}", "netns", self._middle)
        ip("-n", self._middle, "link", "set", f"r{number}", "master", "br0", "up")
        ip("-n", name, "addr", "add", f"{self._net}.{number + 2}/24", "dev", "rdr0")
        ip("-n", name, "link", "set", "rdr0", "up")
        return name

    def down(self, reader: str) -> None:
        """Nothing passes any more, in either direction."""
        ip("-n", self._middle, "link", "set", f"r{self._readers.index(reader)}", "nomaster")

    def up(self, reader: str) -> None:
        ip("-n", self._middle, "link", "set", f"r{self._readers.index(reader)}", "master", "br0")

    def close(self) -> None:
        for name in (*self._readers, self._middle):
            ip("netns", "delete", name)
        # It goes with its other end, a moment later.
        subprocess.run(["ip", "link", "delete", self._name], capture_output=True, check=False)


class Reader:
    """A process that reads in a namespace, and the ids that it has written down."""

    def __init__(self, namespace: str, server: Server, address: str, edge: str, log: Path) -> None:
        self._log = log
        script = str(SUPPORT / "link_reader.py")
        command = [sys.executable, script, address, str(server.port), edge, str(log)]
        self.process = subprocess.Popen(["ip", "netns", "exec", namespace, *command])

    def connections(self) -> list[list[int]]:
        """What it has received, over each of its connections."""
        found: list[list[int]] = []
        # A line that is just being written does not count.
        for line in self._log.read_text().split("\n")[:-1] if self._log.exists() else ():
            if line == "connected":
                found.append([])
            else:
                found[-1].append(int(line))
        return found

    @property
    def last(self) -> int:
        return max((connection[-1] for connection in self.connections() if connection), default=0)

    @property
    def size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)


class Publisher:
    """Another program that publishes so many messages a second, until it is told to end."""

    def __init__(self, path: Path, rate: int) -> None:
        self.count = 0
        self._end = threading.Event()
        self._path, self._rate = path, rate
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        each = round(self._rate * TICK)
        with contextlib.closing(sqlite3.connect(self._path, timeout=60, isolation_level=None)) as conn:
            due = time.monotonic()
            while not self._end.is_set():
                conn.execute("BEGIN IMMEDIATE")
                rows = [(f"message {self.count + n}",) for n in range(each)]
                conn.executemany("INSERT INTO vpubsub (channel, payload) VALUES ('a', ?)", rows)
                conn.execute("COMMIT")
                self.count += each
                due += TICK
                self._end.wait(max(0.0, due - time.monotonic()))

    def stop(self) -> int:
        self._end.set()
        self._thread.join(DEADLINE)
        return self.count


@pytest.fixture
def links() -> Iterator[Links]:
    found = Links()
    yield found
    found.close()


@pytest.fixture
def cleanup() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def run(
    links: Links,
    cleanup: contextlib.ExitStack,
    server: Server,
    folder: Path,
    *,
    edge: str,
    rate: int,
    seconds: float,
    comes_back: bool,
    killed: bool,
    saves: float = 1.0,
) -> str:
    """The whole story; what came again, in words."""
    server.publish(channel="a", payload="makes the log")

    def start(namespace: str) -> Reader:
        reader = Reader(namespace, server, links.address, edge, folder / f"log{next(_numbers)}")
        cleanup.callback(reader.kill)
        readers.append(reader)
        return reader

    readers: list[Reader] = []
    machine = links.add()
    first = start(machine)
    wait_for(lambda: first.last == 1, "the reader reads")
    publisher = Publisher(server.path, rate)
    cleanup.callback(publisher.stop)
    wait_for(lambda: first.last > rate, "a second's messages")

    links.down(machine)
    began = time.monotonic()
    quiet = [0, 0.0]

    def still() -> bool:
        """It has written down all that its machine had when the link went down."""
        if first.size != quiet[0]:
            quiet[:] = [first.size, time.monotonic()]
        return time.monotonic() - quiet[1] > 0.5

    wait_for(still, "nothing arrives any more")
    before = first.last
    if killed:
        first.kill()
    wait_for(lambda: time.monotonic() - began > seconds, "the link is down", seconds + DEADLINE)
    wait_for(lambda: publisher.count > before + rate * (seconds - 1), "the publisher went on", seconds + DEADLINE)
    assert first.last == before, "nothing came while the link was down"
    if comes_back:
        links.up(machine)
        if killed:
            start(machine)
    else:
        start(links.add())
    count = wait_for(lambda: publisher.count, "it publishes")
    wait_for(lambda: publisher.count > count + rate, "a second's more messages")
    total = publisher.stop() + 1
    # After so long a silence TCP tries again as late as twice that long after its beginning.
    wait_for(lambda: readers[-1].last == total, f"all {total}", 2 * seconds + 60)
    received = time.monotonic() - began - seconds

    assert server.rows("SELECT count(*), max(id) FROM vpubsub") == [(total, total)]
    connections = [connection for reader in readers for connection in reader.connections() if connection]
    seen = again = 0
    for connection in connections:
        assert connection == list(range(connection[0], connection[0] + len(connection))), "in order, without holes"
        assert connection[0] <= seen + 1, f"{seen + 1} to {connection[0] - 1} are lost"
        again += sum(1 for number in connection if number <= seen)
        seen = max(seen, connection[-1])
    assert seen == total
    # Only the newest connection counts: the old one may still hold what it was sent.
    wait_for(lambda: server.rows("SELECT cursor FROM pubsub_subscriptions") == [(total,)], "the cursor is at the end")
    assert "Traceback" not in server.log
    return (
        f"{edge} {rate}/s down {seconds:g} s {'then up' if comes_back else 'for ever'} "
        f"{'killed' if killed else 'not killed'}: {total} published, all received {received:.1f} s after, "
        f"{len(connections)} connections, {again} again"
    )
