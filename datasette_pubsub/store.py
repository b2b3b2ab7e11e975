"""The file of one database, as Datasette opens it: reads, writes, and what stands in their way.

The law of this module: every connection is one that Datasette made (DESIGN.md,
decision 1). Errors of SQLite come out of it as errors that may be shown. It
knows no subscribers.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from . import broadcast_file, log, schema
from .batcher import Transaction
from .codes import is_busy, primary
from .config import Settings
from .errors import FailedPrecondition, PubsubError, Unavailable
from .transaction import Committed

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

logger = logging.getLogger("datasette_pubsub")

T = TypeVar("T")


def explain(error: sqlite3.Error, name: str, conn: sqlite3.Connection | None = None) -> PubsubError:
    """What an SQLite error means to a caller, by its code, without paths or SQL.

    ``conn`` is where it was met, after a rollback: SQLite has no code for a
    missing table, so the schema is asked.
    """
    code = primary(error)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return FailedPrecondition(
            f"database {name} cannot be written: its file is read-only, or was when Datasette opened it; "
            "nothing was stored"
        )
    if is_busy(error):
        return Unavailable(f"database {name} is locked by another writer; nothing was stored, try again")
    if code == sqlite3.SQLITE_FULL:
        return Unavailable(f"the disk of database {name} is full; nothing was stored")
    if code == sqlite3.SQLITE_CONSTRAINT and isinstance(error, sqlite3.IntegrityError):
        return log.refusal(error)
    if conn is not None and code == sqlite3.SQLITE_ERROR and _lacks_a_part(conn):
        return FailedPrecondition(
            f"database {name} has lost a part of its log; restart Datasette, or run: datasette pubsub install"
        )
    logger.error("database %s: %s", name, error)
    return Unavailable(f"database {name} could not be written; nothing was stored")


def _lacks_a_part(conn: sqlite3.Connection) -> bool:
    try:
        return bool(schema.inspect(conn).missing)
    except sqlite3.Error:
        return False


class Store:
    """One database of one Datasette."""

    def __init__(self, datasette: Datasette, db: Database, settings: Settings) -> None:
        #: Why the log could not be installed, as found when the write connection was opened.
        self.conflict: PubsubError | None = None
        #: What the log was told last.
        self._told: str | None = None
        self._name = str(db.name)
        self._datasette = datasette
        self._db = db
        self._settings = settings

    @property
    def writable(self) -> bool:
        """Whether this is a file that can be written."""
        return bool(self._db.is_mutable and not self._db.is_memory and not self._datasette.nolock)

    def prepare_write(self, conn: sqlite3.Connection) -> None:
        """Durability and the log, on Datasette's write connection; why not, if not, stands in ``conflict``."""
        self.conflict = None
        try:
            # Before anything is changed: a file of a newer version stays as it is.
            schema.check(conn)
            schema.set_durability(conn, self._settings)
            if not self._datasette.setting("cache_size_kb"):
                schema.set_cache(conn)
            schema.install(conn, self._settings, migrated=broadcast_file.renew)
        except PubsubError as error:
            self.conflict = error
        except sqlite3.Error as error:
            self.conflict = explain(error, self._name, conn)
        self._tell(self.conflict)

    def _tell(self, conflict: PubsubError | None) -> None:
        """Say in the log why nothing can be published; once, until it changes."""
        message = None if conflict is None else conflict.message
        if message is not None and message != self._told:
            logger.warning("database %s: %s", self._name, message)
        self._told = message

    async def look(self) -> None:
        """Say in the log what is wrong with the log of this file; called when the server starts."""
        if self.writable:

            def problem(conn: sqlite3.Connection) -> PubsubError | None:
                try:
                    schema.check(conn)
                except PubsubError as error:
                    return error
                return None

            try:
                self._tell(await self.read(problem))
            except Unavailable:
                # The file cannot be read now: whoever asks for it is told.
                pass

    async def prepare_later(self) -> None:
        """Have the log installed by the write thread, as soon as nothing reads; does not wait for it."""
        if self.conflict is None:
            # Opening the write connection is what installs it.
            await self._db.execute_write_fn(lambda conn: None, block=False)
        else:
            await self._db.execute_write_fn(self.prepare_write, block=False, transaction=False)

    def check_writable(self) -> None:
        """Raise :class:`FailedPrecondition` when this database can never store a message."""
        if self._db.is_memory:
            raise FailedPrecondition(f"database {self._name} is in memory: it cannot keep messages")
        if not self._db.is_mutable:
            raise FailedPrecondition(f"database {self._name} is immutable: nothing can be published to it")
        if self._datasette.nolock:
            raise FailedPrecondition("Datasette was started with --nolock: it cannot read a file that has a log")

    async def _prepared(self) -> None:
        if self.conflict is not None:
            # Opening the write connection could not install the log; what stood in the way may be gone.
            await self._db.execute_write_fn(self.prepare_write, transaction=False)

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a transaction on the write connection. Raises :class:`PubsubError`."""
        await self._prepared()

        def checked(conn: sqlite3.Connection) -> T | PubsubError:
            # What is refused is handed back, not raised: Datasette's write thread prints what is raised.
            if self.conflict is not None:
                return self.conflict
            try:
                return fn(conn)
            except PubsubError as error:
                conn.rollback()
                return error
            except sqlite3.Error as error:
                conn.rollback()
                return explain(error, self._name, conn)

        try:
            result = await self._db.execute_write_fn(checked)
        except sqlite3.Error as error:
            raise explain(error, self._name) from error
        if isinstance(result, PubsubError):
            raise result
        return cast(T, result)

    async def session(self, session: Callable[[Transaction], None]) -> None:
        """Run the batcher's session on the write thread, with what it needs to run transactions."""
        await self._prepared()

        def run(conn: sqlite3.Connection) -> None:
            session(lambda fn: self._transaction(conn, fn))

        await self._db.execute_write_fn(run, transaction=False)

    def _transaction(
        self, conn: sqlite3.Connection, fn: Callable[[sqlite3.Connection], Committed]
    ) -> Committed | PubsubError:
        """One transaction of a session, on the write thread."""
        if self.conflict is not None:
            return self.conflict
        try:
            conn.execute("BEGIN IMMEDIATE")
            try:
                result = fn(conn)
                conn.commit()
            except BaseException:
                conn.rollback()
                raise
        except PubsubError as error:
            return error
        except sqlite3.Error as error:
            return explain(error, self._name, conn)
        return result

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a read on one of Datasette's read connections; errors come out as :class:`PubsubError`."""

        def checked(conn: sqlite3.Connection) -> T:
            try:
                return fn(conn)
            except sqlite3.Error as error:
                if primary(error) == sqlite3.SQLITE_ERROR and _lacks_a_part(conn):
                    raise explain(error, self._name, conn) from error
                raise

        try:
            result: T = await self._db.execute_fn(checked)
        except sqlite3.Error as error:
            logger.error("database %s: %s", self._name, error)
            raise Unavailable(f"database {self._name} could not be read") from error
        return result
