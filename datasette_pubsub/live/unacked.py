"""The messages that one subscriber was sent and has not acknowledged."""

from __future__ import annotations

from collections import deque

#: Room without a limit, in messages.
_ALL = 1 << 30


class Unacked:
    """Counts them, for at most ``limit``; with ``None``, nothing is acknowledged, and nothing is counted."""

    __slots__ = ("_in_flight", "_limit", "_sends")

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        #: Sends with unacknowledged messages: the last id and the number of messages of each.
        self._sends: deque[tuple[int, int]] | None = None if limit is None else deque()
        self._in_flight = 0

    def __bool__(self) -> bool:
        return bool(self._sends)

    @property
    def room(self) -> int:
        """How many messages may be sent now."""
        return _ALL if self._limit is None else max(0, self._limit - self._in_flight)

    def add(self, last: int, messages: int) -> None:
        """Note a send of so many messages."""
        if self._sends is not None:
            self._sends.append((last, messages))
            self._in_flight += messages

    def acknowledge(self, cursor: int) -> None:
        """Note that every message up to this cursor is acknowledged."""
        while self._sends and self._sends[0][0] <= cursor:
            self._in_flight -= self._sends.popleft()[1]

    def clear(self) -> None:
        """Forget all sends: their messages belong to another log."""
        if self._sends is not None:
            self._sends.clear()
        self._in_flight = 0
