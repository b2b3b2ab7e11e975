"""The result of a query, and the difference between two results of the same query.

A result is a list of rows in the order in which the query returned them. Each row is kept as JSON text, a list of its
values, which is also how it travels: two values that look the same to a subscriber are the same here.

A row is recognised in the next result by its *identity*: the values of its key columns or, without a key, all of its
values, and its number among rows with the same ones. So a duplicate is a row of its own, and a change of a row with a
key can be told from a removal and an insertion.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

#: What recognises a row: its key, and its number among rows with the same key.
Identity = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Result:
    """The rows of a query at one moment.

    ``rows`` are JSON texts in UTF-8, each a list with a value for each of
    ``columns``. ``keys`` has the key of each row, or is ``None`` if the query
    has no key. ``head`` is the log's newest message id at that moment, and
    ``count`` the number of all rows where ``rows`` is only a page of them.
    """

    columns: tuple[str, ...]
    rows: Sequence[bytes]
    head: int
    keys: Sequence[bytes] | None = None
    count: int | None = None

    @property
    def size(self) -> int:
        """The size of the rows, in bytes."""
        return sum(map(len, self.rows))

    def identities(self) -> list[Identity]:
        """The identity of each row; no two are equal."""
        seen: Counter[bytes] = Counter()
        found = []
        for key in self.rows if self.keys is None else self.keys:
            found.append((key, seen[key]))
            seen[key] += 1
        return found


@dataclass(frozen=True, slots=True)
class Placed:
    """A row and its place, counted from 0. ``was`` is the row before, if it has changed."""

    at: int
    row: bytes
    was: bytes | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What makes one result of the next: remove, then insert, then replace; :func:`apply` does that.

    ``removed`` has places in the old result, ``inserted`` and ``changed`` have
    places in the new one; each is in ascending order. A row that has moved is
    removed and inserted.
    """

    head: int
    removed: Sequence[Placed] = ()
    inserted: Sequence[Placed] = ()
    changed: Sequence[Placed] = ()
    count: int | None = None
    #: Whether ``count`` differs from that of the result before.
    counted: bool = field(default=False)

    def __bool__(self) -> bool:
        return bool(self.removed or self.inserted or self.changed or self.counted)


def difference(old: Result, new: Result) -> Change:
    """The change from one result to the next. Both must have the same columns.

    >>> from datasette_pubsub.core.result import Result, difference
    >>> old = Result(("id", "name"), [b'[1,"a"]', b'[2,"b"]'], 7, keys=[b"[1]", b"[2]"])
    >>> new = Result(("id", "name"), [b'[2,"B"]', b'[3,"c"]'], 8, keys=[b"[2]", b"[3]"])
    >>> change = difference(old, new)
    >>> change.removed, change.inserted
    ([Placed(at=0, row=b'[1,"a"]', was=None)], [Placed(at=1, row=b'[3,"c"]', was=None)])
    >>> change.changed
    [Placed(at=0, row=b'[2,"B"]', was=b'[2,"b"]')]
    """
    counted = old.count != new.count
    if old.rows == new.rows:
        return Change(new.head, count=new.count, counted=counted)
    places = {identity: at for at, identity in enumerate(old.identities())}
    #: The places of the rows that are in both: in the old result, and in the new one.
    both = [(places[identity], at) for at, identity in enumerate(new.identities()) if identity in places]
    stay = _longest_increasing(both)
    stay_old, stay_new = {before for before, _ in stay}, {now for _, now in stay}
    return Change(
        new.head,
        [Placed(at, row) for at, row in enumerate(old.rows) if at not in stay_old],
        [Placed(at, row) for at, row in enumerate(new.rows) if at not in stay_new],
        [Placed(now, new.rows[now], old.rows[before]) for before, now in stay if old.rows[before] != new.rows[now]],
        new.count,
        counted,
    )


def _longest_increasing(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The most pairs whose first numbers increase, in their order: the rows that need not move.

    By patience sorting, in O(n log n).
    """
    tops: list[int] = []
    at_top: list[int] = []
    previous: list[int] = []
    for number, (value, _) in enumerate(pairs):
        pile = bisect_left(tops, value)
        previous.append(at_top[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(value)
            at_top.append(number)
        else:
            tops[pile] = value
            at_top[pile] = number
    found = []
    number = at_top[-1] if at_top else -1
    while number >= 0:
        found.append(pairs[number])
        number = previous[number]
    return found[::-1]


def apply(rows: Sequence[bytes], change: Change) -> list[bytes]:
    """The rows of the next result, from those of the last one.

    >>> from datasette_pubsub.core.result import Change, Placed, apply
    >>> apply([b"[1]", b"[2]"], Change(8, removed=[Placed(0, b"[1]")], inserted=[Placed(1, b"[3]")]))
    [b'[2]', b'[3]']
    """
    gone = {placed.at for placed in change.removed}
    found = [row for at, row in enumerate(rows) if at not in gone]
    for placed in change.inserted:
        found.insert(placed.at, placed.row)
    for placed in change.changed:
        found[placed.at] = placed.row
    return found
