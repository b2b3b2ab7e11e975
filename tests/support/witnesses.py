"""What really happened to a log, as triggers in its file have written it down."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

WITNESSES = """
CREATE TABLE said (id INTEGER PRIMARY KEY, channel TEXT, payload TEXT);
CREATE TABLE gone (id INTEGER PRIMARY KEY);
CREATE TABLE moved (subscription INTEGER, was INTEGER, became INTEGER);
CREATE TRIGGER said AFTER INSERT ON vpubsub
BEGIN INSERT INTO said VALUES (NEW.id, NEW.channel, NEW.payload); END;
CREATE TRIGGER gone AFTER DELETE ON vpubsub
BEGIN INSERT INTO gone VALUES (OLD.id); END;
CREATE TRIGGER moved AFTER UPDATE OF cursor ON pubsub_subscriptions
BEGIN INSERT INTO moved VALUES (NEW.id, OLD.cursor, NEW.cursor); END;
"""


def make_file(path: Path) -> None:
    """A database with the log and the witnesses."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        schema.install(conn, Settings())
        conn.executescript(WITNESSES)


@dataclass(frozen=True)
class Truth:
    """What was committed, ``{id: (channel, payload)}``, and which of it was trimmed."""

    said: dict[int, tuple[str, str]]
    gone: set[int]

    @classmethod
    def of(cls, conn: sqlite3.Connection) -> Truth:
        conn.execute("BEGIN")
        said = {row[0]: (row[1], row[2]) for row in conn.execute("SELECT id, channel, payload FROM said")}
        gone = {row[0] for row in conn.execute("SELECT id FROM gone")}
        conn.execute("ROLLBACK")
        return cls(said, gone)

    def ids(self, selector: Selector, after: int = 0, to: int = 1 << 62) -> set[int]:
        """The ids of these channels, after one and up to another."""
        return {n for n, (channel, _) in self.said.items() if after < n <= to and selector.matches(channel)}
