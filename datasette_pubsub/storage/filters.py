"""The filters of one database: checks them, and evaluates them on the event loop or on threads of SQL.

:mod:`.storage.filter_engine` evaluates; this module gives each thread an engine of its own, and keeps what may take
long away from the event loop: there, :meth:`Filters.now` answers ``None``, and the messages are read from the log.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..core.filters import normalised
from ..core.values import Message
from .filter_engine import COMPILED, Engine

#: The most steps for one message on the event loop: a delay of 20 ms at worst, which nobody notices.
NOW_STEPS = 2_000_000

#: The longest time that a filter takes at once on the event loop, in seconds. One that takes longer, also because the
#: machine was busy, is evaluated on a thread of SQL for the next ``SLOW_SECONDS``.
NOW_SECONDS = 0.05
SLOW_SECONDS = 10.0

#: The longest time for one page of messages, in seconds; then the subscriber gets what has been decided.
PAGE_SECONDS = 0.5


class Filters:
    """Checks and evaluates the filters of one database. It makes a connection for each thread that needs one."""

    def __init__(self) -> None:
        self._mine: Engine | None = None
        #: Engines that no thread is using.
        self._free: list[Engine] = []
        #: Filters that were too slow for the event loop, and until when they count as such.
        self._slow: dict[str, float] = {}

    def close(self) -> None:
        """Close all connections that no thread is using."""
        while self._free:
            self._free.pop().close()
        if self._mine is not None:
            self._mine.close()
            self._mine = None

    def check(self, text: str, max_bytes: int | None = None) -> str:
        """The filter in its normal form, if it is one. Raises :class:`InvalidArgument`, naming the field ``filter``.

        >>> from datasette_pubsub.core.errors import InvalidArgument
        >>> from datasette_pubsub.storage.filters import Filters
        >>> Filters().check("payload ->> '$.level' = 'error'")
        "payload ->> '$.level' = 'error'"
        >>> try:
        ...     Filters().check("random() > 0")
        ... except InvalidArgument as error:
        ...     print(error.message[:46])
        filter: the function random is not for filters
        """
        text = normalised(text, max_bytes)
        engine = self._take()
        try:
            engine.check(text)
        finally:
            self._free.append(engine)
        return text

    def passes(self, text: str, messages: Sequence[Message], seconds: float = PAGE_SECONDS) -> list[bool]:
        """Whether the first of these messages pass, at least one of them; for any thread.

        There are fewer verdicts than messages if more would take longer than so many seconds.
        """
        engine = self._take()
        try:
            return engine.verdicts(text, messages, seconds)
        finally:
            self._free.append(engine)

    def timed(self, text: str, messages: Sequence[Message], seconds: float) -> tuple[list[bool], float]:
        """As :meth:`passes`, and how many seconds it took."""
        began = time.monotonic()
        return self.passes(text, messages, seconds) if messages else [], time.monotonic() - began

    def now(self, text: str, messages: Sequence[Message]) -> list[bool] | None:
        """Whether these messages pass; for the event loop. ``None`` if that would take too long there."""
        slow = self._slow.get(text)
        if slow is not None:
            if time.monotonic() < slow:
                return None
            del self._slow[text]
        if self._mine is None:
            self._mine = Engine()
        found = self._mine.verdicts(text, messages, NOW_SECONDS, NOW_STEPS)
        if len(found) == len(messages):
            return found
        if self._mine.over():
            if len(self._slow) >= COMPILED:
                self._slow.clear()
            self._slow[text] = time.monotonic() + SLOW_SECONDS
        return None

    def _take(self) -> Engine:
        try:
            return self._free.pop()
        except IndexError:
            return Engine()
