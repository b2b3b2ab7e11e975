"""Compiles GLOB patterns (``*``, ``?``, ``[a-z]``, ``[^a-z]``, case-sensitive) into regular expressions.

They match exactly as SQLite's GLOB does: live delivery matches in Python, catch-up matches in SQL, and the two must
not differ.
"""

from __future__ import annotations

import re
from functools import lru_cache


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
    # The first place where a middle piece matches is always good enough, so each piece is an atomic group: without
    # backtracking, a hostile pattern costs linear time.
    middle = "".join(f"(?>.*?{piece})" for piece in pieces[1:-1] if piece)
    return re.compile(f"{pieces[0]}{middle}.*{pieces[-1]}", re.DOTALL)


def _character_class(pattern: str, i: int) -> tuple[str, int]:
    """Translate the part after ``[``; a class that never closes matches nothing, as in SQLite."""
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
