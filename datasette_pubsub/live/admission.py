"""Counts and limits the open streams of one database, in all and for each actor or address.

A stream is counted when it is admitted, before the server awaits anything for it: so the limits also hold when
many subscribers connect at the same moment.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from ..core.errors import TooManyRequests, Unavailable
from ..core.events import Bye, End
from ..core.settings import Settings


class Endable(Protocol):
    """A subscriber, or a publish stream."""

    def stop(self, reason: End) -> None: ...


class Admission:
    """The open streams of one database."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._settings = settings
        self._open = 0
        #: How many streams are open for each actor or address.
        self._parties: Counter[str] = Counter()
        self._streams: set[Endable] = set()
        self._closing = False

    def enter(self, party: str) -> None:
        """Count a stream for an actor or address, until :meth:`leave`.

        Raises :class:`TooManyRequests` when a limit is reached, and
        :class:`Unavailable` while the server shuts down.
        """
        if self._closing:
            raise Unavailable("the server is shutting down; try again")
        if self._open >= self._settings.max_streams:
            raise TooManyRequests(
                f"{self._open} streams are open on database {self._name}; "
                f"the limit is {self._settings.max_streams} (max_streams)",
                limit="max_streams",
            )
        if self._parties[party] >= self._settings.max_streams_per_actor:
            raise TooManyRequests(
                f"{self._parties[party]} streams are open for this actor on database {self._name}; "
                f"the limit is {self._settings.max_streams_per_actor} (max_streams_per_actor)",
                limit="max_streams_per_actor",
            )
        self._open += 1
        self._parties[party] += 1

    def leave(self, party: str) -> None:
        """Stop counting a stream: it has ended, or was never opened."""
        self._open -= 1
        self._parties[party] -= 1
        if not self._parties[party]:
            del self._parties[party]

    def add(self, stream: Endable) -> None:
        """From now on, stop this stream when the server shuts down."""
        self._streams.add(stream)
        if self._closing:
            stream.stop(Bye())

    def discard(self, stream: Endable) -> None:
        """Forget a stream that has ended."""
        self._streams.discard(stream)

    def end_all(self) -> None:
        """End every stream and ask its subscriber or publisher to reconnect; new streams are admitted."""
        for stream in list(self._streams):
            stream.stop(Bye())

    def close(self) -> None:
        """End every stream because the server shuts down; no new stream is admitted."""
        self._closing = True
        for stream in list(self._streams):
            stream.stop(Bye())
