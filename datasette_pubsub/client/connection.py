"""What the two clients have in common: addresses, headers, and what a failure of the network means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2

from .session import Asked

#: After this much silence a connection counts as dead, in seconds: the server sends a heartbeat every 15, by default.
SILENCE_SECONDS = 45.0

#: How long the server may take to answer anything but a stream, and to accept a connection, in seconds.
ANSWER_SECONDS = 30.0
CONNECT_SECONDS = 10.0

#: A connection was not made, so that the server has had nothing.
NOT_REACHED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


def base_of(url: str) -> str:
    """The address of the API from the address of the database's page. Raises ``ValueError``."""
    found = httpx2.URL(url)
    if found.scheme not in ("http", "https") or not found.host or found.path.strip("/") == "":
        raise ValueError(f"{url} is not the address of a database, like http://127.0.0.1:8001/data")
    return f"{url.split('?')[0].rstrip('/')}/-/pubsub/-"


def headers_of(token: str | None, headers: dict[str, str] | None) -> dict[str, str]:
    """The headers of every request."""
    return {**({"Authorization": f"Bearer {token}"} if token is not None else {}), **(headers or {})}


def settings_of(token: str | None, headers: dict[str, str] | None, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the HTTP client."""
    timeout = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    # Each subscriber has a connection of its own.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
    return {"timeout": timeout, "limits": limits, **options, "headers": headers_of(token, headers)}


def stream_timeout(silence_seconds: float) -> httpx2.Timeout:
    """The timeouts of a stream."""
    return httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=silence_seconds)


def asked_of(channels: Sequence[str], **options: Any) -> Asked:
    """What a subscriber asks for. Raises ``TypeError`` if that is nothing."""
    asked = Asked(channels=channels, **{name: value for name, value in options.items() if value is not None})
    if not asked.channels and not asked.patterns and asked.subscription is None:
        raise TypeError("subscribe() takes channels, patterns or the name of a subscription")
    return asked


def text_of(error: Exception) -> str:
    """Why a request failed, for people."""
    return str(error) or type(error).__name__
