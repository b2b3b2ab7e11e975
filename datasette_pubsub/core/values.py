"""The values that travel between the rooms: messages on their way in, messages of the log, pages, positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

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
