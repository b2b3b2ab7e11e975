"""The client for ordinary programs. :mod:`.aio` is the same for asyncio."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from typing import Any, Self

import httpx2

from .connection import JSON, NOT_REACHED, BaseClient, BaseSubscriber, is_stream, number_of, text_of
from .publishing import Attempts
from .session import Session
from .values import Item, Message, Payload


class Subscriber(BaseSubscriber):
    """One subscriber: an iterator of messages that goes on over every loss of the connection.

    Leave the block, or call :meth:`close`, to end it. It is not for several threads at once.

    Example::

        with client.subscribe("orders", subscription="billing", ack="explicit", start="earliest") as messages:
            for message in messages:
                print(message.payload)
                messages.ack(message)
                break
    """

    def __init__(self, client: Client, session: Session, *state: Any) -> None:
        super().__init__(session, *state)
        self._client = client
        self._messages = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        """The next message; waits for it. Raises :class:`Refused`, :class:`Superseded` and :class:`Unreachable`."""
        return next(self._messages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._messages.close()

    def ack(self, message: Message | int) -> int:
        """Acknowledge every message up to this one; returns the cursor when it is on disk.

        Tried again as a publish with a key is. Raises :class:`Refused` and :class:`Unreachable`.
        """
        return self._client.ack(self._named(), message)

    def _run(self) -> Generator[Message, None, None]:
        while True:
            try:
                wait = yield from self._connection()
            except httpx2.TransportError as error:
                wait = self._session.lost(time.monotonic(), text_of(error))
            time.sleep(wait)

    def _connection(self) -> Generator[Message, None, float]:
        """One connection; returns how long to wait for the next one."""
        with self._client.http.stream("GET", **self._request(self._client.base)) as response:
            if not is_stream(response):
                return self._session.answered(response.status_code, response.read(), time.monotonic())
            for event in httpx2.EventSource(response, max_event_size=None):
                message = self._taken(event)
                if message is not None:
                    yield message
        return self._session.lost(time.monotonic(), "the server has ended the stream")


class Client(BaseClient[httpx2.Client, Subscriber]):
    """A client of one database, by the address of its page in Datasette.

    ``token``: an API token, as ``datasette create-token`` makes it. ``retry_seconds``: how long a publish and an ack
    are tried. Further options are those of ``httpx2.Client``, such as ``verify`` and ``proxy``.
    Raises ``ValueError`` if the address cannot be one.

    Example::

        from datasette_pubsub.client import Client

        with Client("http://127.0.0.1:8001/data") as client:
            print(client.publish("orders", {"order": 7}, key="order-7"))
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        retry_seconds: float = 30.0,
        **options: Any,
    ) -> None:
        super().__init__(httpx2.Client, url, token, headers, retry_seconds, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.http.close()

    def publish(
        self, channel: str, payload: Payload, *, key: str | None = None, expected_last_id: int | None = None
    ) -> int:
        """Publish one message; returns its id when it is on disk.

        With a ``key`` it is tried again until the server has answered, and stored once. Without one it is tried again
        only if nothing can have been stored. Raises :class:`Refused`, :class:`Unreachable` and :class:`NotPublished`.
        """
        item = Item(channel=channel, payload=payload, key=key, expected_last_id=expected_last_id)
        return self.publish_many([item])[0]

    def publish_many(self, items: Iterable[Item]) -> list[int]:
        """Publish all items or none; returns their ids. Tried again, and raises, as :meth:`publish`."""
        answer = self._sent("publish", Attempts.to_publish(items, self._retry_seconds, time.monotonic()))
        return [int(number) for number in answer["message_ids"]]

    def ack(self, subscription: str, message: Message | int) -> int:
        """Acknowledge a subscription's messages up to an id; see :meth:`Subscriber.ack`."""
        number = number_of(message)
        attempts = Attempts.to_acknowledge(subscription, number, self._retry_seconds, time.monotonic())
        return int(self._sent("ack", attempts)["cursor"])

    def _sent(self, path: str, attempts: Attempts) -> dict[str, Any]:
        while True:
            try:
                answer = self.http.post(f"{self.base}/{path}", content=attempts.content, headers=JSON)
            except httpx2.TransportError as error:
                reached = not isinstance(error, NOT_REACHED)
                time.sleep(attempts.failed(text_of(error), time.monotonic(), reached=reached))
                continue
            found = attempts.answered(answer.status_code, answer.headers, answer.content, time.monotonic())
            if isinstance(found, dict):
                return found
            time.sleep(found)

    def _subscriber(self, session: Session, *state: Any) -> Subscriber:
        return Subscriber(self, session, *state)
