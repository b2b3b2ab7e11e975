"""The broker of one database: puts batcher, log, hub and streams together.

The law of this module: it is the only one that knows both storage and live
subscribers. It speaks to the database through Datasette's own connections only
(DESIGN.md, decision 1) and knows no wire format and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from datasette.utils import sqlite_timelimit

from . import log, retention, schema, subscriptions
from .batcher import Batcher, Committed, Transaction
from .catchup import CatchUp
from .config import MAX_SNAPSHOT_BYTES, Settings
from .errors import FailedPrecondition, InvalidArgument, NotFound, PubsubError, TooLarge, TooMany, Unavailable
from .holders import Holders
from .hub import Encoder, Hub
from .inflow import Inflow
from .models import ANYWHERE, AckMode, Bye, Item, Page, Where, check_subscription_name, utc_text
from .selector import ALL, Rights, Selector, Verdicts
from .stream import Stream
from .subscriptions import Subscription
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

#: How old ``last_seen_at`` of a connected subscription may become, in seconds; and
#: as a part of ``subscription_days``, so that none expires at once when its
#: connection ends, or when the server comes back before its reader does.
SEEN_SECONDS = 60.0
SEEN_PART = 0.1

#: True inside the batcher's own writes, which tell the hub themselves.
in_batcher: ContextVar[bool] = ContextVar("datasette_pubsub_in_batcher", default=False)

T = TypeVar("T")


def explain(error: sqlite3.Error, name: str) -> PubsubError:
    """What an SQLite error means to a caller, without paths or SQL."""
    text = str(error)
    if "readonly" in text or "unable to open" in text or "permission" in text.lower():
        return FailedPrecondition(
            f"database {name} cannot be written: its file is read-only, or was when Datasette opened it; "
            "nothing was stored"
        )
    if "locked" in text or "busy" in text:
        return Unavailable(f"database {name} is locked by another writer; nothing was stored, try again")
    if "full" in text:
        return Unavailable(f"the disk of database {name} is full; nothing was stored")
    if isinstance(error, sqlite3.IntegrityError):
        return log.refusal(error)
    if "no such table" in text:
        return FailedPrecondition(
            f"database {name} has lost a part of its log; restart Datasette, or run: datasette pubsub install"
        )
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
        self._batcher = Batcher(settings, self._session, self._committed)
        self._watcher = Watcher(db.connect, self.refresh, settings.poll_seconds)
        #: Of subscribers and of publishers.
        self._streams: set[Stream | Inflow] = set()
        #: How many streams are open for each actor or address.
        self._parties: Counter[str] = Counter()
        self._holders = Holders(self._batcher)
        self._started = False
        self._closing = False
        self._refreshing = asyncio.Lock()

    # -- life ---------------------------------------------------------------

    def start(self) -> None:
        """Enter the supervised tasks, once; called on the event loop."""
        if self._started:
            return
        self._started = True
        add = self._datasette.add_background_task
        if self.stores:
            add(self._run_batcher, name=f"pubsub batcher: {self.name}")
            add(self._run_cursors, name=f"pubsub cursors: {self.name}")
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

    @property
    def stores(self) -> bool:
        """Whether this is a file that can be written."""
        return bool(self._db.is_mutable and not self._db.is_memory and not self._datasette.nolock)

    def prepare_write(self, conn: sqlite3.Connection) -> None:
        """Durability and the log, on Datasette's write connection; why not, if not, stands in ``conflict``."""
        self.conflict = None
        try:
            schema.set_durability(conn, self.settings)
            schema.install(conn, self.settings)
        except PubsubError as error:
            self.conflict = error
        except sqlite3.Error as error:
            self.conflict = explain(error, self.name)
        if self.conflict is not None:
            logger.warning("database %s: %s", self.name, self.conflict.message)

    async def prepare_later(self) -> None:
        """Have the log installed by the write thread, as soon as nothing reads; does not wait for it."""
        if self.conflict is None:
            # Opening the write connection is what installs it.
            await self._db.execute_write_fn(lambda conn: None, block=False)
        else:
            await self._db.execute_write_fn(self.prepare_write, block=False, transaction=False)

    def check_writable(self) -> None:
        """Raise :class:`FailedPrecondition` when this database can never store a message."""
        if self._db.is_memory:
            raise FailedPrecondition(f"database {self.name} is in memory: it cannot keep messages")
        if not self._db.is_mutable:
            raise FailedPrecondition(f"database {self.name} is immutable: nothing can be published to it")
        if self._datasette.nolock:
            raise FailedPrecondition("Datasette was started with --nolock: it cannot read a file that has a log")

    async def publish(self, items: Sequence[Item]) -> list[int]:
        """Append messages, all or none; their ids, once they are on disk."""
        self.check_writable()
        if len(items) > self.settings.max_batch_messages:
            raise TooLarge(
                f"{len(items)} messages in one request; the limit is "
                f"{self.settings.max_batch_messages} (max_batch_messages)"
            )
        return list(await self._batcher.publish(items))

    @asynccontextmanager
    async def publishing(self, party: str, rights: Callable[[], Awaitable[Rights | None]]) -> AsyncIterator[Inflow]:
        """One publish stream, entered here and removed when the block ends.

        ``party`` is whom it counts for, like a subscriber's stream; ``rights``
        says what it may publish. Raises :class:`~.errors.PubsubError`.
        """
        self.check_writable()
        self._admit(party)
        inflow = Inflow(self._batcher, self.settings, self.name, rights)
        self._parties[party] += 1
        self._streams.add(inflow)
        try:
            await inflow.open()
            yield inflow
        finally:
            self._streams.discard(inflow)
            self._leave(party)

    async def acknowledge(self, owner: str, name: str, message_id: int) -> int:
        """Move a subscription's cursor forward to an id; returns where it stands, once that is on disk."""
        self.check_writable()
        check_subscription_name(name)
        number, cursor = await self._write(lambda conn: subscriptions.acknowledge(conn, owner, name, message_id))
        self._holders.acknowledged(number, cursor)
        return cursor

    async def delete_subscription(self, owner: str, name: str) -> None:
        """Forget a subscription and its cursor; its live stream, if any, ends. Raises :class:`NotFound`."""
        self.check_writable()
        self._holders.drop(await self._write(lambda conn: subscriptions.delete(conn, owner, name)))

    async def change(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a change of the file in a transaction of its own; errors come out as :class:`PubsubError`."""
        self.check_writable()
        return await self._write(fn)

    async def _prepared(self) -> None:
        if self.conflict is not None:
            # Opening the write connection could not install the log; what stood in the way may be gone.
            await self._db.execute_write_fn(self.prepare_write, transaction=False)

    async def _write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a transaction on the write connection. Raises :class:`PubsubError`."""
        self._batcher.interrupt()
        await self._prepared()

        def checked(conn: sqlite3.Connection) -> T | PubsubError:
            # What is refused is handed back, not raised: Datasette's write thread prints what is raised.
            if self.conflict is not None:
                return self.conflict
            try:
                return fn(conn)
            except PubsubError as error:
                conn.rollback()
                return error

        try:
            result = await self._db.execute_write_fn(checked)
        except sqlite3.Error as error:
            raise explain(error, self.name) from error
        if isinstance(result, PubsubError):
            raise result
        return cast(T, result)

    async def _session(self, session: Callable[[Transaction], None]) -> None:
        """Run the batcher's session on the write thread, with what it needs to run transactions."""
        await self._prepared()

        def run(conn: sqlite3.Connection) -> None:
            session(lambda fn: self._transaction(conn, fn))

        await self._db.execute_write_fn(run, transaction=False)

    def _transaction(
        self, conn: sqlite3.Connection, fn: Callable[[sqlite3.Connection], Committed]
    ) -> Committed | PubsubError:
        """One transaction of a session, on the write thread."""
        if self.conflict is not None:
            return self.conflict
        try:
            conn.execute("BEGIN IMMEDIATE")
            try:
                result = fn(conn)
                conn.commit()
            except BaseException:
                conn.rollback()
                raise
        except PubsubError as error:
            return error
        except sqlite3.Error as error:
            return explain(error, self.name)
        return result

    def _committed(self, result: Committed) -> None:
        if not len(self.hub):
            # Nobody listens: nothing is done for each message.
            self.hub.skip_to(result.last)
        elif not self.hub.committed(result.before, result.messages()):
            # Others have committed in between: the log has it all, in order.
            self._watcher.look()

    # -- reading ------------------------------------------------------------

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read on one of Datasette's read connections; errors come out as :class:`PubsubError`."""
        try:
            result: T = await self._db.execute_fn(fn)
        except sqlite3.Error as error:
            if "no such table" in str(error):
                raise explain(error, self.name) from error
            logger.error("database %s: %s", self.name, error)
            raise Unavailable(f"database {self.name} could not be read") from error
        return result

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

        With whether a subscriber is connected, and their lag in what ``verdicts`` lets be seen.
        """

        def read(conn: sqlite3.Connection) -> list[tuple[Subscription, int]]:
            if not schema.installed(conn):
                return []
            own = [found for found in subscriptions.everyone(conn) if owner in (None, found.owner)]
            return [(found, log.count_after(conn, seen(found.selector), found.cursor)) for found in own]

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
                "lag": lag,
                "connected": found.id in self._holders,
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
        quoted = table.replace('"', '""')
        return await self.snapshot(f'SELECT * FROM "{quoted}"', {})

    async def snapshot(self, statement: str, params: dict[str, Any]) -> tuple[list[str], list[Any], int]:
        """The columns and rows of a SELECT, and the log's head, all of one moment.

        Raises :class:`InvalidArgument` for SQL that does not run, with SQLite's
        word for it, and :class:`TooLarge` for more than ``max_snapshot_rows``.
        """
        limit = self.settings.max_snapshot_rows

        def read(conn: sqlite3.Connection) -> tuple[list[str], list[Any], int]:
            conn.execute("BEGIN")
            longest = conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_SNAPSHOT_BYTES)
            try:
                head = log.head(conn)
                with sqlite_timelimit(conn, self._datasette.setting("sql_time_limit_ms")):
                    cursor = conn.execute(statement, params)
                    rows: list[Any] = []
                    size = 0
                    for row in cursor:
                        rows.append(row)
                        size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
                        if len(rows) > limit:
                            raise TooLarge(f"more than {limit} rows (max_snapshot_rows)")
                        if size > MAX_SNAPSHOT_BYTES:
                            raise TooLarge(f"more than {MAX_SNAPSHOT_BYTES} bytes in one snapshot")
                    return [column[0] for column in cursor.description], rows, head
            except sqlite3.Error as error:
                raise InvalidArgument(f"sql: {error}") from None
            finally:
                conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
                conn.execute("ROLLBACK")

        return await self.read(read)

    async def refresh(self) -> None:
        """Bring the hub up to the log's head."""
        async with self._refreshing:
            known = self.hub.head

            def read(conn: sqlite3.Connection) -> Page:
                top = log.head(conn)
                if top <= known or top - known > FILL_IDS:
                    return Page([], top, top)
                return log.Reader(Selector(patterns=("*",))).page(conn, known, self.settings.tail_bytes or 1, FILL_IDS)

            page = await self.read(read)
            if page.head < known:
                # Restored from a backup: this is not the log that the tail, the cursors and the streams are of.
                self.hub.rewind(page.head)
                self._batcher.forget_cursors()
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
        await self.refresh()
        return self.hub.head

    async def _open(self, owner: str, name: str, selector: Selector, where: Where) -> Subscription:
        """The named subscription, made if it is new; what it reads is as asked now, or as it was stored."""

        def open_or_create(conn: sqlite3.Connection) -> Subscription:
            found = subscriptions.find(conn, owner, name)
            if not selector and not (found and found.selector):
                raise InvalidArgument("channel is required for a new subscription: name at least one")
            cursor = found.cursor if found else _start(conn, where, "earliest", selector)
            gone = {} if found or where.position is not None else retention.released(conn, selector, cursor)
            opened = subscriptions.open_or_create(conn, owner, name, selector, cursor, gone)
            if opened.cursor <= log.head(conn):
                return opened
            cursor = log.earliest(conn, opened.selector) - 1
            return subscriptions.renew(conn, opened, cursor, retention.released(conn, opened.selector, cursor))

        return await self._write(open_or_create)

    async def _first_position(self, subscription: Subscription | None, where: Where) -> int:
        if where.resume is not None:
            return where.resume
        if subscription is not None:
            return max(subscription.cursor, self._batcher.newest_cursor(subscription.id))
        if where.after is not None:
            return where.after
        if where.start != "earliest" and where.since is None:
            return self.hub.head
        return await self.read(lambda conn: _start(conn, where, "latest"))

    @asynccontextmanager
    async def subscribe(
        self,
        selector: Selector,
        encoder: Encoder,
        *,
        visible: Selector | None = None,
        owner: str = "",
        name: str | None = None,
        where: Where = ANYWHERE,
        ack: AckMode = "auto",
        heartbeat_seconds: float | None = None,
        party: str = "",
        allowed: Callable[[], Awaitable[bool]] | None = None,
        expires_in: float | None = None,
    ) -> AsyncIterator[Stream]:
        """One live subscriber, entered here and removed when the block ends.

        With a ``name`` it is a durable subscription of ``owner``; a stream that
        is open under the same name is told that it was superseded. ``visible``
        is what the reader is allowed to receive of it all, and ``allowed`` is
        asked now and then whether it still is. ``party`` is whom the stream
        counts for. Raises :class:`~.errors.PubsubError` before anything is sent.
        """
        self._admit(party)
        subscription = None
        if name is not None:
            check_subscription_name(name)
            self.check_writable()
            subscription = await self._open(owner, name, selector, where)
            if subscription.new:
                # In a file of an earlier version it may have the number of one that was deleted by SQL.
                self._holders.drop(subscription.id)
            selector = subscription.selector
        elif ack == "explicit":
            raise InvalidArgument("ack is for a named subscription: name one, or leave the ack mode away")
        elif not selector:
            raise InvalidArgument("channel is required: name at least one channel or pattern")
        selector = visible or selector
        automatic = subscription is not None and ack == "auto"
        # Entered before the head is read: what commits from here on wakes the waiter.
        waiter = self.hub.register(selector)
        self._parties[party] += 1
        try:
            head = await self.log_head()
            wanted = await self._first_position(subscription, where)
            position = min(wanted, head)
            catch_up = CatchUp(selector, self.settings.send_bytes)
            if subscription is not None:
                if wanted > head:
                    position = subscription.cursor
                resumes = where.resume is not None
                position = self._holders.take_over(subscription.id, position, automatic, resumes)
            if subscription is not None:
                catch_up.know(subscription.gone)
            elif where.position is None:
                await self.read(lambda conn: catch_up.forgive(conn, position))

            async def read_page(after: int, limit: int) -> Page:
                return await self.read(lambda conn: catch_up.page(conn, after, limit))

            stream = Stream(
                self.hub,
                waiter,
                read_page,
                encoder,
                position,
                send_bytes=self.settings.send_bytes,
                heartbeat_seconds=heartbeat_seconds or self.settings.heartbeat_seconds,
                first_alone=automatic,
                ahead=wanted > head or (subscription is not None and subscription.ahead),
                allowed=allowed,
                expires_in=expires_in,
                recheck_seconds=self.settings.recheck_seconds,
                max_unacked=self.settings.max_unacked_messages if ack == "explicit" else None,
            )
            self._streams.add(stream)
            if subscription is not None:
                self._holders.begin(subscription, stream, automatic)
                if not automatic and where.resume is not None:
                    self._batcher.move_cursor(subscription.id, position)
            if self._closing:
                stream.stop(Bye())
            try:
                yield stream
            finally:
                self._streams.discard(stream)
                if subscription is not None:
                    self._holders.leave(subscription.id, stream)
        finally:
            self.hub.unregister(waiter)
            self._leave(party)

    def _admit(self, party: str) -> None:
        """Raise, before a stream is opened, when there can be no more of them."""
        if self._closing:
            raise Unavailable("the server is going away; try again")
        if len(self._streams) >= self.settings.max_subscribers:
            raise TooMany(
                f"{len(self._streams)} streams are open on database {self.name}; "
                f"the limit is {self.settings.max_subscribers} (max_subscribers)"
            )
        if self._parties[party] >= self.settings.max_subscribers_per_actor:
            raise TooMany(
                f"{self._parties[party]} streams are open for this actor on database {self.name}; "
                f"the limit is {self.settings.max_subscribers_per_actor} (max_subscribers_per_actor)"
            )

    def _leave(self, party: str) -> None:
        self._parties[party] -= 1
        if not self._parties[party]:
            del self._parties[party]

    async def _run_cursors(self, _datasette: Datasette) -> None:
        """Save the cursors of live automatic subscriptions now and then, and look after the rows of all.

        Ends the streams of a removed database.
        """
        in_batcher.set(True)
        while True:
            await asyncio.sleep(self.settings.cursor_save_seconds)
            if self._removed:
                self.close_streams()
                return
            self._holders.save()
            try:
                await self._look_after(self._holders.ids)
            except PubsubError:
                # Locked, or full: told where it was found, and the next round comes soon.
                continue
            except Exception:
                logger.exception("database %s: could not look after its subscriptions; trying again", self.name)

    async def _look_after(self, held: list[int]) -> None:
        """Learn what was done by SQL to subscriptions that are held, and write that they are in use."""
        if not held:
            return
        states = await self.read(lambda conn: subscriptions.states(conn, held))
        self._holders.learn(held, states)
        days = self.settings.subscription_days
        age = min(SEEN_SECONDS, days * 86400 * SEEN_PART) if days else SEEN_SECONDS
        limit = utc_text(datetime.now(UTC) - timedelta(seconds=age))
        stale = [number for number, state in states.items() if state.last_seen_at < limit]
        if stale:
            await self._write(lambda conn: subscriptions.touch(conn, stale))

    async def _run_retention(self, _datasette: Datasette) -> None:
        """Trim in the background, in small transactions with pauses of their own length between them."""
        in_batcher.set(True)
        while not self._removed:
            try:
                await self.trim()
            except PubsubError as error:
                logger.warning("database %s: not trimmed: %s", self.name, error.message)
            except Exception:
                logger.exception("database %s: not trimmed; trying again later", self.name)
            await asyncio.sleep(self.settings.trim_seconds)

    async def trim(self) -> int:
        """Remove what retention releases; how many messages went."""
        left = await self.read(lambda conn: retention.goals(conn, self.settings))
        removed = 0
        while left:
            began = time.monotonic()
            removed += (await self._write(lambda conn: retention.trim(conn, left))).total()
            await asyncio.sleep(time.monotonic() - began)
        if self.settings.subscription_days and await self.read(schema.installed):
            live = self._holders.ids
            gone = await self._write(lambda conn: retention.expire(conn, self.settings.subscription_days, live))
            for name in gone:
                logger.info("database %s: subscription %s expired", self.name, name)
        return removed


def _start(conn: sqlite3.Connection, where: Where, default: str, selector: Selector | None = None) -> int:
    """The position at which a new reader begins."""
    if where.position is not None:
        return min(where.position, log.head(conn))
    if not schema.installed(conn):
        return 0
    if where.since is not None:
        return log.before_time(conn, where.since)
    if (where.start or default) == "earliest":
        return log.earliest(conn, selector) - 1
    return log.head(conn)
