"""Opens one subscriber of one database, and closes it at its end.

The order of the steps matters. First, count the subscriber, before awaiting anything for it. Second, claim the
subscription, which supersedes its present holder. Third, register at the hub *before* reading the head, so that every
later commit wakes the subscriber. Fourth, find the position where it begins, and the messages after it that were
trimmed. When the block ends, save the cursor up to the position that the subscriber's machine has acknowledged, and
unregister from the hub.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol, TypeVar

from .. import compat
from ..core.errors import InvalidArgument, Unavailable
from ..core.events import Superseded
from ..core.selector import Selector
from ..core.settings import Settings
from ..core.validation import check_subscription_name
from ..core.values import ANYWHERE, AckMode, Page, Where
from ..live.admission import Admission, Place
from ..live.hub import Hub
from ..live.options import SubscriberOptions
from ..live.subscriber import Subscriber
from ..live.tail import Encoder
from ..storage import last, log, retention, schema, subscriptions
from ..storage.catchup import CatchUp
from ..storage.filters import Filters
from ..storage.last import Last
from ..storage.objects import SUBSCRIPTIONS
from ..storage.sqlite_codes import has_table
from ..storage.subscriptions import Subscription
from .active import ActiveSubscriptions
from .batcher import Batcher
from .database import DatabaseFile

T = TypeVar("T")


class Read(Protocol):
    """Runs a read of the file. Raises :class:`~.core.errors.PubsubError`."""

    async def __call__(self, fn: Callable[[sqlite3.Connection], T]) -> T: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeOptions:
    """What a subscriber asks for. Every field but ``selector`` is optional.

    ``visible`` is the part of ``selector`` that the subscriber may receive (``None``: all of it). With a ``name``, it
    uses the durable subscription of that name and ``owner``; an empty selector then means the subscription's own, and
    one with nothing but a filter the subscription's own with this filter.
    ``heartbeat_seconds`` of ``None`` means the setting. The subscriber counts for ``party`` in
    ``max_streams_per_actor``. ``allowed`` is called to re-check permissions, and once more after ``expires_in``
    seconds, when the actor's token expires.
    """

    selector: Selector
    visible: Selector | None = None
    owner: str = ""
    name: str | None = None
    where: Where = ANYWHERE
    ack: AckMode = "auto"
    heartbeat_seconds: float | None = None
    party: str = ""
    allowed: Callable[[], Awaitable[bool]] | None = None
    expires_in: float | None = None


class Subscribing:
    """Opens subscribers of one database."""

    def __init__(
        self,
        settings: Settings,
        store: DatabaseFile,
        hub: Hub,
        batcher: Batcher,
        active: ActiveSubscriptions,
        admission: Admission,
        *,
        filters: Filters,
        read: Read,
        make_way: Callable[[], None],
        head: Callable[[], Awaitable[int]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._hub = hub
        self._batcher = batcher
        self._active = active
        self._admission = admission
        self._filters = filters
        self._read = read
        self._make_way = make_way
        self._head = head
        #: Numbers the claims in the order in which they are written; the write thread takes them.
        self._turns = count(1)

    @asynccontextmanager
    async def open(self, asked: SubscribeOptions, encoder: Encoder) -> AsyncIterator[Subscriber]:
        """Open a live subscriber until the block ends.

        An older subscriber of the same subscription is superseded. Raises :class:`~.core.errors.PubsubError` before
        anything is sent.
        """
        self._store.check_present()
        with self._admission.enter(asked.party, "subscriber", named=asked.name is not None) as place:
            async with self._opened(asked, encoder, place) as stream:
                yield stream

    @asynccontextmanager
    async def _opened(self, asked: SubscribeOptions, encoder: Encoder, place: Place) -> AsyncIterator[Subscriber]:
        waiter = subscription = stream = None
        try:
            subscription = await self._subscription(asked)
            selector = asked.visible or (subscription.selector if subscription else asked.selector)
            automatic = subscription is not None and asked.ack == "auto"
            # Register before reading the head: every later commit wakes the waiter.
            waiter = self._hub.register(selector)
            head = await self._head()
            newest = await self._newest(subscription, asked.where, selector, head)
            wanted = await self._first_position(subscription, asked.where) if newest is None else newest.begin
            #: Whether the log is a copy that is to reach the position; see the theory of :mod:`.live.subscriber`.
            awaited = wanted > head and self._hub.origin is not None and self._settings.follow_wait_seconds > 0
            position = min(wanted, head)
            catch_up = CatchUp(selector, self._settings.max_send_bytes, self._filters)
            if subscription is not None:
                if wanted > head:
                    position = min(subscription.cursor, head)
                catch_up.know(subscription.gone)
            elif newest is None and asked.where.position is None and position < head:
                await self._read(lambda conn: catch_up.forgive(conn, position))

            rewinds = self._hub.rewinds

            def next_page(conn: sqlite3.Connection, after: int, limit: int) -> Page:
                if newest is not None and after < newest.head and self._hub.rewinds == rewinds:
                    return newest.page(conn, limit, self._settings.max_send_bytes)
                return catch_up.page(conn, after, limit)

            async def read_page(after: int, limit: int) -> Page:
                if subscription is None:
                    return await self._read(lambda conn: next_page(conn, after, limit))
                number = subscription.id
                # In this order, the claim is at least as new as any message of the page.
                page, claim = await self._read(
                    lambda conn: (next_page(conn, after, limit), subscriptions.claim_of(conn, number))
                )
                if claim is not None:
                    self._active.see_one(claim)
                return page

            stream = Subscriber(
                self._hub,
                waiter,
                read_page,
                encoder,
                wanted if awaited else position,
                SubscriberOptions(
                    send_bytes=self._settings.max_send_bytes,
                    heartbeat_seconds=asked.heartbeat_seconds or self._settings.heartbeat_seconds,
                    automatic=automatic,
                    ahead=not awaited and (wanted > head or (subscription is not None and subscription.ahead)),
                    floor=position if awaited else None,
                    await_seconds=self._settings.follow_wait_seconds,
                    max_unacked=self._settings.max_unacked_messages if asked.ack == "explicit" else None,
                    allowed=asked.allowed,
                    recheck_seconds=self._settings.permission_recheck_seconds,
                    expires_in=asked.expires_in,
                    read_to=head if newest is not None else 0,
                    direct_send=self._settings.direct_send and compat.CAN_ENTER_TASKS,
                ),
            )
            if subscription is not None:
                self._active.begin(subscription, stream, automatic)
                if not automatic and asked.where.resume is not None and not awaited:
                    self._active.resumed(subscription, position)
            place.take(stream)
            try:
                yield stream
                if subscription is not None and not isinstance(stream.end, Superseded):
                    await stream.last_looks()
            finally:
                place.discard()
                if subscription is not None:
                    self._active.leave(subscription, stream)
                stream.close()
        finally:
            if stream is None and subscription is not None:
                self._active.leave(subscription, None)
            if waiter is not None:
                self._hub.unregister(waiter)

    async def _subscription(self, asked: SubscribeOptions) -> Subscription | None:
        """Open the named subscription, and create it if it is new; ``None`` for a subscriber without a name."""
        if asked.name is None:
            if asked.ack == "explicit":
                raise InvalidArgument("ack is for a named subscription: name one, or leave the ack mode away")
            if not asked.selector:
                raise InvalidArgument("channel is required: name at least one channel or pattern")
            return None
        check_subscription_name(asked.name)
        self._store.check_writable()
        begin = None
        if asked.where.last:
            # Of what it may view: the part that it gets. It is not used if the subscription exists.
            newest = await self._newest_of(asked.visible or asked.selector, await self._head())
            begin = newest.begin
        subscription = await self._open(asked.owner, asked.name, asked.selector, asked.where, begin)
        self._active.enter(subscription)
        return subscription

    async def _newest(
        self, subscription: Subscription | None, where: Where, selector: Selector, head: int
    ) -> Last | None:
        """The newest messages of the channels, if the subscriber begins with them: one without a name, or a new one."""
        if not where.last or (subscription is not None and (subscription.ahead or not subscription.new)):
            return None
        return await self._newest_of(selector, head)

    async def _newest_of(self, selector: Selector, head: int) -> Last:
        most = self._settings.max_last_channels
        return Last(await self._read(lambda conn: last.ids(conn, selector, head, self._filters, most)), head)

    async def _open(
        self, owner: str, name: str, selector: Selector, where: Where, begin: int | None = None
    ) -> Subscription:
        """Claim the named subscription; it reads the channels asked for, or the stored ones.

        A new one begins at ``begin``, or else where ``where`` says. While the file cannot be written, an existing
        subscription is returned as it is, and claimed later.
        """

        bounds = subscriptions.Bounds.of(self._settings, owner)

        def open_or_create(conn: sqlite3.Connection) -> Subscription:
            found = subscriptions.find(conn, owner, name)
            if not selector and not (found and found.selector):
                raise InvalidArgument("channel is required for a new subscription: name at least one")
            first = _start(conn, where, "earliest", selector) if begin is None else min(begin, log.head(conn))
            cursor = found.cursor if found else first
            gone = {} if found or where.position is not None else retention.released(conn, selector, cursor)
            opened = subscriptions.open_or_create(conn, owner, name, selector, cursor, gone, bounds)
            if opened.cursor > log.head(conn):
                cursor = log.earliest(conn, opened.selector) - 1
                gone = retention.released(conn, opened.selector, cursor)
                opened = subscriptions.renew(conn, opened, cursor, gone)
            return replace(subscriptions.claim(conn, opened, self._active.name), turn=next(self._turns))

        self._make_way()
        try:
            return await self._store.write(open_or_create, self._settings.read_time_limit_seconds)
        except Unavailable:
            found = await self._read(lambda conn: _as_it_is(conn, owner, name, selector))
            if found is None:
                raise
            return replace(found, previous=found.claim, turn=next(self._turns))

    async def _first_position(self, subscription: Subscription | None, where: Where) -> int:
        if where.resume is not None:
            return where.resume
        if subscription is not None:
            known = max(subscription.cursor, self._batcher.newest_cursor(subscription.id, subscription.claim))
            # The row of a new one begins at the head at most.
            asked_for = where.after if subscription.new and self._hub.origin is not None else None
            return max(known, asked_for or 0)
        if where.after is not None:
            return where.after
        if where.start != "earliest" and where.since is None:
            return self._hub.head
        return await self._read(lambda conn: _start(conn, where, "latest"))


def _as_it_is(conn: sqlite3.Connection, owner: str, name: str, selector: Selector) -> Subscription | None:
    """The existing subscription, if its row needs no change for this request; else ``None``."""
    if not schema.installed(conn) or not has_table(conn, SUBSCRIPTIONS):
        return None
    found = subscriptions.find(conn, owner, name)
    if found is None or not found.selector or selector.over(found.selector) != found.selector:
        return None
    return found if found.cursor <= log.head(conn) else None


def _start(conn: sqlite3.Connection, where: Where, default: str, selector: Selector | None = None) -> int:
    """The position at which a new subscriber begins."""
    if where.position is not None:
        return min(where.position, log.head(conn))
    if not schema.installed(conn):
        return 0
    if where.since is not None:
        return log.before_time(conn, where.since)
    if (where.start or default) == "earliest":
        return log.earliest(conn, selector) - 1
    return log.head(conn)
