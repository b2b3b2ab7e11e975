"""One live query of a database: its present result, its last changes, and its subscribers.

Theory of operation. A query is *clean* while its result is known to be that of the file, and *dirty* when something
was committed that may have changed it (:meth:`LiveQuery.touch`). :class:`.queries.LiveQueries` runs dirty queries and
hands over what came out: :meth:`LiveQuery.succeeded` numbers it as the next *version* and keeps the change, or
:meth:`LiveQuery.failed` makes the query *broken*, until a run succeeds again. A subscriber asks :meth:`LiveQuery.since`
for what leads from its version to the newest: the changes, if they are still kept, else the whole result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ..core.errors import PubsubError
from ..core.events import Event
from ..core.result import Change, Result, difference
from ..live.line import Line
from ..storage.query import Question, Reads


class Encoder(Protocol):
    """Writes the frames of one wire format. Frames of one ``name`` are shared by all subscribers."""

    @property
    def name(self) -> str: ...
    def snapshot(self, result: Result, key: tuple[str, ...]) -> bytes: ...
    def change(self, change: Change) -> bytes: ...
    def broken(self, error: PubsubError) -> bytes: ...
    def event(self, event: Event) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Told:
    """The channels and patterns to which all tables of a query publish all of their changes."""

    channels: tuple[str, ...]
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """What is known of a query from the file's schema, for one ``version`` of it.

    ``told`` is ``None`` if a table that the query reads may change without a message.
    """

    version: int
    reads: Reads
    told: Told | None


class Woken(Protocol):
    """A subscriber of the query."""

    def wake(self) -> None: ...


@dataclass(slots=True)
class _Version:
    number: int
    change: Change
    size: int
    frames: dict[str, bytes] = field(default_factory=dict)

    def frame(self, encoder: Encoder) -> bytes:
        """The change in one wire format, made once."""
        found = self.frames.get(encoder.name)
        if found is None:
            found = self.frames[encoder.name] = encoder.change(self.change)
        return found


def _size(change: Change) -> int:
    parts = (*change.removed, *change.inserted, *change.changed)
    return sum(len(placed.row) + len(placed.was or b"") for placed in parts)


class LiveQuery:
    """A question that is kept up to date for its subscribers, and its present result."""

    def __init__(self, question: Question, max_bytes: int, line: Line) -> None:
        self.question = question
        #: Serves the subscribers, a few at a time.
        self._line = line
        #: What is known from the file's schema; ``None`` until the first run.
        self.schema: Schema | None = None
        #: Whether a run is due, since which number of commits, and whether it is running.
        self.dirty = True
        self.touched = 0
        self.running = False
        #: What was committed at the time of the last run; see :meth:`.queries.LiveQueries._unchanged`.
        self.stamp: object = None
        #: When the last run began, on the loop's clock, and how long a run takes, both in seconds.
        self.began = float("-inf")
        self.duration = 0.0
        self.pause = 0.0
        #: How many runs there were, and how many of them changed the result.
        self.runs = 0
        self.changes = 0
        self.subscribers: set[Woken] = set()
        #: Whoever has to look at the result after each run, also if it is the same as before.
        self.keepers: set[Woken] = set()
        self.error: PubsubError | None = None
        self.result: Result | None = None
        self.version = 0
        self._max_bytes = max_bytes
        self._versions: deque[_Version] = deque()
        self._bytes = 0
        self._snapshots: dict[str, bytes] = {}

    def touch(self, number: int) -> bool:
        """Note that something was committed that may change the result; returns whether the query was clean."""
        clean = not self.dirty
        self.dirty = True
        self.touched = number
        return clean

    def succeeded(self, result: Result, change: Change | None) -> None:
        """Take the result of a run. ``change`` leads to it from the last one; ``None``: it has to be sent whole."""
        whole = change is None or self.error is not None or self.result is None
        self.error = None
        if not whole and not change:
            # The rows are the same; the head has moved.
            self.result = result
            self._snapshots.clear()
            self._wake_keepers()
            return
        self.result = result
        self.version += 1
        self.changes += 1
        self._snapshots.clear()
        if whole or change is None:
            self._forget()
        else:
            made = _Version(self.version, change, _size(change))
            self._versions.append(made)
            self._bytes += made.size
            while self._bytes > self._max_bytes:
                self._bytes -= self._versions.popleft().size
        self._wake()

    def failed(self, error: PubsubError) -> None:
        """Take the error of a run: subscribers are told once, and get the whole result when a run succeeds again."""
        if self.error is not None and self.error.message == error.message:
            return
        self.error = error.bare()
        self.version += 1
        self._forget()
        self._wake()

    def _forget(self) -> None:
        self._versions.clear()
        self._bytes = 0

    def _wake(self) -> None:
        for subscriber in self.subscribers:
            subscriber.wake()
        self._line.begin()
        self._wake_keepers()

    def _wake_keepers(self) -> None:
        for keeper in self.keepers:
            keeper.wake()

    def since(self, version: int, encoder: Encoder, max_bytes: int) -> tuple[int, bytes]:
        """What to send to a subscriber that has this version: the version that it then has, and the bytes.

        One call returns about ``max_bytes``, and at least one change.
        """
        if version == self.version:
            return version, b""
        if self.error is not None:
            return self.version, encoder.broken(self.error)
        if self._versions and version == self._versions[-1].number - 1:
            # Nearly always: the newest change, in a frame that all share.
            return self.version, self._versions[-1].frame(encoder)
        if self._versions and version >= self._versions[0].number - 1:
            parts, size = [], 0
            for frame, number in self._frames(version, encoder):
                parts.append(frame)
                size += len(frame)
                version = number
                if size >= max_bytes:
                    break
            return version, b"".join(parts)
        assert self.result is not None
        whole = self._snapshots.get(encoder.name)
        if whole is None:
            whole = self._snapshots[encoder.name] = encoder.snapshot(self.result, self.question.key)
        return self.version, whole

    def _frames(self, version: int, encoder: Encoder) -> Iterator[tuple[bytes, int]]:
        for made in self._versions:
            if made.number > version:
                yield made.frame(encoder), made.number


def compared(old: Result | None, new: Result) -> Change | None:
    """The change from the last result, or ``None`` if the new one has to be sent whole. Runs on a thread."""
    if old is None or old.columns != new.columns:
        return None
    return difference(old, new)
