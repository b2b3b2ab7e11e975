"""Permission verdicts: the channels of one database that one actor may view or publish to."""

from __future__ import annotations

from dataclasses import dataclass

from .glob import glob_regex


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The channels that an actor is allowed: by name, then by the first pattern that matches, then in general."""

    general: bool = True
    named: frozenset[tuple[str, bool]] = frozenset()
    patterns: tuple[tuple[str, bool], ...] = ()

    def allows(self, channel: str) -> bool:
        """Whether this channel is allowed; the channel need not exist yet."""
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
        """Whether every channel is allowed."""
        return self.general and all(ok for _, ok in self.named) and all(ok for _, ok in self.patterns)

    @property
    def nothing(self) -> bool:
        """Whether no channel is allowed."""
        if any(ok for _, ok in self.named) or any(ok for _, ok in self.patterns):
            return False
        return not self.general or any(pattern == "*" for pattern, _ in self.patterns)


ALL = Verdicts()


@dataclass(frozen=True, slots=True)
class Rights:
    """The permissions of a publisher: the channels that it may publish to, and those that it may view."""

    publish: Verdicts
    view: Verdicts
