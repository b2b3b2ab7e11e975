"""The batcher's own connection in a real server: another process's trigger fires from its commit on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
from own_way import REAL
from servers import Server, sqlite_shell, wait_for


def write_descriptors(server: Server) -> int:
    """How many descriptors of the server's process may write to the database's file."""
    assert server.process is not None
    found = 0
    for each in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            if Path(os.readlink(each)) != server.path:
                continue
            (flags,) = [
                line.split()[1]
                for line in Path(f"/proc/{server.process.pid}/fdinfo/{each.name}").read_text().splitlines()
                if line.startswith("flags:")
            ]
        except FileNotFoundError:
            continue
        found += int(flags, 8) & os.O_ACCMODE == os.O_RDWR
    return found


def test_a_trigger_of_another_process_fires_from_its_commit_on(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="c", payload="first")
    assert write_descriptors(server) == (2 if REAL else 1)
    done = threading.Event()
    published: list[int] = []

    def publisher() -> None:
        with httpx.Client(timeout=30) as client:
            while not done.is_set():
                items = [{"channel": "c", "payload": "x"}] * 20
                published.extend(client.post(f"{server.pubsub}/-/publish", json={"items": items}).json()["message_ids"])

    threads = [threading.Thread(target=publisher) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            more = len(published) + 200
            wait_for(lambda more=more: len(published) >= more, "publishing goes on")  # type: ignore[misc]
            # The ids at the moment of both commits: what lies between them has fired the trigger, and nothing else.
            begin = sqlite_shell(
                server.path,
                f"BEGIN IMMEDIATE; CREATE TABLE seen{number} (id); CREATE TRIGGER notes AFTER INSERT ON vpubsub BEGIN "
                f"INSERT INTO seen{number} VALUES (NEW.id); END; "
                "SELECT seq FROM sqlite_sequence WHERE name = 'vpubsub'; COMMIT;",
            )
            more = len(published) + 200
            wait_for(lambda more=more: len(published) >= more, "publishing goes on")  # type: ignore[misc]
            end = sqlite_shell(
                server.path,
                "BEGIN IMMEDIATE; DROP TRIGGER notes; SELECT seq FROM sqlite_sequence WHERE name = 'vpubsub'; COMMIT;",
            )
            between = list(range(int(begin) + 1, int(end) + 1))
            assert len(between) > 100
            assert [row[0] for row in server.rows(f"SELECT id FROM seen{number} ORDER BY id")] == between
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert sorted(published) == list(range(2, len(published) + 2))
    server.stop()
    assert "Warning" not in server.log
    assert "Traceback" not in server.log
