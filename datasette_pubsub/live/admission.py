"""How many streams of one database are open, and for whom.

The law of this module: a stream is counted from the moment it is let in, before
anything is awaited for it, so that a crowd that comes at once is counted too.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from ..core.errors import TooManyRequests, Unavailable
from ..core.events import Bye, End
from ..core.settings import Settings


class Endable(Protocol):
    """A subscriber's stream, or a publisher's."""

    def stop(self, reason: End) -> None: ...


class Admission:
    """The open streams of one database."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._settings = settings
        self._open = 0
        #: How many are open for each actor or address.
        self._parties: Counter[str] = Counter()
        self._streams: set[Endable] = set()
        self._closing = False

    def enter(self, party: str) -> None:
        """Count a stream for an actor or address, until :meth:`leave`.

        Raises :class:`TooManyRequests` when there can be no more of them, and
        :class:`Unavailable` while shutting down.
        """
        if self._closing:
            raise Unavailable("the server is going away; try again")
        if self._open >= self._settings.max_streams:
            raise TooManyRequests(
                f"{self._open} streams are open on database {self._name}; "
                f"the limit is {self._settings.max_streams} (max_streams)"
            )
        if self._parties[party] >= self._settings.max_streams_per_actor:
            raise TooManyRequests(
                f"{self._parties[party]} streams are open for this actor on database {self._name}; "
                f"the limit is {self._settings.max_streams_per_actor} (max_streams_per_actor)"
            )
        self._open += 1
        self._parties[party] += 1

    def leave(self, party: str) -> None:
        """The stream has ended, or was never begun."""
        self._open -= 1
        self._parties[party] -= 1
        if not self._parties[party]:
            del self._parties[party]

    def add(self, stream: Endable) -> None:
        """From here on the stream is told when the server goes away."""
        self._streams.add(stream)
        if self._closing:
            stream.stop(Bye())

    def discard(self, stream: Endable) -> None:
        """It need not be told any more."""
        self._streams.discard(stream)

    def end_all(self) -> None:
        """Tell every stream to end and come back; more may come in."""
        for stream in list(self._streams):
            stream.stop(Bye())

    def close(self) -> None:
        """Tell every stream that the server is going away, and let no more in."""
        self._closing = True
        for stream in list(self._streams):
            stream.stop(Bye())
