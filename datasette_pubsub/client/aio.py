"""The client for asyncio. :mod:`.sync` is the same for ordinary programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Self

import httpx2

from .connection import NOT_REACHED, SILENCE_SECONDS, asked_of, base_of, settings_of, stream_timeout, text_of
from .publishing import Attempts
from .session import Session
from .values import Gap, Item, Message, Payload


class AsyncSubscriber:
    """One subscriber; see :class:`.sync.Subscriber`. It is for one task.

    Example::

        async with client.subscribe("orders", subscription="billing", ack="explicit", start="earliest") as messages:
            async for message in messages:
                print(message.payload)
                await messages.ack(message)
                break
    """

    def __init__(
        self,
        client: AsyncClient,
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

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """The next message; waits for it. Raises :class:`Refused`, :class:`Superseded` and :class:`Unreachable`."""
        return await anext(self._messages)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection."""
        await self._messages.aclose()

    async def ack(self, message: Message | int) -> int:
        """Acknowledge every message up to this one; returns the cursor when it is on disk.

        Tried again as a publish with a key is. Raises :class:`Refused` and :class:`Unreachable`.
        """
        if self._subscription is None:
            raise TypeError("only a subscription has acks: give subscribe() its name")
        return await self._client.ack(self._subscription, message)

    async def _run(self) -> AsyncGenerator[Message, None]:
        while True:
            wait = 0.0
            try:
                async with aclosing(self._connection()) as found:
                    async for each in found:
                        if isinstance(each, Message):
                            yield each
                        else:
                            wait = each
            except httpx2.TransportError as error:
                wait = self._session.lost(time.monotonic(), text_of(error))
            await asyncio.sleep(wait)

    async def _connection(self) -> AsyncGenerator[Message | float, None]:
        """The messages of one connection, and at its end how long to wait for the next one."""
        session, client = self._session, self._client
        params, headers = session.request()
        address = f"{client.base}/stream"
        stream = client.http.stream("GET", address, params=params, headers=headers, timeout=self._timeout)
        async with stream as response:
            if response.status_code != 200:
                yield session.answered(response.status_code, await response.aread(), time.monotonic())
                return
            async for event in httpx2.EventSource(response, max_event_size=None):
                found = session.take(event.event, event.data, event.retry)
                if isinstance(found, Gap):
                    self._on_gap(found)
                elif found is not None:
                    yield found
        yield session.lost(time.monotonic(), "the server has ended the stream")


class AsyncClient:
    """A client of one database; its options and methods are those of :class:`.sync.Client`.

    Example::

        import asyncio

        from datasette_pubsub.client import AsyncClient

        async def main():
            async with AsyncClient("http://127.0.0.1:8001/data") as client:
                print(await client.publish("orders", {"order": 7}, key="order-7"))

        asyncio.run(main())
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
        self.http = httpx2.AsyncClient(**settings_of(token, headers, options))
        self._retry_seconds = retry_seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self.http.aclose()

    async def publish(
        self, channel: str, payload: Payload, *, key: str | None = None, expected_last_id: int | None = None
    ) -> int:
        """Publish one message; see :meth:`.sync.Client.publish`."""
        item = Item(channel=channel, payload=payload, key=key, expected_last_id=expected_last_id)
        return (await self.publish_many([item]))[0]

    async def publish_many(self, items: Iterable[Item]) -> list[int]:
        """Publish all items or none; returns their ids. Tried again, and raises, as :meth:`publish`."""
        answer = await self._sent("publish", Attempts.to_publish(items, self._retry_seconds, time.monotonic()))
        return [int(number) for number in answer["message_ids"]]

    async def ack(self, subscription: str, message: Message | int) -> int:
        """Acknowledge a subscription's messages up to an id; see :meth:`AsyncSubscriber.ack`."""
        number = message.id if isinstance(message, Message) else message
        attempts = Attempts.to_acknowledge(subscription, number, self._retry_seconds, time.monotonic())
        return int((await self._sent("ack", attempts))["cursor"])

    async def _sent(self, path: str, attempts: Attempts) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        while True:
            try:
                answer = await self.http.post(f"{self.base}/{path}", content=attempts.content, headers=headers)
            except httpx2.TransportError as error:
                reached = not isinstance(error, NOT_REACHED)
                await asyncio.sleep(attempts.failed(text_of(error), time.monotonic(), reached=reached))
                continue
            found = attempts.answered(answer.status_code, answer.headers, answer.content, time.monotonic())
            if isinstance(found, dict):
                return found
            await asyncio.sleep(found)

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
    ) -> AsyncSubscriber:
        """Subscribe to channels, patterns or a subscription; see :meth:`.sync.Client.subscribe`."""
        asked = asked_of(
            channels, patterns=patterns, filter=filter, subscription=subscription, ack=ack, start=start, after=after,
            since=since,
        )  # fmt: skip
        return AsyncSubscriber(self, Session(asked, reconnect_seconds), subscription, silence_seconds, on_gap)
