"""Many writers in many processes, through three SQLite libraries, beside the server's own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from places import SUPPORT
from raw import RawConnect
from servers import DEADLINE, Server, Sse, sqlite_shell, wait_for

COUNT = 40
WRITER = SUPPORT / "writer.py"


def test_everything_arrives_once_in_id_order(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="first", payload="installs the log")
    with Sse(f"{server.pubsub}/-/stream", pattern="channel*") as reader:
        reader.until("ready")
        kinds = ["sqlite3", "apsw", "python"]
        commands = {f"w{n}": [sys.executable, str(WRITER), kinds[n % 3], str(server.path), f"w{n}"] for n in range(16)}
        processes = [subprocess.Popen([*command, str(COUNT)]) for command in commands.values()]
        server_writes = 0
        while any(process.poll() is None for process in processes):
            server.publish(channel="channel http", payload=f"http {server_writes}")
            server_writes += 1
        assert [process.returncode for process in processes] == [0] * 16
        received = reader.messages(16 * COUNT + server_writes)
        server.publish(channel="channel end", payload="end")
        assert reader.messages(1)[0]["payload"] == "end"
    ids = [int(message["messageId"]) for message in received]
    assert ids == sorted(set(ids))
    assert [(m["channel"], m["payload"]) for m in received] == server.rows(
        "SELECT channel, payload FROM vpubsub WHERE channel GLOB 'channel*' AND payload <> 'end' ORDER BY id"
    )
    for name in commands:
        assert [m["payload"] for m in received if m["payload"].startswith(f"{name} ")] == [
            f"{name} {n}" for n in range(COUNT)
        ]
    assert server.rows("PRAGMA integrity_check") == [("ok",)]


def test_the_acceptance_script_in_the_sqlite3_shell(serve: Callable[..., Server]) -> None:
    """1 + 1 + 10,000 messages, none of the rolled-back transaction; SSE and Connect alike."""
    server = serve()
    server.publish(channel="first", payload="installs the log")
    script = (SUPPORT / "seed.sql").read_text()
    connect = RawConnect(server, patterns=["*"], status=True)
    with Sse(f"{server.pubsub}/-/stream", pattern="*") as reader, contextlib.closing(connect):
        reader.until("ready")
        connect.until(lambda: connect.ready, "ready", DEADLINE)
        sqlite_shell(server.path, script)
        # It takes note of ids that are doubled or out of order by itself; one more would be there before the end.
        connect.until(lambda: connect.ids == 10_002, "1 + 1 + 10,000 over Connect", DEADLINE)
        received = reader.messages(10_002)
        server.publish(channel="end", payload="end")
        assert reader.messages(1)[0]["payload"] == "end"
        connect.until(lambda: connect.ids == 10_003, "the end", DEADLINE)
    channels = [message["channel"] for message in received]
    assert channels == ["logs", "security_alerts", *["metrics"] * 10_000]
    ids = [int(message["messageId"]) for message in received]
    assert ids == sorted(set(ids))
    assert received[1]["payload"] == '{"event":"user_banned","email":"hacker@example.com"}'


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to look into the server")
def test_no_second_sqlite_library_in_the_server(serve: Callable[..., Server]) -> None:
    """Two SQLite libraries on one file in one process cancel each other's locks."""
    server = serve()
    server.publish(channel="a", payload="x")
    with Sse(f"{server.pubsub}/-/stream", channel="a", subscription="s") as reader:
        reader.messages(1)
        httpx.get(f"{server.pubsub}/-/channels.json").raise_for_status()
        httpx.get(server.pubsub).raise_for_status()
        assert server.process is not None
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        files = {line.split()[-1] for line in maps.splitlines() if "/" in line and "-shm" not in line}
        libraries = [name for name in files if Path(name).is_file() and has_sqlite(Path(name))]
        assert len(libraries) == 1, libraries
        assert wait_for(lambda: not re.search("apsw", maps), "no apsw in the server")


def has_sqlite(path: Path) -> bool:
    """Whether a loaded file carries SQLite's own code: its source id stands in every copy."""
    return re.search(rb"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d [0-9a-f]{60}", path.read_bytes()) is not None
