"""The kernel reports writes to files; where it does not, commits are found all the same."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from datasette_pubsub.broker import file_events, watcher
from datasette_pubsub.broker.file_events import FileEvents
from datasette_pubsub.broker.watcher import Watcher

pytestmark = pytest.mark.asyncio

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has inotify")

#: No poll comes within a test.
NEVER = 10_000.0


def descriptors() -> set[str]:
    """What this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return found


class Heard:
    """What was told of a file."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[bool] = asyncio.Queue()

    def __call__(self, watched: bool) -> None:
        self.told.put_nowait(watched)

    async def next(self) -> bool:
        return await asyncio.wait_for(self.told.get(), 10)


@on_linux
async def test_writes_are_told_until_nobody_asks(tmp_path: Path) -> None:
    events = FileEvents()
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("")
    two.write_text("")
    first, again, second = Heard(), Heard(), Heard()
    ends = [events.watch(str(path), heard) for path, heard in ((one, first), (one, again), (two, second))]
    assert None not in ends
    inotify = [name for name in descriptors() if "inotify" in name]
    assert len(inotify) == 1, "one descriptor for all files"
    one.write_text("x")
    assert await first.next()
    assert await again.next()
    assert second.told.empty()
    for end in ends[:1]:
        assert end is not None
        end()
        end()
    while not again.told.empty():
        again.told.get_nowait()
    one.write_text("y")
    assert await again.next()
    for end in ends[1:]:
        assert end is not None
        end()
    assert not any("inotify" in name for name in descriptors())


@on_linux
@pytest.mark.parametrize("how", ["unlink", "replace", "chmod"])
async def test_a_file_that_is_gone_is_told_once(tmp_path: Path, how: str) -> None:
    events, heard = FileEvents(), Heard()
    path = tmp_path / "file"
    path.write_text("")
    with path.open("a") as opened:
        end = events.watch(str(path), heard)
        assert end is not None
        if how == "unlink":
            path.unlink()
        elif how == "replace":
            path.rename(tmp_path / "old")
            path.write_text("new")
        else:
            path.chmod(0o600)
        assert not await heard.next()
        opened.write("more")
    await asyncio.sleep(0.05)
    assert heard.told.empty()
    end()
    assert not any("inotify" in name for name in descriptors())


async def test_without_the_file_nothing_tells(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert FileEvents().watch(str(tmp_path / "none"), Heard()) is None
    assert not caplog.records


class Full:
    """A C library for which the kernel has no more room, by its call that fails."""

    def __init__(self, at: str, code: int) -> None:
        self.at, self.code = at, code
        self.real: Any = ctypes.CDLL(None, use_errno=True)

    def __getattr__(self, name: str) -> Any:
        if name != self.at:
            return getattr(self.real, name)

        def fail(*_: object) -> int:
            ctypes.set_errno(self.code)
            return -1

        return fail


@on_linux
@pytest.mark.parametrize(("at", "code"), [("inotify_init1", errno.EMFILE), ("inotify_add_watch", errno.ENOSPC)])
async def test_a_full_table_is_logged_once(
    tmp_path: Path, at: str, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "file"
    path.write_text("")
    events = FileEvents()
    full = Full(at, code)
    monkeypatch.setattr(file_events, "_libc", lambda: full)
    assert [events.watch(str(path), Heard()) for _ in range(3)] == [None] * 3
    assert [record.message for record in caplog.records] == [
        f"inotify: {os.strerror(code)}; the server polls for commits of other programs"
    ]
    assert not any("inotify" in name for name in descriptors())
    full.at = ""
    end = events.watch(str(path), Heard())
    assert end is not None
    end()


# -- the watcher ----------------------------------------------------------------------------


@asynccontextmanager
async def watching(path: Path, seconds: float, events: FileEvents | None) -> AsyncIterator[tuple[Watcher, Any]]:
    """A watcher of a file; and a function that waits until it has seen how many rows there are."""
    counts: asyncio.Queue[int] = asyncio.Queue()
    found = [-1]

    def known(conn: sqlite3.Connection) -> bool:
        found[0] = conn.execute("SELECT count(*) FROM t").fetchone()[0]
        counts.put_nowait(found[0])
        return True

    async def changed() -> None:
        pass

    async def sees(count: int) -> None:
        async with asyncio.timeout(10):
            while await counts.get() != count:
                pass

    watched = Watcher(lambda: sqlite3.connect(path), known, changed, seconds, events=events)
    watched.watch(True)
    task = asyncio.create_task(watched.run())
    # The first look makes it known what is there.
    async with asyncio.timeout(10):
        while watched._version is None:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)
    try:
        yield watched, sees
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        watched._close()


def in_another_process(path: Path, *statements: str) -> None:
    """Run statements there, as a cron job does."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)\n"
    code += "for sql in sys.argv[2:]: print(*c.execute(sql).fetchall())"
    subprocess.run([sys.executable, "-c", code, path, *statements], check=True, capture_output=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
    return path


INSERT = "INSERT INTO t VALUES (1)"


@on_linux
async def test_commits_of_other_processes_are_told(path: Path) -> None:
    """Also after checkpoints, which truncate the log, and when many have come at once."""
    async with watching(path, NEVER, FileEvents()) as (_, sees):
        in_another_process(path, INSERT)
        await sees(1)
        in_another_process(path, INSERT, "PRAGMA wal_checkpoint(TRUNCATE)", INSERT)
        await sees(3)
        in_another_process(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        in_another_process(path, *[INSERT] * 200)
        await sees(203)
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.execute("PRAGMA journal_size_limit = 0")
            conn.execute("PRAGMA wal_checkpoint(RESTART)")
            conn.execute(INSERT)
            await sees(204)


@on_linux
async def test_a_link_leads_to_the_log_of_its_file(tmp_path: Path, path: Path) -> None:
    """SQLite names the write-ahead log after the file, not after the link."""
    link = tmp_path / "link to it.db"
    link.symlink_to(path)
    async with watching(link, NEVER, FileEvents()) as (watched, sees):
        assert watched._end_events is not None
        in_another_process(path, INSERT)
        await sees(1)


@on_linux
async def test_a_commit_that_comes_long_after_its_write_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk: SQLite writes, syncs for as long as that takes, and then makes the commit visible.

    Here it is a write that spills before its commit.
    """
    monkeypatch.setattr(watcher, "SAFETY_SECONDS", NEVER)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 2")
        async with watching(path, NEVER, FileEvents()) as (_, sees):
            for count, seconds in ((300, 0.0), (600, 0.05), (900, 0.4)):
                writer.execute("BEGIN")
                writer.executemany("INSERT INTO t VALUES (zeroblob(4000 + ?))", [[n] for n in range(300)])
                await asyncio.sleep(seconds)
                writer.execute("COMMIT")
                await sees(count)


@on_linux
async def test_a_connection_is_left_for_another_file(tmp_path: Path, path: Path) -> None:
    async with watching(path, NEVER, FileEvents()) as (watched, sees):
        first = watched._conn
        other = tmp_path / "other.db"
        with closing(sqlite3.connect(other, isolation_level=None)) as conn:
            conn.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / f"data.db{suffix}").unlink(missing_ok=True)
        other.rename(path)
        watched._poll_seconds = 0.001
        watched.leave()
        async with asyncio.timeout(10):
            while watched._conn in (None, first):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
        watched._poll_seconds = NEVER
        in_another_process(path, INSERT)
        await sees(1)
        assert first is not None
        first.close()


@on_linux
async def test_a_full_table_means_polling(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once there is room again, the kernel tells."""
    full = Full("inotify_init1", errno.EMFILE)
    monkeypatch.setattr(file_events, "_libc", lambda: full)
    monkeypatch.setattr(watcher, "RETRY_SECONDS", 0.01)
    async with watching(path, 0.002, FileEvents()) as (watched, sees):
        in_another_process(path, INSERT)
        await sees(1)
        assert watched._end_events is None
        full.at = ""
        async with asyncio.timeout(10):
            while watched._end_events is None:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
        watched._poll_seconds = NEVER
        in_another_process(path, INSERT)
        await sees(2)


async def test_a_file_without_a_log_is_polled(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("CREATE TABLE t (a)")
    async with watching(path, 0.002, FileEvents()) as (watched, sees):
        in_another_process(path, INSERT)
        await sees(1)
        assert watched._end_events is None


@on_linux
async def test_nobody_is_told_while_nobody_subscribes(path: Path) -> None:
    async with watching(path, NEVER, FileEvents()) as (watched, sees):
        assert watched._end_events is not None
        watched.watch(False)
        assert not any("inotify" in name for name in descriptors())
        in_another_process(path, INSERT)
        watched.watch(True)
        await sees(1)
        in_another_process(path, INSERT)
        await sees(2)


async def test_what_is_about_to_be_known_is_put_off_but_not_for_ever(path: Path) -> None:
    answers: list[bool | None] = []
    calls = asyncio.Event()

    def known(conn: sqlite3.Connection) -> bool | None:
        answers.append(None)
        return None

    async def changed() -> None:
        if answers:
            calls.set()

    watched = Watcher(lambda: sqlite3.connect(path), known, changed, 0.001)
    watched.watch(True)
    task = asyncio.create_task(watched.run())
    async with asyncio.timeout(10):
        while watched._version is None:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)
        in_another_process(path, INSERT)
        await calls.wait()
    assert len(answers) == watcher.TIMES_PUT_OFF + 1
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    watched._close()
