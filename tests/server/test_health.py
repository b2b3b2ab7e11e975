"""Writing goes on after any error, and every request is answered."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import DEADLINE, OPEN, Server, Sse, wait_for

#: Runs a command whose standard error is a pipe that nobody reads any more.
BROKEN_STDERR = [
    sys.executable,
    "-c",
    "import os, sys; r, w = os.pipe(); os.dup2(w, 2); os.close(r); os.close(w); os.execvp(sys.argv[1], sys.argv[1:])",
]

#: Runs a command without standard error.
NO_STDERR = ["sh", "-c", 'exec "$@" 2>&-', "sh"]

#: Runs a command that may make no file larger than so many bytes; beyond, a write is an error of the disk.
SMALL_FILES = [
    sys.executable,
    "-c",
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, resource.RLIM_INFINITY)); "
    "os.execvp(sys.argv[1], sys.argv[1:])",
]

#: Keeps what the plugin logs, where standard error is nothing to write to.
KEEPS_THE_LOG = """
import logging
handler = logging.FileHandler({path!r})
logging.getLogger("datasette_pubsub").addHandler(handler)
"""

WRITES = {"permissions": {"publish-message": True, "insert-row": True, "update-row": True}}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it, another program holds the file's write lock."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            conn.execute("ROLLBACK")


def kept_log(tmp_path: Path) -> tuple[Path, list[str]]:
    plugins = tmp_path / "plugins"
    plugins.mkdir(exist_ok=True)
    path = tmp_path / "kept.log"
    (plugins / "keeps.py").write_text(KEEPS_THE_LOG.format(path=str(path)))
    return path, ["--plugins-dir", str(plugins)]


def post(server: Server, name: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.pubsub}/-/{name}", json=body, timeout=2 * DEADLINE)


@pytest.mark.parametrize("prefix", [BROKEN_STDERR, NO_STDERR], ids=["nobody reads stderr", "stderr is closed"])
def test_writing_goes_on_where_nothing_can_be_printed(serve: Callable[..., Server], prefix: list[str]) -> None:
    server = serve(prefix=prefix)
    server.publish(channel="c", payload="1")
    with Sse(f"{server.pubsub}/-/stream", subscription="S", ack="explicit", pattern="*") as reader:
        assert reader.messages(1)[0]["payload"] == "1"
        with locked(server.path):
            for name, body in (
                ("ack", {"subscription": "S", "message_id": 1}),
                ("publish", {"channel": "c", "payload": "x"}),
            ):
                answer = post(server, name, body)
                assert (answer.status_code, "locked by another writer" in answer.text) == (503, True)
            named = httpx.get(f"{server.pubsub}/-/stream", params={"subscription": "new", "channel": "c"}, timeout=60)
            assert named.status_code == 503
        assert server.publish(channel="c", payload="2") == [2]
        assert post(server, "ack", {"subscription": "S", "message_id": 2}).status_code == 200
        assert reader.messages(1)[0]["payload"] == "2"


def test_a_write_thread_that_died_is_started_again(serve: Callable[..., Server], tmp_path: Path) -> None:
    """It is Datasette's own write that ends it here: its error is printed, and cannot be."""
    path, options = kept_log(tmp_path)
    server = serve(prefix=BROKEN_STDERR, config=WRITES, options=options)
    server.publish(channel="c", payload="1")
    for turn in range(2, 4):
        with locked(server.path), contextlib.suppress(httpx.ReadTimeout):
            httpx.post(f"{server.url}/data/existing/-/insert", json={"row": {"id": turn}}, timeout=7)
        assert server.publish(channel="c", payload=str(turn)) == [turn]
        answer = httpx.post(f"{server.url}/data/existing/-/insert", json={"row": {"id": turn}}, timeout=DEADLINE)
        assert answer.status_code == 201, "Datasette writes again, too"
        assert path.read_text().count("write thread had died") == turn - 1, "told once each time"


