"""The gateway: the one way to open a subscriber, to open a publisher, and to move a cursor, for every protocol.

A protocol reads its own requests and writes its own answers; what stands between them is here, in one order. For a
subscriber: may a visitor have a name, whose subscription is it, what does it read, may the actor view that, does the
request come from a page of this site, how many streams does the actor have. Then, for as long as it is open: does it
still have its actor and its rights, and does it take what it is sent. A new protocol that opens subscribers through
here has all of it.
"""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasette.utils.asgi import Request

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
from . import permissions, revalidation
from .cross_site import refuse_elsewhere

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_pubsub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a subscriber asks for, whatever the protocol; see :class:`~.broker.subscribing.SubscribeOptions`.

    An empty ``selector`` with a ``name`` means what the subscription of that name reads already.
    """

    selector: Selector
    name: str | None = None
    where: Where = ANYWHERE
    ack: AckMode = "auto"
    heartbeat_seconds: float | None = None


class Admitted:
    """A subscriber that may be opened."""

    def __init__(
        self, datasette: Datasette, request: Request, broker: Broker, asked: Asked, wanted: Selector, visible: Selector
    ) -> None:
        self._datasette = datasette
        self._request = request
        self._broker = broker
        self._asked = asked
        #: What it reads, and what of that its actor may view.
        self._wanted = wanted
        self._visible = visible

    def open(self, encoder: Encoder) -> AbstractAsyncContextManager[Subscriber]:
        """The live subscriber, until the block ends. Raises :class:`~.core.errors.PubsubError`."""
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
    """Whether this request may open the subscriber that it asks for; nothing is opened yet.

    Raises :class:`~.core.errors.PermissionDenied`, naming the channel.
    """
    selector, name = asked.selector, asked.name
    permissions.check_named(broker.settings, request.actor, name)
    if name and not selector:
        selector = await broker.selector_of(permissions.owner_of(request.actor), name)
    visible = await permissions.visible(datasette, request.actor, broker.name, selector)
    if name and request.method in ("GET", "HEAD"):
        # Datasette checks what a browser sends by POST.
        refuse_elsewhere(request, "a named subscription")
    return Admitted(datasette, request, broker, asked, selector, visible)


def open_publisher(
    datasette: Datasette, request: Request, broker: Broker
) -> AbstractAsyncContextManager[PublishStream]:
    """A publish stream, until the block ends. Raises :class:`~.core.errors.PubsubError`."""

    async def rights() -> Rights | None:
        return await revalidation.publish_rights(datasette, request, broker.name)

    return broker.publishing(permissions.party_of(request), rights)


async def publish(datasette: Datasette, request: Request, broker: Broker, items: list[Item]) -> list[int]:
    """Publish messages, all or none; their ids, once they are on disk. Raises :class:`~.core.errors.PubsubError`."""
    await permissions.require_items(datasette, request.actor, broker.name, items)
    return await broker.publish(items)


async def move_cursor(datasette: Datasette, request: Request, broker: Broker, name: str, message_id: int) -> int:
    """Move the cursor of a subscription of the request's actor forward; where it stands then, once that is on disk.

    Raises :class:`~.core.errors.PubsubError`.
    """
    check_subscription_name(name)
    check_message_id(message_id, "message_id")
    permissions.check_named(broker.settings, request.actor, name)
    owner = permissions.owner_of(request.actor)
    await permissions.visible(datasette, request.actor, broker.name, await broker.selector_of(owner, name))
    return await broker.acknowledge(owner, name, message_id)


async def forget(datasette: Datasette, request: Request, broker: Broker, name: str, owner: object = None) -> None:
    """Delete a subscription and its cursor: the actor's own, or, for who may, that of another ``owner``.

    Raises :class:`~.core.errors.PubsubError`.
    """
    permissions.check_named(broker.settings, request.actor, name)
    whose = await permissions.owner_to_manage(datasette, request.actor, broker.name, owner)
    await broker.delete_subscription(whose, name)


def cut_off(request: Request, broker: Broker, who: str) -> None:
    """End the connection of a subscriber or publisher (``who``) that has not taken what it was sent in time."""
    shutdown.cut_off(request.scope)
    logger.info(
        "database %s: a %s was cut off: it took nothing for %s s (send_timeout_seconds)",
        broker.name,
        who,
        broker.settings.send_timeout_seconds,
    )
