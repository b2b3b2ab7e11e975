"""Which channels a subscriber follows: exact names and GLOB patterns.

The law of this module: a selector decides by the channel's name alone, and
always as SQLite's GLOB would (case-sensitive, ``*``, ``?``, ``[a-z]``,
``[^a-z]``), so that live matching and catch-up in SQL cannot differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .errors import InvalidArgument
from .values import check_channel

#: Channel names whose verdict one pattern selector remembers; beyond that it
#: starts over. 10,000 short names are about 1 MB.
MAX_REMEMBERED = 10_000


@lru_cache(maxsize=1024)
def glob_regex(pattern: str) -> re.Pattern[str]:
    """Compile a GLOB pattern, as https://sqlite.org/lang_expr.html#glob defines it."""
    segments: list[list[str]] = [[]]
    i, n = 0, len(pattern)
    while i < n:
        char = pattern[i]
        i += 1
        if char == "*":
            segments.append([])
        elif char == "?":
            segments[-1].append(".")
        elif char == "[":
            piece, i = _character_class(pattern, i)
            segments[-1].append(piece)
        else:
            segments[-1].append(re.escape(char))
    pieces = ["".join(segment) for segment in segments]
    if len(pieces) == 1:
        return re.compile(pieces[0], re.DOTALL)
    # The first place where a middle piece fits is always good enough, so each is
    # atomic: without backtracking into it, a hostile pattern costs linear time.
    middle = "".join(f"(?>.*?{piece})" for piece in pieces[1:-1] if piece)
    return re.compile(f"{pieces[0]}{middle}.*{pieces[-1]}", re.DOTALL)


def _character_class(pattern: str, i: int) -> tuple[str, int]:
    """Translate what follows ``[``; a class that never closes matches nothing, as in SQLite."""
    n = len(pattern)
    negated = i < n and pattern[i] == "^"
    if negated:
        i += 1
    ranges: list[str] = []
    if i < n and pattern[i] == "]":
        ranges.append(re.escape("]"))
        i += 1
    previous: str | None = None
    while i < n and pattern[i] != "]":
        char = pattern[i]
        if char == "-" and previous is not None and i + 1 < n and pattern[i + 1] != "]":
            end = pattern[i + 1]
            if previous <= end:
                ranges.append(f"{re.escape(previous)}-{re.escape(end)}")
            previous = None
            i += 2
        else:
            ranges.append(re.escape(char))
            previous = char
            i += 1
    if i >= n:
        return "(?!)", n
    body = "".join(ranges)
    if not body:
        return ("." if negated else "(?!)"), i + 1
    return f"[{'^' if negated else ''}{body}]", i + 1


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Which channels a reader may have: by name, by pattern (the first that matches), and in general."""

    general: bool = True
    named: frozenset[tuple[str, bool]] = frozenset()
    patterns: tuple[tuple[str, bool], ...] = ()

    def allows(self, channel: str) -> bool:
        """Whether this channel is allowed, also if no such channel exists yet."""
        if (channel, False) in self.named:
            return False
        if (channel, True) in self.named:
            return True
        for pattern, allowed in self.patterns:
            if glob_regex(pattern).fullmatch(channel):
                return allowed
        return self.general

    @property
    def everything(self) -> bool:
        """Whether no channel can be denied."""
        return self.general and all(ok for _, ok in self.named) and all(ok for _, ok in self.patterns)

    @property
    def nothing(self) -> bool:
        """Whether no channel can be allowed."""
        if any(ok for _, ok in self.named) or any(ok for _, ok in self.patterns):
            return False
        return not self.general or any(pattern == "*" for pattern, _ in self.patterns)


ALL = Verdicts()


@dataclass(frozen=True, slots=True)
class Rights:
    """What a publisher may do: to which channels it publishes, and of which it may learn anything."""

    publish: Verdicts
    view: Verdicts


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
