"""What a stream tells besides messages, and why it ends."""

from __future__ import annotations

from dataclasses import dataclass


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
