"""The gateway: the one way for every protocol to open a subscriber, to publish, and to move a cursor.

A protocol reads its requests and writes its responses; the gateway does everything in between, in one order. For a
subscriber it checks whether the actor may have a named subscription, who owns it, which channels it reads, whether the
actor may view them, whether the request comes from a page of this site, and how many streams the actor has. While the
subscriber is connected, it re-checks the actor and its permissions. A new protocol that uses the gateway gets all of
this.
"""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasette.utils.asgi import Request

from .. import compat
from ..broker import shutdown
from ..broker.broker import Broker
from ..broker.subscribing import SubscribeOptions
from ..core.selector import Selector
from ..core.validation import check_message_id, check_subscription_name
from ..core.values import ANYWHERE, AckMode, Item, Where
from ..core.verdicts import Rights
from ..live.publisher import PublishStream
from ..live.subscriber import Subscriber
from ..live.tail import Encoder
from ..live_query.query import Encoder as QueryEncoder
from ..live_query.subscriber import QuerySubscriber, QuerySubscriberOptions
from ..storage.query import Question
from . import permissions, revalidation
from .cross_site import refuse_elsewhere
from .questions import AskedQuery, question_of

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_pubsub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a subscriber asks for, in every protocol; see :class:`~.broker.subscribing.SubscribeOptions`.

    A ``selector`` without channels and patterns, with a ``name``, means the stored selector of that subscription, with
    this filter if it has one.

    >>> from datasette_pubsub.access.gateway import Asked
    >>> from datasette_pubsub.core.selector import Selector
    >>> Asked(selector=Selector.of(["news"]), name="mailer").ack
    'auto'
    """

    selector: Selector
    name: str | None = None
    where: Where = ANYWHERE
    ack: AckMode = "auto"
    heartbeat_seconds: float | None = None


class Admitted:
    """A subscriber that :func:`admit` has checked, and that may be opened.

    Example::

        from contextlib import aclosing
        from datasette.utils.asgi import Request
        from datasette_pubsub.access import gateway
        from datasette_pubsub.broker.registry import registry
        from datasette_pubsub.core.selector import Selector
        from datasette_pubsub.core.values import Item, Where
        from datasette_pubsub.protocol.frames import SseEncoder

        request = Request.fake("/data")  # in a plugin: the request that its view was called with
        broker = registry(datasette).of("data")
        await gateway.publish(datasette, request, broker, [Item("news", "hello")])

        asked = gateway.Asked(selector=Selector.of(["news"]), where=Where(start="earliest"))
        admitted = await gateway.admit(datasette, request, broker, asked)
        async with admitted.open(SseEncoder()) as subscriber, aclosing(subscriber.frames()) as frames:
            first = await anext(frames)
        assert first.startswith(b"id: 1\\ndata: ")
    """

    def __init__(
        self, datasette: Datasette, request: Request, broker: Broker, asked: Asked, wanted: Selector, visible: Selector
    ) -> None:
        self._datasette = datasette
        self._request = request
        self._broker = broker
        self._asked = asked
        #: The channels that it reads, and the part of them that its actor may view.
        self._wanted = wanted
        self._visible = visible

    def open(self, encoder: Encoder) -> AbstractAsyncContextManager[Subscriber]:
        """Open the live subscriber until the block ends. Raises :class:`~.core.errors.PubsubError`."""
        asked, actor = self._asked, self._request.actor
        return self._broker.subscribe(
            SubscribeOptions(
                selector=asked.selector,
                visible=self._visible,
                owner=permissions.owner_of(actor),
                name=asked.name,
                where=asked.where,
                ack=asked.ack,
                heartbeat_seconds=asked.heartbeat_seconds,
                party=permissions.party_of(self._request),
                allowed=self._allowed,
                expires_in=revalidation.expires_in(actor),
            ),
            encoder,
        )

    async def _allowed(self) -> bool:
        return await revalidation.still_visible(
            self._datasette, self._request, self._broker.name, self._wanted, self._visible
        )


async def admit(datasette: Datasette, request: Request, broker: Broker, asked: Asked) -> Admitted:
    """Check whether this request may open the subscriber that it asks for, without opening it.

    Raises :class:`~.core.errors.PermissionDenied`, naming the channel. :class:`Admitted` has an example.
    """
    selector, name = asked.selector, asked.name
    permissions.check_named(broker.settings, request.actor, name)
    if name and not selector:
        selector = selector.over(await broker.selector_of(permissions.owner_of(request.actor), name))
    visible = await permissions.visible(datasette, request.actor, broker.name, selector)
    if name and request.method in ("GET", "HEAD"):
        # For POST, Datasette's own cross-site check applies.
        refuse_elsewhere(request, "a named subscription")
    if selector.filter:
        broker.filters.check(selector.filter, broker.settings.max_filter_bytes)
    return Admitted(datasette, request, broker, asked, selector, visible)


class AdmittedQuery:
    """A subscriber of a live query that :func:`admit_query` has checked, and that may be opened."""

    def __init__(
        self, datasette: Datasette, request: Request, broker: Broker, asked: AskedQuery, question: Question
    ) -> None:
        self._datasette = datasette
        self._request = request
        self._broker = broker
        self._asked = asked
        self._question = question

    def open(self, encoder: QueryEncoder) -> AbstractAsyncContextManager[QuerySubscriber]:
        """Open the subscriber until the block ends. Raises :class:`~.core.errors.PubsubError`."""
        settings = self._broker.settings
        return self._broker.queries.subscribe(
            self._question,
            encoder,
            QuerySubscriberOptions(
                party=permissions.party_of(self._request),
                heartbeat_seconds=self._asked.heartbeat_seconds or settings.heartbeat_seconds,
                send_bytes=settings.max_send_bytes,
                allowed=self._allowed,
                recheck_seconds=settings.permission_recheck_seconds,
                expires_in=revalidation.expires_in(self._request.actor),
                direct_send=settings.direct_send and compat.CAN_ENTER_TASKS,
            ),
        )

    async def _allowed(self) -> bool:
        return await revalidation.still_asks(
            self._datasette, self._request, self._broker.name, self._asked, self._question
        )


async def admit_query(datasette: Datasette, request: Request, broker: Broker, asked: AskedQuery) -> AdmittedQuery:
    """Check whether this request may follow the live query that it asks for, without running it.

    Raises :class:`~.core.errors.PermissionDenied` naming the permission, and :class:`~.core.errors.InvalidArgument`.

    Example::

        from contextlib import aclosing
        from datasette.utils.asgi import Request
        from datasette_pubsub.access import gateway
        from datasette_pubsub.broker.registry import registry
        from datasette_pubsub.protocol.query_frames import SseQueryEncoder

        request = Request.fake("/data")  # in a plugin: the request that its view was called with
        broker = registry(datasette).of("data")
        asked = gateway.AskedQuery(sql="SELECT 1 + :n AS sum", args=(("n", "2"),))
        admitted = await gateway.admit_query(datasette, request, broker, asked)
        async with admitted.open(SseQueryEncoder()) as subscriber, aclosing(subscriber.frames()) as frames:
            first = await anext(frames)
        assert first == b'event: snapshot\\ndata: {"head":"0","columns":["sum"],"key":[],"rows":[[3]]}\\n\\n'
    """
    question = await question_of(datasette, request, broker.name, asked)
    return AdmittedQuery(datasette, request, broker, asked, question)


def open_publisher(
    datasette: Datasette, request: Request, broker: Broker
) -> AbstractAsyncContextManager[PublishStream]:
    """Open a publish stream until the block ends. Raises :class:`~.core.errors.PubsubError`.

    Example::

        from contextlib import aclosing
        from datasette.utils.asgi import Request
        from datasette_pubsub.access import gateway
        from datasette_pubsub.broker.registry import registry
        from datasette_pubsub.core.values import Item

        request = Request.fake("/data")  # in a plugin: the request that its view was called with
        broker = registry(datasette).of("data")
        answers = []
        async with gateway.open_publisher(datasette, request, broker) as stream:

            async def feed():
                await stream.put([1, 2], [[Item("news", "one")], [Item("news", "two"), Item("news", "three")]])

            async for batch in stream.answers(feed()):
                answers += batch
        assert [(number, list(ids)) for number, ids in answers] == [(1, [1]), (2, [2, 3])]
    """

    async def rights() -> Rights | None:
        return await revalidation.publish_rights(datasette, request, broker.name)

    return broker.publishing(permissions.party_of(request), rights)


async def publish(datasette: Datasette, request: Request, broker: Broker, items: list[Item]) -> list[int]:
    """Publish all messages or none; returns their ids when they are durable.

    Raises :class:`~.core.errors.PubsubError`.

    Example::

        from datasette.utils.asgi import Request
        from datasette_pubsub.access import gateway
        from datasette_pubsub.broker.registry import registry
        from datasette_pubsub.core.values import Item

        request = Request.fake("/data")  # in a plugin: the request that its view was called with
        broker = registry(datasette).of("data")
        assert await gateway.publish(datasette, request, broker, [Item("news", "hello")]) == [1]
    """
    await permissions.require_items(datasette, request.actor, broker.name, items)
    return await broker.publish(items)


async def move_cursor(datasette: Datasette, request: Request, broker: Broker, name: str, message_id: int) -> int:
    """Move the cursor of one of the actor's subscriptions forward; returns the cursor when it is durable.

    Raises :class:`~.core.errors.PubsubError`.

    Example::

        from datasette.utils.asgi import Request
        from datasette_pubsub.access import gateway
        from datasette_pubsub.broker.registry import registry
        from datasette_pubsub.core.selector import Selector
        from datasette_pubsub.core.values import Item
        from datasette_pubsub.protocol.frames import SseEncoder

        request = Request.fake("/data")  # in a plugin: the request that its view was called with
        broker = registry(datasette).of("data")
        await gateway.publish(datasette, request, broker, [Item("news", "one"), Item("news", "two")])
        asked = gateway.Asked(selector=Selector.of(["news"]), name="mailer", ack="explicit")
        async with (await gateway.admit(datasette, request, broker, asked)).open(SseEncoder()):
            assert await gateway.move_cursor(datasette, request, broker, "mailer", 2) == 2
    """
    check_subscription_name(name)
    check_message_id(message_id, "message_id")
    permissions.check_named(broker.settings, request.actor, name)
    owner = permissions.owner_of(request.actor)
    await permissions.visible(datasette, request.actor, broker.name, await broker.selector_of(owner, name))
    return await broker.acknowledge(owner, name, message_id)


async def forget(datasette: Datasette, request: Request, broker: Broker, name: str, owner: object = None) -> None:
    """Delete a subscription and its cursor: the actor's own or, with the permission for that, another ``owner``'s.

    Raises :class:`~.core.errors.PubsubError`.

    Example::

        from datasette.utils.asgi import Request
        from datasette_pubsub.access import gateway
        from datasette_pubsub.broker.registry import registry
        from datasette_pubsub.core.errors import NotFound

        request = Request.fake("/data")  # in a plugin: the request that its view was called with
        broker = registry(datasette).of("data")
        try:
            await gateway.forget(datasette, request, broker, "no-such-subscription")
        except NotFound as error:
            assert error.message == "subscription not found: no-such-subscription"
    """
    permissions.check_named(broker.settings, request.actor, name)
    whose = await permissions.owner_to_manage(datasette, request.actor, broker.name, owner)
    await broker.delete_subscription(whose, name)


def cut_off(request: Request, broker: Broker, who: str) -> None:
    """Disconnect a subscriber or publisher (``who``) that has not accepted data for ``send_timeout_seconds``."""
    shutdown.cut_off(request.scope)
    broker.measuring.cut_off += 1
    logger.info(
        "database %s: a %s was disconnected: it accepted no data for %s s (send_timeout_seconds)",
        broker.name,
        who,
        broker.settings.send_timeout_seconds,
    )
