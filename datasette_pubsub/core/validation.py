"""Validates input from clients: channels, keys, payloads, ids, names and times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast, get_args

from .errors import InvalidArgument, PayloadTooLarge
from .settings import MAX_CHANNEL_BYTES, MAX_SUBSCRIPTION_NAME_BYTES, Settings
from .values import Item, Start


def check_channel(channel: object, field: str = "channel") -> str:
    """Return the channel if it is a valid name, else raise :class:`InvalidArgument` naming the field."""
    if not isinstance(channel, str):
        raise InvalidArgument(f"{field} must be text", field=field)
    if not channel:
        raise InvalidArgument(f"{field} is empty", field=field)
    if "\0" in channel:
        raise InvalidArgument(f"{field} must not contain NUL", field=field)
    size = _utf8_length(channel, field)
    if size > MAX_CHANNEL_BYTES:
        raise InvalidArgument(f"{field} has {size} bytes; the limit is {MAX_CHANNEL_BYTES} bytes", field=field)
    return channel


def check_since(text: object, field: str = "since") -> str:
    """Convert an ISO 8601 time to the log's format; a time without a zone is UTC. Raises :class:`InvalidArgument`."""
    try:
        if not isinstance(text, str):
            raise ValueError
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return utc_text(moment)
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{field} must be an ISO 8601 time like 2026-01-31T12:00:00Z", field=field) from None


def utc_text(moment: datetime) -> str:
    """A time in the log's format: UTC, with milliseconds and ``Z``."""
    # Not strftime(), which imports a module at each call, and writes the year 999 with three digits.
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def check_message_id(value: object, field: str) -> int:
    """Return the value as a message id, 0 or more, else raise :class:`InvalidArgument` naming the field."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidArgument(f"{field} must be a message id: a whole number, 0 or more", field=field)
    return value


def check_start(value: object, field: str = "start") -> Start:
    """Return the value if it is where a subscriber may begin, else raise :class:`InvalidArgument` naming the field."""
    for start in get_args(Start):
        if value == start:
            return cast(Start, start)
    raise InvalidArgument(f"{field} must be earliest, latest or last", field=field)


def check_subscription_name(name: object, field: str = "subscription") -> str:
    """Return the name if it is valid, else raise :class:`InvalidArgument` naming the field."""
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{field} is empty", field=field)
    if "\0" in name:
        raise InvalidArgument(f"{field} must not contain NUL", field=field)
    size = _utf8_length(name, field)
    if size > MAX_SUBSCRIPTION_NAME_BYTES:
        raise InvalidArgument(
            f"{field} has {size} bytes; the limit is {MAX_SUBSCRIPTION_NAME_BYTES} bytes", field=field
        )
    return name


def check_item(item: Item, settings: Settings) -> int:
    """Check one message before it is queued; return its payload's size in bytes.

    Raises :class:`InvalidArgument` or :class:`PayloadTooLarge`, naming the field.
    """
    check_channel(item.channel)
    payload = item.payload
    if payload is None:
        raise InvalidArgument("payload is NULL", field="payload")
    if isinstance(payload, str):
        size = len(payload) if payload.isascii() else _utf8_length(payload, "payload")
    elif isinstance(payload, memoryview):
        # Its length counts elements, which may have several bytes.
        size = payload.nbytes
    elif isinstance(payload, (bytes, bytearray)):
        size = len(payload)
    elif isinstance(payload, bool) or not isinstance(payload, (int, float)):
        raise InvalidArgument("payload must be text, bytes or a number", field="payload")
    else:
        if isinstance(payload, int) and not -(2**63) <= payload < 2**63:
            raise InvalidArgument("payload is an integer of more than 64 bits", field="payload")
        if not math.isfinite(payload):
            raise not_finite("payload")
        size = 8
    if size > settings.max_payload_bytes:
        raise PayloadTooLarge(
            f"payload has {size} bytes; the limit is {settings.max_payload_bytes} bytes (max_payload_bytes)",
            field="payload",
            limit="max_payload_bytes",
        )
    if item.key is not None:
        check_channel(item.key, "key")
    return size


def not_finite(field: str) -> InvalidArgument:
    """The error for a payload that is or contains a number that JSON cannot express."""
    return InvalidArgument(f"{field} holds a number that JSON does not have (NaN or an infinity)", field=field)


def check_items(items: Sequence[Item], settings: Settings) -> int:
    """Check each message as :func:`check_item` does, before they are queued; return the bytes of all payloads.

    Ordinary messages are checked together, which takes a tenth of the time.
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
