"""The broker of one database: connects the batcher, the log, the hub and the streams.

It uses only connections that Datasette has opened (docs/architecture.md), and knows no wire format and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.attachment import attached
from ..core.errors import FailedPrecondition, PayloadTooLarge
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
from ..storage import log, schema, sources, subscriptions
from ..storage.append_batch import CommitResult
from ..storage.catchup import Reader
from ..storage.filters import Filters
from ..storage.lag import lags
from ..storage.subscriptions import Claim
from ..telemetry import spans
from .active import ActiveSubscriptions
from .batcher import Batcher
from .database import DatabaseFile
from .file_events import FileEvents
from .health import Health
from .maintenance import Maintenance, UnlimitedFile
from .measuring import Measuring
from .own_writes import in_batcher
from .querying import Querying
from .subscribing import SubscribeOptions, Subscribing
from .watcher import Watcher

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

logger = logging.getLogger("datasette_pubsub")

#: If the head jumps by more ids than this, the messages are not read into the tail: subscribers read them from the log.
FILL_IDS = 5_000

#: How long the shutdown waits for the batcher, in seconds; an operator expects Ctrl+C to end the server within three.
DRAIN_SECONDS = 2.0

T = TypeVar("T")


class Broker:
    """Publishes to one database of one Datasette and reads from it.

    :func:`.registry.registry` finds it. Its methods check no permissions:
    :mod:`.access.gateway` does that for requests.

    Example::

        from datasette_pubsub.broker.registry import registry
        from datasette_pubsub.core.values import Item

        broker = registry(datasette).of("data")
        ids = await broker.publish([Item("news", "hello"), Item("news", "world")])
        assert ids == [1, 2]
        (channel,) = await broker.channels()
        assert (channel.name, channel.count) == ("news", 2)
    """

    def __init__(self, datasette: Datasette, db: Database, settings: Settings) -> None:
        self.name = str(db.name)
        self.settings = settings
        #: The database's file.
        self.store = DatabaseFile(datasette, db, settings)
        self._db = db
        self._datasette = datasette
        self._idle = True
        #: Checks and evaluates filters.
        self.filters = Filters()
        self.hub = Hub(settings.tail_bytes, self._idle_changed, self.filters.now)
        holder = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._batcher = Batcher(self.name, settings, self.store.session, self._committed, holder)
        #: Counts subscribers and publish streams.
        self._admission = Admission(self.name, settings)
        #: Its live and standing queries, and snapshots.
        self.queries = Querying(
            datasette,
            db,
            settings,
            self.store,
            self._admission,
            UnlimitedFile(self),
            read=self.read,
            make_way=self.make_way,
            watch=self._watch,
            published=self.refresh,
            removed=lambda: self._removed,
        )
        self._watcher = Watcher(
            db.connect,
            self._knows,
            self.refresh,
            settings.watch_interval_seconds,
            self.queries.live.committed,
            attached(datasette, FileEvents, FileEvents),
        )
        self._active = ActiveSubscriptions(self._batcher, holder)
        #: What telemetry is told.
        self.measuring = Measuring(self.name, self.hub, self._batcher, self._admission, self.queries.live, self.filters)
        self._maintenance = Maintenance(
            self.name, settings, UnlimitedFile(self), self._active, self.measuring, lambda: self._removed
        )
        self._subscribing = Subscribing(
            settings,
            self.store,
            self.hub,
            self._batcher,
            self._active,
            self._admission,
            filters=self.filters,
            read=self.read,
            make_way=self.make_way,
            head=self.log_head,
        )
        self._started = False
        self._refreshing = asyncio.Lock()
        #: Many subscribers that begin at the same time share one read of the head.
        self._heads: SingleFlight[int] = SingleFlight()

    # -- life ---------------------------------------------------------------

    def start(self) -> None:
        """Start the supervised tasks; a second call does nothing. Call it on the event loop."""
        if self._started:
            return
        self._started = True
        self.measuring.start()
        if self.store.writable:
            health = Health(self.name, self.store, self, lambda: self._removed)
            self._supervise("batcher", self._batcher.run)
            self._supervise("cursors", self._run_cursors)
            self._supervise("health", health.run)
            self._supervise("watcher", self._watcher.run)
            self._supervise("live queries", self.queries.live.run)
            self._supervise("retention", self._maintenance.run_retention)
            if self.settings.standing_queries:
                self._supervise("standing queries", self.queries.standing.run)
        else:
            self.queries.standing.refuse(
                FailedPrecondition("the database cannot be written, so that nothing can be published")
            )

    def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run this for ever, as a background task of Datasette."""

        async def task(_datasette: Datasette) -> None:
            in_batcher.set(True)
            await run()

        self._datasette.add_background_task(task, name=f"pubsub {name}: {self.name}")

    def serves(self, db: Database) -> bool:
        """Whether this is the broker of this database object, not of one that was removed and added again."""
        return self._db is db

    @property
    def _removed(self) -> bool:
        """Whether Datasette no longer serves this database."""
        return self._datasette.databases.get(self.name) is not self._db

    def end_streams(self) -> None:
        """End every stream and ask its subscriber or publisher to reconnect."""
        self._admission.end_all()

    def leave(self) -> None:
        """Stop using the connections to the file; they are about to be closed."""
        self._watcher.leave()

    async def begin_anew(self) -> None:
        """Forget what is known of the log: another file is served now."""
        self._batcher.forget_log()
        self.measuring.forget()
        self.queries.live.forget()
        self.hub.rewind(await self.store.read(log.head))

    async def _run_cursors(self) -> None:
        await self._maintenance.run_cursors()
        # The database was removed.
        self.measuring.stop()
        self.close_streams()

    def close_streams(self) -> None:
        """End every stream because the server shuts down, and admit no new ones."""
        self._admission.close()

    async def stop(self) -> None:
        """End all streams and write all accepted publishes. Datasette cancels the tasks after this."""
        self.close_streams()
        if not await self._batcher.drain(DRAIN_SECONDS):
            logger.warning("database %s: not everything was written within %s s", self.name, DRAIN_SECONDS)
        await self.store.close_own()
        self.filters.close()

    # -- writing ------------------------------------------------------------

    async def publish(self, items: Sequence[Item]) -> list[int]:
        """Append all messages or none; returns their ids when they are durable."""
        self.store.check_writable()
        if len(items) > self.settings.max_batch_messages:
            raise PayloadTooLarge(
                f"{len(items)} messages in one request; the limit is "
                f"{self.settings.max_batch_messages} (max_batch_messages)",
                limit="max_batch_messages",
            )
        with spans.publishing(self.name, len(items)) if spans.traced() else nullcontext():
            return list(await self._batcher.publish(items))

    @asynccontextmanager
    async def publishing(
        self, party: str, rights: Callable[[], Awaitable[Rights | None]]
    ) -> AsyncIterator[PublishStream]:
        """Open a publish stream until the block ends. It counts for ``party``, as a subscriber does.

        ``rights`` returns what it may publish. Raises :class:`~.core.errors.PubsubError`.
        """
        self.store.check_writable()
        publish_stream = PublishStream(self._batcher, self.settings, self.name, rights)
        with self._admission.enter(party, "publisher") as place:
            await publish_stream.open()
            place.take(publish_stream)
            yield publish_stream

    async def acknowledge(self, owner: str, name: str, message_id: int) -> int:
        """Move a subscription's cursor forward to an id; returns the cursor when it is durable."""
        self.store.check_writable()
        check_subscription_name(name)
        number, cursor = await self._write(lambda conn: subscriptions.acknowledge(conn, owner, name, message_id))
        self._active.acknowledged(number, cursor)
        return cursor

    async def delete_subscription(self, owner: str, name: str) -> None:
        """Delete a subscription and its cursor, and end its subscriber. Raises :class:`NotFound`."""
        self.store.check_writable()
        self._active.drop(await self._write(lambda conn: subscriptions.delete(conn, owner, name)))

    async def change(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that changes the file, in its own transaction. Raises :class:`PubsubError`."""
        self.store.check_writable()
        return await self._write(fn)

    def _committed(self, result: CommitResult) -> None:
        # A log that takes messages of its own is no copy, or not any more.
        self.hub.origin = None
        if not len(self.hub):
            # Without subscribers, nothing is done for each message.
            self.hub.skip_to(result.last)
        elif self._active.behind(result.claims) or not self.hub.committed(result.before, result.messages()):
            # Other writers have committed in between: the watcher reads their messages and claims from the file.
            self._watcher.look()

    async def _write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        self.make_way()
        return await self.store.write(fn)

    def make_way(self) -> None:
        """End the batcher's session; called before another write through Datasette, which then need not wait for it."""
        self._batcher.make_way()

    # -- reading ------------------------------------------------------------

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read on one of Datasette's read connections, within ``read_time_limit_seconds``.

        Raises :class:`PubsubError`.
        """
        return await self.store.read(fn, self.settings.read_time_limit_seconds)

    async def channels(self) -> list[log.Channel]:
        """All channels of the log, sorted by name, with their counts and newest messages."""
        return await self.read(log.channels)

    async def follows(self) -> dict[str, Any] | None:
        """The stream that the log follows, and how far behind it is, as JSON; ``None`` for an ordinary log."""

        def read(conn: sqlite3.Connection) -> dict[str, Any] | None:
            found = sources.followed(conn)
            return None if found is None else found.as_json(log.head(conn))

        return await self.read(read)

    async def selector_of(self, owner: str, name: str) -> Selector:
        """The stored selector of a subscription; an empty one if the subscription does not exist."""

        def find(conn: sqlite3.Connection) -> Selector:
            if not schema.installed(conn):
                return Selector()
            found = subscriptions.find(conn, owner, name)
            return found.selector if found else Selector()

        return await self.read(find)

    async def subscriptions(self, owner: str | None, verdicts: Verdicts = ALL) -> list[dict[str, Any]]:
        """The subscriptions of one owner, or of all owners (``None``), sorted by owner and name.

        Each says whether a subscriber is connected to any process, and its lag in the channels that ``verdicts`` allow.
        """
        return [
            {
                "subscription": found.name,
                "owner": found.owner,
                "relay_to": found.relay_to,
                "channels": sorted(found.selector.channels),
                "patterns": list(found.selector.patterns),
                "filter": found.selector.filter,
                "cursor": found.cursor,
                "lag": lag[0],
                "lag_is_more": lag[1],
                "connected": found.id in self._active or (found.alive and found.holder != self._active.name),
                "delivery": self._active.delivery(found.id),
                "created_at": found.created_at,
                "last_seen_at": found.last_seen_at,
            }
            for found, lag in await self.read(partial(lags, filters=self.filters, owner=owner, verdicts=verdicts))
        ]

    def _knows(self, conn: sqlite3.Connection) -> bool | None:
        """Whether the hub needs no refresh: it has every message, or the batcher will give it, and no claim is new.

        ``None`` while the batcher writes, which may be what was seen.
        """
        if self._active.behind(subscriptions.claims(conn)):
            return False
        writing, head = self._batcher.writing, log.head(conn)
        known = head == self.hub.head or (head == self._batcher.last and head > self.hub.head)
        return known or (None if writing else False)

    async def refresh(self) -> None:
        """Bring the hub up to the log's head."""
        async with self._refreshing:
            known, seen = self.hub.head, self._active.seen

            def read(conn: sqlite3.Connection) -> tuple[Page, tuple[int, list[Claim]], tuple[str, str | None] | None]:
                top = log.head(conn)
                if top <= known or top - known > FILL_IDS:
                    page = Page([], top, top)
                else:
                    everything = Selector(patterns=("*",))
                    page = Reader(everything, keys=True).page(conn, known, self.settings.tail_bytes or 1, FILL_IDS)
                # Claims are read after the messages, so that every claim committed before a message is among them.
                # So is the origin: while there is one, all messages before are its messages.
                return page, subscriptions.newer_claims(conn, seen), sources.origin(conn)

            page, (newest, claims), origin = await self.store.read(read)
            self._active.see(newest, claims)
            if page.head < known:
                # The file was restored from a backup: the tail, the cursors and the streams belong to another log.
                self.hub.rewind(page.head, origin)
                self._batcher.forget_log()
                self._watcher.look()
                return
            if page.head >= self.hub.head:  # else the batcher has written since, and knows better
                self.hub.origin = origin
            # A hole in the ids is from a trim: subscribers read the log then, and report the gap.
            if page.messages and page.messages[-1].id - known == len(page.messages):
                new = [message for message in page.messages if message.id > self.hub.head]
                self.hub.fill(new, page.messages[-1].id)
            self.hub.skip_to(page.head)

    def _idle_changed(self, idle: bool) -> None:
        self._idle = idle
        self._watch()

    def _watch(self) -> None:
        """Watch the file while anybody needs to know what is committed."""
        self._watcher.watch(not self._idle or len(self.queries.live) > 0)

    async def log_head(self) -> int:
        """Bring the hub up to the log's head, and return it."""
        return await self._heads.ask(self.name, self._refreshed)

    async def _refreshed(self) -> int:
        await self.refresh()
        return self.hub.head

    def subscribe(self, asked: SubscribeOptions, encoder: Encoder) -> AbstractAsyncContextManager[Subscriber]:
        """Open a live subscriber until the block ends; see :meth:`Subscribing.open`."""
        return self._subscribing.open(asked, encoder)
