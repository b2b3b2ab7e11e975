"""Rates as small pictures: bars in SVG, and the same in words; ui/sparkline.js draws what arrives later.

The law of this module: numbers in, texts out. No picture without its words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..storage.activity import SPAN_SECONDS, SPANS

#: The picture's height, in its own units; each bar is one wide. As in ui/sparkline.js.
HEIGHT = 20

#: Spans that make a minute: a channel's rate is what came in the last so many.
MINUTE = 60 // SPAN_SECONDS


def drawn(counts: Sequence[int]) -> dict[str, Any]:
    """What a template needs to show the messages of each span, oldest first, as a picture and in words."""
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
    """The bars as one SVG path, the greatest as high as the picture."""
    peak = max(counts)
    bars = []
    for x, count in enumerate(counts):
        if count:
            height = max(1, round(HEIGHT * count / peak))
            bars.append(f"M{x} {HEIGHT}v-{height}h.8v{height}z")
    return "".join(bars)


def words(counts: Sequence[int]) -> str:
    """The same as a sentence."""
    total = sum(counts)
    minutes = SPANS * SPAN_SECONDS // 60
    if not total:
        return f"No messages in the last {minutes} minutes"
    noun = "message" if total == 1 else "messages"
    return f"{total:,} {noun} in the last {minutes} minutes, at most {max(counts):,} in {SPAN_SECONDS} seconds"
