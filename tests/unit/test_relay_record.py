"""A message of the log as a message of a stream, and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_pubsub.relay import record
from datasette_pubsub.relay.record import NotOurs, Record, Trimmed

TEXT = st.binary(min_size=1, max_size=60).filter(lambda data: b"\0" not in data)
PAYLOADS = st.one_of(
    st.tuples(st.binary(), st.sampled_from(["text", "blob"])),
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.just("integer")),
    st.tuples(st.floats(allow_nan=False), st.just("real")),
)


@given(st.integers(1, 2**62), TEXT, PAYLOADS, TEXT, st.none() | TEXT)
def test_a_message_comes_back_exactly(number: int, channel: bytes, payload: tuple, created: bytes, key: bytes | None):  # type: ignore[no-untyped-def, type-arg]
    message = Record(number, channel, payload[0], payload[1], created, key)
    headers = record.headers(message)
    # As the server and its clients hand them on.
    for name, value in headers.items():
        assert re.fullmatch(r"[!-~]([ -~]*[!-~])?", value), (name, value)
    assert headers["Nats-Expected-Last-Sequence"] == str(number - 1)
    found = record.parse(number, headers, record.body(message))
    assert found == message
    assert [type(each) for each in found] == [type(each) for each in message]


@given(st.lists(TEXT, min_size=1, max_size=4).map(b"/".join))
def test_a_subject_is_one_that_nats_takes(channel: bytes) -> None:
    message = Record(1, channel, b"", "text", b"now")
    tokens = record.subject("orders", message).split(".")
    assert tokens[0] == "orders"
    assert len(tokens) == channel.count(b"/") + 2
    assert all(re.fullmatch(r"[!-~]+", token) and not {"*", ">"} & set(token) for token in tokens[1:])
    assert tokens != ["orders", "-"]


@pytest.mark.parametrize(
    ("channel", "subject"),
    [
        (b"eu/new", "s.eu.new"),
        (b"-", "s.%2D"),
        (b"a.b c", "s.a%2Eb%20c"),
        (b"x//y", "s.x.%.y"),
        ("é*>".encode(), "s.%C3%A9%2A%3E"),
        (b"100%", "s.100%25"),
    ],
)
def test_subjects(channel: bytes, subject: str) -> None:
    assert record.subject("s", Record(1, channel, b"", "text", b"now")) == subject


def test_a_trimmed_id() -> None:
    for each in (Trimmed(7), Trimmed(7, b"a b")):
        assert record.subject("s", each) == "s.-"
        assert record.parse(7, record.headers(each), record.body(each)) == each


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {},
        {"Pubsub-Channel": "c", "Pubsub-Created": "now"},
        {"Pubsub-Channel": "c", "Pubsub-Created": "now", "Pubsub-Type": "json"},
        {"Pubsub-Channel": "c", "Pubsub-Type": "text"},
        {"Pubsub-Channel": "c", "Pubsub-Created": "now", "Pubsub-Type": "integer"},
    ],
)
def test_what_others_publish(headers: dict[str, str] | None) -> None:
    with pytest.raises(NotOurs):
        record.parse(1, headers, b"hello")
