"""Selectors: the channels that a subscriber follows, as exact names and GLOB patterns, and its filter.

A selector decides by the channel's name alone, exactly as SQLite's GLOB would. It carries the filter, which
:mod:`.storage.filters` evaluates: subscribers with equal selectors share what was decided for one of them.
"""

from __future__ import annotations

from .errors import InvalidArgument
from .glob import glob_regex
from .validation import check_channel
from .verdicts import ALL, Verdicts

#: A selector with patterns caches its verdict for this many channel names, then clears the cache. 10,000 short names
#: take about 1 MB.
MAX_REMEMBERED = 10_000


class Selector:
    """A set of channels and patterns, and a filter (empty: none); equal selectors compare and hash equal.

    >>> from datasette_pubsub.core.selector import Selector
    >>> selector = Selector.of(["news"], ["orders.*"])
    >>> selector.matches("news"), selector.matches("orders.eu"), selector.matches("News")
    (True, True, False)
    >>> selector == Selector.of(patterns=["orders.*"], channels=["news"])
    True
    """

    __slots__ = (
        "__weakref__",
        "_hash",
        "_key",
        "_known",
        "_regexes",
        "channels",
        "everything",
        "filter",
        "patterns",
        "verdicts",
    )

    def __init__(
        self,
        channels: frozenset[str] = frozenset(),
        patterns: tuple[str, ...] = (),
        verdicts: Verdicts = ALL,
        filter: str = "",
    ) -> None:
        self.channels = channels
        self.patterns = patterns
        #: A channel that matches a pattern counts only if this allows it.
        self.verdicts = verdicts
        self.filter = filter
        self.everything = "*" in patterns and verdicts.everything
        self._regexes = [glob_regex(pattern).fullmatch for pattern in patterns]
        self._known: dict[str, bool] = {}
        # Every send looks up the frames that subscribers with equal selectors share, so the hash is kept.
        self._key = (channels, patterns, verdicts, filter)
        self._hash = hash(self._key)

    @classmethod
    def of(
        cls,
        channels: list[str] | tuple[str, ...] = (),
        patterns: list[str] | tuple[str, ...] = (),
        limit: int = 100,
        filter: str = "",
    ) -> Selector:
        """A selector whose names have been checked. Raises :class:`InvalidArgument`, which names the field."""
        for channel in channels:
            check_channel(channel)
        for pattern in patterns:
            check_channel(pattern, "pattern")
        unique = tuple(sorted(set(patterns)))
        if len(set(channels)) + len(unique) > limit:
            raise InvalidArgument(
                f"{len(set(channels)) + len(unique)} channels and patterns on one stream; "
                f"the limit is {limit} (max_channels_per_stream)",
                limit="max_channels_per_stream",
            )
        return cls(frozenset(channels), unique, filter=filter)

    def __bool__(self) -> bool:
        """Whether it names a channel or a pattern."""
        return bool(self.channels or self.patterns)

    def over(self, stored: Selector) -> Selector:
        """What a subscription reads whose stored selector is asked for anew with this one.

        Naming channels or patterns replaces all of it, and a filter alone the filter.
        """
        if self:
            return self
        return Selector(stored.channels, stored.patterns, stored.verdicts, self.filter) if self.filter else stored

    def matches(self, channel: str) -> bool:
        """Whether the subscriber follows this channel."""
        if self.everything or channel in self.channels:
            return True
        if not self.patterns:
            return False
        known = self._known.get(channel)
        if known is None:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            known = self._known[channel] = self.verdicts.allows(channel) and any(
                match(channel) for match in self._regexes
            )
        return known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Selector(channels={sorted(self.channels)}, patterns={list(self.patterns)}, filter={self.filter!r})"
