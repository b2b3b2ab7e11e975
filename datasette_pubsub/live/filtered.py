"""What filters have decided about the newest messages: each filter is asked once about a message, for all subscribers.

Equal filters have one text, so that their subscribers share the verdicts, whichever channels each of them follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from ..core.values import Message

#: Says of each message whether it passes a filter; ``None`` if that would take too long on the event loop.
Evaluate = Callable[[str, Sequence[Message]], list[bool] | None]

#: For each filter, the verdicts of this many of the newest messages are kept: one byte for each.
KEPT_MESSAGES = 4_096

#: The verdicts of this many filters are kept: 4 MB with the messages above.
KEPT_FILTERS = 1_024


class Verdicts:
    """The verdicts of all filters. Ids have no holes in the tail, so that a verdict is found by its id."""

    def __init__(self, evaluate: Evaluate | None) -> None:
        self._evaluate = evaluate
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def clear(self) -> None:
        """Forget everything: ids may be given to other messages."""
        self._kept.clear()

    def of(self, filter: str, messages: Sequence[Message]) -> list[bool] | None:
        """Whether each of these messages passes, in the order of their ids; ``None`` as for :data:`Evaluate`."""
        if not messages:
            return []
        if self._evaluate is None:
            return None
        kept = self._kept.get(filter)
        if kept is None:
            kept = self._kept[filter] = _Kept(messages[0].id)
            if len(self._kept) > KEPT_FILTERS:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(filter)
        if messages[0].id >= kept.end:
            verdicts = self._evaluate(filter, messages)
            if verdicts is not None:
                kept.add(messages, verdicts)
            return verdicts
        found = [kept.verdict(message.id) for message in messages]
        unknown = [message for message, verdict in zip(messages, found, strict=True) if verdict is None]
        if not unknown:
            return [verdict is True for verdict in found]
        verdicts = self._evaluate(filter, unknown)
        if verdicts is None:
            return None
        kept.add(unknown, verdicts)
        new = iter(verdicts)
        return [next(new) if verdict is None else verdict for verdict in found]


class _Kept:
    """The verdicts of one filter from the id ``start`` on: 0 unknown, 1 does not pass, 2 passes."""

    __slots__ = ("start", "states")

    def __init__(self, start: int) -> None:
        self.start = start
        self.states = bytearray()

    @property
    def end(self) -> int:
        """The id after the last one with a verdict."""
        return self.start + len(self.states)

    def verdict(self, number: int) -> bool | None:
        place = number - self.start
        state = self.states[place] if 0 <= place < len(self.states) else 0
        return state == 2 if state else None

    def add(self, messages: Sequence[Message], verdicts: Sequence[bool]) -> None:
        last = messages[-1].id
        if last - self.start >= 2 * KEPT_MESSAGES:
            drop = last - KEPT_MESSAGES - self.start
            del self.states[:drop]
            self.start += drop
        missing = last - self.end + 1
        if missing == len(messages):
            # The usual case: all messages that have come since, one after the other.
            self.states.extend([2 if verdict else 1 for verdict in verdicts])
            return
        if missing > 0:
            self.states.extend(bytes(missing))
        for message, verdict in zip(messages, verdicts, strict=True):
            place = message.id - self.start
            if place >= 0:
                self.states[place] = 2 if verdict else 1