def test_a_write_thread_that_dies_unasked_is_noticed(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Nobody publishes: Datasette's own writes go on nevertheless."""
    path, options = kept_log(tmp_path)
    server = serve(prefix=BROKEN_STDERR, config=WRITES, options=options)
    server.publish(channel="c", payload="1")
    with locked(server.path), contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{server.url}/data/existing/-/insert", json={"row": {"id": 1}}, timeout=7)
    wait_for(lambda: "write thread had died" in path.read_text(), "its death is told")
    answer = httpx.post(f"{server.url}/data/existing/-/insert", json={"row": {"id": 1}}, timeout=DEADLINE)
    assert answer.status_code == 201


def test_the_ninth_in_line_is_answered_with_the_first(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="c", payload="1")
    with Sse(f"{server.pubsub}/-/stream", subscription="S", ack="explicit", pattern="*") as reader:
        reader.messages(1)
    requests: list[tuple[str, dict[str, Any]]] = [
        *[("ack", {"subscription": "S", "message_id": 1})] * 9,
        *[("publish", {"channel": "c", "payload": "x"})] * 9,
    ]
    with locked(server.path), concurrent.futures.ThreadPoolExecutor(len(requests)) as threads:
        began = time.monotonic()
        answers = list(threads.map(lambda request: post(server, *request), requests))
        took = time.monotonic() - began
    assert {answer.status_code for answer in answers} == {503}
    assert took < 25, "one wait of SQLite's for all, and not one each, which would be 50 seconds"
    assert server.publish(channel="c", payload="2") == [2]


def fill(server: Server) -> httpx.Response:
    """Publish until that is refused; the refusal."""
    for number in range(10_000):
        answer = post(server, "publish", {"channel": "c", "payload": f"{number} " + "x" * 20_000})
        if answer.status_code != 200:
            return answer
    raise AssertionError("never refused")


def check_full(server: Server, told: str, more_room: Callable[[], None]) -> None:
    """A disk that takes no more: everything is answered, and goes on when there is room."""
    server.publish(channel="c", payload="first")
    with Sse(f"{server.pubsub}/-/stream", subscription="S", ack="explicit", pattern="*") as reader:
        reader.messages(1)
    refused = fill(server)
    assert (refused.status_code, told in refused.text) == (503, True), refused.text
    for _ in range(3):
        for name, body in (
            ("publish", {"channel": "c", "payload": "x" * 6000}),
            ("ack", {"subscription": "S", "message_id": 1}),
        ):
            assert post(server, name, body).status_code in (200, 503)
    head = server.rows("SELECT max(id) FROM vpubsub")[0][0]
    more_room()
    assert wait_for(lambda: post(server, "publish", {"channel": "c", "payload": "again"}).status_code == 200)
    assert post(server, "ack", {"subscription": "S", "message_id": head}).status_code == 200
    with Sse(f"{server.pubsub}/-/stream", subscription="new", pattern="*") as reader:
        assert reader.messages(1)[0]["payload"] == "first"
    assert server.rows("PRAGMA integrity_check") == [("ok",)]


def test_an_error_of_the_disk(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(prefix=SMALL_FILES)
    process = server.process
    assert process is not None

    def more_room() -> None:
        subprocess.run(["prlimit", f"--pid={process.pid}", "--fsize=100000000:"], check=True)

    check_full(server, "database data could not be written; nothing was stored", more_room)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("same", [True, False], ids=["stderr on the same disk", "stderr elsewhere"])
def test_a_full_disk(small_disk: Path, tmp_path: Path, same: bool) -> None:
    path = small_disk / "full.db"
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE existing (id INTEGER PRIMARY KEY)")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (2 << 20))
    server = Server([path], OPEN, small_disk if same else tmp_path)
    server.start()
    try:
        check_full(server, "full", ballast.unlink)
    finally:
        server.kill()
