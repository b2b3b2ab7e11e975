"""Which channels somebody may view or publish to: what the permission rules come to for one actor and database."""

from __future__ import annotations

from dataclasses import dataclass

from .glob import glob_regex


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
