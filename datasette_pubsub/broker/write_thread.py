"""Runs functions on Datasette's write thread for one database, within time limits, and restarts the thread if it died.

Theory of operation. Datasette runs all writes of a database in one thread, one after the other. The thread prints the
exception of a failed write to standard error, and dies if printing fails; so a function that runs here returns its
errors as values and never raises. A call is *waiting* until the thread begins it, then *running*, then *done*; or the
caller gives it up while it is waiting. A lock that is taken once decides between the two: either the thread takes it,
and runs the function to its end, or the caller takes it, because the call has waited too long, was cancelled, or the
thread is dead. So a function that was given up never runs, and one that has begun is never reported as not stored. A
waiting caller notices a dead thread, and Datasette starts a new one with the next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

from datasette.database import DatasetteClosedError

from .. import compat
from ..core.errors import FailedPrecondition, PubsubError, Unavailable
from ..storage.error_frames import clear_frames
from .sqlite_errors import explain

if TYPE_CHECKING:
    from datasette.database import Database

logger = logging.getLogger("datasette_pubsub")

T = TypeVar("T")

#: How long SQLite waits by default for another program's lock on connections of ``sqlite3``, in milliseconds.
BUSY_MS = 5000

#: How much longer than ``busy_ms`` a write may wait in the queue, in seconds, so that it is answered within a second of
#: SQLite's own wait.
SLACK_SECONDS = 0.5

#: How often a waiting caller checks that the write thread is alive, in seconds.
LOOK_SECONDS = 0.25

#: A shorter wait in the queue is ignored, in milliseconds: changing SQLite's busy timeout costs a statement.
NO_WAIT_MS = 50

_now = time.monotonic


class WriteThread:
    """The write thread of one database."""

    def __init__(self, name: str, db: Database) -> None:
        self._name = name
        self._db = db
        #: How long SQLite waits for another program's lock on the write connection, in milliseconds.
        self.busy_ms = BUSY_MS
        #: Held while connections are reopened.
        self.reopening = asyncio.Lock()
        #: Whether the write thread could not open its connection.
        self._unopened = False

    @property
    def patience(self) -> float:
        """How long a write waits in the queue, in seconds: as long as for another program's lock, and a little more."""
        return self.busy_ms / 1000 + SLACK_SECONDS

    async def run(self, fn: Callable[[sqlite3.Connection], T], since: float) -> T | PubsubError:
        """Run a function on the write thread; returns errors as values, since the thread prints what is raised.

        The function begins at most ``patience`` seconds after ``since``, or never.
        """
        #: Taken once: by the write thread, which then runs the function, or by the caller, which gives it up.
        begins = threading.Lock()

        def run(conn: sqlite3.Connection) -> T | PubsubError | _Raised | None:
            if not begins.acquire(blocking=False):
                return None
            try:
                return fn(conn)
            except Exception as error:
                clear_frames(error)
                return self._handed_back(error, conn)

        self.revive()
        task = asyncio.ensure_future(self._db.execute_write_fn(run, transaction=False))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=LOOK_SECONDS)
                if task.done():
                    break
                if compat.write_thread_died(self._db) and not self.reopening.locked():
                    self.revive()
                    if begins.acquire(blocking=False):
                        return Unavailable(
                            f"database {self._name} could not be written: its write thread had ended and is started "
                            "again; nothing was stored, try again"
                        )
                    return Unavailable(
                        f"the write thread of database {self._name} has ended; whether this was stored is not known"
                    )
                if _now() > since + self.patience and begins.acquire(blocking=False):
                    return Unavailable(
                        f"database {self._name} is busy: others have been writing for {self.busy_ms / 1000:g} "
                        "seconds; nothing was stored, try again"
                    )
        finally:
            if not task.done():
                begins.acquire(blocking=False)
                task.cancel()
        try:
            result = task.result()
        except Exception as error:
            if not begins.acquire(blocking=False):
                # The function raises nothing: this came from a plugin's write wrapper or from Datasette.
                return self._handed_back_or_raised(error)
            self._unopened = True
            return self._handed_back_or_raised(error)
        if isinstance(result, _Raised):
            raise result.error
        return cast("T | PubsubError", result)

    def _handed_back(self, error: Exception, conn: sqlite3.Connection) -> PubsubError | _Raised:
        with contextlib.suppress(sqlite3.Error):
            conn.rollback()
        if isinstance(error, PubsubError):
            return error
        if isinstance(error, sqlite3.Error):
            return explain(error, self._name, conn)
        return _Raised(error)

    def _handed_back_or_raised(self, error: Exception) -> PubsubError:
        if isinstance(error, PubsubError):
            return error
        if isinstance(error, sqlite3.Error):
            return explain(error, self._name)
        if isinstance(error, DatasetteClosedError):
            # This is permanent, so the publishes that wait are refused.
            return FailedPrecondition(f"database {self._name} is not served any more; nothing was stored")
        raise error

    def revive(self) -> bool:
        """Start the write thread again if it has died; returns whether it had."""
        if not compat.write_thread_died(self._db) or self.reopening.locked():
            return False
        logger.error(
            "database %s: Datasette's write thread had died, most likely because standard error could not be "
            "written; it is started again",
            self._name,
        )
        compat.forget_write_thread(self._db)
        return True

    async def end(self) -> bool:
        """End the write thread, so that the next write opens a new connection; returns whether it has ended."""
        compat.end_write_thread(self._db)
        end = _now() + self.patience
        while compat.write_thread_lives(self._db):
            if _now() > end:
                return False
            await asyncio.sleep(0.01)
        return True

    async def open_again(self) -> bool:
        """End the write thread if it could not open its connection, so that the next write tries again.

        Returns whether it was ended.
        """
        if not self._unopened or not compat.can_reopen(self._db):
            return False
        self._unopened = False
        async with self.reopening:
            if not await self.end():
                return False
            compat.forget_write_thread(self._db)
            return True


@contextlib.contextmanager
def waiting_less(conn: sqlite3.Connection, since: float) -> Iterator[None]:
    """Within this block, SQLite waits for locks only for what is left of its busy timeout since ``since``.

    So the ninth write in the queue is answered together with the first, not after eight waits.
    """
    waited = int((_now() - since) * 1000)
    if waited < NO_WAIT_MS:
        yield
        return
    usual = conn.execute("PRAGMA busy_timeout").fetchone()[0]
    conn.execute(f"PRAGMA busy_timeout = {max(0, usual - waited)}")
    try:
        yield
    finally:
        conn.execute(f"PRAGMA busy_timeout = {usual}")


class _Raised:
    """An exception of a function on the write thread that is not SQLite's; the awaiting caller raises it again."""

    def __init__(self, error: Exception) -> None:
        self.error = error
