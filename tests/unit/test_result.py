"""Changes between results: applied to the old result, they give the new one, for any rows, keys and duplicates."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from datasette_pubsub.core.result import Result, apply, difference
from datasette_pubsub.live_query import shares

rows = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["a", "b", None, 1.0, 1])), max_size=12)


def result(values: list[tuple[int, object]], keyed: bool, head: int, count: int | None = None) -> Result:
    texts = [json.dumps(row).encode() for row in values]
    keys = [json.dumps(row[:1]).encode() for row in values] if keyed else None
    return Result(("key", "value"), texts, head, keys, count)


@given(rows, rows, st.booleans())
def test_the_change_leads_to_the_new_result(
    old: list[tuple[int, object]], new: list[tuple[int, object]], keyed: bool
) -> None:
    before, after = result(old, keyed, 1), result(new, keyed, 2)
    change = difference(before, after)
    assert apply(before.rows, change) == list(after.rows)
    assert bool(change) == (before.rows != after.rows)
    assert change.head == 2
    # No more than all rows that are not in both: what stays is not sent.
    assert [before.rows[placed.at] for placed in change.removed] == [placed.row for placed in change.removed]
    assert [after.rows[placed.at] for placed in change.inserted] == [placed.row for placed in change.inserted]
    for placed in change.changed:
        assert placed.was != placed.row == after.rows[placed.at]


@given(st.lists(st.integers(0, 50), unique=True, max_size=20), st.data())
def test_as_few_rows_move_as_possible(numbers: list[int], data: st.DataObject) -> None:
    """Taking one row and putting it elsewhere is told as that one row."""
    if not numbers:
        return
    moved = list(numbers)
    row = moved.pop(data.draw(st.integers(0, len(moved) - 1)))
    moved.insert(data.draw(st.integers(0, len(moved))), row)
    change = difference(result([(n, "") for n in numbers], True, 1), result([(n, "") for n in moved], True, 2))
    assert len(change.removed) == len(change.inserted) == (0 if moved == numbers else 1)


def test_a_number_that_changes_its_type_is_a_change() -> None:
    change = difference(result([(1, 1)], True, 1), result([(1, 1.0)], True, 2))
    assert [placed.row for placed in change.changed] == [b"[1, 1.0]"]


def test_a_count_alone_is_a_change() -> None:
    assert difference(result([], True, 1, 5), result([], True, 2, 6))
    assert not difference(result([], True, 1, 5), result([], True, 2, 5))


@given(st.lists(st.floats(0.0001, 10), min_size=1, max_size=30), st.floats(0.05, 2))
def test_the_share_of_all_queries(durations: list[float], interval: float) -> None:
    found = shares.pauses(durations, interval)
    assert all(pause >= interval for pause in found)
    busy = sum(duration / pause for duration, pause in zip(durations, found, strict=True))
    assert busy <= shares.BUSY_SHARE * 1.0001
    # What is slower runs no more often, and a query that asks for its fair part gets what it asks for.
    ordered = sorted(zip(durations, found, strict=True))
    assert [pause for _, pause in ordered] == sorted(found)
    assert all(
        pause == interval for duration, pause in ordered if duration / interval <= shares.BUSY_SHARE / len(durations)
    )
