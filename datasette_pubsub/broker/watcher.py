"""The watcher: notices commits that did not come through the batcher, of other processes and other connections.

It polls ``PRAGMA data_version`` (3 µs) on the event loop, on one connection that Datasette has opened, and only while
there are subscribers. The value changes with every commit of another connection
(https://sqlite.org/pragma.html#pragma_data_version). The watcher never opens the file beside SQLite: closing it would
drop SQLite's locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable

from ..storage.sqlite_codes import is_busy

logger = logging.getLogger("datasette_pubsub")


class Watcher:
    """Calls ``changed`` after each commit, unless ``known`` reads the file and says that it is not needed.

    ``committed`` is called after every commit; it must not wait.
    :meth:`run` is a supervised task.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        known: Callable[[sqlite3.Connection], bool],
        changed: Callable[[], Awaitable[None]],
        watch_interval_seconds: float,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._known = known
        self._changed = changed
        self._committed = committed
        self._poll_seconds = watch_interval_seconds
        self._conn: sqlite3.Connection | None = None
        self._version: int | None = None
        self._needed = asyncio.Event()

    def watch(self, needed: bool) -> None:
        """Start or stop polling."""
        if needed:
            self._needed.set()
        else:
            self._needed.clear()

    def look(self) -> None:
        """Treat the next poll as a change, whatever the version is."""
        self._version = None

    def leave(self) -> None:
        """Open a new connection at the next poll: the present one will be closed, or is open on another file."""
        self._conn = None

    async def run(self) -> None:
        """Poll for ever; an error in one poll is logged, and polling goes on."""
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
            await asyncio.sleep(self._poll_seconds)

    def _close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(sqlite3.Error):
                conn.close()

    async def _commit(self) -> bool:
        """Poll until there was a commit, or until no subscriber is left.

        A timer calls a function for this, which takes a fifth less of a core than a task that sleeps.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[bool] = loop.create_future()

        def poll() -> None:
            if found.done():
                return
            try:
                moved = self._moved()
            except Exception as error:
                found.set_exception(error)
                return
            if moved or not self._needed.is_set():
                found.set_result(moved)
            else:
                loop.call_later(self._poll_seconds, poll)

        poll()
        return await found

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
            self._committed()
            moved = self._version is None or not self._known(self._conn)
        except sqlite3.OperationalError as error:
            if is_busy(error):
                return False
            raise
        self._version = version
        return moved
