"""Logs as an older version of the plugin has made them."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from commands import python_module
from places import SUPPORT

VERSION_1 = (SUPPORT / "version_1.sql").read_text()

#: What users had made of the log of the first version.
OF_USERS = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT);
CREATE TRIGGER by_view AFTER INSERT ON orders
BEGIN INSERT INTO vpubsub (channel, payload) VALUES ('orders', NEW.state); END;
CREATE TRIGGER by_table AFTER UPDATE ON orders
BEGIN INSERT INTO "pubsub_messages" (channel, payload, key) VALUES ('orders', NEW.state, 'k' || NEW.id); END;
CREATE TABLE audit (id INTEGER, channel TEXT);
CREATE TRIGGER audited AFTER INSERT ON pubsub_messages BEGIN INSERT INTO audit VALUES (NEW.id, NEW.channel); END;
CREATE INDEX by_time ON pubsub_messages (created_at); -- not pubsub_messages
CREATE VIEW newest AS SELECT max(pubsub_messages.id) AS id, 'of pubsub_messages' AS said FROM [pubsub_messages];
CREATE VIEW head AS SELECT seq FROM sqlite_sequence WHERE name = 'pubsub_messages';
CREATE VIEW of_a_view AS SELECT channel, id FROM vpubsub;
CREATE VIEW written AS SELECT id, payload FROM pubsub_messages;
CREATE TRIGGER writes INSTEAD OF INSERT ON written
BEGIN INSERT INTO vpubsub (channel, payload) VALUES ('written', NEW.payload); END;
CREATE INDEX by_cursor ON pubsub_subscriptions (cursor);
CREATE TABLE moves (name TEXT, cursor INTEGER);
CREATE TRIGGER moved AFTER UPDATE OF cursor ON pubsub_subscriptions
BEGIN INSERT INTO moves VALUES (NEW.name, NEW.cursor); END;
CREATE TRIGGER greeted AFTER INSERT ON pubsub_subscriptions WHEN NEW.name = 'new one'
BEGIN INSERT INTO pubsub_messages (channel, payload) VALUES ('greetings', NEW.name); END;
CREATE VIEW behind AS SELECT name FROM pubsub_subscriptions WHERE cursor = 0;
CREATE VIEW lost AS SELECT removed.id FROM pubsub_released AS removed JOIN pubsub_trims USING (channel);
"""


def make_version_1(path: Path, messages: int) -> None:
    """A file of the first version: messages of every type, keys, a hole, subscriptions."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.executescript(VERSION_1 + OF_USERS)
        conn.execute(
            """INSERT INTO pubsub_messages (channel, payload, key)
               WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
               SELECT 'c/' || (i % 20),
               CASE i % 4 WHEN 0 THEN i WHEN 1 THEN i + 0.5 WHEN 2 THEN x'00ff' ELSE 'text ' || i END,
               CASE i % 10 WHEN 7 THEN 'key ' || i END FROM n""",
            [messages],
        )
        conn.execute("INSERT INTO pubsub_released VALUES ('c/3', 23)")
        conn.execute("INSERT INTO pubsub_trims VALUES ('c/3', 23, 3, 2, x'00')")
        conn.execute("DELETE FROM pubsub_messages WHERE channel = 'c/3' AND id <= 23")
        for n in range(20):
            conn.execute(
                "INSERT INTO pubsub_subscriptions (owner, name, reads, cursor) VALUES (?, ?, ?, ?)",
                ["ada" if n % 2 else "", f"s{n}", '{"channels": ["c/1"], "patterns": ["c/2*"]}', messages // 20 * n],
            )
        conn.execute("DELETE FROM audit")


def contents(conn: sqlite3.Connection, log_table: str, hidden: str) -> list[list[Any]]:
    """All that a migration must keep."""
    return [
        conn.execute(sql).fetchall()
        for sql in (
            f"SELECT id, channel, payload, typeof(payload), created_at, key FROM {log_table} ORDER BY id",
            "SELECT id, owner, name, reads, cursor, created_at, last_seen_at FROM pubsub_subscriptions ORDER BY id",
            f"SELECT * FROM {hidden}pubsub_released",
            f"SELECT * FROM {hidden}pubsub_trims",
            f"SELECT seq FROM sqlite_sequence WHERE name = '{log_table}'",
            "SELECT seq FROM sqlite_sequence WHERE name = 'pubsub_subscriptions'",
        )
    ]


def install(path: Path) -> subprocess.CompletedProcess[str]:
    return python_module("datasette", "pubsub", "install", path)
