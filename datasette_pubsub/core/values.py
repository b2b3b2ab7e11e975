"""The values that travel between the layers. Nothing here does input or output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from .errors import InvalidArgument, TooLarge
from .settings import MAX_CHANNEL_BYTES, MAX_SUBSCRIPTION_NAME_BYTES, Settings

#: Below this, a whole number that is stored as REAL is exact, and is written in digits.
WHOLE_REAL = 2.0**63

#: What a payload may be: SQLite's own types, without NULL.
Payload = str | bytes | int | float


def text_of(payload: Payload) -> str:
    """A text or number as text. A whole number has no fraction, also where a driver stored it as REAL."""
    if isinstance(payload, float) and payload.is_integer() and abs(payload) < WHOLE_REAL:
        return str(int(payload))
    return payload if isinstance(payload, str) else repr(payload)


Start = Literal["earliest", "latest"]
AckMode = Literal["auto", "explicit"]


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One message on its way in: not yet in the log, so without an id.

    With ``expected_last_id`` it is stored only if that is the newest id of its
    channel (0: the channel never had a message).

    A msgspec struct, like :class:`Message`: there is one for every message, and
    it is made six times faster than a dataclass, from JSON without Python. Neither
    can be part of a cycle, so that the garbage collector need not count them.
    """

    channel: str
    #: A :data:`Payload` once it has been checked; as decoded it may be any JSON value.
    payload: Any
    key: str | None = None
    expected_last_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None

    @property
    def plain(self) -> bool:
        """Whether it is stored whatever the log holds."""
        return self.key is None and self.expected_last_id is None


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message of the log. ``created_at`` is UTC text with milliseconds."""

    id: int
    channel: str
    payload: Payload
    created_at: str

    @property
    def size(self) -> int:
        """About how many bytes of memory the message takes in the tail."""
        payload = self.payload
        return 200 + len(self.channel) + (len(payload) if isinstance(payload, (str, bytes)) else 8)


@dataclass(frozen=True, slots=True)
class Page:
    """Messages read from the log, and the position up to which nothing was left out.

    ``missed`` messages that the reader needed were trimmed before it came.
    """

    messages: list[Message]
    position: int
    head: int
    missed: int = 0


@dataclass(frozen=True, slots=True)
class Where:
    """Where a subscriber begins, as it asked; the first that is set counts.

    ``resume`` is the last id that a reader says it has (``Last-Event-ID``): it
    wins, also over a subscription's cursor. The others choose where an unnamed
    or a new subscription begins: ``after`` an id, at the ``start``
    (``earliest`` or ``latest``), or with the first message ``since`` a time.
    """

    resume: int | None = None
    after: int | None = None
    start: Start | None = None
    since: str | None = None

    @property
    def position(self) -> int | None:
        """The id after which to begin, where the reader named one."""
        return self.resume if self.resume is not None else self.after


ANYWHERE = Where()


# -- events: what a stream tells besides messages ---------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The subscriber has caught up; ``head`` is the newest id of the log."""

    head: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing happened for a while, and the stream lives; up to ``head`` there is nothing more for it."""

    head: int


#: Instead of a number of missed messages: the reader's position is ahead of the
#: log's head, so this is not the log that it has read. How much it misses is not known.
AHEAD = -1


@dataclass(frozen=True, slots=True)
class Gap:
    """``missed`` messages were trimmed before the subscriber read them; it goes on after ``resumed_at``.

    ``missed`` is :data:`AHEAD` when the position that the reader came with is
    ahead of the head: the file was replaced, or restored from a backup.
    """

    missed: int
    resumed_at: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer connection has taken over the subscription."""


@dataclass(frozen=True, slots=True)
class Bye:
    """The server is going away; come back with the last id."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """The subscriber's right to what it receives has ended or changed; come back to be told what is left."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What the subscription reads was changed by SQL; come back to get it."""


Event = Ready | Heartbeat | Gap | Superseded | Bye | Revoked | Changed
End = Superseded | Bye | Revoked | Changed


