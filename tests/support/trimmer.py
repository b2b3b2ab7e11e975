"""A trim in a process of its own: ``trimmer.py FILE UP_TO CHANNEL…``."""

from __future__ import annotations

import sqlite3
import sys

from datasette_pubsub.storage import retention


def main(path: str, up_to: int, channels: list[str]) -> None:
    conn = sqlite3.connect(path, timeout=60, isolation_level=None)
    left = dict.fromkeys(channels, up_to)
    while left:
        conn.execute("BEGIN IMMEDIATE")
        retention.trim(conn, left)
        conn.execute("COMMIT")
    conn.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
