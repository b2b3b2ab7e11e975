"""A writer in a process of its own, which also says what queries return after each of its commits.

Reads JSON lines ``{"script": [sql, …], "queries": [[sql, params], …]}``; answers each with a JSON line: the log's head
and, for each query, its rows, as SQLite returns them at that moment.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import sys
from typing import Any


def shown(value: Any) -> Any:
    """A value as the documentation of live queries says that it is written."""
    if isinstance(value, bytes):
        return {"$base64": True, "encoded": base64.b64encode(value).decode()}
    return value


def main(path: str) -> None:
    conn = sqlite3.connect(path, timeout=60, isolation_level=None)
    for line in sys.stdin:
        asked = json.loads(line)
        conn.execute("BEGIN IMMEDIATE")
        for statement in asked["script"]:
            conn.execute(statement)
        conn.execute("COMMIT")
        # Nobody else writes: this is the state until the next line.
        head = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'vpubsub'").fetchone()[0]
        rows = [[[shown(v) for v in row] for row in conn.execute(sql, params)] for sql, params in asked["queries"]]
        print(json.dumps({"head": head, "rows": rows}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
