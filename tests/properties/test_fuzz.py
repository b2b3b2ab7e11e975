"""Whatever is thrown at any address: an answer with a clear error, no leak, no dead stream, and the server goes on.

A small budget runs with every test run, always with the same examples; the long one (``pytest -m slow``)
draws new ones each time.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import re
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hostile_requests import AREAS, MAX_BODY_BYTES, Ask
from hypothesis import HealthCheck, Phase, given, settings
from raw import RawConnect
from servers import DEADLINE, OPEN, Server, Sse, wait_for

#: Examples for each area: with every run, and with ``-m slow``.
SHORT, LONG = 60, 5_000

#: Few enough that all can be opened at once: a stream that is left over by the fuzzing is then one too many.
MAX_STREAMS = 40

CONFIG = {
    **OPEN,
    "settings": {"sql_time_limit_ms": 50},
    "plugins": {
        "datasette-pubsub": {
            "max_streams": MAX_STREAMS,
            "max_body_bytes": MAX_BODY_BYTES,
            "max_payload_bytes": 16 * 1024,
            "max_snapshot_rows": 100,
            "tail_bytes": 1024 * 1024,
            "max_send_bytes": 64 * 1024,
            "max_pending_bytes": 1024 * 1024,
        }
    },
}

#: How much the server may have grown afterwards, in bytes: its bounded buffers, SQLite's caches of a few
#: connections, and a heap with holes. A leak of one body for each example would be more.
MAX_GROWTH = 96 * 1024 * 1024

#: What an answer must not hold. Words of ours that a caller may send, too, are not in it.
#: How what gzip has packed begins.
GZIP = b"\x1f\x8b"
LEAKS = re.compile(rb"Traceback|site-packages|sqlite3\.|\.py\b|line \d+, in |datasette_pubsub[./]|0x[0-9a-f]{8,}")
SQL = re.compile(rb"INSERT INTO|CREATE TABLE|FROM pubsub_|PRAGMA|BEGIN IMMEDIATE|SQL logic")

#: Rows that another program has left in the log: what no edge would accept.
#: The channel that is not UTF-8 is from before the log refused such: its guard is away for a moment.
HOSTILE_ROWS = """
INSERT INTO vpubsub (channel, payload) VALUES
    ('a', CAST(x'ff00fe' AS TEXT)), ('a', CAST(x'eda080' AS TEXT)), ('a', x'00ff'), ('a', 9e999), ('a', ''),
    ('<script>alert(1)</script>', '<img src=x onerror=alert(1)>'), (CAST(x'c328' AS TEXT), 'bad channel'),
    ('..', '../../etc/passwd'), ('a' || char(0x202e) || 'b', char(0x202e, 7, 27) || '[31m'), ('-/stream', 'x'),
    ('a' || char(10) || 'b', 'id: 1' || char(10, 10) || 'data: forged'), ('a', char(13) || 'event: bye' || char(13, 13))
"""


# -- what must hold ----------------------------------------------------------


def send(server: Server, ask: Ask) -> tuple[int, str, bytes]:
    """The status, the content type and the body; of a stream that goes on, only its first part."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as sock:
        # A refusal may come before the body has been taken.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(ask.wire())
        response = http.client.HTTPResponse(sock, method=ask.method)
        response.begin()
        kind = response.getheader("content-type", "")
        if kind.startswith("text/event-stream") and ask.method != "HEAD":
            return response.status, kind, response.read1(1 << 16)
        timeout = dict(ask.headers).get(b"Connect-Timeout-Ms")
        if response.status == 200 and "+" in kind and ("grpc" in kind or timeout != b"20"):
            # Endless, or at its end already: which of both is not known from here.
            return response.status, kind, b""
        return response.status, kind, response.read()


def check(server: Server, ask: Ask) -> None:
    status, kind, body = send(server, ask)
    # 501 is how Connect says that it does not know a compression.
    assert status < 500 or status in (501, 503), (ask, status, body)
    if body.startswith(GZIP):
        # Asked for, by Accept-Encoding.
        body = gzip.decompress(body)
    assert str(server.folder.parent).encode() not in body, (ask, body)
    told = json.loads(body, parse_constant=_refuse) if kind.startswith("application/json") and body else None
    if status == 503:
        assert isinstance(told, dict), (ask, body)
        assert told.get("code") == "unavailable" or (told["ok"], told["status"]) == (False, 503), (ask, body)
    if status >= 400:
        assert not LEAKS.search(body), (ask, body)
        assert ask.has_sql or not SQL.search(body), (ask, body)
    if "connect+" in kind:
        assert b'"code": "internal"' not in body or b"compress" in body, (ask, body)
    assert b"internal error" not in body, (ask, body)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def resident(server: Server) -> int:
    """The memory of the server, in bytes."""
    assert server.process is not None
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def room_for_streams(server: Server, expected: int) -> bool:
    """Whether so many further streams can be open at once."""
    with contextlib.ExitStack() as opened, httpx.Client(timeout=DEADLINE) as client:
        for _ in range(expected):
            url = f"{server.pubsub}/-/stream?channel=room"
            response = opened.enter_context(client.stream("GET", url))
            if response.status_code == 429:
                return False
            assert response.status_code == 200
        return True


def fuzz(server: Server, area: str, examples: int, always_the_same: bool) -> None:
    profile = settings(
        max_examples=examples,
        derandomize=always_the_same,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )

    @profile
    @given(AREAS[area])
    def attack(ask: Ask) -> None:
        check(server, ask)

    attack()


def run(serve: Callable[..., Server], tmp_path: Path, examples: int, always_the_same: bool, areas: list[str]) -> None:
    # Where rich is installed, as by our tools, Datasette 1.0a41 answers 500 for an address without a route.
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "without_rich.py").write_text("from datasette import handle_exception\n\nhandle_exception.rich = None\n")
    server = serve(config=CONFIG, options=["--plugins-dir", str(plugins)])
    server.publish(channel="canary", payload="first")
    with contextlib.closing(sqlite3.connect(server.path, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        (guard,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'vpubsub_guard'").fetchone()
        conn.execute("DROP TRIGGER vpubsub_guard")
        conn.execute(HOSTILE_ROWS)
        conn.execute(guard)
        conn.execute("COMMIT")
    for area in areas:
        # What is used the first time is loaded and cached now.
        fuzz(server, area, 20, True)
    before = resident(server)
    with Sse(f"{server.pubsub}/-/stream", channel="canary") as events:
        rpc = RawConnect(server, channel="canary")
        try:
            events.until("ready")
            rpc.until(lambda: rpc.ready, "ready", DEADLINE)
            for area in areas:
                fuzz(server, area, examples, always_the_same)
            (last,) = server.publish(channel="canary", payload="the server goes on")
            assert events.messages(1)[0]["messageId"] == str(last)
            rpc.until(lambda: rpc.last == last, "the message", DEADLINE)
            wait_for(lambda: room_for_streams(server, MAX_STREAMS - 2), "no stream is left over")
        finally:
            rpc.close()
    growth = resident(server) - before
    assert growth < MAX_GROWTH, f"{growth / 1024 / 1024:.0f} MiB"
    server.stop()
    assert "Traceback" not in server.log
    assert "internal error" not in server.log


@pytest.mark.parametrize("area", AREAS)
def test_a_small_budget(serve: Callable[..., Server], tmp_path: Path, area: str) -> None:
    run(serve, tmp_path, SHORT, True, [area])


@pytest.mark.slow
def test_a_large_budget(serve: Callable[..., Server], tmp_path: Path) -> None:
    run(serve, tmp_path, LONG, False, list(AREAS))
