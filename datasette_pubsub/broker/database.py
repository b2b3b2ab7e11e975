"""The file of one database: runs reads and writes on it, installs the log, and notices when the file is replaced.

Every connection is one that Datasette has opened (docs/architecture.md). SQLite's errors become errors that clients
may see.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar, cast

from .. import compat
from ..broadcast import tables
from ..core.errors import FailedPrecondition, PubsubError, Unavailable
from ..core.settings import Settings
from ..storage import schema
from ..storage.append_batch import Batch, CommitResult
from ..storage.error_frames import clear_frames
from ..storage.sqlite_codes import is_busy, primary
from ..storage.time_limit import time_limit
from .batcher import Transaction
from .own_connection import OwnConnection
from .own_writes import OwnWrites, in_batcher
from .sqlite_errors import explain, lacks_a_part
from .write_thread import BUSY_MS, WriteThread, waiting_less

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

logger = logging.getLogger("datasette_pubsub")

T = TypeVar("T")

#: How long a question to the write thread, whether others have committed, may wait in its queue, in seconds.
OWN_SECONDS = 1.0

_now = time.monotonic


class DatabaseFile:
    """The file of one database of one Datasette."""

    def __init__(self, datasette: Datasette, db: Database, settings: Settings) -> None:
        #: Why the log could not be installed when the write connection was opened.
        self.conflict: PubsubError | None = None
        #: The last conflict that was logged.
        self._logged: str | None = None
        self._name = str(db.name)
        self._datasette = datasette
        self._db = db
        self._settings = settings
        #: The file that the connections are open on, by device and inode; ``None`` while there is none.
        self._file = self._at_path()
        #: The file that the write connection was opened on, if known.
        self._written: tuple[int, int] | None = None
        #: When :meth:`prepare_write` last ended, by the monotonic clock.
        self._prepared = 0.0
        #: How many transactions of the broker were committed, and how many other writes Datasette has begun.
        self.commits = 0
        self.other_writes = 0
        self._own_writes = OwnWrites()
        self._thread = WriteThread(self._name, db)
        #: The batcher's own connection, beside the write connection.
        self._own = OwnConnection(datasette, db, settings.max_payload_bytes)

    @property
    def writable(self) -> bool:
        """Whether the database is a file that can be written."""
        return bool(self._db.is_mutable and not self._db.is_memory and not self._datasette.nolock)

    # -- the file at the path -------------------------------------------------

    def _at_path(self) -> tuple[int, int] | None:
        """The file at the path now, by device and inode; ``None`` if there is none. This never opens the file."""
        if self._db.path is None:
            return None
        try:
            found = os.stat(self._db.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            # The file cannot be looked at, so it counts as unchanged.
            return self._file
        return found.st_dev, found.st_ino

    def absence(self) -> Unavailable | None:
        """The error to return while the open file is not the one at the path. Cheap."""
        if self._file is None or self._db.is_memory:
            return None
        now = self._at_path()
        if now == self._file:
            return None
        if now is None:
            return Unavailable(f"the file of database {self._name} was deleted or renamed; nothing was stored")
        return Unavailable(f"the file of database {self._name} was replaced; nothing was stored, try again")

    def check_present(self) -> None:
        """Raise :class:`Unavailable` while the open file is not the one at the path."""
        absence = self.absence()
        if absence is not None:
            raise absence

    @property
    def replaced(self) -> bool:
        """Whether another file is at the path."""
        return self._at_path() not in (None, self._file)

    def _has_wal(self) -> bool:
        return self._db.path is not None and os.path.exists(f"{self._db.path}-wal")

    async def reopen(self, leave: Callable[[], None]) -> bool:
        """Make Datasette open the file that is at the path now; returns whether it did.

        ``leave`` is called before the old connections are closed.
        """
        if not compat.can_reopen(self._db):
            return False
        async with self._thread.reopening:
            if self._written == self._file and self._has_wal():
                # If the old write-ahead log was left at the path, SQLite would read the new file with it. The
                # checkpoint moves its content into the old file.
                await self._thread.run(lambda conn: conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone(), _now())
            if not await self._thread.end():
                return False
            # In a thread: the last connection that may write moves the write-ahead log into the file. It must do so
            # before the new file is opened, whose log has the same path.
            await asyncio.to_thread(self._own.close)
            found = self._at_path()
            leave()
            old, pending = compat.leave_connections(self._db)
            unused = await _all_done(pending)
            self._file = found
            self._written = None
            self.conflict = None
            # A connection must not be closed while another thread reads with it. This happens to reads that take longer
            # than any lock; their connections are closed when nothing refers to them any more.
            for conn in old if unused else ():
                with contextlib.suppress(sqlite3.Error):
                    conn.close()
        return found is not None

    async def close_own(self) -> None:
        """Close the batcher's own connection, after its last session. Waits at most ``OWN_SECONDS`` for the thread."""
        if not self._own.is_open:
            return
        token = in_batcher.set(True)
        try:
            async with asyncio.timeout(OWN_SECONDS):
                await self._thread.run(lambda conn: self._own.close(), _now())
        except TimeoutError:
            # Others have been writing; Datasette closes it with the database.
            pass
        finally:
            in_batcher.reset(token)

    def revive(self) -> bool:
        """Start the write thread again if it has died; returns whether it had."""
        return self._thread.revive()

    async def open_again(self) -> bool:
        """End the write thread if it could not open its connection, so that the next write tries again.

        Returns whether it was ended.
        """
        return self.absence() is None and await self._thread.open_again()

    # -- the log --------------------------------------------------------------

    def prepare_write(self, conn: sqlite3.Connection) -> None:
        """Set durability and install the log on Datasette's write connection; a failure is kept in ``conflict``.

        Nothing is done for the batcher's own connection, which gets its settings from this one.
        """
        if self._own.opening:
            return
        conflict: PubsubError | None = None
        try:
            if self._file is None:
                # Opening the connection has created the file.
                self._file = self._at_path()
            self._written = self._at_path()
            self._thread.busy_ms = max(self._thread.busy_ms, conn.execute("PRAGMA busy_timeout").fetchone()[0])
            # This comes before any change, so that a file of a newer version stays as it is.
            schema.check(conn)
            schema.set_durability(conn, self._settings)
            if not self._datasette.setting("cache_size_kb"):
                schema.set_cache(conn)
            schema.install(conn, self._settings, migrated=tables.renew)
        except PubsubError as error:
            conflict = error
        except sqlite3.Error as error:
            conflict = explain(error, self._name, conn)
        # Set once: the event loop reads it at any time.
        self.conflict = conflict
        self._prepared = _now()
        self._log(conflict)

    def _log(self, conflict: PubsubError | None) -> None:
        """Log why nothing can be published, once until the reason changes."""
        message = None if conflict is None else conflict.message
        if message is not None and message != self._logged:
            logger.warning("database %s: %s", self._name, message)
        self._logged = message

    async def look(self) -> None:
        """Log what is wrong with this file's log, if anything is; called when the server starts."""
        if self.writable:

            def problem(conn: sqlite3.Connection) -> PubsubError | None:
                try:
                    schema.check(conn)
                except PubsubError as error:
                    return error
                return None

            try:
                self._log(await self.read(problem))
            except Unavailable:
                # The file cannot be read now: each request for it gets the error.
                pass

    async def prepare_later(self) -> None:
        """Queue a write that installs the log, without waiting for it."""
        since = _now()

        def prepare(conn: sqlite3.Connection) -> None:
            # If this is the first write, opening the write connection has installed the log already.
            with contextlib.suppress(sqlite3.Error):
                self._obstacle(conn, since)

        await self._db.execute_write_fn(prepare, block=False, transaction=False)

    def check_writable(self) -> None:
        """Raise :class:`FailedPrecondition` if this database can never store a message."""
        if self._db.is_memory:
            raise FailedPrecondition(f"database {self._name} is in memory: it cannot keep messages")
        if not self._db.is_mutable:
            raise FailedPrecondition(f"database {self._name} is immutable: nothing can be published to it")
        if self._datasette.nolock:
            raise FailedPrecondition("Datasette was started with --nolock: it cannot read a file that has a log")

    def _obstacle(self, conn: sqlite3.Connection, since: float) -> PubsubError | None:
        """The reason why nothing can be written, or ``None``; runs on the write thread.

        A conflict that was found before ``since`` is checked again.
        """
        absence = self.absence()
        if absence is None and self.conflict is not None and self._prepared < since:
            # The log could not be installed when the write connection was opened; the reason may be gone now.
            self.prepare_write(conn)
        return absence or self.conflict

    async def write(self, fn: Callable[[sqlite3.Connection], T], seconds: float = math.inf) -> T:
        """Run a function in a transaction on the write connection. Raises :class:`PubsubError`.

        Raises :class:`Unavailable`, and stores nothing, when its statements take longer than ``seconds``.
        """
        since = _now()

        def limited(conn: sqlite3.Connection) -> T:
            try:
                with time_limit(conn, seconds):
                    return fn(conn)
            except sqlite3.Error as error:
                if primary(error) == sqlite3.SQLITE_INTERRUPT:
                    raise self._took_too_long() from None
                raise

        result = await self._thread.run(lambda conn: self._transaction(conn, limited, since), since)
        if isinstance(result, PubsubError):
            raise result
        return result

    async def session(self, session: Callable[[Transaction], None], since: float) -> None:
        """Run the batcher's session on the write thread, and give it a function that runs transactions.

        ``since`` is the time since which the oldest publish has waited, by the monotonic clock. Raises
        :class:`PubsubError`.
        """

        def run(conn: sqlite3.Connection) -> None:
            self._own.begin(conn, self.other_writes, lambda: self._written == self._file and self.absence() is None)
            session(lambda batch, since: self._write_batch(conn, batch, since))

        result = await self._thread.run(run, since)
        if isinstance(result, PubsubError):
            raise result

    def _write_batch(self, conn: sqlite3.Connection, batch: Batch, since: float) -> CommitResult | PubsubError:
        """Write a batch on the batcher's own connection if it may, else on the write connection."""

        def run(
            own: sqlite3.Connection, fn: Callable[[sqlite3.Connection], CommitResult]
        ) -> CommitResult | PubsubError:
            with waiting_less(own, since):
                obstacle = self._obstacle(conn, since)
                return self._commit(own, fn) if obstacle is None else obstacle

        commits = self.commits
        try:
            result = self._own.write(batch, run)
        except sqlite3.Error as error:
            return explain(error, self._name, conn)
        if result is not None:
            return result
        if self.commits != commits:
            # Something failed after the commit: a second one would store everything twice.
            return Unavailable(f"database {self._name} could not be asked; whether this was stored is not known")
        return self._transaction(conn, batch, since)

    def _transaction(
        self, conn: sqlite3.Connection, fn: Callable[[sqlite3.Connection], T], since: float
    ) -> T | PubsubError:
        """Run one transaction on the write thread; returns errors instead of raising them."""
        try:
            with waiting_less(conn, since):
                obstacle = self._obstacle(conn, since)
                return self._commit(conn, fn) if obstacle is None else obstacle
        except PubsubError as error:
            clear_frames(error)
            return error
        except sqlite3.Error as error:
            clear_frames(error)
            return explain(error, self._name, conn)

    def _commit(self, conn: sqlite3.Connection, fn: Callable[[sqlite3.Connection], T]) -> T | PubsubError:
        conn.execute("BEGIN IMMEDIATE")
        try:
            self._own_writes.enter(conn)
            result = fn(conn)
            conn.commit()
            self.commits += 1
        except BaseException:
            conn.rollback()
            raise
        # Check again before the answer: a commit to a file that is gone is lost.
        return self.absence() or result

    async def only_own_commits(self) -> object:
        """A value that stays the same while nobody but the broker commits; ``None`` if that is not known.

        Waits for the write thread, at most ``OWN_SECONDS``.
        """
        try:
            async with asyncio.timeout(OWN_SECONDS):
                found = await self._thread.run(lambda conn: self._own_writes.stamp(conn), _now())
        except TimeoutError:
            return None
        return None if found is None or isinstance(found, PubsubError) else (found, self.other_writes)

    def _took_too_long(self) -> Unavailable:
        return Unavailable(
            f"reading database {self._name} took too long; the limit is "
            f"{self._settings.read_time_limit_seconds:g} seconds (read_time_limit_seconds)",
            limit="read_time_limit_seconds",
        )

    async def read(self, fn: Callable[[sqlite3.Connection], T], seconds: float = math.inf) -> T:
        """Run a read on one of Datasette's read connections, for at most ``seconds``. Raises :class:`PubsubError`."""
        since = _now()

        def checked(conn: sqlite3.Connection) -> T:
            try:
                with waiting_less(conn, since), time_limit(conn, seconds):
                    return fn(conn)
            except Exception as error:
                clear_frames(error)
                if not isinstance(error, sqlite3.Error):
                    raise
                if primary(error) == sqlite3.SQLITE_INTERRUPT:
                    raise self._took_too_long() from None
                if primary(error) == sqlite3.SQLITE_ERROR and lacks_a_part(conn):
                    raise explain(error, self._name, conn) from error
                raise

        try:
            result: T = await self._db.execute_fn(checked)
        except sqlite3.Error as error:
            if is_busy(error):
                raise Unavailable(f"database {self._name} is locked by another program; try again") from error
            logger.error("database %s: %s", self._name, error)
            raise Unavailable(f"database {self._name} could not be read") from error
        return result


async def _all_done(pending: Iterable[object]) -> bool:
    """Wait until these reads have ended, whether they succeeded or not, or too long; returns whether they have."""
    waits = [asyncio.wrap_future(cast("concurrent.futures.Future[object]", each)) for each in pending]
    return not waits or not (await asyncio.wait(waits, timeout=BUSY_MS / 1000))[1]
