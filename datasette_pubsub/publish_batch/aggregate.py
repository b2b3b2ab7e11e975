"""The SQL aggregate ``publish_batch``: publishes from SELECT, on every connection that Datasette opens.

Theory of operation. SQLite makes one aggregate for each call in a statement (and each group), and calls ``step`` for
each row, then ``finalize``. An aggregate is *collecting*; then it has *ended*, and its result is the number of
messages; or it has *failed*, and ignores further rows. ``step`` adds a row to the chunk, and hands a full chunk over
(1,000 messages or 4 MiB); ``finalize`` hands the rest over. Three classes differ in what happens then:

- :class:`_InTransaction`, on a write connection: chunks wait, the first in memory and further ones in a temporary
  table, and ``finalize`` inserts them into the log, in the caller's transaction. A failure undoes the statement.
- :class:`_ThroughBatcher`, on a read-only connection: a full chunk goes to the batcher, and ``step`` returns when it
  is durable. The last chunk is *held*: SQLite also calls ``finalize`` when it breaks a statement off. The next row of
  the statement, or the next ``step``, proves that it goes on, and publishes the held chunks.
- :class:`_Again`, on a read-only connection: publishes nothing, and returns the results of an earlier run.

The plan of the statement, which its first call asks for, chooses between the last two and records what was published.
An exception cannot leave an aggregate with its text, so a failure is kept in :data:`failure`, and raised by the row
factory or by the write wrapper.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import FailedPrecondition, PubsubError, Unavailable
from ..core.limits import CHUNK_MESSAGES
from ..core.settings import Settings
from ..core.validation import check_items
from ..core.values import Item
from ..storage import log, sources

#: Checks whether the actor may publish a chunk. Raises :class:`PubsubError`.
Permit = Callable[[Sequence[Item]], None]

#: Publishes one chunk; returns when it is durable. May raise :class:`PubsubError`.
#: The flag says that the file cannot be written while the SELECT reads it.
Publish = Callable[[Sequence[Item], bool], None]


@dataclass(slots=True)
class Run:
    """What one run of a statement has published on a read-only connection.

    ``counts`` has the results of its calls, in the order in which they ended;
    ``published`` counts the durable messages.
    """

    counts: list[int] = field(default_factory=list)
    published: int = 0
    failed: PubsubError | None = None


@dataclass(slots=True)
class Plan:
    """The plan of one statement: its calls publish and record that in ``run`` or, with ``again``, return its results.

    With ``unlimited``, Datasette's time limit for SQL does not apply to the
    repeated statement, as it did not apply to the first run.
    """

    run: Run
    again: bool = False
    unlimited: bool = False
    #: How many calls have ended.
    ended: int = 0


#: Called once for each statement, in its SQL thread, when its first call begins. ``None`` means: publish, and record
#: nothing. Must not raise.
Ask = Callable[[], Plan | None]

#: The plan of the present statement. Each SQL call of Datasette runs in its own context.
_plan: ContextVar[Plan | None] = ContextVar("datasette_pubsub_plan", default=None)

#: A chunk with this many bytes of payload is handed over before it has 1,000 messages.
CHUNK_BYTES = 4 * 1024 * 1024

_SPOOL = "temp.pubsub_spool"

#: The failure of the present statement. Python's sqlite3 replaces the text of an exception in an aggregate by its own,
#: so the error travels here. The aggregate sets it; the row factory (on a read connection) or the write wrapper (on a
#: write connection) raises it. Each SQL call of Datasette runs in its own context.
failure: ContextVar[list[PubsubError] | None] = ContextVar("datasette_pubsub_failure", default=None)

#: The held chunks: the last chunks of ended calls on a read-only connection. SQLite also ends an aggregate whose
#: statement was broken off by an error or a time limit, without saying so; these chunks must not be published then. A
#: row, or a further call, proves that the statement goes on, and publishes them.
_held: ContextVar[list[tuple[_ThroughBatcher, list[Item]]] | None] = ContextVar("datasette_pubsub_held", default=None)


class PublishFailed(sqlite3.OperationalError):
    """publish_batch refused or could not store its messages; the text says why."""


def raise_failure() -> None:
    """Raise the failure that a publish_batch has recorded in this context, once."""
    noted = failure.get()
    if noted:
        failure.set(None)
        raise PublishFailed(f"publish_batch: {noted[0].message}")


def register(
    conn: sqlite3.Connection,
    settings: Settings,
    publish: Publish,
    *,
    writes: bool,
    permit: Permit,
    ask: Ask = lambda: None,
) -> None:
    """Register ``publish_batch(channel, payload)`` and ``publish_batch(channel, payload, key)``.

    ``publish`` publishes the chunks of a read-only connection. ``permit`` checks,
    on a write connection (``writes``), whether the actor may publish a chunk, and
    raises :class:`PubsubError` if not. ``ask`` returns the plan of a statement on
    a read-only connection.
    """
    if writes:

        def begin() -> _Aggregate:
            return _InTransaction(settings, conn, permit)

    else:
        conn.row_factory = _row

        def begin() -> _Aggregate:
            plan = _plan.get()
            if plan is None:
                plan = ask()
                _plan.set(plan)
            if plan is not None and plan.again:
                return _Again(settings, conn, plan)
            return _ThroughBatcher(settings, conn, publish, plan.run if plan is not None else Run())

    for arguments in (2, 3):
        conn.create_aggregate("publish_batch", arguments, begin)  # type: ignore[arg-type]


class _Unusable:
    """publish_batch on a connection that only compiles statements."""

    def step(self, *values: Any) -> None:
        raise PublishFailed("publish_batch does not run on an isolated connection")

    def finalize(self) -> None:
        return None


def register_name(conn: sqlite3.Connection) -> None:
    """Register ``publish_batch`` on a connection that only compiles SQL; it never publishes there."""
    for arguments in (2, 3):
        conn.create_aggregate("publish_batch", arguments, _Unusable)  # type: ignore[arg-type]


def _row(cursor: sqlite3.Cursor, values: Any) -> sqlite3.Row:
    """The row factory: publishes the held chunks, raises a failure, and makes a row as Datasette does."""
    if _held.get() is not None:
        try:
            _publish_held()
        except PubsubError as error:
            failure.set([error])
            plan = _plan.get()
            if plan is not None:
                plan.run.failed = error
    if failure.get() is not None:
        raise_failure()
    return sqlite3.Row(cursor, values)


class _Aggregate:
    """Collects chunks. The result is the number of messages published."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._chunk: list[Item] = []
        self._bytes = 0
        self._count = 0
        self._rows = 0
        self._failed: PubsubError | None = None

    def step(self, channel: Any, payload: Any, key: Any = None) -> None:
        self._rows += 1
        if self._failed is not None:
            return
        # This runs for every row, so the checks wait until the chunk is complete.
        self._chunk.append(Item(channel, payload, key))
        if type(payload) is str or type(payload) is bytes:
            self._bytes += len(payload)
        if len(self._chunk) >= CHUNK_MESSAGES or self._bytes >= CHUNK_BYTES:
            try:
                self._hand_over()
            except (PubsubError, sqlite3.Error) as error:
                self._fail(error)

    def finalize(self) -> int:
        try:
            if self._failed is None and self._chunk:
                self._hand_over()
            if self._failed is None:
                self.finish()
        except (PubsubError, sqlite3.Error) as error:
            self._fail(error)
        return self._count if self._failed is None else self.failed()

    def _fail(self, error: PubsubError | sqlite3.Error) -> None:
        if not isinstance(error, PubsubError):
            error = Unavailable(f"the messages could not be written: {error}")
        self._failed = error
        self._chunk = []
        failure.set([error])

    def _hand_over(self) -> None:
        chunk, self._chunk, self._bytes = self._chunk, [], 0
        check_items(chunk, self._settings)
        self.take(chunk)
        self._count += len(chunk)

    def take(self, chunk: list[Item]) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Called when all rows have been seen and every chunk was handed over."""

    def failed(self) -> int:
        """The result of a failed call, or an exception."""
        raise NotImplementedError


def _publish_held() -> None:
    """Publish the held chunks. Raises :class:`PubsubError`; the chunks after the failed one are not published."""
    held = _held.get() or []
    _held.set(None)
    for call, chunk in held:
        call.publish(chunk)


class _ThroughBatcher(_Aggregate):
    """On a read-only connection: every chunk is durable before the next is collected.

    The last chunk is held until the statement is known to go on: a statement that
    is broken off publishes only its full chunks.

    From the first chunk on, Datasette's time limit for SQL does not apply to the
    statement: durable messages cannot be taken back, and the client could not
    know where the statement stopped.
    """

    def __init__(self, settings: Settings, conn: sqlite3.Connection, publish: Publish, run: Run) -> None:
        super().__init__(settings)
        self._publish = publish
        self._run = run
        self._conn = conn
        self._ended = False
        self._blocks = conn.execute("PRAGMA journal_mode").fetchone()[0] != "wal"

    def step(self, channel: Any, payload: Any, key: Any = None) -> None:
        if _held.get() is not None:
            try:
                _publish_held()
            except PubsubError as error:
                self._fail(error)
        super().step(channel, payload, key)

    def take(self, chunk: list[Item]) -> None:
        if self._ended and self._conn.row_factory is _row:
            _held.set([*(_held.get() or []), (self, chunk)])
        else:
            self.publish(chunk)

    def publish(self, chunk: list[Item]) -> None:
        """Publish one chunk; returns when it is durable."""
        self._publish(chunk, self._blocks)
        self._run.published += len(chunk)
        self._conn.set_progress_handler(None, 0)

    def finalize(self) -> int:
        self._ended = True
        return super().finalize()

    def finish(self) -> None:
        self._run.counts.append(self._count)

    def failed(self) -> int:
        self._run.failed = self._failed
        # Return a number as if it had succeeded, so that a condition on it passes: the row factory then raises.
        return self._rows


class _Again(_Aggregate):
    """On a read-only connection, for a statement that has run before or must not publish: publishes nothing."""

    def __init__(self, settings: Settings, conn: sqlite3.Connection, plan: Plan) -> None:
        super().__init__(settings)
        if plan.unlimited:
            conn.set_progress_handler(None, 0)
        self._plan = plan

    def step(self, channel: Any, payload: Any, key: Any = None) -> None:
        self._rows += 1

    def failed(self) -> int:
        return self._rows

    def finish(self) -> None:
        run, ended = self._plan.run, self._plan.ended
        self._plan.ended += 1
        if run.failed is not None:
            raise run.failed
        if ended >= len(run.counts):
            raise FailedPrecondition(
                f"it published {run.published:,} messages; the rows that it reads have changed since, so that its "
                "result cannot be shown again"
            )
        self._count = run.counts[ended]


class _InTransaction(_Aggregate):
    """On a write connection: publishes in the caller's transaction.

    Chunks after the first wait in a temporary table until all rows have been
    seen: the SELECT may read the log, and must not see its own messages.
    """

    def __init__(self, settings: Settings, conn: sqlite3.Connection, permit: Permit) -> None:
        super().__init__(settings)
        self._conn = conn
        self._permit = permit
        self._first: list[Item] | None = None
        self._spool: int | None = None
        self._began = False

    def take(self, chunk: list[Item]) -> None:
        self._permit(chunk)
        if not self._conn.in_transaction:
            self._conn.execute("BEGIN IMMEDIATE")
            self._began = True
        if self._first is None:
            self._first = chunk
            return
        conn = self._conn
        if self._spool is None:
            conn.execute(f"CREATE TABLE IF NOT EXISTS {_SPOOL} (id INTEGER PRIMARY KEY, batch, channel, payload, key)")
            self._spool = int(conn.execute(f"SELECT coalesce(max(batch), 0) + 1 FROM {_SPOOL}").fetchone()[0])
        conn.executemany(
            f"INSERT INTO {_SPOOL} (batch, channel, payload, key) VALUES (?, ?, ?, ?)",
            [(self._spool, item.channel, item.payload, item.key) for item in chunk],
        )

    def finish(self) -> None:
        if self._first is None:
            return
        created_at = log.now()
        try:
            log.insert(self._conn, self._first, created_at)
            if self._spool is not None:
                log.insert_from(self._conn, _SPOOL, self._spool, created_at)
                self._empty_spool()
        except sqlite3.IntegrityError:
            sources.check_own(self._conn)
            raise
        if self._began:
            self._conn.execute("COMMIT")

    def _empty_spool(self) -> None:
        if self._spool is not None:
            self._conn.execute(f"DELETE FROM {_SPOOL} WHERE batch = ?", [self._spool])

    def failed(self) -> int:
        if self._began:
            self._conn.execute("ROLLBACK")
        else:
            self._empty_spool()
        # An error here makes SQLite undo what the statement has done.
        raise PublishFailed(str(self._failed))
