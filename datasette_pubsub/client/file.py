"""Follow the log of a file without any server: what any program commits to it, as it is committed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Literal

from .values import ClientError, Message

#: How often the file is looked at for a commit, in seconds; a look takes microseconds.
LOOK_SECONDS = 0.02

#: How often it is looked whether the file at the path is still the one that is open, in seconds.
FILE_SECONDS = 1.0

#: The most messages of one read.
PAGE_MESSAGES = 1_000

#: How long a read waits for another program's lock, in seconds.
LOCK_SECONDS = 30.0

_HAS_LOG = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'vpubsub'"
_HEAD = "SELECT seq FROM sqlite_sequence WHERE name = 'vpubsub'"


class _Log:
    """The log of one file, read forward."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        channels: Sequence[str],
        patterns: Sequence[str],
        after: int | Literal["earliest", "latest"],
    ) -> None:
        self._path = path
        self._file = self._identity()
        # Not read-only: a reader of a WAL file may have to make its shared memory.
        self.conn = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
        tests = ["channel = ?"] * len(channels) + ["channel GLOB ?"] * len(patterns)
        self._where = f" AND ({' OR '.join(tests)})" if tests else ""
        self._names = [*channels, *patterns]
        self._version = -1
        self._looked = time.monotonic()
        self._missed = 0
        try:
            self.conn.execute("PRAGMA query_only = ON")
            if self.conn.execute(_HAS_LOG).fetchone() is None:
                raise ClientError("this file has no log: serve it with Datasette, or run datasette pubsub install")
            #: Every message up to this id was handed out, or is not for this reader.
            self.position = 0 if after == "earliest" else self._head() if after == "latest" else int(after)
            #: What is gone already does not count for one who asks for what the log still has.
            self._counted = self._gone_to() if after == "earliest" else self.position
        except BaseException:
            self.conn.close()
            raise

    def _identity(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            raise ClientError(f"there is no file {os.fspath(self._path)}") from None
        return found.st_dev, found.st_ino

    def _head(self) -> int:
        row = self.conn.execute(_HEAD).fetchone()
        return int(row[0]) if row else 0

    def _gone_to(self) -> int:
        """The newest id that retention has removed from these channels; 0: none."""
        sql = f"SELECT coalesce(max(id), 0) FROM _pubsub_released WHERE id > 0{self._where}"
        return int(self.conn.execute(sql, self._names).fetchone()[0])

    def next(self) -> list[Message]:
        """The next messages; none if nothing was committed since a call that has returned none."""
        now = time.monotonic()
        if now > self._looked + FILE_SECONDS:
            self._looked = now
            if self._identity() != self._file:
                raise ClientError("another file has taken the place of the one that was followed")
        version = int(self.conn.execute("PRAGMA data_version").fetchone()[0])
        if version == self._version:
            return []
        self.conn.execute("BEGIN")
        try:
            found = self._read()
        finally:
            self.conn.execute("ROLLBACK")
        if not found:
            self._version = version
        return found

    def _read(self) -> list[Message]:
        head = self._head()
        if head < self.position:
            # The file was restored from a backup: the ids that come now belong to another log.
            self.position = self._counted = head
            self._missed = -1
        gone = self._gone_to()
        if gone > max(self.position, self._counted):
            self._missed = -1
        self._counted = max(self._counted, gone)
        sql = f"SELECT id, channel, payload, created_at FROM vpubsub WHERE id > ?{self._where} ORDER BY id LIMIT ?"
        rows = self.conn.execute(sql, [self.position, *self._names, PAGE_MESSAGES]).fetchall()
        self.position = int(rows[-1][0]) if rows else max(self.position, head)
        found = [Message(*row) for row in rows]
        if found and self._missed:
            found[0], self._missed = replace(found[0], missed=self._missed), 0
        return found


def follow(
    path: str | os.PathLike[str],
    *channels: str,
    patterns: Sequence[str] = (),
    after: int | Literal["earliest", "latest"] = "latest",
    look_seconds: float = LOOK_SECONDS,
) -> Iterator[Message]:
    """Yield the messages of a file's log as any program commits them, for ever.

    Of these channels and GLOB patterns, or of all. Begins after an id, with the ``"earliest"`` message, or with the
    next one. The caller keeps the place, which is the last message's id. A payload has the type that was stored. Where
    retention has removed messages before they were read, or the file was restored, ``missed`` is -1. The file is looked
    at every ``look_seconds``. Raises :class:`ClientError` if there is no file or no log, or when another file takes its
    place, and ``sqlite3.Error``. Do not use it in a process that opens the file with another SQLite library.

    Example::

        from datasette_pubsub.client import follow

        for message in follow("data.db", "orders", after="earliest"):
            print(message.id, message.payload)
            break
    """
    return _follow(_Log(path, channels, patterns, after), look_seconds)


def _follow(log: _Log, look_seconds: float) -> Iterator[Message]:
    with closing(log.conn):
        while True:
            found = log.next()
            yield from found
            if not found:
                time.sleep(look_seconds)


async def follow_async(
    path: str | os.PathLike[str],
    *channels: str,
    patterns: Sequence[str] = (),
    after: int | Literal["earliest", "latest"] = "latest",
    look_seconds: float = LOOK_SECONDS,
) -> AsyncIterator[Message]:
    """The messages of a file's log, as :func:`follow` has them, for asyncio; each read runs on the event loop.

    Example::

        import asyncio

        from datasette_pubsub.client import follow_async

        async def main():
            async for message in follow_async("data.db", "orders", after="earliest"):
                print(message.id, message.payload)
                break

        asyncio.run(main())
    """
    log = _Log(path, channels, patterns, after)
    with closing(log.conn):
        while True:
            found = log.next()
            for message in found:
                yield message
            if not found:
                await asyncio.sleep(look_seconds)
