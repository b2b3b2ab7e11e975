"""Shares the time for live queries among the queries of a database.

All runs together take at most ``BUSY_SHARE`` of one thread. A query that asks for little gets what it asks for; those
that ask for more than their fair part share what is left (max-min fairness). So a slow query runs less often, and
slows down no other.
"""

from __future__ import annotations

from collections.abc import Sequence

#: The part of one thread that the runs of all live queries of a database may take: a quarter, as half of what one of
#: Datasette's SQL threads can do should be left to pages even if two databases are busy.
BUSY_SHARE = 0.25


def pauses(durations: Sequence[float], interval: float, share: float = BUSY_SHARE) -> list[float]:
    """For each query, the seconds from the start of one run to the start of the next.

    ``durations`` are the lengths of the queries' runs, ``interval`` is the
    shortest pause, all in seconds.

    >>> pauses([0.01, 0.01], 0.5)  # two queries of 10 ms take 4 % together
    [0.5, 0.5]
    >>> pauses([0.01, 2.0], 0.5)  # 2 % for the first, 23 % for the second
    [0.5, 8.695652173913043]
    """
    left, queries = share, len(durations)
    found = [interval] * queries
    for number in sorted(range(queries), key=durations.__getitem__):
        fair = left / queries
        wanted = durations[number] / interval
        given = min(wanted, fair)
        if wanted > fair:
            found[number] = durations[number] / fair
        left -= given
        queries -= 1
    return found
