"""The streams that a log takes messages from: the rows of ``_pubsub_sources``.

A log that *follows* a stream is a copy of another log, under the same ids; the room :mod:`.relay` writes it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from ..core.errors import FailedPrecondition
from .objects import SOURCES
from .sqlite_codes import has_table


@dataclass(frozen=True, slots=True)
class Followed:
    """The stream that a log follows, and the log that the stream was made from.

    ``newest`` is the newest id that the stream had at ``heard_at``. ``instance_id`` is the origin's, and ``publish_at``
    is where publishers of the origin's log are to go, if they were told.
    """

    stream: str
    newest: int
    heard_at: str
    instance_id: str | None
    publish_at: str | None

    @property
    def refusal(self) -> str:
        """What a publisher is told who publishes to the copy."""
        where = f"publish at {self.publish_at}" if self.publish_at else "publish to the log that it copies"
        return f"this log follows the stream {self.stream}: {where}"

    def behind(self, head: int) -> int:
        """How many ids a copy with this head is behind the stream, as far as it has heard."""
        return max(0, self.newest - head)

    def as_json(self, head: int) -> dict[str, Any]:
        """``follows`` in lists, for a copy with this head."""
        return {
            "stream": self.stream,
            "behind": self.behind(head),
            "heard_at": self.heard_at,
            "publish_at": self.publish_at,
        }


def followed(conn: sqlite3.Connection) -> Followed | None:
    """The stream that this log follows; ``None`` for an ordinary log."""
    try:
        sql = f"SELECT stream, newest, heard_at, instance_id, publish_at FROM {SOURCES} WHERE kind = 'follow'"
        row = conn.execute(sql).fetchone()
    except sqlite3.OperationalError:
        # A file of an earlier version, or without a log. The check comes only after the error.
        if has_table(conn, SOURCES):
            raise
        return None
    return Followed(*row) if row else None


def origin(conn: sqlite3.Connection) -> tuple[str, str | None] | None:
    """What this log is a copy of: the stream, and the log that it was made from; ``None`` for an ordinary log."""
    found = followed(conn)
    return None if found is None else (found.stream, found.instance_id)


def check_own(conn: sqlite3.Connection) -> None:
    """Raise :class:`FailedPrecondition`, which says where to publish, if this log follows a stream.

    A publisher's way asks only after the log has refused its messages.
    """
    found = followed(conn)
    if found is not None:
        raise FailedPrecondition(found.refusal)
