"""The file of a log, for a process of its own: APSW's connection, and the SQL that it runs.

Only this room uses APSW, which carries its own SQLite. Two copies of SQLite in one process must never have the same
file open: closing a file drops the locks that the other one holds (https://sqlite.org/howtocorrupt.html, "Multiple
copies of SQLite linked into the same application"). So :meth:`LogFile.open` refuses a file that the process has open.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import apsw
import apsw.aio

from ..core.settings import RELAY_OWNER
from ..storage import retention
from ..storage.objects import FILE, LOG, NOW, SOURCES, SUBSCRIPTIONS, TRIMS
from ..storage.transaction import transaction
from .outcomes import Locked, Refused, Replaced, TryAgain
from .record import Record, Trimmed

P = ParamSpec("P")
T = TypeVar("T")

#: How long a statement waits for another writer, in seconds.
LOCK_SECONDS = 30

#: The same for what may as well be written later, and between two looks at the lock.
SHORT_LOCK_SECONDS = 0.1
LOCK_POLL_SECONDS = 0.01

#: How often the file is asked for new commits, in seconds, as by a server.
POLL_SECONDS = 0.004

#: The most ids without a message, in a row, for which the relay publishes a filler each.
MAX_TRIMMED = 10_000


class LogFile:
    """The file of a log. Each function runs in APSW's thread, and gets its connection."""

    def __init__(self, conn: Any, path: Path) -> None:
        self._conn = conn
        self._path = path
        self._opened = os.stat(path)
        #: How long the present statement waits for another writer; nothing waits when the file is being closed.
        self._patience: float = LOCK_SECONDS
        self._waits_since = 0.0
        self._closing = False

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, writes: bool) -> AsyncIterator[LogFile]:
        """Open the file until the block ends.

        Raises :class:`Refused` if this process has it open already, and :class:`TryAgain` if it cannot be opened now.
        """
        if has_open(path):
            raise Refused("this process has other connections to the file")
        flags = apsw.SQLITE_OPEN_READWRITE if writes else apsw.SQLITE_OPEN_READONLY
        try:
            conn = await apsw.Connection.as_async(str(path), flags)
        except apsw.CantOpenError as error:
            raise TryAgain(f"the file cannot be opened: {error}") from error
        file = None
        try:
            try:
                file = cls(conn, path)
            except OSError as error:
                raise TryAgain("the file is gone") from error
            await file.run(file._prepare)
            yield file
        finally:
            if file is not None:
                file._closing = True
            with contextlib.suppress(apsw.Error):
                await conn.aclose()

    async def run(self, fn: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function of the connection in its thread.

        Raises :class:`Locked` after ``LOCK_SECONDS``, :class:`Replaced` if the path is not this file's any more,
        :class:`TryAgain` for what a full disk causes, and :class:`Refused` for the rest.
        """
        return await self._run(LOCK_SECONDS, lambda conn: fn(conn, *args, **kwargs))

    async def run_soon(self, fn: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As :meth:`run`, for what can wait: raises :class:`Locked` after ``SHORT_LOCK_SECONDS``."""
        return await self._run(SHORT_LOCK_SECONDS, lambda conn: fn(conn, *args, **kwargs))

    async def _run(self, patience: float, fn: Callable[[Any], T]) -> T:
        try:
            result: T = await self._conn.async_run(self._within, patience, fn)
        except (apsw.BusyError, apsw.LockedError) as error:
            raise Locked("the file is locked by another program") from error
        except (apsw.FullError, apsw.IOError, apsw.NoMemError) as error:
            raise TryAgain(f"the file cannot be written or read: {error}") from error
        except apsw.ReadOnlyError as error:
            raise Refused("the file is read-only") from error
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise Refused("the file is damaged; SQLite cannot read it") from error
        except apsw.SQLError as error:
            raise Refused("the log is not as datasette-pubsub makes it: run datasette pubsub install") from error
        except apsw.Error as error:
            raise Refused(f"the log refuses it: {error}") from error
        return result

    def _within(self, patience: float, fn: Callable[[Any], T]) -> T:
        """Run a function, in the connection's thread."""
        self._patience = patience
        # A deleted file can be written for ever, and the one in its place is another log.
        try:
            there = os.path.samestat(self._opened, os.stat(self._path))
        except OSError:
            there = False
        if not there:
            raise Replaced("the file was replaced or deleted meanwhile")
        return fn(self._conn)

    def _prepare(self, conn: Any) -> None:
        conn.set_busy_handler(self._wait)
        # What a power cut may take back is read from the stream again.
        conn.pragma("synchronous", "normal")

    def _wait(self, times: int) -> bool:
        """Wait a moment for another writer; returns whether to try again. (SQLite calls this.)"""
        now = time.monotonic()
        if times == 0:
            self._waits_since = now
        if self._closing or now - self._waits_since > self._patience:
            return False
        time.sleep(LOCK_POLL_SECONDS)
        return True


def has_open(path: Path) -> bool:
    """Whether this process has the file open."""
    try:
        wanted = os.stat(path)
        descriptors = os.listdir("/dev/fd")
    except OSError:
        return False
    for each in descriptors:
        with contextlib.suppress(OSError, ValueError):
            if os.path.samestat(wanted, os.fstat(int(each))):
                return True
    return False


# -- reading ------------------------------------------------------------------

_COLUMNS = (
    "id, CAST(channel AS BLOB), CASE typeof(payload) WHEN 'text' THEN CAST(payload AS BLOB) ELSE payload END, "
    "typeof(payload), CAST(created_at AS BLOB), CAST(key AS BLOB)"
)


def head(conn: Any) -> int:
    """The newest id that the log has given out."""
    return int(conn.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", [LOG]).get or 0)


def earliest(conn: Any) -> int:
    """The oldest id in the log; one past the head if there is none."""
    found = conn.execute(f"SELECT min(id) FROM {LOG}").get
    return head(conn) + 1 if found is None else int(found)


def instance_id(conn: Any) -> str:
    """The random id of the log."""
    return str(conn.execute(f"SELECT instance_id FROM {FILE}").get)


def row(conn: Any, number: int) -> Record | None:
    """The message with this id; ``None`` if the log does not have it."""
    found = conn.execute(f"SELECT {_COLUMNS} FROM {LOG} WHERE id = ?", [number]).fetchone()
    return Record(*_utf8(conn, found)) if found else None


def rows(conn: Any, after: int, limit: int, max_bytes: int) -> list[Record]:
    """The next messages after an id: at most ``limit``, and about ``max_bytes`` of payload, but at least one."""
    records: list[Record] = []
    size = 0
    for found in conn.execute(f"SELECT {_COLUMNS} FROM {LOG} WHERE id > ? ORDER BY id LIMIT ?", [after, limit]):
        record = Record(*_utf8(conn, found))
        records.append(record)
        size += len(record.payload) if isinstance(record.payload, bytes) else 8
        if size > max_bytes:
            break
    return records


class Page(NamedTuple):
    """The next ids of a log, without a hole, and its head."""

    records: list[Record | Trimmed]
    head: int


def page(conn: Any, after: int, limit: int, max_bytes: int) -> Page:
    """The next ids after an id: at most ``limit``, and about ``max_bytes`` of payload, but at least one.

    Raises :class:`Refused` if more than ``MAX_TRIMMED`` ids in a row have no message.
    """
    with transaction(conn, "BEGIN"):
        top = head(conn)
        records: list[Record | Trimmed] = []
        position = after
        for record in rows(conn, after, limit, max_bytes):
            if record.id > position + 1:
                if record.id - position - 1 > MAX_TRIMMED:
                    raise Refused(
                        f"retention has removed the messages {position + 1} to {record.id - 1} before they were "
                        f"relayed, and at most {MAX_TRIMMED} can be passed over: relay to a new stream, made with "
                        "--create"
                    )
                records += _trimmed(conn, position + 1, record.id - 1)
            records.append(record)
            position = record.id
            if len(records) >= limit:
                break
    return Page(records[:limit], top)


def _trimmed(conn: Any, first: int, last: int) -> list[Record | Trimmed]:
    """The ids of a hole, with their channels where the records of retention know them."""
    channels: dict[int, bytes] = {}
    encoding = conn.pragma("encoding")
    sql = f"SELECT CAST(channel AS BLOB), runs FROM {TRIMS} WHERE last_id >= ? AND first_id <= ?"
    for channel, runs in conn.execute(sql, [first, last]):
        channels.update(
            (number, _text(encoding, channel)) for number in retention.unpack(runs) if first <= number <= last
        )
    return [Trimmed(number, channels.get(number, b"")) for number in range(first, last + 1)]


def _utf8(conn: Any, found: Any) -> Any:
    """A row in UTF-8: in a file of UTF-16 the bytes of texts are such."""
    encoding = conn.pragma("encoding")
    if encoding == "UTF-8":
        return found
    payload = _text(encoding, found[2]) if found[3] == "text" else found[2]
    key = None if found[5] is None else _text(encoding, found[5])
    return (found[0], _text(encoding, found[1]), payload, found[3], _text(encoding, found[4]), key)


def _text(encoding: str, value: bytes) -> bytes:
    """The bytes of a text of a file of this encoding, in UTF-8."""
    if encoding == "UTF-8":
        return value
    return value.decode("utf-16-le" if encoding == "UTF-16le" else "utf-16-be", "replace").encode()


def wait_for_commit(conn: Any, seen: int, seconds: float) -> int:
    """Wait until somebody else has committed, but at most this long; returns the file's new data version.

    ``seen`` is the version that was returned before. See https://sqlite.org/pragma.html#pragma_data_version
    """
    end = time.monotonic() + seconds
    while True:
        version = int(conn.pragma("data_version"))
        if version != seen or time.monotonic() >= end:
            return version
        time.sleep(POLL_SECONDS)


def save_position(conn: Any, stream: str, position: int) -> None:
    """Show how far the stream is, as a subscription, for which retention holds back; nothing resumes from it."""
    conn.execute(
        f"INSERT INTO {SUBSCRIPTIONS} (owner, name, reads, cursor) VALUES (?, ?, ?, ?) "
        f"ON CONFLICT (owner, name) DO UPDATE SET cursor = max(cursor, excluded.cursor), last_seen_at = {NOW}",
        [RELAY_OWNER, stream, '{"channels": [], "patterns": ["*"]}', position],
    )


# -- writing a follower's file --------------------------------------------------


def append(conn: Any, records: Sequence[Record | Trimmed], newest: int) -> int:
    """Append the next ids of the origin, in one transaction; returns the head.

    Ids that the log has already are passed over. ``newest`` is the newest id of the stream. Raises :class:`Refused` if
    the file was promoted meanwhile, :class:`TryAgain` if its log has gone back, and ``apsw.Error``.
    """
    with transaction(conn):
        if conn.execute(f"SELECT 1 FROM {SOURCES} WHERE kind = 'follow'").get is None:
            raise Refused("this log follows no stream any more")
        top = head(conn)
        if records[0].id > top + 1:
            raise TryAgain(f"the log has gone back to {top}: was a backup restored?")
        for kind, run in groupby((each for each in records if each.id > top), _kind):
            if kind == "trimmed":
                top = _pass_over(conn, [each for each in run if isinstance(each, Trimmed)])
                continue
            rows = [each for each in run if isinstance(each, Record)]
            payload = "CAST(? AS TEXT)" if kind == "text" else "?"
            conn.executemany(
                f"INSERT INTO {LOG} (id, channel, payload, created_at, key) "
                f"VALUES (?, CAST(? AS TEXT), {payload}, CAST(? AS TEXT), CAST(? AS TEXT))",
                [(each.id, each.channel, each.payload, each.created_at, each.key) for each in rows],
            )
            top = rows[-1].id
        hear(conn, newest)
    return top


def hear(conn: Any, newest: int) -> None:
    """Note the newest id of the stream, and that it was heard from now."""
    conn.execute(f"UPDATE {SOURCES} SET newest = ?, heard_at = {NOW} WHERE kind = 'follow'", [newest])


def origin_id(conn: Any) -> str | None:
    """The random id of the log that this one is a copy of, if it is known."""
    found = conn.execute(f"SELECT instance_id FROM {SOURCES} WHERE kind = 'follow'").get
    return None if found is None else str(found)


def begin_at(conn: Any, first: int) -> None:
    """Let an empty log begin with this id."""
    with transaction(conn):
        if head(conn) < first - 1 and conn.execute(f"SELECT 1 FROM {LOG} LIMIT 1").get is None:
            _set_head(conn, first - 1)


def _kind(record: Record | Trimmed) -> str:
    if isinstance(record, Trimmed):
        return "trimmed"
    return "text" if record.type == "text" else "other"


def _pass_over(conn: Any, trimmed: list[Trimmed]) -> int:
    """Give out ids without a message; their channels learn that they have missed them."""
    last = trimmed[-1].id
    _set_head(conn, last)
    channels: dict[bytes, list[int]] = {}
    for each in trimmed:
        if each.channel:
            channels.setdefault(each.channel, []).append(each.id)
    for channel, ids in channels.items():
        retention.note(conn, channel, ids)
    return last


def _set_head(conn: Any, number: int) -> None:
    conn.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", [number, LOG])
    conn.execute(
        "INSERT INTO sqlite_sequence (name, seq) SELECT ?, ? WHERE NOT EXISTS "
        "(SELECT 1 FROM sqlite_sequence WHERE name = ?)",
        [LOG, number, LOG],
    )
