"""A migration that is killed leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from commands import start_module
from old_logs import contents, install, make_version_1
from servers import sqlite_shell

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import log, schema, subscriptions


def killed_while_installing(path: Path, rounds: int) -> None:
    """Kill `install` at moments all over its work; each time the file is old or new, never half, and whole."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        before = contents(conn, "pubsub_messages", "")
    copy = path.with_name("whole.db")
    copied = path.with_name("timed.db")
    sqlite_shell(path, f"VACUUM INTO '{copy}'")
    copied.write_bytes(copy.read_bytes())
    began = time.monotonic()
    assert install(copied).returncode == 0
    takes = time.monotonic() - began
    seen = set()
    for n in range(rounds):
        for part in ("", "-wal", "-shm"):
            path.with_name(path.name + part).unlink(missing_ok=True)
        path.write_bytes(copy.read_bytes())
        process = start_module("datasette", "pubsub", "install", path)
        time.sleep(takes * (n + random.random()) / rounds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
            new = conn.execute("SELECT type FROM sqlite_master WHERE name = 'vpubsub'").fetchone() == ("table",)
            seen.add(new)
            assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert contents(conn, *(("vpubsub", "_") if new else ("pubsub_messages", ""))) == before
            schema.install(conn, Settings())
            assert contents(conn, "vpubsub", "_") == before
            for reader in subscriptions.everyone(conn):
                lag = [row for row in before[0] if row[0] > reader.cursor and reader.selector.matches(row[1])]
                assert log.count_after(conn, reader.selector, reader.cursor) == len(lag)
    assert False in seen, "some of the kills came in time"


def test_a_killed_migration_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    make_version_1(path, 20_000)
    killed_while_installing(path, 6)


@pytest.mark.slow
def test_a_killed_migration_of_a_million_messages(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    make_version_1(path, 1_000_000)
    killed_while_installing(path, 10)
