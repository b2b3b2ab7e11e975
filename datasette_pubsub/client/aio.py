"""The client for asyncio. :mod:`.sync` is the same for ordinary programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Self

import httpx2

from .connection import JSON, NOT_REACHED, BaseClient, BaseSubscriber, is_stream, number_of, text_of
from .publishing import Attempts
from .session import Session
from .values import Item, Message, Payload


class AsyncSubscriber(BaseSubscriber):
    """One subscriber; see :class:`.sync.Subscriber`. It is for one task.

    Example::

        async with client.subscribe("orders", subscription="billing", ack="explicit", start="earliest") as messages:
            async for message in messages:
                print(message.payload)
                await messages.ack(message)
                break
    """

    def __init__(self, client: AsyncClient, session: Session, *state: Any) -> None:
        super().__init__(session, *state)
        self._client = client
        self._messages = self._run()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """The next message; waits for it. Raises :class:`Refused`, :class:`Superseded` and :class:`Unreachable`."""
        return await anext(self._messages)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection."""
        await self._messages.aclose()

    async def ack(self, message: Message | int) -> int:
        """Acknowledge every message up to this one; see :meth:`.sync.Subscriber.ack`."""
        return await self._client.ack(self._named(), message)

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
        async with self._client.http.stream("GET", **self._request(self._client.base)) as response:
            if not is_stream(response):
                yield self._session.answered(response.status_code, await response.aread(), time.monotonic())
                return
            async for event in httpx2.EventSource(response, max_event_size=None):
                message = self._taken(event)
                if message is not None:
                    yield message
        yield self._session.lost(time.monotonic(), "the server has ended the stream")


class AsyncClient(BaseClient[httpx2.AsyncClient, AsyncSubscriber]):
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
        super().__init__(httpx2.AsyncClient, url, token, headers, retry_seconds, options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
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
        """Acknowledge a subscription's messages up to an id; see :meth:`.sync.Subscriber.ack`."""
        number = number_of(message)
        attempts = Attempts.to_acknowledge(subscription, number, self._retry_seconds, time.monotonic())
        return int((await self._sent("ack", attempts))["cursor"])

    async def _sent(self, path: str, attempts: Attempts) -> dict[str, Any]:
        while True:
            try:
                answer = await self.http.post(f"{self.base}/{path}", content=attempts.content, headers=JSON)
            except httpx2.TransportError as error:
                reached = not isinstance(error, NOT_REACHED)
                await asyncio.sleep(attempts.failed(text_of(error), time.monotonic(), reached=reached))
                continue
            found = attempts.answered(answer.status_code, answer.headers, answer.content, time.monotonic())
            if isinstance(found, dict):
                return found
            await asyncio.sleep(found)

    def _subscriber(self, session: Session, *state: Any) -> AsyncSubscriber:
        return AsyncSubscriber(self, session, *state)
