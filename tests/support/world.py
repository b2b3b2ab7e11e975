"""A broker on a file, its readers, and what really happened: the material of the property tests.

What really happened is written down by triggers in the file itself, in the
transactions of those who did it: every committed message (a rolled-back one
leaves no trace), every trimmed one, and every move of a cursor.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasette.app import Datasette

from datasette_pubsub.broker.broker import Broker
from datasette_pubsub.broker.registry import registry
from datasette_pubsub.broker.subscribing import SubscribeOptions
from datasette_pubsub.core.errors import Unavailable
from datasette_pubsub.core.events import Event, Gap, Superseded
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.core.values import AckMode, Item, Message
from datasette_pubsub.live.subscriber import Subscriber
from datasette_pubsub.storage import retention, schema

#: How long anything that must happen may take, in seconds.
DEADLINE = 10.0

WITNESSES = """
CREATE TABLE said (id INTEGER PRIMARY KEY, channel TEXT, payload TEXT);
CREATE TABLE gone (id INTEGER PRIMARY KEY);
CREATE TABLE moved (subscription INTEGER, was INTEGER, became INTEGER);
CREATE TRIGGER said AFTER INSERT ON vpubsub
BEGIN INSERT INTO said VALUES (NEW.id, NEW.channel, NEW.payload); END;
CREATE TRIGGER gone AFTER DELETE ON vpubsub
BEGIN INSERT INTO gone VALUES (OLD.id); END;
CREATE TRIGGER moved AFTER UPDATE OF cursor ON pubsub_subscriptions
BEGIN INSERT INTO moved VALUES (NEW.id, OLD.cursor, NEW.cursor); END;
"""


def make_file(path: Path) -> None:
    """A database with the log and the witnesses."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        schema.install(conn, Settings())
        conn.executescript(WITNESSES)


@dataclass(frozen=True)
class Truth:
    """What was committed, ``{id: (channel, payload)}``, and which of it was trimmed."""

    said: dict[int, tuple[str, str]]
    gone: set[int]

    @classmethod
    def of(cls, conn: sqlite3.Connection) -> Truth:
        conn.execute("BEGIN")
        said = {row[0]: (row[1], row[2]) for row in conn.execute("SELECT id, channel, payload FROM said")}
        gone = {row[0] for row in conn.execute("SELECT id FROM gone")}
        conn.execute("ROLLBACK")
        return cls(said, gone)

    def ids(self, selector: Selector, after: int = 0, to: int = 1 << 62) -> set[int]:
        """The ids of these channels, after one and up to another."""
        return {n for n, (channel, _) in self.said.items() if after < n <= to and selector.matches(channel)}


class Lines:
    """A wire format for tests: one line for each message and gap."""

    name = "lines"

    def message(self, message: Message, missed: int = 0) -> bytes:
        return f"message {message.id} {missed} {message.channel} {message.payload}\n".encode()

    def event(self, event: Event) -> bytes:
        if isinstance(event, Gap):
            return f"gap {event.missed} {event.resumed_at}\n".encode()
        return f"{type(event).__name__.lower()}\n".encode()


@dataclass
class Connection:
    """One connection of a reader, and what it has taken: a send counts when the reader asks for the next one."""

    selector: Selector
    gone_before: set[int]
    task: asyncio.Task[None] | None = None
    stream: Subscriber | None = None
    start: int = -1
    gone_at_start: set[int] = field(default_factory=set)
    received: dict[int, tuple[str, str]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    missed: int = 0
    told_by_messages: int = 0
    #: Where its stream had come to with what was taken.
    reached: int = 0
    #: Whether a send is under way, and whether sends go through at all.
    sending: bool = False
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    faults: list[str] = field(default_factory=list)

    @property
    def live(self) -> bool:
        return self.stream is not None and self.task is not None and not self.task.done()

    def take(self, data: bytes) -> None:
        for line in data.decode().splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "message":
                number, missed, channel, payload = rest.split(" ", 3)
                self.order.append(int(number))
                self.received[int(number)] = (channel, payload)
                self.told_by_messages += int(missed)
            elif kind == "gap":
                self.missed += int(rest.split()[0])


@dataclass
class Reader:
    """One subscription, over all its connections."""

    name: str
    channels: list[str]
    patterns: list[str]
    ack: AckMode
    connections: list[Connection] = field(default_factory=list)
    acknowledged: int = 0

    @property
    def selector(self) -> Selector:
        return Selector.of(self.channels, self.patterns)

    @property
    def current(self) -> Connection | None:
        """The newest connection, while it is live."""
        return self.connections[-1] if self.connections and self.connections[-1].live else None

    @property
    def received(self) -> dict[int, tuple[str, str]]:
        return {number: what for connection in self.connections for number, what in connection.received.items()}


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


async def check(world: World, truth: Truth) -> None:
    """All that is promised of delivery, whatever happened."""
    moved = await world.elsewhere(lambda conn: conn.execute("SELECT * FROM moved").fetchall())
    cursors = dict(
        await world.elsewhere(lambda conn: conn.execute("SELECT name, cursor FROM pubsub_subscriptions").fetchall())
    )
    assert all(became >= was for _, was, became in moved), "a cursor moved back"
    assert all("never" not in payload for _, payload in truth.said.values())
    for number, what in world.accepted.items():
        assert truth.said.get(number) == what, "an acknowledged publish is in the log, under its id"
    for reader in world.readers:
        check_reader(reader, truth)
        if reader.ack == "auto":
            assert cursors[reader.name] >= reader.connections[-1].reached, "the cursor was saved"
        else:
            assert cursors[reader.name] == max(reader.acknowledged, reader.connections[0].start), "no ack was lost"


def check_reader(reader: Reader, truth: Truth) -> None:
    told = f"{reader.name}: "
    first = reader.connections[0]
    owed = truth.ids(reader.selector, first.start) - first.gone_before
    for connection in reader.connections:
        assert not connection.faults, told + "; ".join(connection.faults)
        assert connection.order == sorted(set(connection.order)), told + "by id, and once in a connection"
        for number, what in connection.received.items():
            assert truth.said.get(number) == what, told + "only what was committed"
            assert number > connection.start
            assert reader.selector.matches(what[0]), told + "only its channels"
        assert connection.told_by_messages <= connection.missed
        passed = truth.ids(reader.selector, connection.start, connection.reached) - connection.received.keys()
        assert passed <= truth.gone, told + f"skipped {sorted(passed - truth.gone)}"
        # What was gone when the subscription was made is not owed to it.
        least = len(passed - first.gone_at_start)
        most = len(passed - first.gone_before)
        assert least <= connection.missed <= most, told + f"missed {connection.missed}, not {least} to {most}"
    never = owed - reader.received.keys()
    assert never <= truth.gone, told + f"never delivered: {sorted(never - truth.gone)}"
    if reader.ack == "auto":
        every = [number for connection in reader.connections for number in connection.order]
        assert every == sorted(set(every)), told + "once and in order over all connections"
        missed = sum(connection.missed for connection in reader.connections)
        assert missed >= len(never - first.gone_at_start), told + f"told of {missed}, but {len(never)} are missing"
        assert missed <= len(never), told + f"told of {missed}, but only {len(never)} are missing"
