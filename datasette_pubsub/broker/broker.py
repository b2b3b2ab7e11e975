"""The broker of one database: puts batcher, log, hub and streams together.

The law of this module: it is the only one that knows both storage and live
subscribers. It speaks to the database through Datasette's own connections only
(DESIGN.md, decision 1) and knows no wire format and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import NotFound, PayloadTooLarge
from ..core.selector import Selector
from ..core.settings import Settings
from ..core.validation import check_subscription_name
from ..core.values import Item, Page
from ..core.verdicts import ALL, Rights, Verdicts
from ..live.admission import Admission
from ..live.coalescing import SingleFlight
from ..live.hub import Hub
from ..live.publisher import PublishStream
from ..live.subscriber import Subscriber
from ..live.tail import Encoder
from ..storage import log, schema, snapshot, subscriptions
from ..storage.append_batch import CommitResult
from ..storage.catchup import Reader
from ..storage.quoting import identifier
from ..storage.subscriptions import Claim, Subscription
from .active import ActiveSubscriptions
from .batcher import Batcher
from .database import DatabaseFile
from .health import Health
from .maintenance import Maintenance
from .subscribing import SubscribeOptions, Subscribing
from .watcher import Watcher

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

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


class Broker:
    """Publishes to and reads from one database of one Datasette."""

    def __init__(self, datasette: Datasette, db: Database, settings: Settings) -> None:
        self.name = str(db.name)
        self.settings = settings
        #: The file, as Datasette opens it.
        self.store = DatabaseFile(datasette, db, settings)
        self._db = db
        self._datasette = datasette
        self.hub = Hub(settings.tail_bytes, self._idle_changed)
        holder = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._batcher = Batcher(settings, self.store.session, self._committed, holder)
        self._watcher = Watcher(db.connect, self._knows, self.refresh, settings.watch_interval_seconds)
        #: Of subscribers and of publishers.
        self._admission = Admission(self.name, settings)
        self._active = ActiveSubscriptions(self._batcher, holder)
        self._upkeep = Maintenance(self.name, settings, _FileAtLeisure(self), self._active, lambda: self._removed)
        self._subscribing = Subscribing(
            settings,
            self.store,
            self.hub,
            self._batcher,
            self._active,
            self._admission,
            read=self.read,
            make_way=self.make_way,
            head=self.log_head,
        )
        self._started = False
        self._refreshing = asyncio.Lock()
        #: Many subscribers that begin at the same time are told the head together.
        self._heads: SingleFlight[int] = SingleFlight()

    # -- life ---------------------------------------------------------------

    def start(self) -> None:
        """Enter the supervised tasks, once; called on the event loop."""
        if self._started:
            return
        self._started = True
        add = self._datasette.add_background_task
        if self.store.writable:
            add(self._run_batcher, name=f"pubsub batcher: {self.name}")
            add(self._run_cursors, name=f"pubsub cursors: {self.name}")
            add(self._run_health, name=f"pubsub health: {self.name}")
            add(self._run_watcher, name=f"pubsub watcher: {self.name}")
            add(self._run_retention, name=f"pubsub retention: {self.name}")

    def serves(self, db: Database) -> bool:
        """Whether this is the broker of that very database, not of one removed and added again."""
        return self._db is db

    @property
    def _removed(self) -> bool:
        """Whether Datasette no longer serves this database."""
        return self._datasette.databases.get(self.name) is not self._db

    async def _run_batcher(self, _datasette: Datasette) -> None:
        in_batcher.set(True)
        await self._batcher.run()

    async def _run_watcher(self, _datasette: Datasette) -> None:
        await self._watcher.run()

    async def _run_health(self, _datasette: Datasette) -> None:
        in_batcher.set(True)
        await Health(self.name, self.store, self, lambda: self._removed).run()

    def end_streams(self) -> None:
        """Tell every stream to end and come back."""
        self._admission.end_all()

    def leave(self) -> None:
        """The connections to the file are about to be closed."""
        self._watcher.leave()

    async def begin_anew(self) -> None:
        """Another file is served: what is known of the log was of the one before."""
        self._batcher.forget_log()
        self.hub.rewind(await self.store.read(log.head))

    async def _run_cursors(self, _datasette: Datasette) -> None:
        in_batcher.set(True)
        await self._upkeep.run_cursors()
        # The database was removed.
        self.close_streams()

    async def _run_retention(self, _datasette: Datasette) -> None:
        in_batcher.set(True)
        await self._upkeep.run_retention()

    def close_streams(self) -> None:
        """Tell every stream that the server is going away, and take no new ones."""
        self._admission.close()

    async def stop(self) -> None:
        """End streams and write what was accepted. The tasks are cancelled by Datasette after this."""
        self.close_streams()
        if not await self._batcher.drain(DRAIN_SECONDS):
            logger.warning("database %s: not everything was written within %s s", self.name, DRAIN_SECONDS)

    # -- writing ------------------------------------------------------------

    async def publish(self, items: Sequence[Item]) -> list[int]:
        """Append messages, all or none; their ids, once they are on disk."""
        self.store.check_writable()
        if len(items) > self.settings.max_batch_messages:
            raise PayloadTooLarge(
                f"{len(items)} messages in one request; the limit is "
                f"{self.settings.max_batch_messages} (max_batch_messages)"
            )
        return list(await self._batcher.publish(items))

    @asynccontextmanager
    async def publishing(
        self, party: str, rights: Callable[[], Awaitable[Rights | None]]
    ) -> AsyncIterator[PublishStream]:
        """One publish stream, entered here and removed when the block ends.

        ``party`` is whom it counts for, like a subscriber's stream; ``rights``
        says what it may publish. Raises :class:`~.core.errors.PubsubError`.
        """
        self.store.check_writable()
        publish_stream = PublishStream(self._batcher, self.settings, self.name, rights)
        self._admission.enter(party)
        self._admission.add(publish_stream)
        try:
            await publish_stream.open()
            yield publish_stream
        finally:
            self._admission.discard(publish_stream)
            self._admission.leave(party)

    async def acknowledge(self, owner: str, name: str, message_id: int) -> int:
        """Move a subscription's cursor forward to an id; returns where it stands, once that is on disk."""
        self.store.check_writable()
        check_subscription_name(name)
        number, cursor = await self._write(lambda conn: subscriptions.acknowledge(conn, owner, name, message_id))
        self._active.acknowledged(number, cursor)
        return cursor

    async def delete_subscription(self, owner: str, name: str) -> None:
        """Forget a subscription and its cursor; its live stream, if any, ends. Raises :class:`NotFound`."""
        self.store.check_writable()
        self._active.drop(await self._write(lambda conn: subscriptions.delete(conn, owner, name)))

    async def change(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a change of the file in a transaction of its own; errors come out as :class:`PubsubError`."""
        self.store.check_writable()
        return await self._write(fn)

    def _committed(self, result: CommitResult) -> None:
        if not len(self.hub):
            # Nobody listens: nothing is done for each message.
            self.hub.skip_to(result.last)
        elif self._active.behind(result.claims) or not self.hub.committed(result.before, result.messages()):
            # Others have committed in between: the log has it all, in order, and who holds which subscription.
            self._watcher.look()

    async def _write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        self.make_way()
        return await self.store.write(fn)

    def make_way(self) -> None:
        """Called before anything but the batcher writes through Datasette, so that it need not wait for the batcher."""
        self._batcher.make_way()

    # -- reading ------------------------------------------------------------

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read on one of Datasette's read connections, within ``read_time_limit_seconds``.

        Errors come out as :class:`PubsubError`.
        """
        return await self.store.read(fn, self.settings.read_time_limit_seconds)

    async def channels(self) -> list[log.Channel]:
        """All channels of the log, by name, with what they hold."""
        return await self.read(log.channels)

    async def selector_of(self, owner: str, name: str) -> Selector:
        """What a subscription reads, as stored; nothing for one that does not exist."""

        def find(conn: sqlite3.Connection) -> Selector:
            if not schema.installed(conn):
                return Selector()
            found = subscriptions.find(conn, owner, name)
            return found.selector if found else Selector()

        return await self.read(find)

    async def subscriptions(self, owner: str | None, verdicts: Verdicts = ALL) -> list[dict[str, Any]]:
        """Subscriptions of one owner, or of all (``None``), by owner and name.

        With whether a subscriber is connected to any process, and their lag in what ``verdicts`` lets be seen.
        """

        def read(conn: sqlite3.Connection) -> list[tuple[Subscription, tuple[int, bool]]]:
            if not schema.installed(conn):
                return []
            own = subscriptions.everyone(conn) if owner is None else subscriptions.of_owner(conn, owner)
            budget = log.LagBudget()
            return [(found, budget.lag(conn, seen(found.selector), found.cursor)) for found in own]

        def seen(selector: Selector) -> Selector:
            allowed = frozenset(filter(verdicts.allows, selector.channels))
            return Selector(allowed, selector.patterns, verdicts)

        return [
            {
                "subscription": found.name,
                "owner": found.owner,
                "channels": sorted(found.selector.channels),
                "patterns": list(found.selector.patterns),
                "cursor": found.cursor,
                "lag": lag[0],
                "lag_is_more": lag[1],
                "connected": found.id in self._active or (found.alive and found.holder != self._active.name),
                "delivery": self._active.delivery(found.id),
                "created_at": found.created_at,
                "last_seen_at": found.last_seen_at,
            }
            for found, lag in await self.read(read)
        ]

    async def snapshot_table(self, table: str) -> tuple[list[str], list[Any], int]:
        """A table's rows and the log's head, as :meth:`snapshot`. Raises :class:`NotFound`."""
        names = [*await self._db.table_names(), *await self._db.view_names()]
        if table not in names:
            raise NotFound(f"table not found: {table}")
        return await self.snapshot(f"SELECT * FROM {identifier(table)}", {})

    async def snapshot(self, statement: str, params: dict[str, Any]) -> tuple[list[str], list[Any], int]:
        """The columns and rows of a SELECT, and the log's head, all of one moment.

        Raises :class:`InvalidArgument` for SQL that does not run, with SQLite's
        word for it, and :class:`PayloadTooLarge` for more than ``max_snapshot_rows``.
        """
        settings, milliseconds = self.settings, self._datasette.setting("sql_time_limit_ms")
        return await self.read(
            lambda conn: snapshot.take(conn, statement, params, settings.max_snapshot_rows, milliseconds)
        )

    def _knows(self, conn: sqlite3.Connection) -> bool:
        """Whether the hub has all that is in the log, or is about to be told by the batcher; and no claim is new."""
        if self._active.behind(subscriptions.claims(conn)):
            return False
        head = log.head(conn)
        return head == self.hub.head or (head == self._batcher.last and head > self.hub.head)

    async def refresh(self) -> None:
        """Bring the hub up to the log's head."""
        async with self._refreshing:
            known, seen = self.hub.head, self._active.seen

            def read(conn: sqlite3.Connection) -> tuple[Page, tuple[int, list[Claim]]]:
                top = log.head(conn)
                if top <= known or top - known > FILL_IDS:
                    page = Page([], top, top)
                else:
                    everything = Selector(patterns=("*",))
                    page = Reader(everything).page(conn, known, self.settings.tail_bytes or 1, FILL_IDS)
                # Read after the messages: it has every claim that was committed before any of them.
                return page, subscriptions.newer_claims(conn, seen)

            page, (newest, claims) = await self.store.read(read)
            self._active.see(newest, claims)
            if page.head < known:
                # Restored from a backup: this is not the log that the tail, the cursors and the streams are of.
                self.hub.rewind(page.head)
                self._batcher.forget_log()
                self._watcher.look()
                return
            # A hole is what a trim has left: readers that need it must be told, by the log.
            if page.messages and page.messages[-1].id - known == len(page.messages):
                new = [message for message in page.messages if message.id > self.hub.head]
                self.hub.fill(new, page.messages[-1].id)
            self.hub.skip_to(page.head)

    def _idle_changed(self, idle: bool) -> None:
        self._watcher.watch(not idle)

    async def log_head(self) -> int:
        """The log's head now, with the hub brought up to it."""
        return await self._heads.ask(self.name, self._refreshed)

    async def _refreshed(self) -> int:
        await self.refresh()
        return self.hub.head

    def subscribe(self, asked: SubscribeOptions, encoder: Encoder) -> AbstractAsyncContextManager[Subscriber]:
        """One live subscriber, entered here and removed when the block ends; see :meth:`Subscribing.open`."""
        return self._subscribing.open(asked, encoder)


class _FileAtLeisure:
    """The file, for what no visitor asks for: it may take its time."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        return await self._broker.store.read(fn)

    async def change(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        return await self._broker.change(fn)
