"""The watcher: notices commits that did not come through the batcher, of other processes and other connections.

Theory of operation. ``PRAGMA data_version`` (3 µs) changes with every commit of another connection
(https://sqlite.org/pragma.html#pragma_data_version). The watcher looks at it on the event loop, on one connection that
Datasette has opened, and only while there are subscribers. When it looks depends on whether the kernel reports writes
to the write-ahead log:

- *polling*: the kernel does not. The watcher looks every ``watch_interval_seconds``, and tries once a second to be
  notified.
- *notified*: :class:`~.file_events.FileEvents` reports each write. A commit is visible a moment after its last write,
  when the disk has synced it. So the watcher looks ``AFTER_WRITE_SECONDS`` after a write, then again and again, each
  time after half of the time that has passed since the write, and every ``SAFETY_SECONDS`` in any case.

The watcher never opens the file beside SQLite: closing it would drop SQLite's locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable

from ..storage.sqlite_codes import is_busy
from .file_events import FileEvents

logger = logging.getLogger("datasette_pubsub")

#: How long after a write the file is looked at, in seconds.
AFTER_WRITE_SECONDS = 0.0005

#: The shortest time between two looks because of writes, in seconds.
BETWEEN_SECONDS = 0.001

#: How often the file is looked at although no write was reported, in seconds.
SAFETY_SECONDS = 0.25

#: How often the watcher tries again to be notified, in seconds.
RETRY_SECONDS = 1.0

#: How often in a row a look may be put off because the batcher may be about to report the same commit.
TIMES_PUT_OFF = 4


class Watcher:
    """Calls ``changed`` after each commit, unless ``known`` reads the file and says that it is not needed.

    ``known`` may also return ``None``, if it will be known in a moment.
    ``committed`` is called after every commit; it must not wait.
    :meth:`run` is a supervised task.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        known: Callable[[sqlite3.Connection], bool | None],
        changed: Callable[[], Awaitable[None]],
        watch_interval_seconds: float,
        committed: Callable[[], None] = lambda: None,
        events: FileEvents | None = None,
    ) -> None:
        self._connect = connect
        self._known = known
        self._changed = changed
        self._committed = committed
        self._poll_seconds = watch_interval_seconds
        self._events = events
        self._conn: sqlite3.Connection | None = None
        self._version: int | None = None
        self._put_off = 0
        self._loop: asyncio.AbstractEventLoop
        self._needed = asyncio.Event()
        #: Ends the notifications; ``None`` while polling.
        self._end_events: Callable[[], None] | None = None
        self._tried = float("-inf")
        #: When the last write was reported, and when the file was last looked at, by the loop's clock.
        self._wrote = self._looked = float("-inf")
        #: The next look, and what it does.
        self._timer: asyncio.TimerHandle | None = None
        self._look: Callable[[], None] | None = None

    def watch(self, needed: bool) -> None:
        """Start or stop looking."""
        if needed:
            self._needed.set()
            self._look_in(0)
        else:
            self._needed.clear()
            self._stop_events()

    def look(self) -> None:
        """Treat the next look, which is soon, as a change, whatever the version is."""
        self._version = None
        self._look_in(AFTER_WRITE_SECONDS)

    def leave(self) -> None:
        """Open a new connection at the next look: the present one will be closed, or is open on another file."""
        self._conn = None
        self._stop_events()
        self._look_in(self._poll_seconds)

    async def run(self) -> None:
        """Look for ever; an error in one look is logged, and it goes on."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                await self._needed.wait()
                try:
                    if await self._commit():
                        await self._changed()
                except sqlite3.ProgrammingError:
                    logger.info("the database was closed; no longer watching it")
                    return
                except Exception:
                    # The connection may be broken: open a new one next time.
                    logger.exception("could not look for new messages; trying again")
                    self._close()
                    await asyncio.sleep(1)
                await asyncio.sleep(BETWEEN_SECONDS if self._end_events else self._poll_seconds)
        finally:
            self._stop_events()

    def _close(self) -> None:
        self._stop_events()
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(sqlite3.Error):
                conn.close()

    async def _commit(self) -> bool:
        """Look until there was a commit, or until no subscriber is left.

        A timer calls a function for this, which takes a fifth less of a core than a task that sleeps.
        """
        loop = self._loop
        found: asyncio.Future[bool] = loop.create_future()

        def look() -> None:
            self._timer = None
            if found.done():
                return
            self._looked = loop.time()
            try:
                moved = self._moved()
                if self._end_events is None and self._needed.is_set():
                    self._try_events()
            except Exception as error:
                found.set_exception(error)
                return
            if moved or not self._needed.is_set():
                found.set_result(moved)
            else:
                self._timer = loop.call_later(self._pause(), look)

        self._look = look
        try:
            look()
            return await found
        finally:
            self._look = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _pause(self) -> float:
        """How long until the next look, in seconds."""
        if self._end_events is None:
            return self._poll_seconds
        half = (self._looked - self._wrote) / 2
        return min(max(half, BETWEEN_SECONDS), max(SAFETY_SECONDS, self._poll_seconds))

    def _look_in(self, seconds: float) -> None:
        """Look after so many seconds, unless that is soon anyway. While nobody awaits a commit, nothing is needed."""
        timer, look = self._timer, self._look
        if timer is None or look is None:
            return
        when = max(self._loop.time() + seconds, self._looked + BETWEEN_SECONDS)
        if when < timer.when():
            timer.cancel()
            self._timer = self._loop.call_at(when, look)

    def _try_events(self) -> None:
        """Try to be notified of writes to this connection's log, at most once in ``RETRY_SECONDS``."""
        if self._events is None or self._conn is None or self._looked < self._tried + RETRY_SECONDS:
            return
        self._tried = self._looked
        path = self._conn.execute("PRAGMA database_list").fetchone()[2]
        if path:
            self._end_events = self._events.watch(f"{path}-wal", self._notified)
            # What was written before is found by the next looks.
            self._wrote = self._looked

    def _notified(self, watched: bool) -> None:
        """The log was written; or it is not watched any more, and the next look tries to watch it again."""
        if not watched:
            self._stop_events()
        self._wrote = self._loop.time()
        self._look_in(AFTER_WRITE_SECONDS)

    def _stop_events(self) -> None:
        end, self._end_events = self._end_events, None
        self._tried = float("-inf")
        if end is not None:
            end()

    def _moved(self) -> bool:
        """Whether a commit of another connection since the last call needs a refresh. Never waits for a lock."""
        if self._conn is None:
            self._conn = self._connect()
            self._conn.execute("PRAGMA busy_timeout = 0")
            self._version = None
        try:
            version = self._conn.execute("PRAGMA data_version").fetchone()[0]
            if version == self._version:
                return False
            known = False if self._version is None else self._known(self._conn)
        except sqlite3.OperationalError as error:
            if is_busy(error):
                return False
            raise
        if known is None and self._put_off < TIMES_PUT_OFF:
            self._put_off += 1
            return False
        self._put_off = 0
        self._committed()
        self._version = version
        return not known
