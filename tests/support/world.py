"""A broker on a file, and its readers: the material of the property tests."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

from datasette.app import Datasette
from witnesses import Truth, make_file
from world_readers import Connection, Lines, Reader

from datasette_pubsub.broker.broker import Broker
from datasette_pubsub.broker.registry import registry
from datasette_pubsub.broker.subscribing import SubscribeOptions
from datasette_pubsub.core.errors import Unavailable
from datasette_pubsub.core.events import Superseded
from datasette_pubsub.core.values import Item
from datasette_pubsub.storage import retention

#: How long anything that must happen may take, in seconds.
DEADLINE = 10.0


class World:
    """One file, served by one Datasette after the other, a program that writes beside them, and readers."""

    def __init__(self, path: Path, readers: list[Reader], **options: Any) -> None:
        self.path = path
        self.readers = readers
        self.options = {
            "synchronous": "normal",
            "watch_interval_seconds": 0.002,
            "cursor_save_interval_seconds": 0.05,
            "retention_days": 0,
            "max_send_bytes": 1024,
            **options,
        }
        #: Ids that a publisher was given, with what it published, and payloads that must never be seen.
        self.accepted: dict[int, tuple[str, str]] = {}
        self.count = 0
        self._thread = ThreadPoolExecutor(1)
        self._publishing: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> World:
        await self.elsewhere(lambda _: make_file(self.path), opened=False)
        self.foreign = await self.elsewhere(lambda _: self._open(), opened=False)
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [c.task for reader in self.readers for c in reader.connections if c.task is not None]
        for task in [*tasks, *self._publishing]:
            task.cancel()
        await asyncio.gather(*tasks, *self._publishing, return_exceptions=True)
        await self.datasette.invoke_shutdown()
        await self.elsewhere(lambda conn: conn.close())
        self._thread.shutdown()

    def _open(self) -> sqlite3.Connection:
        conn = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        conn.execute("PRAGMA synchronous = OFF")
        return conn

    async def elsewhere(self, fn: Callable[[sqlite3.Connection], Any], opened: bool = True) -> Any:
        """Run a function in the other program's thread, on its connection."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread,
            lambda: fn(self.foreign if opened else None),  # type: ignore[arg-type]
        )

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Let everybody go on until a condition is true."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
            await asyncio.sleep(0.001)

    async def truth(self) -> Truth:
        return await self.elsewhere(Truth.of)

    # -- the server -----------------------------------------------------------

    async def start(self) -> None:
        self.datasette = Datasette([str(self.path)], config={"plugins": {"datasette-pubsub": self.options}})
        await self.datasette.start_background_tasks()
        self.broker: Broker = registry(self.datasette).of(self.path.stem)

    async def restart(self) -> None:
        """Stop as a server does: streams end first, then the plugin is told; and start again."""
        registry(self.datasette).close_streams()
        connections = [connection for reader in self.readers for connection in reader.connections]
        for connection in connections:
            connection.flows.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*[c.task for c in connections if c.task is not None], return_exceptions=True)
        await self.datasette.invoke_shutdown()
        await asyncio.gather(*self._publishing)
        self._publishing.clear()
        await self.start()

    # -- writers --------------------------------------------------------------

    def payloads(self, channels: list[str]) -> list[tuple[str, str]]:
        """A new message for each channel: numbered, and of a size that makes several sends."""
        found = []
        for channel in channels:
            self.count += 1
            found.append((channel, f"{self.count} ".ljust(150, ".")))
        return found

    async def publish(self, channels: list[str], wait: bool) -> None:
        items = self.payloads(channels)

        async def run() -> None:
            try:
                ids = await self.broker.publish([Item(*item) for item in items])
            except Unavailable as error:
                if "shutting down" not in error.message:
                    raise
            else:
                self.accepted.update(zip(ids, items, strict=True))

        task = asyncio.ensure_future(run())
        self._publishing.append(task)
        if wait:
            await task

    async def publish_elsewhere(self, channels: list[str]) -> None:
        """Another program: a transaction with a part that is rolled back, and one that is rolled back whole."""
        items, never = self.payloads(channels), [(channel, "never") for channel in channels]
        sql = "INSERT INTO vpubsub (channel, payload) VALUES (?, ?)"

        def run(conn: sqlite3.Connection) -> None:
            conn.execute("BEGIN IMMEDIATE")
            conn.executemany(sql, never)
            conn.execute("ROLLBACK")
            conn.execute("BEGIN IMMEDIATE")
            conn.executemany(sql, items[:1])
            conn.execute("SAVEPOINT part")
            conn.executemany(sql, never)
            conn.execute("ROLLBACK TO part")
            conn.executemany(sql, items[1:])
            conn.execute("COMMIT")

        await self.elsewhere(run)

    async def publish_and_trim_elsewhere(self, channels: list[str], trimmed: list[str], keep: int) -> None:
        """One transaction that publishes and trims: some of what it published is gone before anybody has seen it."""
        items = self.payloads(channels)

        def run(conn: sqlite3.Connection) -> None:
            conn.execute("BEGIN IMMEDIATE")
            conn.executemany("INSERT INTO vpubsub (channel, payload) VALUES (?, ?)", items)
            top = conn.execute("SELECT max(id) FROM said").fetchone()[0]
            left = dict.fromkeys(trimmed, max(0, top - keep))
            while left:
                retention.trim(conn, left, 3)
            conn.execute("COMMIT")

        await self.elsewhere(run)

    async def write_in_datasette(self, channels: list[str], fails: bool) -> None:
        """A write of Datasette's own, as its write API makes it: outside the batcher."""
        items = self.payloads(channels)

        def run(conn: sqlite3.Connection) -> None:
            conn.executemany("INSERT INTO vpubsub (channel, payload) VALUES (?, ?)", items)
            if fails:
                conn.rollback()

        await self.datasette.get_database(self.path.stem).execute_write_fn(run)

    async def trim(self, channels: list[str], share: float, inside: bool) -> None:
        """Remove the oldest messages of some channels, up to a share of all ids; by Datasette or another program."""

        def run(conn: sqlite3.Connection) -> None:
            top = conn.execute("SELECT coalesce(max(id), 0) FROM said").fetchone()[0]
            left = dict.fromkeys(channels, int(top * share))
            while left:
                retention.trim(conn, left, 3)

        def transaction(conn: sqlite3.Connection) -> None:
            conn.execute("BEGIN IMMEDIATE")
            run(conn)
            conn.execute("COMMIT")

        if inside:
            await self.datasette.get_database(self.path.stem).execute_write_fn(run)
        else:
            await self.elsewhere(transaction)

    # -- readers --------------------------------------------------------------

    async def connect(self, reader: Reader, flows: bool = True) -> None:
        """Open a connection; one that is open under the same name is taken over."""
        previous = reader.current
        connection = Connection(reader.selector, (await self.truth()).gone)
        reader.connections.append(connection)
        if flows:
            connection.flows.set()
        connection.task = asyncio.ensure_future(self._run(reader, connection))
        await self.until(lambda: connection.stream is not None or connection.task.done(), "connected")
        if connection.task.done():
            connection.task.result()
        connection.gone_at_start = (await self.truth()).gone
        if previous is not None:
            previous.flows.set()
            await self.until(lambda: not previous.live, "the previous connection ends")

    async def _run(self, reader: Reader, connection: Connection) -> None:
        async with self.broker.subscribe(
            SubscribeOptions(selector=reader.selector, name=reader.name, ack=reader.ack, heartbeat_seconds=0.05),
            Lines(),
        ) as stream:
            connection.start = stream.position
            connection.stream = stream
            async with aclosing(stream.frames()) as frames:  # type: ignore[type-var]
                try:
                    async for data in frames:
                        if isinstance(stream.end, Superseded) and b"message" in data:
                            connection.faults.append(f"sent after the take-over: {data[:40]!r}")
                        connection.sending = True
                        await connection.flows.wait()
                        if isinstance(stream.end, Superseded):
                            # What was under way when another connection took over comes again there.
                            break
                        connection.take(data)
                        connection.sending = False
                finally:
                    connection.reached = stream.position

    async def leave(self, reader: Reader, clean: bool) -> None:
        """End the connection: between two sends, or in the middle of one."""
        connection = reader.current
        if connection is None or connection.task is None:
            return
        if clean:
            connection.flows.set()
            await self.until(lambda: not (connection.sending and connection.live), "the end of the send")
        connection.task.cancel()
        await asyncio.gather(connection.task, return_exceptions=True)

    async def interrupt(self, reader: Reader) -> None:
        """A connection that breaks in the middle of a send."""
        if reader.current is None:
            await self.connect(reader, flows=False)
        connection = reader.connections[-1]
        connection.flows.clear()
        await self.until(lambda: connection.sending or not connection.live, "a send")
        await self.leave(reader, clean=False)

    async def acknowledge(self, reader: Reader, back: int, by_sql: bool) -> None:
        """Ack the newest message received, or one before it, perhaps again and perhaps long ago."""
        received = sorted(reader.received)
        if not received or reader.ack != "explicit":
            return
        number = received[max(0, len(received) - 1 - back)]
        if not by_sql:
            cursor = await self.broker.acknowledge("", reader.name, number)
            assert cursor == max(number, reader.acknowledged, cursor)
        elif number > reader.acknowledged:
            sql = "UPDATE pubsub_subscriptions SET cursor = ? WHERE name = ? AND cursor < ?"
            await self.elsewhere(lambda conn: conn.execute(sql, [number, reader.name, number]))
        reader.acknowledged = max(reader.acknowledged, number)

    async def settle(self, readers: list[Reader]) -> None:
        """Wait until these readers have everything: nothing may be stuck."""
        truth = await self.truth()
        for reader in readers:
            connection = reader.current
            if connection is None or not connection.flows.is_set():
                continue
            wanted = truth.ids(reader.selector, connection.start) - truth.gone
            try:
                async with asyncio.timeout(DEADLINE):
                    while not wanted <= connection.received.keys():
                        await self.acknowledge(reader, 0, by_sql=False)
                        await asyncio.sleep(0.001)
            except TimeoutError:
                lacks = sorted(wanted - connection.received.keys())
                raise AssertionError(f"{reader.name} still lacks {lacks}; it has {connection.order}") from None

    async def finish(self) -> Truth:
        """Let everything come to an end: everyone connected, everything delivered, everyone gone."""
        await asyncio.gather(*self._publishing)
        for reader in self.readers:
            if reader.current is None:
                await self.connect(reader)
            reader.connections[-1].flows.set()
        await self.settle(self.readers)
        everywhere = ["a", "b", "c"]
        await self.publish_elsewhere(everywhere * 3)
        await self.settle(self.readers)
        for reader in self.readers:
            for back in (0, 3, 0):
                await self.acknowledge(reader, back, by_sql=False)
            await self.leave(reader, clean=True)
        await self.publish(everywhere, wait=True)
        for reader in self.readers:
            await self.interrupt(reader)
            await self.connect(reader)
        await self.settle(self.readers)
        await self.publish_and_trim_elsewhere(everywhere * 2, everywhere, 4)
        await self.settle(self.readers)
        await self.write_in_datasette(everywhere, fails=False)
        await self.settle(self.readers)
        await self.publish(everywhere, wait=True)
        await self.settle(self.readers)
        for reader in self.readers:
            await self.leave(reader, clean=True)
        await self.restart()
        return await self.truth()
