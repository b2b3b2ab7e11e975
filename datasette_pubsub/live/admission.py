"""Counts and limits the open streams of one database, in all and for each actor or address.

A stream is counted when it is admitted, before the server awaits anything for it: so the limits also hold when
many subscribers connect at the same moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, get_args

from ..core.errors import TooManyRequests, Unavailable
from ..core.events import Bye, Changed, End, Revoked, Superseded
from ..core.settings import Settings
from ..telemetry import spans


class Endable(Protocol):
    """A subscriber, a publish stream, or the subscriber of a live query."""

    @property
    def end(self) -> End | None: ...

    def stop(self, reason: End) -> None: ...


#: The kinds of streams.
Kind = Literal["subscriber", "publisher", "live_query"]

#: Why a stream has ended, by its last event.
_REASONS: dict[type[End] | None, str] = {
    None: "closed",
    Superseded: "superseded",
    Revoked: "revoked",
    Changed: "changed",
    Bye: "bye",
}


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
        #: How many streams of each kind are open, and how many have ended, by kind and reason.
        self.kinds: dict[str, int] = dict.fromkeys(get_args(Kind), 0)
        self.ended: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def enter(self, party: str, kind: Kind, *, named: bool = False) -> Iterator[Place]:
        """Count a stream for an actor or address until the block ends; the place in it takes the stream.

        ``named`` says whether it is that of a named subscription. Raises :class:`TooManyRequests` when a limit is
        reached, and :class:`Unavailable` while the server shuts down.
        """
        self._check(party)
        self._open += 1
        self._parties[party] += 1
        place = Place(self, kind, spans.opening(self._name, kind, named))
        try:
            yield place
        except BaseException as error:
            place.failed(error)
            raise
        finally:
            place.discard()
            self._open -= 1
            self._parties[party] -= 1
            if not self._parties[party]:
                del self._parties[party]

    def _check(self, party: str) -> None:
        if self._closing:
            raise Unavailable("the server is shutting down; try again")
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

    def opened(self, stream: Endable, kind: Kind) -> None:
        """From now on, stop this stream when the server shuts down."""
        self._streams.add(stream)
        self.kinds[kind] += 1
        if self._closing:
            stream.stop(Bye())

    def closed(self, stream: Endable, kind: Kind, reason: str) -> None:
        """Forget a stream that has ended."""
        self._streams.discard(stream)
        self.kinds[kind] -= 1
        self.ended[kind, reason] += 1

    def end_all(self) -> None:
        """End every stream and ask its subscriber or publisher to reconnect; new streams are admitted."""
        for stream in list(self._streams):
            stream.stop(Bye())

    def close(self) -> None:
        """End every stream because the server shuts down; no new stream is admitted."""
        self._closing = True
        self.end_all()


class Place:
    """The place of one admitted stream: empty, then taken by the stream, and empty again when it has ended."""

    __slots__ = ("_admission", "_kind", "_opening", "_stream")

    def __init__(self, admission: Admission, kind: Kind, opening: spans.Opening | None) -> None:
        self._admission = admission
        self._kind = kind
        self._opening = opening
        self._stream: Endable | None = None

    def take(self, stream: Endable) -> None:
        """The stream is open; it is stopped when the server shuts down."""
        self._stream = stream
        self._admission.opened(stream, self._kind)
        if self._opening is not None:
            self._opening.opened()

    def discard(self) -> None:
        """The stream has ended. Does nothing without a stream."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        reason = _REASONS[None if stream.end is None else type(stream.end)]
        self._admission.closed(stream, self._kind, reason)
        if self._opening is not None:
            self._opening.ended(reason, getattr(stream, "delivered", None))
            self._opening = None

    def failed(self, error: BaseException) -> None:
        """The stream could not be opened; does nothing if it was."""
        if self._stream is None and self._opening is not None:
            self._opening.failed(error)
            self._opening = None
