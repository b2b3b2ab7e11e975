"""Filters in Datasette's form, as parameters of a stream."""

from __future__ import annotations

import string

import pytest
from filter_messages import MESSAGES
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_pubsub.core.errors import InvalidArgument
from datasette_pubsub.core.filters import OPERATORS, of_parameter
from datasette_pubsub.storage.filters import Filters


@pytest.mark.parametrize(
    ("name", "value", "passing"),
    [
        ("payload.level", "error", [1, 9]),
        ("payload.level__exact", "error", [1, 9]),
        ("payload.n__exact", "7", [1]),
        ("payload.n__gt", "6.5", [1]),
        ("payload.n__lte", "6", []),
        ("payload.deep.x__contains", "1", [1]),
        ("payload.level__not", "error", [2]),
        ("payload.level__in", "error,info", [1, 2, 9]),
        ("payload.level__in", '["error", "it\'s"]', [1, 9]),
        ("payload.level__notin", "error", [2]),
        ("payload.level__startswith", "ERR", [1, 9]),
        ("payload.level__endswith", "fo", [2]),
        ("payload.level__like", "_nfo", [2]),
        ("payload.level__glob", "e*", [1, 9]),
        ("payload.n__isnull", "1", [2, 5, 6, 9]),
        ("payload.n__notnull", "1", [1]),
        ("payload__contains", "json", [3]),
        ("payload__exact", "7", [5]),
        ("channel__startswith", "logs/", [1, 2]),
        ("channel__notcontains", "a", [9, 2][::-1]),
        ("key__exact", "k1", [1]),
        ("key__isblank", "", list(range(2, 11))),
        ("key__notblank", "", [1]),
        ("created_at__date", "2026-01-31", list(range(1, 11))),
        ("id__gte", "9", [9, 10]),
        ("channel__exact", "' OR 1 OR '", []),
    ],
)
def test_datasettes_form(name: str, value: str, passing: list[int]) -> None:
    filters = Filters()
    text = of_parameter(name, value)
    assert text is not None
    assert [
        each.id for each, ok in zip(MESSAGES, filters.passes(filters.check(text), MESSAGES), strict=True) if ok
    ] == (passing)


def test_datasettes_operators() -> None:
    """All of Datasette's that need no table."""
    from datasette.filters import Filters as OfDatasette

    theirs = {key for key, _, _ in OfDatasette([]).lookups()}
    assert theirs - set(OPERATORS) == {"arraycontains", "arraynotcontains"}
    assert set(OPERATORS) <= theirs


@pytest.mark.parametrize(
    "name", ["channel", "after", "payload", "level__exact", "key", "channel.a__exact", "_x__exact"]
)
def test_other_parameters(name: str) -> None:
    assert of_parameter(name, "x") is None


@pytest.mark.parametrize(
    "name", ["payload.level__nonsense", "channel__matches", 'payload.a"b__exact', "payload.__gt", "payload.a..b"]
)
def test_parameters_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        of_parameter(name, "x")
    assert caught.value.field == name


@given(
    st.text(max_size=30),
    st.sampled_from(sorted(OPERATORS)),
    st.text(string.ascii_letters + " .'€-", min_size=1, max_size=9),
)
@settings(max_examples=300, deadline=None)
def test_any_value_is_a_value(value: str, operator: str, member: str) -> None:
    try:
        text = of_parameter(f"payload.{member}__{operator}", value)
    except InvalidArgument:
        return
    assert text is not None
    Filters().check(text)
