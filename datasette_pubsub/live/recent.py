"""Answers that still hold a moment after they were given.

The law of this module: what is kept is bounded in number, and says when it was
asked for; who takes an answer says how old it may be. Event loop only.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any

#: How many answers are kept at most; then they are forgotten, and asked for again.
MOST = 1_000


class Recent:
    """Answers by a key that says all that they depend on."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[float, Any]] = {}

    def get(self, key: Hashable, seconds: float) -> Any:
        """The answer, if it was asked for within so many seconds, else ``None``."""
        found = self._answers.get(key)
        return found[1] if found is not None and time.monotonic() - found[0] < seconds else None

    def put(self, key: Hashable, asked: float, answer: Any) -> None:
        """Keep an answer. ``asked`` is when its question was asked, on :func:`time.monotonic`'s clock."""
        if len(self._answers) >= MOST:
            self._answers.clear()
        self._answers[key] = (asked, answer)
