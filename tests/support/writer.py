"""A writer in a process of its own: ``writer.py KIND FILE NAME COUNT``."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

INSERT = "INSERT INTO vpubsub (channel, payload) VALUES (?, ?)"


def rows(name: str, count: int) -> list[tuple[str, str]]:
    return [(f"channel {n % 3}", f"{name} {n}") for n in range(count)]


def with_connection(connection: Any, name: str, count: int) -> None:
    for n, row in enumerate(rows(name, count)):
        if n % 7 == 3:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(INSERT, ("channel 0", "never"))
            connection.execute("ROLLBACK")
        connection.execute(INSERT, row)


def main(kind: str, path: str, name: str, count: int) -> None:
    if kind == "python":
        import sqlite3

        with_connection(sqlite3.connect(path, timeout=60, isolation_level=None), name, count)
    elif kind == "apsw":
        import apsw

        connection = apsw.Connection(path)
        connection.set_busy_timeout(60_000)
        with_connection(connection, name, count)
    else:
        script = "".join(
            f"INSERT INTO vpubsub (channel, payload) VALUES ('{c}', '{p}');\n" for c, p in rows(name, count)
        )
        subprocess.run(
            ["sqlite3", "-bail", "-cmd", ".timeout 60000", path], input=script, text=True, check=True, timeout=300
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
