"""Sparklines: the rate of a channel as SVG bars, always with the same information as text.

``ui/sparkline.js`` draws the messages that arrive later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..storage.activity import SPAN_SECONDS, SPANS

#: The height of the SVG, in its own units; each bar is one unit wide. ui/sparkline.js has the same constant.
HEIGHT = 20

#: The number of spans in a minute; a channel's rate counts the messages in as many.
MINUTE = 60 // SPAN_SECONDS


def drawn(counts: Sequence[int]) -> dict[str, Any]:
    """The template context for the message counts of each span, oldest first, as SVG and as text."""
    return {
        "counts": ",".join(map(str, counts)),
        "path": path(counts),
        "words": words(counts),
        "per_minute": sum(counts[-MINUTE:]),
        "peak": max(counts),
        "width": SPANS,
        "height": HEIGHT,
    }


def path(counts: Sequence[int]) -> str:
    """The bars as one SVG path; the highest has the full height."""
    peak = max(counts)
    bars = []
    for x, count in enumerate(counts):
        if count:
            height = max(1, round(HEIGHT * count / peak))
            bars.append(f"M{x} {HEIGHT}v-{height}h.8v{height}z")
    return "".join(bars)


def words(counts: Sequence[int]) -> str:
    """The same information as a sentence."""
    total = sum(counts)
    minutes = SPANS * SPAN_SECONDS // 60
    if not total:
        return f"No messages in the last {minutes} minutes"
    noun = "message" if total == 1 else "messages"
    return f"{total:,} {noun} in the last {minutes} minutes, at most {max(counts):,} in {SPAN_SECONDS} seconds"
