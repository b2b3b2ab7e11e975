"""The examples hold what they promise."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from commands import call
from places import ROOT
from servers import Server, sqlite_shell

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

EXAMPLES = ROOT / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KILLED_AT_EVERY_STEP = """
import os, signal, sqlite3, sys
sys.path.insert(0, sys.argv[3])
import exactly_once
path, die_at = sys.argv[1], int(sys.argv[2])
conn = sqlite3.connect(path, timeout=30, isolation_level=None)
statements = 0
def count(statement):
    global statements
    statements += 1
    if statements == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
conn.set_trace_callback(count)
exactly_once.prepare(conn)
exactly_once.step(conn, 2)
exactly_once.step(conn, 2)
"""


def test_exactly_once_whenever_the_reader_is_killed(tmp_path: Path) -> None:
    example = load("exactly_once")
    original = tmp_path / "original.db"
    conn = sqlite3.connect(original, isolation_level=None)
    schema.set_durability(conn, Settings())
    schema.install(conn, Settings())
    payments = [{"account": "ab"[n % 2], "amount": n} for n in range(1, 8)]
    for payment in payments:
        conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('payments', ?)", [json.dumps(payment)])
        conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('others', 'not for this reader')")
    conn.close()

    def totals(path: Path) -> tuple[dict[str, int], int]:
        """The example's table, and its cursor."""
        with closing(sqlite3.connect(path)) as conn:
            if not conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'totals'").fetchone():
                return {}, 0
            cursor = conn.execute("SELECT max(cursor) FROM pubsub_subscriptions").fetchone()[0]
            return dict(conn.execute("SELECT account, amount FROM totals")), cursor or 0

    def expected(up_to: int) -> dict[str, int]:
        """What the table has to hold when everything up to an id was handled; payment n has the id 2n - 1."""
        handled = payments[: (up_to + 1) // 2]
        names = {payment["account"] for payment in handled}
        return {name: sum(p["amount"] for p in handled if p["account"] == name) for name in names}

    cursors = []
    # Every statement is a place to die, those of triggers too, until a run gets through.
    for die_at in itertools.count(1):
        path = tmp_path / f"{die_at}.db"
        shutil.copy(original, path)
        script = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(path), str(die_at), str(EXAMPLES)]
        done = subprocess.run(script, check=False, timeout=60)
        assert done.returncode in (0, -9)
        found, cursor = totals(path)
        assert found == expected(cursor), f"killed at statement {die_at}"
        cursors.append(cursor)
        example.main(str(path))
        assert totals(path) == (expected(13), 13)
        if done.returncode == 0:
            break
    # It died before its first commit, between the two, and got through.
    assert sorted(set(cursors)) == [0, 3, 7]
    assert cursors.count(3) > 5


CHANGES = """
import random, sqlite3, sys
random.seed(int(sys.argv[2]))
conn = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
done = 0
while done < 10_000:
    conn.execute("BEGIN IMMEDIATE")
    for _ in range(random.randint(1, 200)):
        number = random.randint(1, 300)
        kind = random.random()
        if kind < 0.5:
            upsert = "INSERT INTO items VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET value = ?2"
            conn.execute(upsert, (number, random.randrange(1 << 50)))
        elif kind < 0.75:
            conn.execute("UPDATE items SET value = value + 1 WHERE id = ?", (number,))
        else:
            conn.execute("DELETE FROM items WHERE id = ?", (number,))
        done += 1
    conn.execute("ROLLBACK" if random.random() < 0.1 else "COMMIT")
"""


def test_a_snapshot_and_its_stream_are_the_table(serve: Callable[..., Server]) -> None:
    example = load("follow_table")
    server = serve()
    server.publish(channel="first", payload="installs the log")
    sqlite_shell(server.path, f"CREATE TABLE items (id INTEGER PRIMARY KEY, value); {example.TRIGGERS}")
    seed = random.randrange(10**6)
    writer = subprocess.Popen([sys.executable, "-c", CHANGES, str(server.path), str(seed)])
    last: list[int] = []
    base = f"{server.url}/data"
    with ThreadPoolExecutor(4) as pool:
        followers = []
        # They begin at different times in the middle of it: a blind window would show.
        for wanted in (0, 200, 2000, 5000):
            if wanted:
                example.follow(base, "items", lambda rows, position, wanted=wanted: position > wanted)
            until = lambda rows, at: bool(last) and at >= last[0]  # noqa: E731
            followers.append(pool.submit(example.follow, base, "items", until))
        assert writer.wait(120) == 0
        nothing = {"channel": "changes/items", "payload": '{"id": 0, "row": null}'}
        last.extend(server.publish(nothing))
        # The follower may have seen that one before it was told that it is the last.
        server.publish(nothing)
        seen = [follower.result(60) for follower in followers]
    # Whole numbers: before 3.43 SQLite writes a REAL into JSON with fifteen digits.
    table = {row[0]: {"id": row[0], "value": row[1]} for row in server.rows("SELECT id, value FROM items")}
    for rows in seen:
        assert rows == table, f"seed {seed}"


@pytest.mark.usefixtures("in_time")
def test_what_was_trimmed_meanwhile_makes_it_begin_anew(serve: Callable[..., Server]) -> None:
    example = load("follow_table")
    server = serve()
    server.publish(channel="first", payload="installs the log")
    sqlite_shell(server.path, f"CREATE TABLE items (id INTEGER PRIMARY KEY, value); {example.TRIGGERS}")
    seen = []

    def until(rows: dict[int, Any], position: int) -> bool:
        seen.append(len(rows))
        if len(seen) == 1:
            # After its snapshot, ten rows come, and nine messages are gone before it subscribes.
            sqlite_shell(server.path, "INSERT INTO items SELECT value, 'x' FROM generate_series(1, 10)")
            call("trim", server.path, "--messages", 1)
        return len(rows) == 10

    example.follow(f"{server.url}/data", "items", until)
    assert seen == [0, 10]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_needs_nothing_else(path: Path) -> None:
    """What pip installs with the plugin is enough: of that, only the plugin itself is counted on."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in found if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "datasette_pubsub"}
