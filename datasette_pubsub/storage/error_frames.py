"""Frees what the frames of an error hold, in the thread whose connection it is.

An error keeps the local variables of all functions that it has left, cursors among them, and mostly travels to another
thread. The thread that drops it there frees the cursors: it waits until the statement that then runs on their
connection has ended, and resets the connection's error code, so that Python's ``sqlite3`` takes an error of that
statement for a success.
"""

from __future__ import annotations

import traceback


def clear_frames(error: BaseException) -> None:
    """Drop the local variables of the frames that this error and those before it have left; line numbers stay."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            left += (each.__cause__, each.__context__)
