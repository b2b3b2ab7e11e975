"""A client for Python: publish to a server, subscribe to it over every loss of the connection, or follow a file.

It imports neither Datasette nor the rest of the plugin::

    from datasette_pubsub.client import Client

    with Client("http://127.0.0.1:8001/data") as client:
        client.publish("orders", {"order": 7}, key="order-7")
        for message in client.subscribe("orders", start="earliest"):
            print(message.id, message.json())
            break

:class:`AsyncClient` is the same for asyncio, and :func:`follow` needs no server at all.
"""

from .aio import AsyncClient, AsyncSubscriber
from .file import follow, follow_async
from .sync import Client, Subscriber
from .values import ClientError, Forbidden, Gap, Item, Message, NotPublished, Refused, Superseded, Unreachable

__all__ = [
    "AsyncClient",
    "AsyncSubscriber",
    "Client",
    "ClientError",
    "Forbidden",
    "Gap",
    "Item",
    "Message",
    "NotPublished",
    "Refused",
    "Subscriber",
    "Superseded",
    "Unreachable",
    "follow",
    "follow_async",
]
