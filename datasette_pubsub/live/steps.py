"""The steps of one live subscriber: what is to be done next; see :mod:`.live.subscriber`."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from .tail import Span


class What(Enum):
    """The kinds of steps; the module's docstring explains them."""

    END = auto()
    CHECK = auto()
    SEND = auto()
    READ = auto()
    WAIT = auto()


class Step(NamedTuple):
    """One step. A ``SEND`` has the frame of an event or a span of messages, a ``READ`` the number of messages."""

    what: What
    frame: bytes = b""
    span: Span | None = None
    room: int = 0

    @property
    def data(self) -> bytes:
        """The bytes of a ``SEND``; empty if the subscriber follows no message of the span."""
        return self.frame if self.span is None else self.span.data


END = Step(What.END)


CHECK = Step(What.CHECK)


WAIT = Step(What.WAIT)
