"""Filters: what is refused, what passes, that a failure is one message's, and that hostile ones stay small."""

from __future__ import annotations

import json
import sqlite3
import string
import time
from collections.abc import Callable
from typing import Any

import pytest
from filter_messages import MESSAGES, TIME, message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasette_pubsub.core.errors import InvalidArgument
from datasette_pubsub.core.filters import normalised, together
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.values import Payload
from datasette_pubsub.live.filtered import KEPT_MESSAGES, Verdicts
from datasette_pubsub.storage import filter_engine
from datasette_pubsub.storage import filters as module
from datasette_pubsub.storage.filter_engine import CHUNK_MESSAGES, FUNCTIONS, MAX_FILTERED_BYTES
from datasette_pubsub.storage.filters import Filters

#: Filters that are refused, and a word of the error that says why.
REFUSED = [
    ("", "empty"),
    ("(", "brackets"),
    ("1) OR (1", "brackets"),
    ("1) FROM message, message AS other WHERE (1", "brackets"),
    ("1; DELETE FROM message", ";"),
    ("1 -- comment", "comments"),
    ("1 /* comment */", "comments"),
    ("channel = 'open", "closed"),
    ("channel = ?", "parameters"),
    ("channel = :name", "parameters"),
    ("channel = @name", "parameters"),
    ("channel = $name", "parameters"),
    ("channel =", "syntax"),
    ("1 2", "syntax"),
    ("1, 2", "row value"),
    ("1 UNION SELECT 2", "SELECT"),
    ("nothing = 1", "nothing"),
    ("n = 1", "n is not a column"),
    ("rowid = 1", "not a column"),
    ("(SELECT 1)", "SELECT"),
    ("channel IN (SELECT name FROM sqlite_master)", "SELECT"),
    ("channel IN (VALUES (1))", "VALUES"),
    ("EXISTS (SELECT 1 FROM vpubsub)", "SELECT"),
    ("id IN vpubsub", "vpubsub"),
    ("id IN message", "not a column"),
    ("id IN sqlite_master", "no table"),
    ("(WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c)", "WITH"),
    ("id IN (SELECT value FROM json_each(payload))", "SELECT"),
    ("count(*) > 1", "count"),
    ("sum(id) > 1", "sum"),
    ("max(id) > 1", "max"),
    ("group_concat(id) > 1", "group_concat"),
    ("count(*) OVER () > 1", "count"),
    ("random() > 0", "random"),
    ("length(randomblob(1000000000)) > 1", "randomblob"),
    ("length(zeroblob(1000000000)) > 1", "zeroblob"),
    ("printf('%1000000000d', 1) > 1", "printf"),
    ("replace(payload, 'a', payload) > 1", "replace"),
    ("load_extension('x')", "load_extension"),
    ("readfile('/etc/passwd') > ''", "readfile"),
    ("current_timestamp > ''", "current_timestamp"),
    ("payload REGEXP 'a'", "REGEXP"),
    ("payload MATCH 'a'", "match"),
    ("RAISE(ABORT, 'x')", "RAISE"),
    ("json_extract(payload, '$.a', '$.b')", "one path"),
    ("channel = 'a\0b'", "NUL"),
    ("channel = '\ud800'", "surrogate"),
    # From SQLite 3.53 on, so many brackets are allowed, but not such a depth.
    ("+".join(["1"] * 1200), ""),
]


