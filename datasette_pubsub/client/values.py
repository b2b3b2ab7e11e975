"""What the client takes and gives: items, messages, gaps and errors."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

#: What a payload may be. Objects and lists become their JSON text, true and false as well.
Payload = str | bytes | int | float | bool | dict[str, Any] | list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One message to publish.

    ``key``: a second message of the channel with this key is not stored; its
    publisher gets the id of the first one. ``expected_last_id``: publish only if
    this is the channel's newest id (0: it never had a message).
    """

    channel: str
    payload: Payload
    key: str | None = None
    expected_last_id: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The item as the server takes it."""
        found: dict[str, Any] = {"channel": self.channel}
        if isinstance(self.payload, bytes):
            found["blob"] = base64.b64encode(self.payload).decode()
        else:
            found["payload"] = self.payload
        if self.key is not None:
            found["key"] = self.key
        if self.expected_last_id is not None:
            found["expected_last_id"] = self.expected_last_id
        return found


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    ``missed`` says how many messages were missed before this one, since retention had removed them; -1: an unknown
    number, since the log was replaced or restored. ``created_at`` is UTC, like ``2026-01-31T12:00:00.000Z``.
    """

    id: int
    channel: str
    payload: str | bytes | int | float
    created_at: str
    missed: int = 0

    def json(self) -> Any:
        """The payload as what its JSON means. Raises ``ValueError`` if it is not JSON."""
        return json.loads(self.payload) if isinstance(self.payload, (str, bytes)) else self.payload


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages were missed; the subscriber goes on after ``resumed_at``. ``missed`` is -1 if the number is unknown."""

    missed: int
    resumed_at: int


class ClientError(Exception):
    """The base of all errors of the client."""


class Refused(ClientError):
    """The server refuses this, and would again. ``status`` is HTTP's; ``field`` and ``limit`` are what it is about."""

    def __init__(self, message: str, status: int, field: str | None = None, limit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.field = field
        self.limit = limit


class Forbidden(Refused):
    """The actor may not do this, or not any more: status 401 or 403."""


class Superseded(ClientError):
    """A newer subscriber has taken over the subscription; this one must not come back."""


class Unreachable(ClientError):
    """The server could not be reached, or was not ready, for as long as the client tries."""


class NotPublished(Unreachable):
    """The messages may have been stored or not: they have no key, so that the client did not publish them again."""
