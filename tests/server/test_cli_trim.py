"""`datasette pubsub trim`, alone and beside a server."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
from commands import call, payloads, run
from servers import Server, Sse, sqlite_shell


def counts(file: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(file)) as conn:
        return dict(conn.execute("SELECT channel, count(*) FROM vpubsub GROUP BY channel"))


def test_trim_keeps_30_days_unless_told_otherwise(file: Path) -> None:
    insert = "INSERT INTO vpubsub (channel, payload, created_at) VALUES"
    ago = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{} days')"
    for days in (40, 31, 29, 2, 0):
        sqlite_shell(file, f"{insert} ('a', '{days}', {ago.format(days)})")
    would = "channel  would go\na        2\nWould trim 2 messages\n"
    assert run("trim", file, "--dry-run").stdout == would
    assert counts(file) == {"a": 5}
    assert run("trim", file).stdout == "channel  trimmed\na        2\nTrimmed 2 messages\n"
    assert payloads(file) == ["29", "2", "0"]
    assert run("trim", file).stdout == "Trimmed 0 messages\n"
    assert call("trim", file, "--messages", 100).stdout == "Trimmed 0 messages\n"
    assert call("trim", file, "--days", 1.5).stdout.endswith("Trimmed 2 messages\n")
    assert payloads(file) == ["0"]


def test_trim_by_count_and_bytes(file: Path) -> None:
    for channel in "ba":
        call("publish", file, channel, text="12345\n" * 10)
    done = run("trim", file, "--messages", 15)
    assert done.stdout == "channel  trimmed\nb        5\nTrimmed 5 messages\n"
    assert done.stderr == "", "progress is for a terminal"
    assert counts(file) == {"a": 10, "b": 5}
    run("trim", file, "--bytes", 40)
    assert counts(file) == {"a": 8}
    call("trim", file, "--messages", 7, "--bytes", 20)
    assert counts(file) == {"a": 4}, "a message goes when any limit says so"


def test_trim_by_pattern_takes_each_channel_by_itself(file: Path) -> None:
    for channel in ("logs/a", "logs/b", "audit", "c"):
        call("publish", file, channel, text="1\n2\n3\n4\n5\n")
    done = run("trim", file, "--messages", 2, "--pattern", "logs/*", "--pattern", "c")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows == [["channel", "trimmed"], ["c", "3"], ["logs/a", "3"], ["logs/b", "3"], ["Trimmed", "9", "messages"]]
    assert counts(file) == {"logs/a": 2, "logs/b": 2, "audit": 5, "c": 2}
    assert payloads(file, "logs/a") == ["4", "5"]


def test_trim_goes_in_small_transactions(file: Path) -> None:
    call("publish", file, "a", text="x\n" * 2000)
    call("publish", file, "b", text="x\n" * 2000)
    stop = "CREATE TRIGGER stop BEFORE DELETE ON vpubsub WHEN OLD.id = 2700"
    sqlite_shell(file, f"{stop} BEGIN SELECT RAISE(ABORT, 'stopped here'); END")
    done = run("trim", file, "--messages", 1, code=1)
    assert done.stderr == f"Error: {file}: stopped here\n"
    assert done.stdout == "channel  trimmed\na        2000\nTrimmed 2000 messages\n"
    assert counts(file) == {"b": 2000}, "what was counted is committed, and nothing else is gone"
    sqlite_shell(file, "DROP TRIGGER stop")
    assert run("trim", file, "--messages", 1).stdout.endswith("Trimmed 1999 messages\n")
    assert payloads(file) == ["x"]


def test_trim_beside_a_server(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(*[{"channel": "ab"[n % 2], "payload": str(n)} for n in range(20)])
    url = f"{server.pubsub}/-/stream"
    with Sse(url, channel="b") as live, Sse(url, channel="a", subscription="s", ack="explicit") as reader:
        live.until("ready")
        assert reader.messages(2)[1]["payload"] == "2"
        acked = httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": 3})
        assert acked.status_code == 200
        done = run("trim", server.path, "--messages", 6)
        assert [line.split() for line in done.stdout.splitlines()[1:3]] == [["a", "7"], ["b", "7"]]
        assert server.publish(channel="b", payload="live") == [21]
        assert live.messages(1)[0]["payload"] == "live"
    with Sse(url, channel="a", subscription="s", ack="explicit") as reader:
        gap = reader.event()
        # Of a there were 1, 3, 5, … 19: the first two are read, 5 to 13 are gone.
        assert (gap["event"], gap["data"]) == ("gap", {"missed": "5", "resumedAt": "14"})
        assert [message["payload"] for message in reader.messages(3)] == ["14", "16", "18"]


def test_vacuum_gives_the_space_back_and_no_id_twice(file: Path) -> None:
    call("publish", file, "a", text=("x" * 1000 + "\n") * 2000)
    sqlite_shell(file, "PRAGMA wal_checkpoint(TRUNCATE)")
    before = file.stat().st_size
    call("trim", file, "--messages", 1)
    sqlite_shell(file, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert file.stat().st_size >= before, "a trim alone keeps the file's size"
    done = run("trim", file, "--messages", 1, "--vacuum")
    after = file.stat().st_size
    assert done.stdout == f"Trimmed 0 messages\nVacuumed: the file had {before} bytes and has {after}\n"
    assert after < before / 10
    call("trim", file, "--bytes", 1)
    call("trim", file, "--vacuum")
    assert counts(file) == {}
    assert call("publish", file, "a", "next").stdout == "Published 1 message, last id 2001\n"


def test_vacuum_beside_a_server(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": "x" * 1000} for _ in range(1000)])
    with Sse(f"{server.pubsub}/-/stream", channel="a", after=999) as reader:
        assert reader.messages(1)[0]["messageId"] == "1000"
        assert "Vacuumed" in run("trim", server.path, "--messages", 1, "--vacuum").stdout
        assert server.publish(channel="a", payload="next") == [1001]
        assert reader.messages(1)[0]["messageId"] == "1001"
    assert sqlite_shell(server.path, "PRAGMA integrity_check").strip() == "ok"