@pytest.fixture(autouse=True)
def a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message may take longer than the event loop has for it; what is too much is counted in steps, too."""
    monkeypatch.setattr("datasette_pubsub.storage.filters.NOW_SECONDS", 60)


@pytest.mark.parametrize(("text", "why"), REFUSED)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Filters().check(text)
    assert caught.value.field == "filter"
    assert caught.value.message.startswith("filter: ")
    assert why.lower() in caught.value.message.lower()


def test_what_is_too_long_names_the_limit() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Filters().check("channel = 'ä'", 13)
    assert (caught.value.field, caught.value.limit) == ("filter", "max_filter_bytes")
    assert "14 bytes" in caught.value.message
    Filters().check("channel = 'ä'", 14)


def test_a_refused_filter_stays_refused() -> None:
    """Python keeps compiled statements: a second check must not take one that was never asked about."""
    filters = Filters()
    for _ in range(3):
        with pytest.raises(InvalidArgument):
            filters.check("random() > 0")
        filters.check("payload LIKE '%a%'")
        assert filters.now("random() > 0", [message(1)]) == [False]
    (engine,) = filters._free
    assert engine.check("payload LIKE '%a%'") == engine.check("payload LIKE '%a%'")
    assert engine.check("payload LIKE '%a%'").payload


@pytest.mark.parametrize("function", sorted(FUNCTIONS - {"->", "->>", "like", "glob"}))
def test_every_function_that_is_named_exists(function: str) -> None:
    arguments = {"coalesce": 2, "ifnull": 2, "iif": 3, "instr": 2, "json_extract": 2, "nullif": 2, "substr": 2}
    arguments["substring"] = 2
    Filters().check(f"{function}({', '.join(['payload'] * arguments.get(function, 1))}) IS NULL")


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("payload ->> '$.level' = 'error'", [1, 9]),
        ("payload ->> 'level' = 'error' AND channel GLOB 'logs/*'", [1]),
        ("channel GLOB 'logs/*'", [1, 2]),
        ("channel = 'a' OR payload ->> '$.level' = 'info'", [2, 3, 4, 5, 6, 7, 8, 10]),
        ("key IS NOT NULL", [1]),
        ("id > 8", [9, 10]),
        (f"created_at = '{TIME}'", list(range(1, 11))),
        ("date(created_at) = '2026-02-01'", []),
        ("typeof(payload) = 'blob'", [4]),
        ("payload = x'00ff'", [4]),
        ("payload = 7", [5]),
        ("payload = '7'", []),
        ("payload > 7 AND typeof(payload) = 'real'", [6]),
        ("NOT json_valid(payload)", [3, 4, 7, 8, 10]),
        ("payload ->> '$.level' IS NULL", [5, 6]),
        ("NULL", []),
        ("'text'", []),
        ("1", list(range(1, 11))),
        ("instr(payload, 'B') = 3", [10]),
        ("trim(payload, 'not ') = 'js' AND ltrim(payload, 'n') = 'ot json'", [3]),
        ("rtrim(payload, 'no') = 'not js'", [3]),
        ("abs(-9223372036854775808)", []),
        ("iif(json_valid(payload), payload ->> '$.deep.x[1]', 0) = 2", [1]),
        ('"payload" ->> "$.level" = \'error\'', [1, 9]),
    ],
)
def test_what_passes(text: str, passing: list[int]) -> None:
    filters = Filters()
    text = filters.check(text)
    wanted = [each.id in passing for each in MESSAGES]
    assert filters.now(text, MESSAGES) == wanted
    assert filters.passes(text, MESSAGES) == wanted
    # One by one, and all again: nothing is left of a message that was loaded before.
    assert [filters.now(text, [each]) for each in MESSAGES] == [[each] for each in wanted]
    assert filters.now(text, MESSAGES[::-1]) == wanted[::-1]


def test_chunks_follow_each_other() -> None:
    filters = Filters()
    many = [message(number, json.dumps({"n": number})) for number in range(1, 3 * CHUNK_MESSAGES + 9)]
    many[CHUNK_MESSAGES + 5] = message(CHUNK_MESSAGES + 6, "not json")
    wanted = [each.id % 3 == 0 and each.payload != "not json" for each in many]
    assert filters.passes("payload ->> '$.n' % 3 = 0", many) == wanted


def test_equal_filters_have_one_text() -> None:
    assert normalised("  a\n=\t'x  y' ") == normalised("a = 'x  y'") == "a = 'x  y'"
    selectors = [Selector.of(["a"], filter=normalised(text)) for text in ("id  > 1", "id > 1", "id > 2")]
    assert selectors[0] == selectors[1] != selectors[2] != Selector.of(["a"])
    assert len(set(selectors)) == 2
    assert together(["id > 1"]) == "id > 1"
    assert together(["id > 1 OR 1", "id < 9"]) == "(id > 1 OR 1) AND (id < 9)"


def test_naming_anew_over_a_stored_selector() -> None:
    stored = Selector.of(["a"], ["b*"], filter="id > 1")
    assert Selector().over(stored) is stored
    assert Selector(filter="id > 2").over(stored) == Selector.of(["a"], ["b*"], filter="id > 2")
    assert Selector.of(["c"]).over(stored) == Selector.of(["c"])


# -- bounds ---------------------------------------------------------------------


def test_a_payload_over_the_limit_does_not_pass_and_costs_nothing() -> None:
    filters = Filters()
    large = message(1, "a" * (MAX_FILTERED_BYTES + 1))
    both = [large, message(2, "a")]
    assert filters.passes("payload LIKE 'a%'", both) == [False, True]
    assert filters.passes("length(channel) = 1", both) == [True, True]
    assert filters.now("length(channel) = 1", both) == [True, True]
    # What builds a larger text fails.
    half = message(1, "a" * (MAX_FILTERED_BYTES // 8))
    assert filters.passes("length(" + "||".join(["payload"] * 9) + ") > 0", [half]) == [False]


def test_what_may_take_long_is_not_evaluated_on_the_event_loop() -> None:
    filters = Filters()
    costly = " OR ".join(["payload LIKE '%aaaaaaaaab'"] * 50)
    assert filters.now(costly, [message(1, "a" * 10_000)]) is None
    assert filters.now(costly, [message(1, "a" * 10)]) == [False], "the next ones are"
    # Ten thousand times the work of a page: so many seconds if it were done.
    assert filters.passes(costly, [message(number, "a" * 1_000_000) for number in range(1, 200)]) == [False] * 199


def test_a_page_ends_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says, there is a verdict more, and those that are there are right."""
    now = iter(range(10**9))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    filters = Filters()
    many = [message(number, f'{{"n": {number}}}') for number in range(1, 1000)]
    found: list[bool] = []
    while len(found) < len(many):
        more = filters.passes("payload ->> '$.n' % 2", many[len(found) :])
        assert more
        found += more
    assert found == [bool(number % 2) for number in range(1, 1000)]


