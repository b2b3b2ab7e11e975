"""The tail: the newest messages in memory, bounded in bytes. Each is encoded once for each wire format."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from ..core.events import Event
from ..core.selector import Selector
from ..core.values import Message
from .filtered import Evaluate, Verdicts

#: How many spans are kept until the next commit, and of how many bytes: 64 of the largest sends by default. Subscribers
#: at the same position share one span. Few positions and formats are in use at the same time, but many filters.
MAX_SPANS = 1_024
MAX_SPAN_BYTES = 16 * 1024 * 1024

#: A span with a filter decides about at most this many messages, so that one turn of the event loop stays short.
FILTERED_AT_ONCE = 1_000


class Encoder(Protocol):
    """A wire format: encodes messages and events as bytes. It has no state, and many streams share it."""

    name: str

    def message(self, message: Message, missed: int = 0) -> bytes:
        """The frame of one message; the first message after a gap carries how many were ``missed``."""

    def event(self, event: Event) -> bytes:
        """The frame of an event; empty if the format has none for it."""


class Span(NamedTuple):
    """Joined frames after a position: the bytes, the position where they end, the number of messages, the last id."""

    data: bytes
    position: int
    messages: int
    last: int = 0


class Tail:
    """The newest committed messages, without holes from ``base`` (exclusive) to the head."""

    def __init__(self, max_bytes: int, evaluate: Evaluate | None = None) -> None:
        self.base = 0
        self._max_bytes = max_bytes
        #: Running totals of bytes: of all messages dropped so far, and, for each message, of all added up to it.
        self._dropped = 0
        self._ends: list[int] = []
        self._ids: list[int] = []
        self._messages: list[Message] = []
        self._frames: dict[str, list[bytes | None]] = {}
        self._spans: OrderedDict[tuple[object, ...], Span] = OrderedDict()
        self._span_bytes = 0
        self._verdicts = Verdicts(evaluate)

    def reset(self, position: int) -> None:
        """Clear the tail; it now begins after this position."""
        self.base = position
        self._dropped = 0
        self._ends.clear()
        self._ids.clear()
        self._messages.clear()
        self._frames.clear()
        self._spans.clear()
        self._span_bytes = 0
        self._verdicts.clear()

    def extend(self, messages: Sequence[Message]) -> None:
        """Add the messages that follow the newest one, and drop the oldest ones over the byte limit."""
        self._spans.clear()
        self._span_bytes = 0
        self._ids.extend([message.id for message in messages])
        sizes = [message.size for message in messages]
        sizes[0] += self._ends[-1] if self._ends else self._dropped
        self._ends.extend(accumulate(sizes))
        self._messages.extend(messages)
        for frames in self._frames.values():
            frames.extend([None] * len(messages))
        if self._ends[-1] - self._dropped > self._max_bytes:
            self._shrink()

    def _shrink(self) -> None:
        # Shrink to three quarters of the limit, so that not every commit has to cut the lists.
        drop = bisect_left(self._ends, self._ends[-1] - self._max_bytes * 3 // 4) + 1
        self._dropped = self._ends[drop - 1]
        self.base = self._ids[drop - 1]
        del self._ids[:drop], self._messages[:drop], self._ends[:drop]
        for frames in self._frames.values():
            del frames[:drop]

    def span(
        self, selector: Selector, encoder: Encoder, after: int, head: int, max_bytes: int, max_messages: int
    ) -> Span | None:
        """The frames after a position inside the tail, encoded and joined once for all calls with equal arguments.

        ``None`` if the selector's filter would take too long here: its messages are to be read from the log.
        """
        key = (after, selector, encoder.name, max_bytes, max_messages)
        span = self._spans.get(key)
        if span is None:
            if selector.filter:
                joined = self._join_filtered(selector, encoder, after, head, max_bytes, max_messages)
                if joined is None:
                    return None
                span = joined
            else:
                span = self._join(selector, encoder, after, head, max_bytes, max_messages)
            self._spans[key] = span
            self._span_bytes += len(span.data)
            while len(self._spans) > MAX_SPANS or (self._span_bytes > MAX_SPAN_BYTES and len(self._spans) > 1):
                self._span_bytes -= len(self._spans.popitem(last=False)[1].data)
        return span

    def _join(
        self, selector: Selector, encoder: Encoder, after: int, head: int, max_bytes: int, max_messages: int
    ) -> Span:
        frames = self._frames.get(encoder.name)
        if frames is None:
            frames = self._frames[encoder.name] = [None] * len(self._messages)
        messages = self._messages
        parts: list[bytes] = []
        total = last = 0
        channel, follows = None, False
        for index in range(bisect_right(self._ids, after), len(messages)):
            message = messages[index]
            if message.channel != channel:
                channel = message.channel
                follows = selector.matches(channel)
            if not follows:
                continue
            frame = frames[index]
            if frame is None:
                frame = frames[index] = encoder.message(message)
            total += len(frame)
            if parts and (total > max_bytes or len(parts) >= max_messages):
                # The span ends before this message; it covers every message up to there.
                return Span(b"".join(parts), message.id - 1, len(parts), last)
            parts.append(frame)
            last = message.id
        return Span(b"".join(parts), head, len(parts), last)

    def _join_filtered(
        self, selector: Selector, encoder: Encoder, after: int, head: int, max_bytes: int, max_messages: int
    ) -> Span | None:
        """As :meth:`_join`, of the next messages of the selector's channels that pass its filter."""
        frames = self._frames.get(encoder.name)
        if frames is None:
            frames = self._frames[encoder.name] = [None] * len(self._messages)
        messages = self._messages
        indexes: list[int] = []
        end = head
        channel, follows = None, False
        for index in range(bisect_right(self._ids, after), len(messages)):
            if messages[index].channel != channel:
                channel = messages[index].channel
                follows = selector.matches(channel)
            if follows:
                if len(indexes) == FILTERED_AT_ONCE:
                    end = self._ids[index] - 1
                    break
                indexes.append(index)
        verdicts = self._verdicts.of(selector.filter, [messages[index] for index in indexes])
        if verdicts is None:
            return None
        parts: list[bytes] = []
        total = last = 0
        for index, passes in zip(indexes, verdicts, strict=True):
            if not passes:
                continue
            message, frame = messages[index], frames[index]
            if frame is None:
                frame = frames[index] = encoder.message(message)
            total += len(frame)
            if parts and (total > max_bytes or len(parts) >= max_messages):
                return Span(b"".join(parts), message.id - 1, len(parts), last)
            parts.append(frame)
            last = message.id
        return Span(b"".join(parts), end, len(parts), last)
