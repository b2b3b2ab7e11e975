"""A message as a row of the log and as a message of a stream: exactly the same on both sides.

Everything is bytes, since any program may have stored text that is not valid UTF-8. Values of headers are
percent-encoded where they are not printable ASCII; the subject is for those who subscribe in NATS, and is not read
back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

CHANNEL = "Pubsub-Channel"
CREATED = "Pubsub-Created"
KEY = "Pubsub-Key"
TYPE = "Pubsub-Type"

#: Says that the log has no message with this id: retention has removed it before it was relayed.
TRIMMED = "Pubsub-Trimmed"

#: The sequence that the stream must have before this message
#: (https://docs.nats.io/nats-concepts/jetstream/headers#publish).
EXPECTED = "Nats-Expected-Last-Sequence"

#: The type of a payload, as SQLite's ``typeof`` names it.
Type = Literal["text", "blob", "integer", "real"]

#: What a header's value may have as it is. It is read back without the spaces at its ends.
_PLAIN = re.compile(rb"[!-$&-~](?:[ -$&-~]*[!-$&-~])?")
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")

#: What a token of a subject may have as it is: no dots, wildcards and spaces
#: (https://docs.nats.io/nats-concepts/subjects#characters-allowed-and-recommended-for-subject-names).
_TOKEN_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "%.*>/")


class Record(NamedTuple):
    """One message of a log. ``created_at``, ``channel`` and ``key`` are texts, as the bytes that the file has."""

    id: int
    channel: bytes
    payload: bytes | int | float
    type: Type
    created_at: bytes
    key: bytes | None = None


class Trimmed(NamedTuple):
    """An id whose message retention has removed; ``channel`` is empty if it is not known."""

    id: int
    channel: bytes = b""


class NotOurs(ValueError):
    """A message of a stream that no relay has published."""


def subject(stream: str, record: Record | Trimmed) -> str:
    """The subject of a message: the stream's name and the channel, with dots for slashes.

    >>> subject("orders", Record(1, b"eu/new", b"{}", "text", b"2026-01-31T12:00:00.000Z"))
    'orders.eu.new'
    """
    if isinstance(record, Trimmed):
        return f"{stream}.-"
    tokens = [_token(token) for token in record.channel.split(b"/")]
    return f"{stream}.%2D" if tokens == ["-"] else ".".join((stream, *tokens))


def headers(record: Record | Trimmed) -> dict[str, str]:
    """The headers of a message, with the sequence before it, which the server compares."""
    found = {EXPECTED: str(record.id - 1)}
    if isinstance(record, Trimmed):
        found[TRIMMED] = "1"
        if record.channel:
            found[CHANNEL] = _header(record.channel)
        return found
    found[CHANNEL] = _header(record.channel)
    found[CREATED] = _header(record.created_at)
    found[TYPE] = record.type
    if record.key is not None:
        found[KEY] = _header(record.key)
    return found


def body(record: Record | Trimmed) -> bytes:
    """The body of a message: the payload, and numbers as text that gives exactly the same number."""
    if isinstance(record, Trimmed):
        return b""
    payload = record.payload
    return payload if isinstance(payload, bytes) else repr(payload).encode()


def parse(sequence: int, found: Mapping[str, str] | None, data: bytes) -> Record | Trimmed:
    """The message with this sequence. Raises :class:`NotOurs`."""
    found = found or {}
    channel = unquote_to_bytes(found.get(CHANNEL, ""))
    if TRIMMED in found:
        return Trimmed(sequence, channel)
    kind, created = found.get(TYPE), found.get(CREATED)
    if not channel or created is None:
        raise NotOurs
    key = unquote_to_bytes(found[KEY]) if KEY in found else None
    payload: bytes | int | float
    try:
        match kind:
            case "text" | "blob":
                payload = data
            case "integer":
                payload = int(data)
            case "real":
                payload = float(data)
            case _:
                raise NotOurs
    except ValueError:
        raise NotOurs from None
    return Record(sequence, channel, payload, kind, unquote_to_bytes(created), key)


def _token(token: bytes) -> str:
    """One token of a subject, which must not be empty. (``quote_from_bytes`` never quotes a dot.)"""
    return quote_from_bytes(token, safe=_TOKEN_SAFE).replace(".", "%2E") or "%"


def _header(value: bytes) -> str:
    return value.decode() if _PLAIN.fullmatch(value) else quote_from_bytes(value, safe=_SAFE)
