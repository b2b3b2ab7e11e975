"""Shares the cursors of durable subscriptions between an origin and its followers.

Theory of operation. Beside the stream of a log there is one of its cursors, which keeps the newest message of each
subject, and each subscription has a subject. Origin and followers do the same: each publishes what has moved in its own
file, and moves its own rows forward to what the others have published, as far as its log goes. A cursor never moves
back, so the order in which these arrive does not matter.

So a durable reader may come back to any of them. It gets again what it had processed in about the last second before
it left, unless it names its last id, and it misses nothing. A deleted subscription is not deleted elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import aclosing
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.js import api

from ..core.settings import RELAY_OWNER
from ..storage.objects import NOW, SUBSCRIPTIONS
from ..storage.transaction import transaction
from . import logfile
from .logfile import LogFile
from .outcomes import Locked
from .session import Reporter, beside
from .stream import Stream

#: How often what has moved in the file is published, in seconds.
SHARE_SECONDS = 1.0


class Key(NamedTuple):
    """A subscription in every file."""

    owner: str
    name: str


class Cursor(NamedTuple):
    """What a subscription reads, as the column ``reads`` has it, and how far it has read."""

    reads: str
    cursor: int


def stream_name(stream: str) -> str:
    """The name of the stream of cursors that belongs to a log's stream."""
    return f"{stream}-cursors"


def settings(stream: str, replicas: int) -> api.StreamConfig:
    """The settings of that stream: it keeps one message for each subscription."""
    name = stream_name(stream)
    return api.StreamConfig(
        name=name,
        description=f"cursors of the subscriptions of {stream}",
        subjects=[f"{name}.>"],
        retention=api.RetentionPolicy.LIMITS,
        storage=api.StorageType.FILE,
        num_replicas=replicas,
        max_msgs_per_subject=1,
    )


class Cursors:
    """The cursors of one file, for as long as a connection lasts."""

    def __init__(self, file: LogFile, client: Client, stream: str, reporter: Reporter) -> None:
        self._file = file
        self._client = client
        self._stream = Stream(client, stream_name(stream))
        self._reporter = reporter
        #: The newest that was published by anybody.
        self._shared: dict[Key, Cursor] = {}
        #: What the file's log has not reached yet.
        self._ahead: dict[Key, Cursor] = {}

    async def run(self) -> None:
        """Share cursors, for ever. Without a stream for them, say so, and do nothing."""
        state = await self._stream.state()
        if state is None:
            self._reporter.say(f"cursors are not shared: there is no stream {self._stream.name}")
            await asyncio.Event().wait()
            return
        begun = asyncio.Event()
        if not state.messages:
            begun.set()
        await beside(self._publish_all(begun), self._take(state.last, begun))

    async def _publish_all(self, begun: asyncio.Event) -> None:
        # What others have published comes first, or a file that was away would repeat old positions.
        await begun.wait()
        while True:
            await self._publish()
            await asyncio.sleep(SHARE_SECONDS)

    async def _take(self, last: int, begun: asyncio.Event) -> None:
        async with aclosing(self._stream.pages(1)) as pages:
            async for page in pages:
                found: dict[Key, Cursor] = {}
                for raw in page:
                    parsed = _parsed(raw.message.data)
                    if parsed is None:
                        self._reporter.say(f"somebody else publishes into the stream {self._stream.name}: passed over")
                    else:
                        found[parsed[0]] = parsed[1]
                self._shared.update(found)
                await self._apply({**self._ahead, **found})
                if not page or page[-1].sequence >= last:
                    begun.set()

    async def _apply(self, found: dict[Key, Cursor]) -> None:
        if found:
            try:
                head = await self._file.run_soon(move, found)
            except Locked:
                # They are moved with the next ones.
                head = -1
            self._ahead = {key: cursor for key, cursor in found.items() if cursor.cursor > head}

    async def _publish(self) -> None:
        await self._apply(self._ahead)
        for key, cursor in (await self._file.run(everyone)).items():
            shared = self._shared.get(key)
            if shared is None or cursor.cursor > shared.cursor or self._changed(key, cursor, shared):
                self._shared[key] = cursor
                body = json.dumps(
                    {"owner": key.owner, "name": key.name, "reads": cursor.reads, "cursor": cursor.cursor}
                )
                await self._client.publish(f"{self._stream.name}.{_token(key)}", body.encode())

    def _changed(self, key: Key, cursor: Cursor, shared: Cursor) -> bool:
        """Whether the subscription reads something else now, in this file, since its position was shared."""
        return key not in self._ahead and cursor.cursor == shared.cursor and cursor.reads != shared.reads


def _token(key: Key) -> str:
    return hashlib.sha256(f"{key.owner}\0{key.name}".encode()).hexdigest()[:32]


def _parsed(data: bytes) -> tuple[Key, Cursor] | None:
    """What somebody has shared; ``None`` for what is not a cursor, and would not be stored as one."""
    try:
        found = json.loads(data, parse_constant=_refuse)
        match found:
            case {"owner": str(owner), "name": str(name), "reads": str(reads), "cursor": int(cursor)}:
                # The file takes valid JSON and Unicode alone.
                (owner + name + reads).encode()
                if name and cursor >= 0 and isinstance(json.loads(reads, parse_constant=_refuse), dict):
                    return Key(owner, name), Cursor(reads, cursor)
    except (ValueError, RecursionError):
        pass
    return None


def _refuse(constant: str) -> None:
    """JSON has no NaN and no infinity, but Python reads them."""
    raise ValueError(constant)


def everyone(conn: Any) -> dict[Key, Cursor]:
    """The subscriptions of the file, but for those of relays."""
    sql = f"SELECT owner, name, CAST(reads AS TEXT), cursor FROM {SUBSCRIPTIONS} WHERE owner <> ?"
    return {Key(row[0], row[1]): Cursor(row[2], row[3]) for row in conn.execute(sql, [RELAY_OWNER])}


def move(conn: Any, cursors: dict[Key, Cursor]) -> int:
    """Move cursors forward, at most to the head, and make the subscriptions that the file lacks; returns the head."""
    with transaction(conn):
        head = logfile.head(conn)
        present = everyone(conn)
        for key, (reads, cursor) in cursors.items():
            place = min(cursor, head)
            found = present.get(key)
            if key.owner == RELAY_OWNER or (found and found.cursor >= place and found.reads == reads):
                continue
            conn.execute(
                f"INSERT INTO {SUBSCRIPTIONS} (owner, name, reads, cursor) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (owner, name) DO UPDATE SET cursor = max(cursor, excluded.cursor), "
                f"reads = excluded.reads, last_seen_at = {NOW}",
                [key.owner, key.name, reads, place],
            )
    return head
