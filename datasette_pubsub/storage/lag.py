"""The lags of subscriptions, with and without filters: how many messages after a cursor pass; bounded for a list."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from ..core.selector import Selector
from ..core.verdicts import Verdicts
from . import log, subscriptions
from .catchup import Reader
from .filters import Filters
from .log import LAG_MESSAGES, LagBudget
from .schema import installed
from .subscriptions import Subscription

#: The most bytes of payload that the lags of one list read for filters: about a tenth of a second's work.
LAG_BYTES = 16 * 1024 * 1024

#: The most bytes of payload of one page.
PAGE_BYTES = 1024 * 1024

#: The longest time for the filters of one list, in seconds.
LAG_SECONDS = 1.0


@dataclass(slots=True)
class Lags:
    """Counts the lags of one list; see :class:`.storage.log.LagBudget`. A filter has budgets of its own.

    For a filter, at most ``LAG_MESSAGES`` messages after the cursor are read, as for patterns.
    """

    filters: Filters
    plain: LagBudget = field(default_factory=LagBudget)
    messages: int = 20 * LAG_MESSAGES
    bytes: int = LAG_BYTES
    seconds: float = LAG_SECONDS

    def lag(self, conn: sqlite3.Connection, selector: Selector, after: int) -> tuple[int, bool]:
        """How many of the selector's messages the log has after an id, and whether there may be more."""
        if not selector.filter:
            return self.plain.lag(conn, selector, after)
        reader = Reader(selector, keys=True)
        most = min(LAG_MESSAGES, self.messages)
        found = looked_at = 0
        top = log.head(conn)
        while after < top:
            if looked_at >= most or self.bytes <= 0 or self.seconds <= 0:
                return found, True
            page = reader.page(conn, after, min(PAGE_BYTES, self.bytes))
            messages = page.messages[: most - looked_at]
            verdicts, seconds = self.filters.timed(selector.filter, messages, self.seconds)
            found += sum(verdicts)
            looked_at += len(verdicts)
            self.messages -= len(verdicts)
            self.bytes -= sum(message.size for message in messages)
            self.seconds -= seconds
            if len(verdicts) < len(page.messages):
                return found, True
            after = page.position
        return found, False


def lags(
    conn: sqlite3.Connection, filters: Filters, owner: str | None, verdicts: Verdicts
) -> list[tuple[Subscription, tuple[int, bool]]]:
    """The subscriptions of one owner, or of all (``None``), each with its lag in the channels that may be seen."""
    if not installed(conn):
        return []
    budget = Lags(filters)
    own = subscriptions.everyone(conn) if owner is None else subscriptions.of_owner(conn, owner)
    return [(found, budget.lag(conn, _allowed(found.selector, verdicts), found.cursor)) for found in own]


def _allowed(selector: Selector, verdicts: Verdicts) -> Selector:
    channels = frozenset(filter(verdicts.allows, selector.channels))
    return Selector(channels, selector.patterns, verdicts, selector.filter)


def exact(conn: sqlite3.Connection, selector: Selector, after: int, filters: Filters) -> int:
    """How many of the selector's messages the log has after an id, however long that takes."""
    if not selector.filter:
        return log.count_after(conn, selector, after)
    reader = Reader(selector, keys=True)
    found = 0
    top = log.head(conn)
    while after < top:
        page = reader.page(conn, after, PAGE_BYTES)
        verdicts = filters.passes(selector.filter, page.messages) if page.messages else []
        found += sum(verdicts)
        after = page.position if len(verdicts) == len(page.messages) else page.messages[len(verdicts)].id - 1
    return found
