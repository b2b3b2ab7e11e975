"""The examples hold what they promise."""

from __future__ import annotations

import importlib.util
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from conftest import Server, sqlite_shell

from datasette_pubsub import schema
from datasette_pubsub.config import Settings

EXAMPLES = Path(__file__).parent.parent / "examples"


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
exactly_once.step(conn, 3)
"""


def test_exactly_once_whenever_the_reader_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    conn = sqlite3.connect(path, isolation_level=None)
    schema.set_durability(conn, Settings())
    schema.install(conn, Settings())
    payments = [{"account": "ab"[n % 2], "amount": n} for n in range(1, 41)]
    insert = "INSERT INTO vpubsub (channel, payload) VALUES (?, ?)"
    for payment in payments:
        conn.execute(insert, ("payments", json.dumps(payment)))
        conn.execute(insert, ("others", "not for this reader"))
    conn.close()
    killed = 0
    # Prepare, begin, select, six for three messages, commit: each is a place to die.
    for die_at in range(1, 16):
        script = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(path), str(die_at), str(EXAMPLES)]
        done = subprocess.run(script, check=False, timeout=60)
        assert done.returncode in (0, -9)
        killed += done.returncode == -9
    assert killed >= 9
    subprocess.run([sys.executable, str(EXAMPLES / "exactly_once.py"), str(path)], check=True, timeout=60)
    expected = {name: sum(p["amount"] for p in payments if p["account"] == name) for name in "ab"}
    conn = sqlite3.connect(path)
    assert dict(conn.execute("SELECT account, amount FROM totals")) == expected
    assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    conn.close()


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
