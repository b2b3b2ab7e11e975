"""The wire format of Server-Sent Events, and the JSON that it shares with Connect.

Encoders have no state, so that all streams of a format share one frame of a message.
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

#: Encodes JSON without spaces, as text.
compact_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


#: How long an SSE client waits before it reconnects, in milliseconds, from and to. The value is random for each stream,
#: so that clients that were disconnected together do not reconnect at the same moment. It is longer when the server
#: shuts down, since the server must start again first.
RETRY_MS = (1_000, 5_000)
RETRY_AFTER_BYE_MS = (2_000, 10_000)


def retry_line(between: tuple[int, int] = RETRY_MS) -> str:
    """The ``retry`` line of an event stream, which says when to reconnect."""
    return f"retry: {random.randint(*between)}\n"


#: Characters that many clients take for the end of a line (those that use Python's ``splitlines``), with their JSON
#: escapes. JSON always escapes the other characters of that kind.
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def one_line(text: str) -> str:
    """The JSON text as one line for every client: it escapes the characters that some take for the end of a line."""
    if not text.isascii():
        for end, escaped in _LINE_ENDS.items():
            text = text.replace(end, escaped)
    return text


def as_json_line(value: Any) -> bytes:
    """A value as JSON in one line, without the line's end."""
    return one_line(compact_json(value)).encode()


def _divides(text: str) -> bool:
    return "\u2028" in text or "\u2029" in text or "\x85" in text


def message_fields(message: Message, missed: int = 0) -> dict[str, Any]:
    """The fields of a message, with the names and types of ``SubscribeResponse`` in Connect JSON.

    Ids are strings (https://protobuf.dev/programming-guides/json/: int64), and
    a payload of bytes is base64 in ``blob``.
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
    """:func:`message_fields` of an ordinary message, which msgspec encodes without running Python code."""

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


def _end(reason: str, code: str | None = None, reconnect: bool = True) -> dict[str, Any]:
    """Why a stream ends, for people and for programs, and whether to connect again."""
    return {**({} if code is None else {"code": code}), "reason": reason, "reconnect": reconnect}


class SseEncoder:
    """Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    A message is an unnamed event with an id; every other event has a name and
    no id, so that a client's ``Last-Event-ID`` is always a message id.
    """

    def __init__(self, raw: bool = False) -> None:
        self.name = "sse-raw" if raw else "sse"
        self._raw = raw

    def beginning(self) -> bytes:
        """The first bytes of the stream: the ``retry`` line, which is no event."""
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
                name, data = "superseded", _end("a newer connection has taken over this subscription", reconnect=False)
            case Bye():
                name, data = "bye", _end("the server is shutting down; connect again", code="shutdown")
                retry = retry_line(RETRY_AFTER_BYE_MS)
            case Revoked():
                name, data = "bye", _end("the right to receive these messages has ended or changed", code="revoked")
            case Changed():
                name, data = "bye", _end("what the subscription reads was changed; connect again", code="changed")
        return f"{retry}event: {name}\ndata: {compact_json(data)}\n\n".encode()
