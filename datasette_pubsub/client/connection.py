"""What the two clients have in common: addresses, headers, what a subscriber asks for, and what comes of an event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import httpx2

from .session import Asked, Session
from .values import Gap, Message, Refused

#: After this much silence a connection counts as lost, in seconds: the server sends a heartbeat every 15, by default.
SILENCE_SECONDS = 45.0

#: How long the server may take to answer anything but a stream, and to accept a connection, in seconds.
ANSWER_SECONDS = 30.0
CONNECT_SECONDS = 10.0

#: Failures after which the server has certainly received nothing.
NOT_REACHED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

JSON = {"Content-Type": "application/json"}

Http = TypeVar("Http", httpx2.Client, httpx2.AsyncClient)
SubscriberT = TypeVar("SubscriberT")


class BaseSubscriber:
    """The state of a subscriber of either client."""

    def __init__(
        self, session: Session, subscription: str | None, silence_seconds: float, on_gap: Callable[[Gap], None]
    ) -> None:
        self._session = session
        self._subscription = subscription
        self._timeout = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=silence_seconds)
        self._on_gap = on_gap

    def _named(self) -> str:
        """The subscription's name. Raises ``TypeError`` without one."""
        if self._subscription is None:
            raise TypeError("only a subscription has acks: give subscribe() its name")
        return self._subscription

    def _request(self, base: str) -> dict[str, Any]:
        """The arguments of the next connection's request."""
        params, headers = self._session.request()
        return {"url": f"{base}/stream", "params": params, "headers": headers, "timeout": self._timeout}

    def _taken(self, event: httpx2.ServerSentEvent) -> Message | None:
        """The message of an event, if it is one; a gap is reported."""
        found = self._session.take(event.event, event.data, event.retry)
        if isinstance(found, Gap):
            self._on_gap(found)
            return None
        return found


class BaseClient(Generic[Http, SubscriberT]):
    """The connections of either client to one database."""

    def __init__(
        self,
        kind: Callable[..., Http],
        url: str,
        token: str | None,
        headers: dict[str, str] | None,
        retry_seconds: float,
        options: dict[str, Any],
    ) -> None:
        found = httpx2.URL(url)
        if found.scheme not in ("http", "https") or not found.host or not found.path.strip("/"):
            raise ValueError(f"{url} is not the address of a database, like http://127.0.0.1:8001/data")
        #: The address of the API.
        self.base = f"{url.split('?')[0].rstrip('/')}/-/pubsub/-"
        own = {"Authorization": f"Bearer {token}"} if token is not None else {}
        timeout = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        # Each subscriber has a connection of its own.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        #: The HTTP client.
        self.http: Http = kind(
            **{"timeout": timeout, "limits": limits, **options, "headers": {**own, **(headers or {})}}
        )
        self._retry_seconds = retry_seconds

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
    ) -> SubscriberT:
        """Subscribe to channels, GLOB patterns of them, or a durable subscription by its name.

        ``filter``, ``start``, ``after``, ``since`` and ``ack`` are those of the stream's address. With
        ``ack="explicit"``, what is not acknowledged comes again to the next subscriber of this name. ``on_gap`` is
        called when messages were missed. A connection that was silent for ``silence_seconds`` counts as lost, and
        ``reconnect_seconds`` limits how long it is made again; ``None``: for ever. Connects at the first message.
        """
        if not channels and not patterns and subscription is None:
            raise TypeError("subscribe() takes channels, patterns or the name of a subscription")
        asked = Asked(
            channels=channels, patterns=patterns, filter=filter, subscription=subscription, ack=ack, start=start,
            after=after, since=since,
        )  # fmt: skip
        return self._subscriber(Session(asked, reconnect_seconds), subscription, silence_seconds, on_gap)

    def _subscriber(self, session: Session, *state: Any) -> SubscriberT:
        """A subscriber of this client; ``state`` is that of :class:`BaseSubscriber`."""
        raise NotImplementedError


def is_stream(response: httpx2.Response) -> bool:
    """Whether an answer is an event stream. Raises :class:`Refused` if it is a page: of a proxy, or a login."""
    if response.status_code != 200:
        return False
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise Refused(f"the address answers with {kind or 'no content type'}, not with an event stream", 200)
    return True


def number_of(message: Message | int) -> int:
    """The id of a message, or an id."""
    return message.id if isinstance(message, Message) else message


def text_of(error: Exception) -> str:
    """Why a request failed, for people."""
    return str(error) or type(error).__name__
