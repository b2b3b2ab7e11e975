"""A subscriber whose table and cursor change in one transaction.

    python examples/exactly_once.py data.db

The script sums the amounts of the channel ``payments`` into the table ``totals``, in
the same database. Each message counts exactly once, even if the script is killed: one
transaction commits the cursor and the total. The script needs no server.
"""

from __future__ import annotations

import json
import sqlite3
import sys

SUBSCRIPTION = "totals"


def prepare(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE IF NOT EXISTS totals (account TEXT PRIMARY KEY, amount INTEGER NOT NULL)")
    conn.execute(
        "INSERT INTO pubsub_subscriptions (owner, name, reads) VALUES ('', ?, ?) ON CONFLICT DO NOTHING",
        (SUBSCRIPTION, json.dumps({"channels": ["payments"]})),
    )


def step(conn: sqlite3.Connection, limit: int = 10) -> int:
    """Process the next messages, at most ``limit``; returns their number."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        messages = conn.execute(
            """SELECT id, payload FROM vpubsub
               WHERE channel = 'payments'
                 AND id > (SELECT cursor FROM pubsub_subscriptions WHERE owner = '' AND name = ?)
               ORDER BY id LIMIT ?""",
            (SUBSCRIPTION, limit),
        ).fetchall()
        for message_id, payload in messages:
            payment = json.loads(payload)
            conn.execute(
                """INSERT INTO totals VALUES (?, ?)
                   ON CONFLICT (account) DO UPDATE SET amount = amount + excluded.amount""",
                (payment["account"], payment["amount"]),
            )
            conn.execute(
                "UPDATE pubsub_subscriptions SET cursor = ? WHERE owner = '' AND name = ?",
                (message_id, SUBSCRIPTION),
            )
        conn.execute("COMMIT")
    except BaseException:
        conn.execute("ROLLBACK")
        raise
    return len(messages)


def main(path: str) -> None:
    conn = sqlite3.connect(path, timeout=30, isolation_level=None)
    prepare(conn)
    while step(conn):
        pass
    conn.close()


if __name__ == "__main__":
    main(sys.argv[1])
