"""The wire format of live queries in Connect, gRPC and gRPC-Web: ``LiveQueryResponse`` in envelopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToJson

from ..core.errors import PubsubError
from ..core.events import Event, Heartbeat
from ..core.result import Change, Placed, Result
from ..gen import db_pb2
from .connect_frames import envelope


def _placed(rows: Sequence[Placed]) -> list[Any]:
    return [
        db_pb2.PlacedRow(at=placed.at, row=placed.row.decode(), was=(placed.was or b"").decode()) for placed in rows
    ]


class ConnectQueryEncoder:
    """Snapshots, changes, errors and heartbeats; the end of the stream says why it ended."""

    def __init__(self, as_json: bool, heartbeats: bool) -> None:
        self.name = "connect-json" if as_json else "connect-proto"
        self._as_json = as_json
        self._heartbeats = heartbeats

    def _frame(self, response: db_pb2.LiveQueryResponse) -> bytes:
        if self._as_json:
            return envelope(MessageToJson(response, indent=None).encode())
        return envelope(response.SerializeToString())

    def snapshot(self, result: Result, key: tuple[str, ...]) -> bytes:
        snapshot = db_pb2.Snapshot(columns=result.columns, key=key, rows=[row.decode() for row in result.rows])
        if result.count is not None:
            snapshot.count = result.count
        return self._frame(db_pb2.LiveQueryResponse(head=result.head, snapshot=snapshot))

    def change(self, change: Change) -> bytes:
        told = db_pb2.Change(
            removed=_placed(change.removed), inserted=_placed(change.inserted), changed=_placed(change.changed)
        )
        if change.count is not None:
            told.count = change.count
        return self._frame(db_pb2.LiveQueryResponse(head=change.head, change=told))

    def broken(self, error: PubsubError) -> bytes:
        told = db_pb2.LiveQueryError(code=error.code, message=error.message, field=error.field, limit=error.limit)
        return self._frame(db_pb2.LiveQueryResponse(error=told))

    def event(self, event: Event) -> bytes:
        if isinstance(event, Heartbeat) and self._heartbeats:
            return self._frame(db_pb2.LiveQueryResponse(head=event.head))
        return b""
