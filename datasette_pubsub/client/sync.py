"""The client for ordinary programs. :mod:`.aio` is the same for asyncio."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import httpx2

from .connection import NOT_REACHED, SILENCE_SECONDS, asked_of, base_of, settings_of, stream_timeout, text_of
from .publishing import Attempts
from .session import Session
from .values import Gap, Item, Message, Payload


class Subscriber:
    """One subscriber: an iterator of messages that goes on over every loss of the connection.

    Leave the block, or call :meth:`close`, to end it. It is not for several threads at once.

    Example::

        with client.subscribe("orders", subscription="billing", ack="explicit", start="earliest") as messages:
            for message in messages:
                print(message.payload)
                messages.ack(message)
                break
    """

    def __init__(
        self,
        client: Client,
        session: Session,
        subscription: str | None,
        silence_seconds: float,
        on_gap: Callable[[Gap], None],
    ) -> None:
        self._client = client
        self._session = session
        self._subscription = subscription
        self._timeout = stream_timeout(silence_seconds)
        self._on_gap = on_gap
        self._messages = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        """The next message; waits for it. Raises :class:`Refused`, :class:`Superseded` and :class:`Unreachable`."""
        return next(self._messages)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._messages.close()

    def ack(self, message: Message | int) -> int:
        """Acknowledge every message up to this one; returns the cursor when it is on disk.

        Tried again as a publish with a key is. Raises :class:`Refused` and :class:`Unreachable`.
        """
        if self._subscription is None:
            raise TypeError("only a subscription has acks: give subscribe() its name")
        return self._client.ack(self._subscription, message)

    def _run(self) -> Generator[Message, None, None]:
        while True:
            try:
                wait = yield from self._connection()
            except httpx2.TransportError as error:
                wait = self._session.lost(time.monotonic(), text_of(error))
            time.sleep(wait)

    def _connection(self) -> Generator[Message, None, float]:
        """One connection; returns how long to wait for the next one."""
        session, client = self._session, self._client
        params, headers = session.request()
        address = f"{client.base}/stream"
        with client.http.stream("GET", address, params=params, headers=headers, timeout=self._timeout) as response:
            if response.status_code != 200:
                return session.answered(response.status_code, response.read(), time.monotonic())
            for event in httpx2.EventSource(response, max_event_size=None):
                found = session.take(event.event, event.data, event.retry)
                if isinstance(found, Gap):
                    self._on_gap(found)
                elif found is not None:
                    yield found
        return session.lost(time.monotonic(), "the server has ended the stream")


class Client:
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
        self.base = base_of(url)
        #: The HTTP client.
        self.http = httpx2.Client(**settings_of(token, headers, options))
        self._retry_seconds = retry_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        number = message.id if isinstance(message, Message) else message
        attempts = Attempts.to_acknowledge(subscription, number, self._retry_seconds, time.monotonic())
        return int(self._sent("ack", attempts)["cursor"])

    def _sent(self, path: str, attempts: Attempts) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        while True:
            try:
                answer = self.http.post(f"{self.base}/{path}", content=attempts.content, headers=headers)
            except httpx2.TransportError as error:
                reached = not isinstance(error, NOT_REACHED)
                time.sleep(attempts.failed(text_of(error), time.monotonic(), reached=reached))
                continue
            found = attempts.answered(answer.status_code, answer.headers, answer.content, time.monotonic())
            if isinstance(found, dict):
                return found
            time.sleep(found)

    def subscribe(
        self,
        *channels: str,
        patterns: Sequence[str] = (),
        filter: str | None = None,
        subscription: str | None = None,
        ack: Literal["auto", "explicit"] = "auto",
        start: Literal["earliest", "latest", "last"] | None = None,
        after: int | None = None,
        since: str | None = None,
        on_gap: Callable[[Gap], None] = lambda gap: None,
        silence_seconds: float = SILENCE_SECONDS,
        reconnect_seconds: float | None = None,
    ) -> Subscriber:
        """Subscribe to channels, GLOB patterns of them, or a durable subscription by its name.

        ``filter``, ``start``, ``after``, ``since`` and ``ack`` are those of the stream's address. With
        ``ack="explicit"``, what is not acknowledged comes again to the next subscriber of this name. ``on_gap`` is
        called when messages were missed. A connection that was silent for ``silence_seconds`` counts as lost, and
        ``reconnect_seconds`` limits how long it is made again; ``None``: for ever. Connects at the first message.
        """
        asked = asked_of(
            channels, patterns=patterns, filter=filter, subscription=subscription, ack=ack, start=start, after=after,
            since=since,
        )  # fmt: skip
        return Subscriber(self, Session(asked, reconnect_seconds), subscription, silence_seconds, on_gap)
