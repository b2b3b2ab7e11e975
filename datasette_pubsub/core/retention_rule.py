"""A retention rule: which messages stay in the log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A retention rule: keep messages younger than ``days``, the newest ``messages``, the newest ``bytes`` of payload.

    0 and ``None`` set no limit; a message is trimmed when it exceeds any limit.
    In a rule for channels, ``days`` of ``None`` applies the log's own ``days``,
    and 0 keeps messages of any age.
    """

    days: float | None = None
    messages: int | None = None
    bytes: int | None = None
