"""Appends the publishes of one batcher transaction to the log; each is stored whole or not at all.

The caller has begun the transaction and commits it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TypeVar

from ..core.errors import Conflict, PubsubError
from ..core.values import Item, Message
from . import log, subscriptions
from .subscriptions import Save

T = TypeVar("T")

#: The outcome of one publish: the ids of its messages, or the error that refused them all.
Outcome = Sequence[int] | PubsubError


@dataclass(frozen=True, slots=True)
class CommitResult:
    """The result of one transaction.

    ``before`` is the head before it, and ``last`` the newest of its ids (0 if
    it added no message). ``messages`` makes the new messages, and is called only
    if there are subscribers. ``outcomes`` has the outcome of each publish, and
    ``claims`` the newest claim of the file (:func:`.storage.subscriptions.claims`).
    """

    before: int
    last: int
    messages: Callable[[], list[Message]]
    outcomes: list[Outcome]
    claims: int = 0


#: The types of payloads that SQLite stores as they were checked: a subclass may have an adapter.
_EXACT = {str, bytes, int, float}

_conditions = attrgetter("key", "expected_last_id")
_payload = attrgetter("payload")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction of the batcher writes: publishes, and cursors that ``holder`` saves.

    Calling it with a connection writes it, and returns the result. The items have been checked
    (:func:`.core.validation.check_items`).
    """

    publishes: list[Sequence[Item]]
    cursors: Collection[Save]
    holder: str

    def __call__(self, conn: sqlite3.Connection) -> CommitResult:
        return self._with_cursors(conn, append(conn, self.publishes))

    def plain_items(self) -> list[Item] | None:
        """All items, if storing them depends on no other message and no adapter; else ``None``."""
        items = [item for publish in self.publishes for item in publish]
        if any(conditions != (None, None) for conditions in set(map(_conditions, items))):
            return None
        return items if set(map(type, map(_payload, items))) <= _EXACT else None

    def append_plain(self, conn: sqlite3.Connection, items: list[Item]) -> CommitResult | None:
        """Write it all, with its plain items; returns ``None`` if their ids are not known.

        The caller then rolls back. Raises ``sqlite3.Error`` if anything is refused.
        """
        if not items:
            return self(conn)
        now = log.now()
        ids = log.append_plain(conn, items, now)
        if ids is None:
            return None
        return self._with_cursors(conn, _together(ids, items, now, self.publishes))

    def _with_cursors(self, conn: sqlite3.Connection, result: CommitResult) -> CommitResult:
        if self.cursors:
            subscriptions.save(conn, self.holder, self.cursors)
        return replace(result, claims=subscriptions.claims(conn)) if result.last else result


def append(conn: sqlite3.Connection, publishes: list[Sequence[Item]]) -> CommitResult:
    """Append the items of several publishes, all together if none is refused, else one publish after the other."""
    items = [item for publish in publishes for item in publish]
    now = log.now()
    new: list[Message] = []
    if items and all(item.key is None and item.expected_last_id is None for item in items):
        ids = _attempt(conn, lambda: log.append_plain(conn, items, now))
        if ids is not None:
            return _together(ids, items, now, publishes)
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
        except (Conflict, sqlite3.IntegrityError) as error:
            if not conn.in_transaction:
                raise
            conn.execute("ROLLBACK TO pubsub_alone")
            outcomes.append(log.refusal(error, conn))
        else:
            outcomes.append(found[0])
            new.extend(found[1])
        conn.execute("RELEASE pubsub_alone")
    return CommitResult(before, new[-1].id if new else 0, lambda: new, outcomes)


def _together(ids: range, items: list[Item], now: str, publishes: list[Sequence[Item]]) -> CommitResult:
    """The result when all items were stored, under consecutive ids."""
    messages = partial(log.messages, ids, items, now)
    return CommitResult(ids.start - 1, ids[-1], messages, _split(ids, publishes))


def _attempt(conn: sqlite3.Connection, append: Callable[[], T | None]) -> T | None:
    """Call ``append``; if it returns ``None`` or a message is refused, undo it and return ``None``."""
    conn.execute("SAVEPOINT pubsub_together")
    try:
        result = append()
    except sqlite3.IntegrityError:
        if not conn.in_transaction:
            # A user's trigger has used RAISE(ROLLBACK), which undoes the whole transaction.
            raise
        result = None
    if result is None:
        conn.execute("ROLLBACK TO pubsub_together")
    conn.execute("RELEASE pubsub_together")
    return result


def _split(ids: Sequence[int], publishes: list[Sequence[Item]]) -> list[Outcome]:
    """Divide the ids of all items, in order, among the publishes."""
    outcomes: list[Outcome] = []
    start = 0
    for publish in publishes:
        outcomes.append(ids[start : start + len(publish)])
        start += len(publish)
    return outcomes