def test_a_slow_filter_leaves_the_event_loop_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = Filters()
    monkeypatch.setattr(module, "NOW_SECONDS", -1.0)
    many = [message(number) for number in range(1, 2 * CHUNK_MESSAGES)]
    assert filters.now("1", many) is None
    monkeypatch.undo()
    assert filters.now("1", many) is None
    assert filters.now("2", many) == [True] * len(many)
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    assert filters.now("1", many) == [True] * len(many)


def test_functions_that_took_the_product_of_two_sizes() -> None:
    plain = sqlite3.connect(":memory:")
    values: list[Payload | None] = ["", "a", "abcab", "bb", "ä€b", b"", b"ab", b"b", 12, 1.5, None]
    engine = filter_engine.Engine()
    trim = filter_engine._trim
    functions: dict[str, Callable[[Payload | None, Payload | None], object]] = {
        "instr": filter_engine._instr,
        "trim": trim("both"),
        "ltrim": trim("left"),
        "rtrim": trim("right"),
    }
    for one in values:
        for two in values:
            for function, ours in functions.items():
                wanted = plain.execute(f"SELECT {function}(?, ?)", (one, two)).fetchone()
                assert (ours(one, two),) == wanted, (function, one, two)
    assert engine.check("instr(payload, payload)").payload
    plain.close()


def test_the_database_of_filters_holds_nothing_else() -> None:
    conn = filter_engine.Engine()._conn
    for statement in ("SELECT random()", "ATTACH 'x.db' AS x", "PRAGMA user_version", "CREATE TABLE t (a)"):
        with pytest.raises(sqlite3.DatabaseError):
            conn.execute(statement).fetchall()


tokens = st.sampled_from(
    ["payload", "channel", "id", "key", "created_at", "n", "rowid", "message", "(", ")", "'", '"', "[", "]", "`", "--",
     "/*", "*/", ";", "?", ":a", ",", "=", "->>", "'$.a'", "||", "LIKE", "IN", "SELECT", "FROM", "WITH", "VALUES",
     "AND", "NOT", "CASE", "WHEN", "THEN", "END", "random()", "count(*)", "max(id)", "NULL", "1", "x'00'",
     "json_valid(payload)", "sqlite_master", "OVER ()",
     "COLLATE nocase", "CAST(id AS TEXT)", "abs(id)", "date('now')", "\u2028", "é"]
)  # fmt: skip
payloads = st.one_of(st.text(max_size=20), st.binary(max_size=20), st.integers(-(2**63), 2**63 - 1), st.floats())


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(st.lists(tokens, max_size=12).map(" ".join), st.text(string.printable, max_size=60)),
    st.lists(payloads.filter(lambda value: value == value), min_size=1, max_size=4),
)
@example("payload ->> '$.a' = 1", ['{"a": 1}', "{"])
def test_hostile_text_is_refused_or_is_an_expression(text: str, found: list[Any]) -> None:
    """A filter that is taken says of each message what it says of that message alone."""
    filters = Filters()
    try:
        text = filters.check(text)
    except InvalidArgument:
        return
    assert filters.check(text) == text
    messages = [message(number, payload) for number, payload in enumerate(found, 1)]
    verdicts = filters.now(text, messages)
    assert verdicts is not None
    assert len(verdicts) == len(messages)
    assert verdicts == [verdict for each in messages for verdict in Filters().passes(text, [each])]


# -- verdicts that are shared ----------------------------------------------------


def test_each_filter_is_asked_once_about_a_message() -> None:
    asked: list[tuple[str, list[int]]] = []

    def evaluate(filter: str, messages: Any) -> list[bool]:
        asked.append((filter, [each.id for each in messages]))
        return [each.id % 2 == 0 for each in messages]

    verdicts = Verdicts(evaluate)
    few = [message(number) for number in (5, 6, 8)]
    assert verdicts.of("f", few) == [False, True, True]
    assert verdicts.of("f", [message(number) for number in range(5, 10)]) == [False, True, False, True, False]
    assert verdicts.of("f", few) == [False, True, True]
    assert verdicts.of("f", [message(3), *few]) == [False, False, True, True], "before the first that was kept"
    assert asked == [("f", [5, 6, 8]), ("f", [7, 9]), ("f", [3])]
    far = [message(number) for number in range(10, 3 * KEPT_MESSAGES)]
    assert verdicts.of("f", far) == [number % 2 == 0 for number in range(10, 3 * KEPT_MESSAGES)]
    (kept,) = verdicts._kept.values()
    assert len(kept.states) <= 2 * KEPT_MESSAGES
    asked.clear()
    assert verdicts.of("f", far[-KEPT_MESSAGES:]) is not None
    assert asked == []
    verdicts.clear()
    verdicts.of("f", few)
    assert asked == [("f", [5, 6, 8])]
    assert Verdicts(lambda *_: None).of("f", few) is None
