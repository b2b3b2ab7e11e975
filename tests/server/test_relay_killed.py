"""A million messages through kills of everything: log, stream and follower are identical."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nats_servers import NatsServer, Start, both_servers, head, relay_once, running, wait_for_head

#: Publishes odd messages in transactions of a random size until it is killed or has this many: FILE SEED COUNT.
ORIGIN = """
import os, random, sqlite3, sys
path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
conn = sqlite3.connect(path, isolation_level=None, timeout=60)
conn.execute("PRAGMA synchronous = NORMAL")
channels = ["eu/new", "a.b c/é", "x//y", "-", "100%/*/>", " ", "n\\nl", "c" * 255, "deep/" * 20 + "end"]
payloads = ["", "text", "ü😀\\n\\x00", b"", bytes(range(256)), 0, -(2**63), 2**63 - 1, 0.1, 1e300, float("inf")]
while (newest := conn.execute("SELECT coalesce(max(id), 0) FROM vpubsub").fetchone()[0]) < count:
    conn.execute("BEGIN IMMEDIATE")
    for number in range(rng.choice([1, 10, 1000, 5000])):
        key = f"k{seed}-{newest}-{number}-é%" if rng.random() < 0.2 else None
        payload = rng.choice(payloads)
        if rng.random() < 0.0001:
            payload = os.urandom(1024 * 1024) if rng.random() < 0.5 else "x" * (1024 * 1024)
        row = (rng.choice(channels), payload, key)
        conn.execute("INSERT INTO vpubsub (channel, payload, key) VALUES (?, ?, ?)", row)
    conn.execute("COMMIT")
"""


def digest(file: Path) -> str:
    """A digest of all messages, exactly."""
    found = hashlib.sha256()
    sql = (
        "SELECT id, CAST(channel AS BLOB), typeof(payload), CAST(payload AS BLOB), payload + 0.0, "
        "CAST(created_at AS BLOB), CAST(key AS BLOB) FROM vpubsub ORDER BY id"
    )
    with contextlib.closing(sqlite3.connect(file)) as conn:
        for row in conn.execute(sql):
            found.update(repr(row).encode())
    return found.hexdigest()


@pytest.mark.slow
@both_servers
def test_a_million_messages_and_twenty_kills_of_each(tmp_path: Path, file: Path, start: Start, binary: str) -> None:
    """At random moments, and the server's store is put back to an older copy in between."""
    count = int(os.environ.get("PUBSUB_RELAY_MESSAGES", "1000000"))
    kills = 20
    rng = random.Random(0)
    copy = tmp_path / "copy.db"

    def origin(seed: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", ORIGIN, str(file), str(seed), str(count)])

    with running(tmp_path / "nats", binary) as nats:
        relay_once(file, nats)
        words = {
            "relay": ("relay", file, "--to", nats.url, "--stream", "orders"),
            "standby": ("relay", file, "--to", nats.url, "--stream", "orders"),
            "follow": ("follow", nats.url, copy, "--stream", "orders"),
        }
        processes = {name: start(*each) for name, each in words.items()}
        publisher = origin(0)
        victims = ["relay", "standby", "follow", "server", "origin"] * kills
        rng.shuffle(victims)
        try:
            for number, victim in enumerate(victims):
                # The kills are spread over all messages, and each comes at a random moment.
                _wait(lambda number=number: head(file) >= count * number // len(victims))
                time.sleep(rng.uniform(0, 0.5))
                if victim == "server":
                    nats.kill()
                    nats.start()
                elif victim == "origin":
                    publisher.kill()
                    publisher.wait()
                    publisher = origin(number)
                else:
                    processes[victim].kill()
                    processes[victim].wait()
                    processes[victim] = start(*words[victim])
                if number in (len(victims) // 3, 2 * len(victims) // 3):
                    _older_store(nats, tmp_path / "older")
            publisher.wait(1200)
            wait_for_head(copy, head(file), 1200)
        finally:
            publisher.kill()
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert head(copy) == head(file) >= count
        assert digest(copy) == digest(file)
        for command in (
            ("relay", file, "--to", nats.url, "--stream", "orders", "--check"),
            ("follow", nats.url, copy, "--stream", "orders", "--verify"),
        ):
            process = start(*command)
            printed, errors = process.communicate(timeout=1200)
            assert printed == f"Compared {head(file)} messages: all the same\n", errors


def _wait(condition: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _older_store(nats: NatsServer, older: Path) -> None:
    """Put the server's store back to a copy that is some seconds old."""
    nats.kill(signal.SIGTERM)
    shutil.copytree(nats.store, older)
    nats.start()
    time.sleep(3)
    nats.kill()
    shutil.rmtree(nats.store)
    shutil.move(older, nats.store)
    nats.start()
