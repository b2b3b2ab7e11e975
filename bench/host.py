"""What Datasette pays for the plugin: hook calls and internal queries of a page, by number of databases.

``python bench/host.py`` prints the table that stands in docs/architecture.md; ``--json`` prints what was counted.

These are counts, no times. A hook call is one call of ``permission_resources_sql``: for each, Datasette collects the
rules of all plugins. An internal query is one statement on Datasette's internal database. Each page is asked for four
times, and the last one is counted. *Without* is the same Datasette on the same files, from which the plugin has been
unregistered.
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

#: The pages, by what the table calls them.
PAGES = {
    "`/`": "/",
    "a database": "/d0",
    "a table": "/d0/t",
    "the jump menu": "/-/jump.json?q=a",
    "`/-/allowed.json`": "/-/allowed.json?action=view-table",
}

ACTORS: dict[str, dict[str, str] | None] = {"anonymous": None, "root": {"id": "root"}}


class Counting:
    """A plugin that counts the questions about rights, by action."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    @hookimpl
    def permission_resources_sql(self, datasette: Datasette, actor: dict[str, Any] | None, action: str) -> None:
        self.asked[action] += 1


def make(folder: Path, number: int, log: bool) -> list[str]:
    """So many database files with one table each, and with a log or without."""
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
    """What each page costs, for each actor."""
    options = {"channel_permissions": {"open/*": {"view": True}, "*": {"view": {"id": "ada"}}}} if rules else {}
    datasette = Datasette(files, config={"plugins": {"datasette-pubsub": options}})
    datasette.root_enabled = True
    counting, found = Counting(), []
    pm.register(counting, "counting")
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
                for _ in range(4):
                    # Datasette looks at every database once per second, with queries of its own: not while we count.
                    datasette._last_schema_refresh = math.inf if datasette.internal_db_created else 0
                    counting.asked.clear()
                    queries.clear()
                    answer = await datasette.client.get(page, **({"actor": actor} if actor else {}))
                found.append(
                    {
                        "actor": who,
                        "page": name,
                        "status": answer.status_code,
                        "hooks": counting.asked.total(),
                        "queries": len(queries),
                        "asked": dict(counting.asked),
                    }
                )
    finally:
        pm.unregister(counting)
        await datasette.invoke_shutdown()
        datasette.close()
    return found


def measure(numbers: tuple[int, ...]) -> list[dict[str, Any]]:
    """All counts: for each number of databases, with a log or without, with the plugin and without it."""
    found = []
    name = pm.get_name(datasette_pubsub)
    for number in numbers:
        for log in (False, True):
            for plugin in ("with", "with rules", "without"):
                if plugin == "without":
                    pm.unregister(datasette_pubsub)
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        files = make(Path(folder), number, log)
                        rows = asyncio.run(count(files, plugin == "with rules"))
                    finally:
                        if plugin == "without":
                            pm.register(datasette_pubsub, name)
                found += [{"databases": number, "log": log, "plugin": plugin, **row} for row in rows]
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The counts as a table in Markdown: hook calls / internal queries, without the plugin → with it."""
    numbers = sorted({row["databases"] for row in found})
    by = {tuple(row[key] for key in ("databases", "log", "plugin", "actor", "page")): row for row in found}
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
    chosen = parser.parse_args()
    found = measure(tuple(chosen.numbers))
    print(json.dumps(found) if chosen.json else table(found))


if __name__ == "__main__":
    main()
