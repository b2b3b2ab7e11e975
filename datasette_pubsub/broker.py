"""The broker of one database: puts batcher, log, hub and streams together.

The law of this module: it is the only one that knows both storage and live
subscribers. It speaks to the database through Datasette's own connections only
(DESIGN.md, decision 1) and knows no wire format and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from datasette.app import Datasette
from datasette.database import Database

from . import log, schema, subscriptions
from .batcher import Batcher, Committed
from .config import Settings
from .errors import FailedPrecondition, InvalidArgument, PubsubError, TooMany, Unavailable
from .hub import Encoder, Hub
from .models import AckMode, Bye, Item, Message, Page, Superseded, Where, check_subscription_name
from .selector import Selector
from .stream import Stream
from .subscriptions import Subscription
from .watcher import Watcher

logger = logging.getLogger("datasette_pubsub")

#: A jump of the head by more than this many ids is not read into the tail;
#: subscribers take it from the log, each at its own pace.
FILL_IDS = 5_000

#: How long the shutdown waits for the batcher, in seconds; an operator expects
#: Ctrl+C to end the server within three.
DRAIN_SECONDS = 2.0

#: True inside the batcher's own writes, which tell the hub themselves.
in_batcher: ContextVar[bool] = ContextVar("datasette_pubsub_in_batcher", default=False)

T = TypeVar("T")


def explain(error: sqlite3.Error, name: str) -> PubsubError:
    """What an SQLite error means to a caller, without paths or SQL."""
    text = str(error)
    if "readonly" in text or "unable to open" in text or "permission" in text.lower():
        return FailedPrecondition(f"database {name} cannot be written: its file is read-only; nothing was stored")
    if "locked" in text or "busy" in text:
        return Unavailable(f"database {name} is locked by another writer; nothing was stored, try again")
    if "full" in text:
        return Unavailable(f"the disk of database {name} is full; nothing was stored")
    if isinstance(error, sqlite3.IntegrityError):
        return InvalidArgument(text)
    logger.error("database %s: %s", name, text)
    return Unavailable(f"database {name} could not be written; nothing was stored")


class Broker:
    """Publishes to and reads from one database of one Datasette."""

    def __init__(self, datasette: Datasette, db: Database, settings: Settings) -> None:
        self.name = str(db.name)
        self.settings = settings
        #: Why the log could not be installed, as found when the write connection was opened.
        self.conflict: PubsubError | None = None
        self._db = db
        self._datasette = datasette
        self.hub = Hub(settings.tail_bytes, self._idle_changed)
        self._batcher = Batcher(settings, self._transaction, self._committed)
        self._watcher = Watcher(db.connect, self._refresh, settings.poll_seconds)
        self._streams: set[Stream] = set()
        self._owners: dict[int, Stream] = {}
        self._tasks: list[Any] = []
        self._closing = False
        self._refreshing = asyncio.Lock()

    # -- life ---------------------------------------------------------------

    def start(self) -> None:
        """Enter the supervised tasks; called once, on the event loop."""
        add = self._datasette.add_background_task
        self._tasks.append(add(self._run_batcher, name=f"pubsub batcher: {self.name}"))
        if not self._db.is_memory and self._db.is_mutable:
            self._tasks.append(add(self._run_watcher, name=f"pubsub watcher: {self.name}"))

    async def _run_batcher(self, _datasette: Datasette) -> None:
        in_batcher.set(True)
        await self._batcher.run()

    async def _run_watcher(self, _datasette: Datasette) -> None:
        await self._watcher.run()

    def close_streams(self) -> None:
        """Tell every stream that the server is going away, and take no new ones."""
        self._closing = True
        for stream in list(self._streams):
            stream.stop(Bye())

    async def stop(self) -> None:
        """End streams and write what was accepted. The tasks are cancelled by Datasette after this."""
        self.close_streams()
        if not await self._batcher.drain(DRAIN_SECONDS):
            logger.warning("database %s: not everything was written within %s s", self.name, DRAIN_SECONDS)

    # -- writing ------------------------------------------------------------

    def check_writable(self) -> None:
        """Raise :class:`FailedPrecondition` when this database can never store a message."""
        if not self._db.is_mutable:
            raise FailedPrecondition(f"database {self.name} is immutable: nothing can be published to it")
        if self._db.is_memory:
            raise FailedPrecondition(f"database {self.name} is in memory: it cannot keep messages")
        if self.conflict is not None:
            raise self.conflict

    async def publish(self, items: Sequence[Item]) -> list[int]:
        """Append messages, all or none; their ids, once they are on disk."""
        self.check_writable()
        if len(items) > self.settings.max_batch_messages:
            raise InvalidArgument(
                f"{len(items)} messages in one request; the limit is "
                f"{self.settings.max_batch_messages} (max_batch_messages)"
            )
        return await self._batcher.publish(items)

    async def acknowledge(self, owner: str, name: str, message_id: int) -> int:
        """Move a subscription's cursor forward to an id; returns where it stands, once that is on disk."""
        self.check_writable()
        check_subscription_name(name)
        _, cursor = await self._write(lambda conn: subscriptions.acknowledge(conn, owner, name, message_id))
        return cursor

    async def _transaction(self, fn: Callable[[sqlite3.Connection], Committed]) -> Committed:
        return await self._write(fn)

    async def _write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        def checked(conn: sqlite3.Connection) -> T:
            # Opening the write connection has tried to install the log; see hooks.prepare_connection.
            if self.conflict is not None:
                raise self.conflict
            return fn(conn)

        try:
            result: T = await self._db.execute_write_fn(checked)
        except sqlite3.Error as error:
            raise explain(error, self.name) from error
        return result

    def _committed(self, result: Committed) -> None:
        if not self.hub.committed(result.before, result.messages):
            # Others have committed in between: the log has it all, in order.
            self._watcher.look()

    # -- reading ------------------------------------------------------------

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read on one of Datasette's read connections; errors come out as :class:`PubsubError`."""
        try:
            result: T = await self._db.execute_fn(fn)
        except sqlite3.Error as error:
            logger.error("database %s: %s", self.name, error)
            raise Unavailable(f"database {self.name} could not be read") from error
        return result

    async def _refresh(self) -> None:
        """Bring the hub up to the log's head."""
        async with self._refreshing:
            known = self.hub.head

            def read(conn: sqlite3.Connection) -> Page:
                top = log.head(conn)
                if top <= known or top - known > FILL_IDS or known == 0:
                    return Page([], top, top)
                return log.Reader(Selector(patterns=("*",))).page(
                    conn, known, self.settings.tail_bytes or 1, FILL_IDS
                )

            page = await self.read(read)
            if not page.messages:
                self.hub.skip_to(page.head)
            else:
                self.hub.fill(
                    [message for message in page.messages if message.id > self.hub.head], page.position
                )
                if page.position < page.head:
                    self.hub.skip_to(page.head)

    def _idle_changed(self, idle: bool) -> None:
        self._watcher.watch(not idle)

    def nudge(self) -> None:
        """A write of Datasette's own has committed: look at the log at once."""
        self._watcher.look()

    @asynccontextmanager
    async def subscribe(
        self,
        selector: Selector,
        encoder: Encoder,
        *,
        owner: str = "",
        name: str | None = None,
        where: Where = Where(),
        ack: AckMode = "auto",
        heartbeat_seconds: float | None = None,
    ) -> AsyncIterator[Stream]:
        """One live subscriber, entered here and removed when the block ends.

        With a ``name`` it is a durable subscription of ``owner``; a stream that
        is open under the same name is told that it was superseded. Raises
        :class:`~.errors.PubsubError` before anything is sent.
        """
        if self._closing:
            raise Unavailable("the server is going away; try again")
        if len(self._streams) >= self.settings.max_subscribers:
            raise TooMany(
                f"{len(self._streams)} streams are open on database {self.name}; "
                f"the limit is {self.settings.max_subscribers} (max_subscribers)"
            )
        if name is None and not selector:
            raise InvalidArgument("channel is required: name at least one channel or pattern")
        subscription = None
        if name is not None:
            check_subscription_name(name)
            self.check_writable()
            subscription, selector = await self._open(owner, name, selector, where, ack)
        waiter = self.hub.register(selector)
        try:
            await self._refresh()
            position = await self._first_position(subscription, where)
            reader = log.Reader(selector)

            async def read_page(after: int) -> Page:
                return await self.read(lambda conn: reader.page(conn, after, self.settings.send_bytes))

            automatic = subscription is not None and ack == "auto"
            previous = self._owners.get(subscription.id) if subscription is not None else None
            if previous is not None:
                previous.stop(Superseded())
                if automatic and where.after is None:
                    position = max(position, previous.position)
            stream = Stream(
                self.hub,
                waiter,
                read_page,
                encoder,
                position,
                send_bytes=self.settings.send_bytes,
                heartbeat_seconds=heartbeat_seconds or self.settings.heartbeat_seconds,
                first_alone=automatic,
            )
            self._streams.add(stream)
            if subscription is not None:
                self._owners[subscription.id] = stream
            if self._closing:
                stream.stop(Bye())
            try:
                yield stream
            finally:
                self._streams.discard(stream)
                if subscription is not None and self._owners.get(subscription.id) is stream:
                    del self._owners[subscription.id]
                    if automatic:
                        self._batcher.move_cursor(subscription.id, stream.position)
        finally:
            self.hub.unregister(waiter)
