"""The wire format of live queries as Server-Sent Events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import PubsubError
from ..core.events import Event
from ..core.result import Change, Placed, Result
from .frames import SseEncoder, compact_json, one_line


def _event(name: bytes, data: bytes) -> bytes:
    if not data.isascii():
        data = one_line(data.decode()).encode()
    return b"event: %b\ndata: %b\n\n" % (name, data)


def _placed(rows: Sequence[Placed]) -> bytes:
    parts = []
    for placed in rows:
        was = b"" if placed.was is None else b',"was":' + placed.was
        parts.append(b'{"at":%d,"row":%b%b}' % (placed.at, placed.row, was))
    return b",".join(parts)


def _count(count: int | None) -> bytes:
    return b"" if count is None else b',"count":%d' % count


def snapshot_json(result: Result, key: Sequence[str]) -> bytes:
    """A whole result as a JSON object: head, columns, key, rows, and the count if there is one."""
    return b'{"head":"%d","columns":%b,"key":%b,"rows":[%b]%b}' % (
        result.head,
        compact_json(list(result.columns)).encode(),
        compact_json(list(key)).encode(),
        b",".join(result.rows),
        _count(result.count),
    )


def change_json(change: Change) -> bytes:
    """A change as a JSON object: the head, and the rows that were removed, inserted and changed, with their places."""
    return b'{"head":"%d","removed":[%b],"inserted":[%b],"changed":[%b]%b}' % (
        change.head,
        _placed(change.removed),
        _placed(change.inserted),
        _placed(change.changed),
        _count(change.count),
    )


def error_fields(error: PubsubError) -> dict[str, Any]:
    """An error of a live query, for people (``message``) and for programs: the code, the field and the limit."""
    fields: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.field is not None:
        fields["field"] = error.field
    if error.limit is not None:
        fields["limit"] = error.limit
    return fields


class SseQueryEncoder:
    """Events ``snapshot``, ``change`` and ``error``, and those that all streams have. No event has an id."""

    name = "sse"

    def __init__(self) -> None:
        self._events = SseEncoder()

    def beginning(self) -> bytes:
        """The first bytes of the stream: the ``retry`` line, which is no event."""
        return self._events.beginning()

    def snapshot(self, result: Result, key: tuple[str, ...]) -> bytes:
        return _event(b"snapshot", snapshot_json(result, key))

    def change(self, change: Change) -> bytes:
        return _event(b"change", change_json(change))

    def broken(self, error: PubsubError) -> bytes:
        return _event(b"error", compact_json(error_fields(error)).encode())

    def event(self, event: Event) -> bytes:
        return self._events.event(event)
