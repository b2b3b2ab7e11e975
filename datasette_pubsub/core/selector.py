"""Which channels a subscriber follows: exact names and GLOB patterns.

A selector decides by the channel's name alone, and always as SQLite's GLOB would.
"""

from __future__ import annotations

from .errors import InvalidArgument
from .glob import glob_regex
from .validation import check_channel
from .verdicts import ALL, Verdicts

#: Channel names whose verdict one pattern selector remembers; beyond that it
#: starts over. 10,000 short names are about 1 MB.
MAX_REMEMBERED = 10_000


class Selector:
    """A set of channels and patterns; equal selectors compare and hash equal."""

    __slots__ = ("__weakref__", "_hash", "_key", "_known", "_regexes", "channels", "everything", "patterns", "verdicts")

    def __init__(
        self,
        channels: frozenset[str] = frozenset(),
        patterns: tuple[str, ...] = (),
        verdicts: Verdicts = ALL,
    ) -> None:
        self.channels = channels
        self.patterns = patterns
        #: Of the channels that match a pattern, only those that are allowed count.
        self.verdicts = verdicts
        self.everything = "*" in patterns and verdicts.everything
        self._regexes = [glob_regex(pattern).fullmatch for pattern in patterns]
        self._known: dict[str, bool] = {}
        # Every send to a subscriber looks up what it shares with its equals.
        self._key = (channels, patterns, verdicts)
        self._hash = hash(self._key)

    @classmethod
    def of(
        cls, channels: list[str] | tuple[str, ...] = (), patterns: list[str] | tuple[str, ...] = (), limit: int = 100
    ) -> Selector:
        """A checked selector. Raises :class:`InvalidArgument` naming the field."""
        for channel in channels:
            check_channel(channel)
        for pattern in patterns:
            check_channel(pattern, "pattern")
        unique = tuple(sorted(set(patterns)))
        if len(set(channels)) + len(unique) > limit:
            raise InvalidArgument(
                f"{len(set(channels)) + len(unique)} channels and patterns on one stream; "
                f"the limit is {limit} (max_channels_per_stream)"
            )
        return cls(frozenset(channels), unique)

    def __bool__(self) -> bool:
        return bool(self.channels or self.patterns)

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
        return f"Selector(channels={sorted(self.channels)}, patterns={list(self.patterns)})"
