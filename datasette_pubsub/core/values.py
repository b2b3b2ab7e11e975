"""The values that the rooms exchange: items to publish, messages of the log, pages of messages, start positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

#: Whole numbers below this are exact in a REAL, and are written without a fraction or an exponent.
WHOLE_REAL = 2.0**63

#: The types of a payload: SQLite's own, without NULL.
Payload = str | bytes | int | float


def text_of(payload: Payload) -> str:
    """A text or number as text. A whole number has no fraction, even if a driver stored it as REAL.

    >>> from datasette_pubsub.core.values import text_of
    >>> text_of("7"), text_of(7.0), text_of(7.5)
    ('7', '7', '7.5')
    """
    if isinstance(payload, float) and payload.is_integer() and abs(payload) < WHOLE_REAL:
        return str(int(payload))
    return payload if isinstance(payload, str) else repr(payload)


Start = Literal["earliest", "latest", "last"]
AckMode = Literal["auto", "explicit"]


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One message to publish: it is not in the log yet, so it has no id.

    With ``expected_last_id`` it is stored only if that is the newest id of its
    channel (0: the channel never had a message).

    Like :class:`Message` it is a msgspec struct: msgspec decodes one from JSON
    without running Python code, six times faster than a dataclass. Neither can
    be part of a reference cycle, so Python's garbage collector does not track them.

    >>> from datasette_pubsub.core.values import Item
    >>> Item("orders.eu", '{"total": 12}', key="order-7").channel
    'orders.eu'
    >>> Item("orders.eu", "first", expected_last_id=0).plain
    False
    """

    channel: str
    #: A :data:`Payload` after the check; before it, any JSON value.
    payload: Any
    key: str | None = None
    expected_last_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None

    @property
    def plain(self) -> bool:
        """Whether storing it does not depend on other messages in the log."""
        return self.key is None and self.expected_last_id is None


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message of the log. ``created_at`` is UTC text with milliseconds. ``key`` is read only where filters need it.

    >>> from datasette_pubsub.core.values import Message
    >>> Message(7, "news", "hello", "2026-01-31T12:00:00.000Z").payload
    'hello'
    """

    id: int
    channel: str
    payload: Payload
    created_at: str
    key: str | None = None

    @property
    def size(self) -> int:
        """Roughly how many bytes of memory the message takes in the tail."""
        payload = self.payload
        return 200 + len(self.channel) + (len(payload) if isinstance(payload, (str, bytes)) else 8)


@dataclass(frozen=True, slots=True)
class Page:
    """Messages read from the log, and the position up to which they are complete.

    ``missed`` is how many messages the subscriber needed that were trimmed first.
    """

    messages: list[Message]
    position: int
    head: int
    missed: int = 0


@dataclass(frozen=True, slots=True)
class Where:
    """The position at which a subscriber asks to begin; the first field that is set counts.

    ``resume`` is the last id that the subscriber has received
    (``Last-Event-ID``): it overrides even a subscription's cursor. The others
    choose where an unnamed or a new subscription begins: ``after`` an id, at
    the ``start`` (``earliest``, ``latest``, or ``last``: with the newest message
    of each channel), or with the first message ``since`` a time.

    >>> from datasette_pubsub.core.values import Where
    >>> Where(after=12).position, Where(start="earliest").position
    (12, None)
    """

    resume: int | None = None
    after: int | None = None
    start: Start | None = None
    since: str | None = None

    @property
    def position(self) -> int | None:
        """The id after which to begin, if the subscriber named one."""
        return self.resume if self.resume is not None else self.after

    @property
    def last(self) -> bool:
        """Whether to begin with the newest message of each channel."""
        return self.start == "last" and self.position is None and self.since is None


ANYWHERE = Where()