def check_channel(channel: object, field: str = "channel") -> str:
    """Return the channel if it is a valid name, else raise :class:`InvalidArgument` naming the field."""
    if not isinstance(channel, str):
        raise InvalidArgument(f"{field} must be text")
    if not channel:
        raise InvalidArgument(f"{field} is empty")
    if "\0" in channel:
        raise InvalidArgument(f"{field} must not contain NUL")
    size = _utf8_length(channel, field)
    if size > MAX_CHANNEL_BYTES:
        raise InvalidArgument(f"{field} has {size} bytes; the limit is {MAX_CHANNEL_BYTES} bytes")
    return channel


def check_since(text: object, field: str = "since") -> str:
    """An ISO 8601 time as the log stores it; without a zone it is UTC. Raises :class:`InvalidArgument`."""
    try:
        if not isinstance(text, str):
            raise ValueError
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return utc_text(moment)
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{field} must be an ISO 8601 time like 2026-01-31T12:00:00Z") from None


def utc_text(moment: datetime) -> str:
    """A time as the log stores it: UTC, milliseconds, ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def check_message_id(value: object, field: str) -> int:
    """A message id, 0 or more. Raises :class:`InvalidArgument` naming the field."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidArgument(f"{field} must be a message id: a whole number, 0 or more")
    return value


def check_subscription_name(name: object, field: str = "subscription") -> str:
    """Return the name if it is valid, else raise :class:`InvalidArgument` naming the field."""
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{field} is empty")
    if "\0" in name:
        raise InvalidArgument(f"{field} must not contain NUL")
    size = _utf8_length(name, field)
    if size > MAX_SUBSCRIPTION_NAME_BYTES:
        raise InvalidArgument(f"{field} has {size} bytes; the limit is {MAX_SUBSCRIPTION_NAME_BYTES} bytes")
    return name


def check_item(item: Item, settings: Settings) -> int:
    """Check one message before it is queued; return its payload's size in bytes.

    Raises :class:`InvalidArgument` or :class:`TooLarge`, naming the field.
    """
    check_channel(item.channel)
    payload = item.payload
    if payload is None:
        raise InvalidArgument("payload is NULL")
    if isinstance(payload, str):
        size = len(payload) if payload.isascii() else _utf8_length(payload, "payload")
    elif isinstance(payload, (bytes, bytearray, memoryview)):
        size = len(payload)
    elif isinstance(payload, bool) or not isinstance(payload, (int, float)):
        raise InvalidArgument("payload must be text, bytes or a number")
    else:
        if isinstance(payload, int) and not -(2**63) <= payload < 2**63:
            raise InvalidArgument("payload is an integer of more than 64 bits")
        if not math.isfinite(payload):
            raise not_finite("payload")
        size = 8
    if size > settings.max_payload_bytes:
        raise TooLarge(
            f"payload has {size} bytes; the limit is {settings.max_payload_bytes} bytes (max_payload_bytes)",
            field="payload",
            limit="max_payload_bytes",
        )
    if item.key is not None:
        check_channel(item.key, "key")
    return size


def not_finite(field: str) -> InvalidArgument:
    """The error for a payload that is or holds a number that JSON does not have."""
    return InvalidArgument(f"{field} holds a number that JSON does not have (NaN or an infinity)", field=field)


def check_items(items: Sequence[Item], settings: Settings) -> int:
    """Check messages before they are queued, as :func:`check_item` does each; the size of their payloads in bytes.

    Ordinary messages are checked as a whole, which takes a tenth of the time.
    """
    try:
        payloads = [item.payload for item in items]
        text = "".join(payloads)
        size = len(text) if text.isascii() else len(text.encode())
        longest = max(map(len, payloads), default=0)
    except (TypeError, UnicodeEncodeError):
        ordinary = False
    else:
        # A character has at most four bytes.
        ordinary = longest <= settings.max_payload_bytes // 4 and all(item.key is None for item in items)
    if not ordinary:
        return sum(check_item(item, settings) for item in items)
    for channel in {item.channel for item in items}:
        check_channel(channel)
    return size


def check_unicode(text: str, field: str) -> str:
    """Return the text if it can be written as UTF-8, else raise :class:`InvalidArgument` naming the field."""
    _utf8_length(text, field)
    return text


def _utf8_length(text: str, field: str) -> int:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"{field} holds half of a surrogate pair, which is not valid Unicode", field=field
        ) from None
