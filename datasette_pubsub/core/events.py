"""Events of a stream: what it sends besides messages, and the reasons why it ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ready:
    """The subscriber has caught up; ``head`` is the newest id of the log."""

    head: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The stream is alive but had nothing to send for a while; there are no more messages for it up to ``head``."""

    head: int


#: Stands for the number of missed messages when it is unknown: the subscriber's position is ahead of the log's head,
#: so the log was replaced or restored.
AHEAD = -1


@dataclass(frozen=True, slots=True)
class Gap:
    """``missed`` messages were trimmed before the subscriber read them; it continues after ``resumed_at``.

    ``missed`` is :data:`AHEAD` when the subscriber's position is ahead of the
    head: the file was replaced, or restored from a backup.
    """

    missed: int
    resumed_at: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer connection has taken over the subscription."""


@dataclass(frozen=True, slots=True)
class Bye:
    """The server is shutting down; the subscriber should reconnect with its last id."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """The subscriber's permissions have ended or changed; it should reconnect to receive what it still may."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The channels of the subscription were changed by SQL; the subscriber should reconnect to receive them."""


Event = Ready | Heartbeat | Gap | Superseded | Bye | Revoked | Changed


End = Superseded | Bye | Revoked | Changed
