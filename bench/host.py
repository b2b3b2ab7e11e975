"""Count the hook calls and internal queries that the plugin adds to Datasette's pages, by number of databases.

``python bench/host.py`` prints the table in docs/architecture.md; ``--json`` prints the counts.

The script counts, and measures no times. A hook call is one call of ``permission_resources_sql``: for each, Datasette
collects the rules of all plugins. An internal query is one statement on Datasette's internal database. The script
requests each page twice, and counts the second request. *Without* is the same Datasette with the same files, after
the plugin was unregistered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm

import datasette_pubsub
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

NUMBERS = (1, 4, 16, 64)

#: The pages, by their names in the table.
PAGES = {
    "`/`": "/",
    "a database": "/d0",
    "a table": "/d0/t",
    "the jump menu": "/-/jump.json?q=a",
    "`/-/allowed.json`": "/-/allowed.json?action=view-table",
}

ACTORS: dict[str, dict[str, str] | None] = {"anonymous": None, "root": {"id": "root"}}


class HookCounter:
    """A plugin that counts the calls of ``permission_resources_sql``, by action."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    @hookimpl
    def permission_resources_sql(self, datasette: Datasette, actor: dict[str, Any] | None, action: str) -> None:
        self.calls[action] += 1


def make_files(folder: Path, number: int, log: bool) -> list[str]:
    """Create that many database files with one table each, with or without a log, and return their paths."""
    files = []
    for which in range(number):
        file = folder / f"d{which}.db"
        with closing(sqlite3.connect(file)) as conn:
            conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
            conn.execute("INSERT INTO t (a) VALUES ('x')")
            conn.commit()
            if log:
                schema.set_durability(conn, Settings())
                schema.install(conn, Settings())
                conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', 'x')")
                conn.commit()
        files.append(str(file))
    return files


async def count(files: list[str], rules: bool = False) -> list[dict[str, Any]]:
    """The hook calls and internal queries of each page, for each actor."""
    options = {"channel_permissions": {"open/*": {"view": True}, "*": {"view": {"id": "ada"}}}} if rules else {}
    datasette = Datasette(files, config={"plugins": {"datasette-pubsub": options}})
    datasette.root_enabled = True
    counter, counts = HookCounter(), []
    pm.register(counter, "counting")
    try:
        await datasette.invoke_startup()
        internal = datasette.get_internal_database()
        execute, queries = internal.execute, []

        async def counted(sql: str, *args: Any, **kwargs: Any) -> Any:
            queries.append(sql)
            return await execute(sql, *args, **kwargs)

        internal.execute = counted
        for who, actor in ACTORS.items():
            for name, page in PAGES.items():
                for _ in range(2):
                    # Datasette checks the schema of every database once per second, with queries; not while we count.
                    datasette._last_schema_refresh = math.inf if datasette.internal_db_created else 0
                    counter.calls.clear()
                    queries.clear()
                    response = await datasette.client.get(page, **({"actor": actor} if actor else {}))
                counts.append(
                    {
                        "actor": who,
                        "page": name,
                        "status": response.status_code,
                        "hooks": counter.calls.total(),
                        "queries": len(queries),
                        "asked": dict(counter.calls),
                    }
                )
    finally:
        pm.unregister(counter)
        await datasette.invoke_shutdown()
        datasette.close()
    return counts


def measure(numbers: tuple[int, ...]) -> list[dict[str, Any]]:
    """All counts: for each number of databases, with and without a log, with and without the plugin."""
    counts = []
    name = pm.get_name(datasette_pubsub)
    for number in numbers:
        for log in (False, True):
            for plugin in ("with", "with rules", "without"):
                if plugin == "without":
                    pm.unregister(datasette_pubsub)
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        files = make_files(Path(folder), number, log)
                        rows = asyncio.run(count(files, plugin == "with rules"))
                    finally:
                        if plugin == "without":
                            pm.register(datasette_pubsub, name)
                counts += [{"databases": number, "log": log, "plugin": plugin, **row} for row in rows]
    return counts


def table(counts: list[dict[str, Any]]) -> str:
    """The counts as a table in Markdown: hook calls / internal queries, without the plugin → with it."""
    numbers = sorted({row["databases"] for row in counts})
    by = {tuple(row[key] for key in ("databases", "log", "plugin", "actor", "page")): row for row in counts}
    lines = [
        "| page | " + " | ".join(f"{number} database{'s' * (number > 1)}" for number in numbers) + " |",
        "|---|" + "---|" * len(numbers),
    ]
    for log in (False, True):
        for actor in ACTORS:
            for page in PAGES:
                cells = []
                for number in numbers:
                    pairs = [by[number, log, plugin, actor, page] for plugin in ("without", "with")]
                    cells.append(" → ".join(f"{row['hooks']} / {row['queries']}" for row in pairs))
                kind = "with a log" if log else "without a log"
                lines.append(f"| {page}, {actor}, {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("numbers", type=int, nargs="*", default=NUMBERS, help="numbers of databases")
    options = parser.parse_args()
    counts = measure(tuple(options.numbers))
    print(json.dumps(counts) if options.json else table(counts))


if __name__ == "__main__":
    main()
