"""A subscription over many connections, without input and output: what to ask, what to make of what comes.

Theory of operation. A session is *connecting*, *open* or *over*. :meth:`Session.request` is what the next connection
asks for; :meth:`Session.take` makes messages and gaps of events, and moves the *position*: every message up to it was
handed out, or was not for this subscriber. How the next connection goes on depends on who keeps the place:

- *The client does*: without a subscription, and for one whose cursor follows what has arrived. It asks for what comes
  after the position, by ``Last-Event-ID``. Until the first position is known, it asks as in the beginning.
- *The server does*: a subscription with explicit acks goes on after the last one. What was handed out and is not
  acknowledged comes again; the session leaves it out, since the program has it.

After a connection has ended, the session says how long to wait; :class:`Refused` and :class:`Superseded` end it.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .values import Forbidden, Gap, Message, Refused, Superseded, Unreachable

#: The first wait after a connection was lost, in seconds; each further one is twice as long.
FIRST_WAIT_SECONDS = 0.2

#: The longest wait until a server has named one with ``retry``, in seconds.
LONGEST_WAIT_SECONDS = 5.0

#: Statuses after which the same request may succeed.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a subscriber asks for; the parameters of the stream's address."""

    channels: Sequence[str] = ()
    patterns: Sequence[str] = ()
    filter: str | None = None
    subscription: str | None = None
    ack: Literal["auto", "explicit"] = "auto"
    start: Literal["earliest", "latest", "last"] | None = None
    after: int | None = None
    since: str | None = None

    def params(self) -> dict[str, list[str]]:
        """The query string's parameters."""
        single = {
            "filter": self.filter,
            "subscription": self.subscription,
            "ack": self.ack if self.subscription is not None else None,
            "start": self.start,
            "after": self.after,
            "since": self.since,
        }
        found = {name: [str(value)] for name, value in single.items() if value is not None}
        return {"channel": list(self.channels), "pattern": list(self.patterns), **found}


class Session:
    """One subscriber's state. It gives up when connecting has failed for ``reconnect_seconds``; ``None``: never."""

    def __init__(self, asked: Asked, reconnect_seconds: float | None = None) -> None:
        self._asked = asked
        self._explicit = asked.subscription is not None and asked.ack == "explicit"
        self._reconnect_seconds = reconnect_seconds
        #: Every message up to this id was handed out, or is not for this subscriber; ``None``: not known yet.
        self.position: int | None = None
        #: The newest message that was handed out.
        self._handed = 0
        self._missed = 0
        self._failures = 0
        self._longest = LONGEST_WAIT_SECONDS
        #: Whether the server said that it shuts down, and after how long to come back.
        self._told_when = False
        self._failing_since: float | None = None
        #: Why the last connection failed, for the error that gives up.
        self._reason = ""

    def request(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """The parameters and headers of the next connection."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.position is not None and not self._explicit:
            headers["Last-Event-ID"] = str(self.position)
        return self._asked.params(), headers

    def take(self, event: str, data: str, retry: int | None) -> Message | Gap | None:
        """Process an event; returns what to hand out. Raises :class:`Superseded`."""
        if retry is not None:
            self._longest = max(FIRST_WAIT_SECONDS, retry / 1000)
        if not data:
            return None
        fields: dict[str, Any] = json.loads(data)
        match event:
            case "message":
                return self._message(fields)
            case "ready" | "heartbeat":
                self._connected()
                self.position = max(int(fields["head"]), self.position or 0)
            case "gap":
                return self._gap(int(fields["missed"]), int(fields["resumedAt"]))
            case "bye":
                self._told_when = fields.get("code") == "shutdown"
            case "superseded":
                raise Superseded(str(fields.get("reason", "a newer subscriber has taken over")))
        return None

    def _message(self, fields: Mapping[str, Any]) -> Message | None:
        self._connected()
        number = int(fields["messageId"])
        missed, self._missed = self._missed or int(fields.get("missed", 0)), 0
        if number <= self._handed:
            return None
        self._handed = self.position = number
        payload = base64.b64decode(fields["blob"]) if "blob" in fields else str(fields.get("payload", ""))
        return Message(number, str(fields["channel"]), payload, str(fields["createdAt"]), missed)

    def _gap(self, missed: int, resumed_at: int) -> Gap:
        if missed < 0:
            # Another log stands in the place of this one: its ids may be those that were handed out.
            self._handed = 0
        self.position = resumed_at
        self._missed = -1 if missed < 0 or self._missed < 0 else self._missed + missed
        return Gap(missed, resumed_at)

    def _connected(self) -> None:
        self._failures = 0
        self._failing_since = None

    def lost(self, now: float, reason: str) -> float:
        """The connection could not be made, or has ended; returns how long to wait, in seconds.

        Raises :class:`Unreachable`.
        """
        self._failing_since = now if self._failing_since is None else self._failing_since
        self._reason = reason or self._reason
        wait = min(self._longest, FIRST_WAIT_SECONDS * 2.0**self._failures) * random.uniform(0.5, 1.0)
        if self._told_when:
            # Random already, so that not all come back at once.
            wait, self._told_when = self._longest, False
        self._failures = min(self._failures + 1, 16)
        if self._reconnect_seconds is not None and now + wait - self._failing_since > self._reconnect_seconds:
            raise Unreachable(self._reason)
        return wait

    def answered(self, status: int, body: bytes, now: float) -> float:
        """The server has answered something else than a stream; returns how long to wait. Raises :class:`Refused`."""
        error = refusal(status, body)
        if status not in PASSING:
            raise error
        return self.lost(now, str(error))


def refusal(status: int, body: bytes) -> Refused:
    """The error for a server's answer."""
    try:
        fields = json.loads(body)
    except ValueError:
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    text = str(fields.get("error") or fields.get("message") or f"the server answered with status {status}")
    kind = Forbidden if status in (401, 403) else Refused
    return kind(text, status, fields.get("field"), fields.get("limit"))
