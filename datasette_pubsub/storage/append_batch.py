"""What one transaction of the batcher appends: publishes, of which each is all or none by itself.

The law of this module: plain functions of a connection, inside the caller's
transaction. It knows no queue, no threads and no event loop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..core.errors import PubsubError
from ..core.values import Item, Message
from . import log

T = TypeVar("T")

#: What became of one publish: the ids of its messages, or why none of them is stored.
Outcome = Sequence[int] | PubsubError


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What one transaction wrote.

    The head before it, the newest of its ids (0 when it added no message), a
    function that makes its new messages, for when somebody wants them, what
    became of each publish, and the newest claim of a subscription that was
    committed before (:func:`.storage.subscriptions.claims`).
    """

    before: int
    last: int
    messages: Callable[[], list[Message]]
    outcomes: list[Outcome]
    claims: int = 0


def append(conn: sqlite3.Connection, publishes: list[Sequence[Item]]) -> CommitResult:
    """Append the items of several publishes, together if nothing is refused, else each by itself."""
    items = [item for publish in publishes for item in publish]
    now = log.now()
    new: list[Message] = []
    if items and all(item.key is None and item.expected_last_id is None for item in items):
        ids = _attempt(conn, lambda: log.append_plain(conn, items, now))
        if ids is not None:
            messages = partial(log.messages, ids, items, now)
            return CommitResult(ids.start - 1, ids[-1], messages, _split(ids, publishes))
    before = log.head(conn) if items else 0
    if items and all(item.expected_last_id is None for item in items):
        found = _attempt(conn, lambda: log.append(conn, items, now))
        if found is not None:
            outcomes = _split(found[0], publishes)
            new = found[1]
            return CommitResult(before, new[-1].id if new else 0, lambda: new, outcomes)
    outcomes = []
    for publish in publishes:
        conn.execute("SAVEPOINT pubsub_alone")
        try:
            found = log.append(conn, publish, log.now())
        except (PubsubError, sqlite3.IntegrityError) as error:
            if not conn.in_transaction:
                raise
            conn.execute("ROLLBACK TO pubsub_alone")
            outcomes.append(error if isinstance(error, PubsubError) else log.refusal(error))
        else:
            outcomes.append(found[0])
            new.extend(found[1])
        conn.execute("RELEASE pubsub_alone")
    return CommitResult(before, new[-1].id if new else 0, lambda: new, outcomes)


def _attempt(conn: sqlite3.Connection, append: Callable[[], T | None]) -> T | None:
    """What ``append`` returns; ``None``, and nothing appended, when that is ``None`` or a message is refused."""
    conn.execute("SAVEPOINT pubsub_together")
    try:
        result = append()
    except sqlite3.IntegrityError:
        if not conn.in_transaction:
            # An owner's trigger said RAISE(ROLLBACK), which undoes all that was to be written with it.
            raise
        result = None
    if result is None:
        conn.execute("ROLLBACK TO pubsub_together")
    conn.execute("RELEASE pubsub_together")
    return result


def _split(ids: Sequence[int], publishes: list[Sequence[Item]]) -> list[Outcome]:
    """The ids of each publish, of the ids of all their items in order."""
    outcomes: list[Outcome] = []
    start = 0
    for publish in publishes:
        outcomes.append(ids[start : start + len(publish)])
        start += len(publish)
    return outcomes
