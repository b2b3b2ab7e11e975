"""Live matching decides exactly as SQLite's GLOB does."""

from __future__ import annotations

import sqlite3
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datasette_pubsub.core.errors import InvalidArgument
from datasette_pubsub.core.glob import glob_regex
from datasette_pubsub.core.selector import Selector

letters = st.text(alphabet="ab*?[]^-!\n.ä", max_size=8)
conn = sqlite3.connect(":memory:")


@given(letters, letters)
@example("a[]b]c", "a]c")
@example("[^]]", "]")
@example("[a-", "a")
@example("[^", "a")
@example("[]", "]")
@example("[]-b]", "a")
@example("*ab*", "aab")
def test_as_sqlite_globs(pattern: str, text: str) -> None:
    expected = conn.execute("SELECT ? GLOB ?", [text, pattern]).fetchone()[0] == 1
    assert (glob_regex(pattern).fullmatch(text) is not None) == expected


def test_a_hostile_pattern_costs_little() -> None:
    selector = Selector.of((), ["*a" * 100 + "b"])
    began = time.process_time()
    assert not selector.matches("a" * 255)
    assert time.process_time() - began < 5


def test_channels_and_patterns() -> None:
    selector = Selector.of(["x"], ["user/*"])
    assert [selector.matches(name) for name in ("x", "user/1", "user", "y")] == [True, True, False, False]
    assert Selector.of(["a", "b"], ["p", "q"]) == Selector.of(["b", "a", "a"], ["q", "p"])
    assert hash(Selector.of(["a"])) == hash(Selector.of(["a"]))
    assert Selector.of((), ["*"]).matches("anything")
    assert not Selector.of()


def test_limits_are_named() -> None:
    with pytest.raises(InvalidArgument, match=r"101 channels and patterns.*max_channels_per_stream"):
        Selector.of([str(n) for n in range(101)])
    with pytest.raises(InvalidArgument, match="pattern has 256 bytes"):
        Selector.of((), ["*" * 256])
