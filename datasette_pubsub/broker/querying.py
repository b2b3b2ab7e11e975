"""Connects the queries of one database with its file: live and standing ones, and snapshots."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from ..core.errors import FailedPrecondition, NotFound
from ..core.settings import Settings
from ..live.admission import Admission
from ..live_query.queries import LiveQueries
from ..live_query.query import Encoder
from ..live_query.subscriber import QuerySubscriber, QuerySubscriberOptions
from ..storage import snapshot
from ..storage.query import Limits, Question
from ..storage.quoting import identifier
from .database import DatabaseFile
from .own_writes import in_batcher
from .standing import File, StandingQueries
from .subscribing import Read

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database


class Querying:
    """The queries of one database: ``live`` ones, for subscribers, and ``standing`` ones, which publish.

    ``file`` has no time limit on reads, and ``read`` has one. ``make_way`` ends the batcher's session; ``watch`` is
    called when commits have to be watched, or no longer; ``published`` after a standing query has published; and
    ``removed`` says whether the database is no longer served.
    """

    def __init__(
        self,
        datasette: Datasette,
        db: Database,
        settings: Settings,
        store: DatabaseFile,
        admission: Admission,
        file: File,
        *,
        read: Read,
        make_way: Callable[[], None],
        watch: Callable[[], None],
        published: Callable[[], Awaitable[None]],
        removed: Callable[[], bool],
    ) -> None:
        self._datasette = datasette
        self._db = db
        self._settings = settings
        self._store = store
        self._read = read
        self._make_way = make_way
        #: The number of the broker's own commits when it was last asked whether others have committed.
        self._asked_at = 0
        self.live = LiveQueries(
            str(db.name),
            settings,
            admission,
            read=store.read,
            limits=self._limits,
            stamp=self._only_own_commits,
            watch=watch,
        )
        self.standing = StandingQueries(
            str(db.name),
            settings.standing_queries,
            self.live,
            file,
            limits=self._limits,
            published=published,
            removed=removed,
        )

    def subscribe(
        self, question: Question, encoder: Encoder, options: QuerySubscriberOptions
    ) -> AbstractAsyncContextManager[QuerySubscriber]:
        """Open a subscriber of a live query until the block ends. Raises :class:`~.core.errors.PubsubError`."""
        self._store.check_present()
        if self._db.is_memory:
            raise FailedPrecondition(f"database {self._db.name} is in memory: its commits cannot be watched")
        return self.live.subscribe(question, encoder, options)

    async def snapshot_table(self, table: str) -> tuple[list[str], list[Any], int]:
        """A snapshot of a table, as :meth:`snapshot`. Raises :class:`NotFound`."""
        names = [*await self._db.table_names(), *await self._db.view_names()]
        if table not in names:
            raise NotFound(f"table not found: {table}")
        return await self.snapshot(f"SELECT * FROM {identifier(table)}", {})

    async def snapshot(self, statement: str, params: dict[str, Any]) -> tuple[list[str], list[Any], int]:
        """The columns and rows of a SELECT, and the log's head, all from one read transaction.

        Raises :class:`InvalidArgument`, with SQLite's own message, for SQL that
        does not run, and :class:`PayloadTooLarge` for more than ``max_snapshot_rows``.
        """
        settings, milliseconds = self._settings, self._datasette.setting("sql_time_limit_ms")
        return await self._read(
            lambda conn: snapshot.take(conn, statement, params, settings.max_snapshot_rows, milliseconds)
        )

    def _limits(self) -> Limits:
        setting = self._datasette.setting
        return Limits(
            seconds=setting("sql_time_limit_ms") / 1000,
            rows=setting("max_returned_rows"),
            bytes=self._settings.max_live_query_bytes,
        )

    async def _only_own_commits(self) -> object:
        """A value that stays the same while only this broker commits; ``None`` if it is not known, or not worth asking.

        It is asked only if the broker has committed since it was last asked: else others have.
        """
        if not self._store.writable or self._store.commits == self._asked_at:
            return None
        self._asked_at = self._store.commits
        token = in_batcher.set(True)
        try:
            self._make_way()
            return await self._store.only_own_commits()
        finally:
            in_batcher.reset(token)
