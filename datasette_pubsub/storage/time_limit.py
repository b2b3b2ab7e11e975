"""Limits how long the statements of a connection may run."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import time
from collections.abc import Iterator

#: The interval of the checks, in steps of SQLite's virtual machine: about 2 ms.
STEPS = 20_000


@contextlib.contextmanager
def time_limit(conn: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """Within this block, a statement that still runs after ``seconds`` is interrupted.

    This is Datasette's ``sqlite_timelimit`` with a twentieth of its checks: each check needs the interpreter lock,
    which a busy event loop holds.
    """
    if seconds == math.inf:
        yield
        return
    deadline = time.monotonic() + seconds
    conn.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
    try:
        yield
    finally:
        conn.set_progress_handler(None, 0)
