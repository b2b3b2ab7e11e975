"""Publishes Datasette's own events, as messages of the channel that ``events_channel`` names."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from .broker.registry import registry
from .core.errors import PubsubError
from .core.values import Item

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.events import Event

logger = logging.getLogger("datasette_pubsub")


async def publish(datasette: Datasette, event: Event) -> None:
    """Publish an event to each database that it is about and that wants events; returns when it is on disk.

    An event that is about no database, such as a login, is about all of them. What cannot be published is logged, and
    keeps nobody from what caused the event.
    """
    about = getattr(event, "database", None)
    for name in list(datasette.databases):
        broker = registry(datasette).find(name) if about in (None, name) else None
        if broker is None or not broker.settings.events_channel:
            continue
        item = Item(broker.settings.events_channel, json.dumps(_fields(event), default=str))
        try:
            await registry(datasette).of(name).publish([item])
        except PubsubError as error:
            logger.warning("database %s: the event %s was not published: %s", name, event.name, error.message)


def _fields(event: Event) -> dict[str, Any]:
    """The event's own fields, after its name, the time, and the actor's id."""
    actor = (event.actor or {}).get("id")
    return {"event": event.name, "created": event.created.isoformat(), "actor": actor, **event.properties()}
