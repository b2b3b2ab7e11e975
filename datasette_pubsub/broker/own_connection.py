"""The batcher's own connection: it appends plain messages without running the guard, which has nothing left to find.

Theory of operation. The guard in the file checks every message, whichever program inserts it; a trigger for each row
costs more than the row. The batcher's items have been checked by :mod:`.core.validation`, so its transactions may do
without, if nothing else would fire. Datasette opens a second write connection for that, on the write thread, beside
its own (the *ordinary* one); triggers are disabled on it for good. One thread uses both, one after the other, and
neither keeps a transaction open: so they never wait for each other.

- *absent*: there is none. :meth:`OwnConnection.begin`, at the start of a session, opens it.
- *open* beside one ordinary connection, on the same file. When Datasette has made a new ordinary connection (its write
  thread had died, or the file was replaced), :meth:`OwnConnection.begin` closes it and opens another one.
- *given up*: it could not be opened, or triggers cannot be disabled (Python 3.11). :meth:`OwnConnection.begin` tries
  again beside the next ordinary connection.

The *ordinary* connection writes a batch, as if there were no other, whenever something may differ:

- The batch has a key, a condition, or a payload of a type that an adapter may change.
- A trigger, table or guard of the file is not exactly ours (:func:`.storage.only_ours.only_ours`). This is decided
  inside the own connection's write transaction, in which no other program can change it: ``PRAGMA schema_version``
  moves with every change, and only then is the schema read again.
- The ordinary connection has a TEMP trigger or a TEMP object with one of our names. Only this thread can make one, and
  not during a session, so ``PRAGMA temp.schema_version`` is compared once for each session.
- Another plugin wraps writes (the hook ``write_wrapper``): it may have prepared the ordinary connection for this one.
- SQLite refused something, or the ids are not as expected. The transaction was rolled back, and the ordinary connection
  decides about each publish, with its own error. An error of the file (locked, full) is final, as it would be there.

It does not matter for what is stored that others set something on the ordinary connection later, such as a function:
what the batcher writes needs none. A stricter ``synchronous`` is copied again.

What one connection has committed is news to the other, which then reads the pages that it needs from the file again.
So a batch that must go the ordinary way is followed by ``ORDINARY_BATCHES`` others that go with it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..compat import connections
from ..core.errors import PubsubError
from ..core.values import Item
from ..storage.append_batch import Batch, CommitResult
from ..storage.only_ours import has_temporary, only_ours
from ..storage.sqlite_codes import is_of_the_file

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

logger = logging.getLogger("datasette_pubsub")

#: After a batch with keys or conditions, how many batches stay on the ordinary connection. Publishers with and without
#: keys at the same time would else make each connection read again what the other has written: over 10,000 channels,
#: with a key every few milliseconds among publishes of 100, 0 gave 0.88 times the rate without an own connection, 8
#: gave 0.95 and 32 gave 1.01.
ORDINARY_BATCHES = 32

#: What is set on the ordinary connection, by the plugin, by Datasette's settings or by another plugin, and must hold
#: for the other as well: how durable a commit is, how long it waits, and how SQLite keeps the file.
_COPIED = (
    "synchronous",
    "fullfsync",
    "checkpoint_fullfsync",
    "busy_timeout",
    "cache_size",
    "wal_autocheckpoint",
    "journal_size_limit",
    "secure_delete",
    "query_only",
)

#: Runs a function in a transaction on this connection; raises ``sqlite3.Error`` and what the function raises.
Run = Callable[[sqlite3.Connection, Callable[[sqlite3.Connection], CommitResult]], CommitResult | PubsubError]


class _LeftToOrdinary(Exception):
    """The ordinary connection has to write this batch."""


class OwnConnection:
    """The batcher's own connection of one database. Its methods run on the write thread, or when that has ended.

    ``checked_bytes`` is the limit of a payload, in bytes, that items are checked with.
    """

    def __init__(self, datasette: Datasette, db: Database, checked_bytes: int) -> None:
        self._datasette = datasette
        self._db = db
        self._checked_bytes = checked_bytes
        #: Whether :meth:`begin` is opening a connection: what prepares connections is called for it, too.
        self.opening = False
        self._conn: sqlite3.Connection | None = None
        self._given_up = False
        #: The ordinary connection beside which it was opened, and what was last seen of that one: its version of TEMP
        #: objects, whether one is in the way, and the number of other writes.
        self._beside: sqlite3.Connection | None = None
        self._temporary: tuple[int, bool] = (-1, False)
        self._writes = -1
        #: The schema version for which the file was last looked at, and whether it had only the plugin's objects.
        self._schema: tuple[int, bool] = (-1, False)
        #: Whether batches of this session may go this way, as far as is known.
        self._usable = False
        #: How many batches are still left to the ordinary connection.
        self._ordinary = 0

    @property
    def is_open(self) -> bool:
        """Whether there is such a connection now."""
        return self._conn is not None

    def begin(self, ordinary: sqlite3.Connection, writes: int, same_file: Callable[[], bool]) -> None:
        """Get ready for a session of the batcher; an error means that the session uses the ordinary connection.

        ``ordinary`` is Datasette's write connection, and ``writes`` a number that changes when others have used it.
        ``same_file`` says whether the path leads to the file that it is open on.
        """
        self._usable = False
        if ordinary is not self._beside:
            self.close()
            self._beside, self._temporary, self._writes, self._given_up = ordinary, (-1, False), -1, False
        if ordinary.in_transaction:
            # A write that did not end its transaction has left a lock, for which the own connection would wait.
            return
        try:
            if self._conn is None and not self._given_up:
                self._open(ordinary, same_file)
            if self._conn is not None:
                self._usable = self._may_be_used(self._conn, ordinary, writes)
        except sqlite3.Error as error:
            logger.debug("database %s: the batcher's own connection: %s", self._db.name, error)

    def _may_be_used(self, conn: sqlite3.Connection, ordinary: sqlite3.Connection, writes: int) -> bool:
        temporary = _pragma(ordinary, "temp.schema_version")
        if temporary != self._temporary[0]:
            self._temporary = temporary, has_temporary(ordinary)
        if self._temporary[1] or connections.writes_are_wrapped():
            return False
        if writes != self._writes:
            _copy(ordinary, conn, ("synchronous",))
            self._writes = writes
        version, ours = self._schema
        # While it is known that there is something else, no transaction is begun to find that out again.
        return ours or _pragma(conn, "schema_version") != version

    def _open(self, ordinary: sqlite3.Connection, same_file: Callable[[], bool]) -> None:
        if not connections.can_disable_triggers() or _pragma(ordinary, "locking_mode") != "normal":
            self._given_up = True
            return
        if not same_file():
            # The batcher is refused until it is, and nothing may be opened until then.
            return
        self.opening = True
        try:
            conn = connections.open_write_connection(self._datasette, self._db)
        except Exception as error:
            # A plugin's hook may raise anything.
            logger.debug("database %s: no own connection for the batcher: %s", self._db.name, error)
            conn = None
        finally:
            self.opening = False
        if conn is None:
            self._given_up = True
            return
        self._conn, self._schema = conn, (-1, False)
        if not same_file():
            # Another file has come to the path: this may be open on that one.
            self.close()
        elif not connections.disable_triggers(conn) or has_temporary(conn):
            self.close()
            self._given_up = True
        else:
            _copy(ordinary, conn, _COPIED)

    def write(self, batch: Batch, run: Run) -> CommitResult | PubsubError | None:
        """Write a batch; returns ``None``, having stored nothing, if the ordinary connection has to write it.

        Raises ``sqlite3.Error`` for an error of the file.
        """
        conn = self._conn
        if conn is None or not self._usable:
            return None
        if self._ordinary:
            self._ordinary -= 1
            return None
        items = batch.plain_items()
        if items is None:
            self._ordinary = ORDINARY_BATCHES
            return None
        try:
            return run(conn, partial(self._append, batch, items))
        except _LeftToOrdinary:
            return None
        except Exception as error:
            if isinstance(error, sqlite3.Error) and is_of_the_file(error):
                raise
            # The ordinary connection decides what this means, and for which publish.
            self._ordinary = ORDINARY_BATCHES
            return None
        finally:
            self._end(conn)

    def _append(self, batch: Batch, items: list[Item], conn: sqlite3.Connection) -> CommitResult:
        """Append inside the transaction that has begun. Raises :class:`_LeftToOrdinary`."""
        version = _pragma(conn, "schema_version")
        if version != self._schema[0]:
            self._schema = version, only_ours(conn, self._checked_bytes)
        if not self._schema[1]:
            self._usable = False
            raise _LeftToOrdinary
        result = batch.append_plain(conn, items)
        if result is None:
            self._ordinary = ORDINARY_BATCHES
            raise _LeftToOrdinary
        return result

    def _end(self, conn: sqlite3.Connection) -> None:
        """Close the connection if its transaction could not be ended: the ordinary one would wait for its lock."""
        try:
            if not conn.in_transaction:
                return
        except sqlite3.Error:
            # It was closed.
            pass
        self.close()
        self._given_up = True

    def close(self) -> None:
        """Close the connection, if there is one. The next session opens another one, unless it is given up."""
        conn, self._conn = self._conn, None
        self._usable = False
        if conn is not None:
            connections.close_connection(self._db, conn)


def _pragma(conn: sqlite3.Connection, name: str) -> Any:
    return conn.execute(f"PRAGMA {name}").fetchone()[0]


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, names: Iterable[str]) -> None:
    """Set these pragmas of one connection on another."""
    for name in names:
        value = _pragma(source, name)
        if _pragma(target, name) != value:
            target.execute(f"PRAGMA {name} = {value}").fetchone()
