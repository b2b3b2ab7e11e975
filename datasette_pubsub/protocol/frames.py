"""The wire formats: how messages and events look to readers of SSE, and what they have in common with Connect's.

The law of this module: values in, bytes out; it knows no storage, no hub and no
HTTP. Encoders are stateless, so that one frame serves all streams of a format.
"""

from __future__ import annotations

import base64
import json
import random
import re
from typing import Any

import msgspec

from ..core.events import AHEAD, Bye, Changed, Event, Gap, Heartbeat, Ready, Revoked, Superseded
from ..core.values import Message, text_of

_LINES = re.compile(r"\r\n|\r|\n")

#: JSON without blanks, as text.
compact_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


#: How long a reader of Server-Sent Events waits before it connects again, in milliseconds, from and to. It is chosen at
#: random for each stream, so that those that were cut off together do not all come back at the same moment; longer
#: when the server goes away, since it must start first.
RETRY_MS = (1_000, 5_000)
RETRY_AFTER_BYE_MS = (2_000, 10_000)


def retry_line(between: tuple[int, int] = RETRY_MS) -> str:
    """The line of an event stream that says when to connect again."""
    return f"retry: {random.randint(*between)}\n"


#: Characters that many readers take for the end of a line (Python's ``splitlines`` and what is built on it), and what
#: JSON may write instead of them. All others of that kind are escaped in any JSON.
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def one_line(text: str) -> str:
    """JSON that is one line to everybody."""
    if not text.isascii():
        for end, escaped in _LINE_ENDS.items():
            text = text.replace(end, escaped)
    return text


def as_json_line(value: Any) -> bytes:
    """A value as JSON in one line, without its end."""
    return one_line(compact_json(value)).encode()


def _divides(text: str) -> bool:
    return "\u2028" in text or "\u2029" in text or "\x85" in text


def message_fields(message: Message, missed: int = 0) -> dict[str, Any]:
    """A message with the names and types of ``SubscribeResponse`` in Connect JSON.

    Ids are strings (https://protobuf.dev/programming-guides/json/: int64), a
    blob travels as base64 under ``blob``.
    """
    fields: dict[str, Any] = {"messageId": str(message.id), "channel": message.channel}
    if isinstance(message.payload, bytes):
        fields["blob"] = base64.b64encode(message.payload).decode()
    else:
        fields["payload"] = text_of(message.payload)
    fields["createdAt"] = message.created_at
    if missed:
        fields["missed"] = str(missed)
    return fields


class _Ordinary(msgspec.Struct, rename="camel", gc=False):
    """:func:`message_fields` of an ordinary message, which becomes JSON without Python."""

    message_id: str
    channel: str
    payload: str
    created_at: str


_ordinary_json = msgspec.json.Encoder().encode


def message_json(message: Message, missed: int) -> bytes:
    """:func:`message_fields` as JSON: the same fields, in a fifth of the time for an ordinary message."""
    payload = message.payload
    if missed or not isinstance(payload, str):
        return as_json_line(message_fields(message, missed))
    data = _ordinary_json(_Ordinary(str(message.id), message.channel, payload, message.created_at))
    if data.isascii() or not (_divides(payload) or _divides(message.channel) or _divides(message.created_at)):
        return data
    return one_line(data.decode()).encode()


class SseEncoder:
    """Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    A message is an unnamed event with an id; everything else is named and has
    none, so that a reader's ``Last-Event-ID`` is always a message.
    """

    def __init__(self, raw: bool = False) -> None:
        self.name = "sse-raw" if raw else "sse"
        self._raw = raw

    def beginning(self) -> bytes:
        """What stands before all else: it is no event, and has no id."""
        return f"{retry_line()}\n".encode()

    def message(self, message: Message, missed: int = 0) -> bytes:
        if not self._raw:
            return b"id: %d\ndata: %b\n\n" % (message.id, message_json(message, missed))
        payload = message.payload
        if isinstance(payload, str):
            text = payload
        else:
            text = base64.b64encode(payload).decode() if isinstance(payload, bytes) else text_of(payload)
        if "\n" in text or "\r" in text:
            text = "\ndata: ".join(_LINES.split(text))
        return f"id: {message.id}\ndata: {text}\n\n".encode()

    def event(self, event: Event) -> bytes:
        data: dict[str, Any]
        retry = ""
        match event:
            case Ready(head):
                name, data = "ready", {"head": str(head)}
            case Heartbeat(head):
                name, data = "heartbeat", {"head": str(head)}
            case Gap(missed, resumed_at):
                name, data = "gap", {"missed": str(missed), "resumedAt": str(resumed_at)}
                if missed == AHEAD:
                    data["ahead"] = True
            case Superseded():
                name, data = "superseded", {"reason": "a newer connection has taken over this subscription"}
            case Bye():
                name, data = "bye", {"reason": "the server is shutting down; connect again"}
                retry = retry_line(RETRY_AFTER_BYE_MS)
            case Revoked():
                name, data = "bye", {"reason": "the right to receive these messages has ended or changed"}
            case Changed():
                name, data = "bye", {"reason": "what the subscription reads was changed; connect again"}
        return f"{retry}event: {name}\ndata: {compact_json(data)}\n\n".encode()
