"""Brokers whose batcher has its own connection, also on a Python that cannot disable triggers, and what came of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_pubsub.broker.broker import Broker
from datasette_pubsub.broker.own_connection import OwnConnection
from datasette_pubsub.broker.registry import registry
from datasette_pubsub.compat import connections
from datasette_pubsub.core.errors import PubsubError
from datasette_pubsub.core.values import Item

#: Whether triggers are really disabled. If not, they fire on the own connection, too; all else is the same.
REAL = connections.can_disable_triggers()

NEEDS_SETCONFIG = pytest.mark.skipif(not REAL, reason="Python 3.11 cannot disable the triggers of a connection")


def allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an own connection on every Python."""
    if not REAL:
        monkeypatch.setattr(connections, "can_disable_triggers", lambda: True)
        monkeypatch.setattr(connections, "disable_triggers", lambda conn: True)


def make_file(path: Path) -> None:
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE seen (id, channel, payload)")
    conn.commit()
    conn.close()


class Served:
    """A Datasette with a started broker on one file; ``own`` is False for one that always goes the ordinary way."""

    def __init__(self, path: Path, own: bool = True, threads: int = 3, **options: Any) -> None:
        self.path, self._uses_own = path, own
        if not path.exists():
            make_file(path)
        config = {"plugins": {"datasette-pubsub": {"retention_days": 0, **options}}}
        self.datasette = Datasette([str(path)], config=config, settings={"num_sql_threads": threads})

    async def __aenter__(self) -> Served:
        await self.datasette.start_background_tasks()
        self.db = self.datasette.get_database(self.path.stem)
        self.broker: Broker = registry(self.datasette).of(self.path.stem)
        self.own: OwnConnection = self.broker.store._own
        if not self._uses_own:
            self.own.begin = lambda *_: None  # type: ignore[method-assign]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.datasette.invoke_shutdown()
        self.datasette.close()

    async def publish(self, *items: Item) -> Any:
        """The ids, or the error as comparable values."""
        try:
            return await self.broker.publish(items)
        except PubsubError as error:
            return type(error).__name__, error.message, error.field, error.limit

    async def went_own(self, *items: Item) -> bool:
        """Publish, and tell whether the own connection has written it."""
        before = self.changes
        assert isinstance(await self.publish(*items), list)
        return self.changes > before

    async def next_session(self) -> None:
        """End the batcher's session, as every other write does."""
        await self.db.execute_write_fn(lambda conn: None, transaction=False)

    @property
    def changes(self) -> int:
        """How many rows the own connection has changed, since it was opened."""
        conn = self.own._conn
        return 0 if conn is None else conn.total_changes

    def execute(self, *statements: str) -> list[Any]:
        """Run SQL as another program does; the rows of the last statement."""
        conn = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        try:
            for sql in statements:
                rows = conn.execute(sql).fetchall()
        finally:
            conn.close()
        return rows
