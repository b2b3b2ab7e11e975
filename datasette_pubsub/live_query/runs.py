"""One run of a live query on a connection: nothing at all if the file tells that its tables have not changed."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from ..broadcast import tables
from ..broadcast.definition import OPERATIONS
from ..core.result import Change, Result
from ..storage import log, query
from ..storage.objects import LOG
from ..storage.query import Limits, Question, Reads
from .query import Schema, Told, compared

#: If more messages than this are new, they are not searched for those of the query's tables: the query runs.
SEARCH_MESSAGES = 10_000


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run has found. ``result`` is ``None`` if the query did not need to run."""

    result: Result | None
    change: Change | None
    schema: Schema


def run(conn: sqlite3.Connection, question: Question, limits: Limits, last: Result | None, known: Schema | None) -> Ran:
    """Run a query in a read transaction of its own, and compare its result with the last one.

    ``known`` is what the last run has found out. Raises :class:`~.core.errors.PubsubError`.
    """
    conn.execute("BEGIN")
    try:
        version = int(conn.execute("PRAGMA schema_version").fetchone()[0])
        if known is not None and known.version == version:
            if last is not None and known.told is not None and _untouched(conn, known.told, last.head):
                return Ran(None, None, known)
        else:
            reads = query.reads(conn, question)
            known = Schema(version, reads, None if reads.of_broker else _told(conn, reads))
        result = query.run(conn, question, limits)
    finally:
        conn.execute("ROLLBACK")
    return Ran(result, compared(last, result), known)


def _told(conn: sqlite3.Connection, reads: Reads) -> Told | None:
    """Where the tables publish their changes, if each of them publishes every one."""
    channels: list[str] = []
    patterns: list[str] = []
    for name in reads.tables:
        if name.startswith("sqlite_"):
            return None
        found = tables.find(conn, name)
        if found is None and _is_view(conn, name):
            # A view is read through its tables, which are among those that are read.
            continue
        if found is None or found.broadcast is None or found.problems:
            return None
        broadcast = found.broadcast
        if broadcast.columns is not None or broadcast.conditions != dict.fromkeys(OPERATIONS, ""):
            return None
        own, continued = broadcast.follows()
        channels += own
        patterns += continued
    return Told(tuple(channels), tuple(patterns)) if channels or patterns else None


def _untouched(conn: sqlite3.Connection, told: Told, before: int) -> bool:
    """Whether nothing was published to the tables' channels since this id, and none of the later messages is gone."""
    new = log.head(conn) - before
    if not 0 <= new <= SEARCH_MESSAGES:
        return False
    # The plus keeps SQLite from looking for the channels in the whole log.
    tests = ["+channel = ?"] * len(told.channels) + ["+channel GLOB ?"] * len(told.patterns)
    kept, touched = conn.execute(
        f"SELECT count(*), coalesce(sum({' OR '.join(tests)}), 0) FROM {LOG} WHERE id > ?",
        [*told.channels, *told.patterns, before],
    ).fetchone()
    return bool(kept == new and not touched)


def _is_view(conn: sqlite3.Connection, name: str) -> bool:
    found = conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'view' AND name = ? COLLATE NOCASE", [name])
    return found.fetchone() is not None
