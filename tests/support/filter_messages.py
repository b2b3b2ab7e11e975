"""Messages for the tests of filters."""

from __future__ import annotations

from datasette_pubsub.core.values import Message, Payload

TIME = "2026-01-31T12:00:00.000Z"


def message(number: int, payload: Payload = "x", channel: str = "a", key: str | None = None) -> Message:
    return Message(number, channel, payload, TIME, key)


MESSAGES = [
    message(1, '{"level": "error", "n": 7, "deep": {"x": [1, 2]}}', "logs/a", "k1"),
    message(2, '{"level": "info"}', "logs/b"),
    message(3, "not json"),
    message(4, b"\x00\xff"),
    message(5, 7),
    message(6, 7.5),
    message(7, ""),
    message(8, "[1, 2"),
    message(9, '{"level": "error"}', "other"),
    message(10, "A\0B"),
]
