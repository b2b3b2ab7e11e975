"""The command line, as real processes, alone and beside a server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import PUBSUB, call, failure, run
from places import ROOT
from servers import DEADLINE, Server, Sse, free_port, sqlite_shell, wait_for

from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.core.values import Item
from datasette_pubsub.storage import log, retention, schema, search
from datasette_pubsub.storage.catchup import Reader


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints; for one that prints no two at once."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], DEADLINE)[0], "nothing was printed"
    return process.stdout.readline()


def payloads(*arguments: Any) -> list[str]:
    return [json.loads(line)["payload"] for line in call("tail", "--json", *arguments).stdout.splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database with a log."""
    path = tmp_path / "data.db"
    call("install", path, "--create")
    return path


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start commands that go on until they are told to end."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: Any) -> subprocess.Popen[str]:
        command = [*PUBSUB, *(str(argument) for argument in arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8")
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_every_command_is_explained() -> None:
    commands = run("--help").stdout
    for name in ("install", "publish", "tail", "channels", "subscriptions", "trim", "demo"):
        assert name in commands
        assert "Usage:" in call(name, "--help").stdout


def test_install_makes_every_program_a_publisher(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    sqlite_shell(path, "CREATE TABLE users (name)")
    assert run("install", path).stdout == f"The log is installed in {path}\n"
    assert run("install", path).stdout == f"The log is installed in {path}\n"
    sqlite_shell(path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'from the shell')")
    assert payloads(path) == ["from the shell"]
    assert sqlite_shell(path, "PRAGMA journal_mode").strip() == "wal"


def test_install_keeps_the_payload_limit_that_a_server_has_set(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        assert schema.max_payload_bytes(conn) is None
        schema.install(conn, Settings(max_payload_bytes=10))
        call("install", path)
        assert schema.max_payload_bytes(conn) == 10
    assert "limit is 10 bytes" in failure("publish", path, "a", "eleven bytes")
    assert "line 2: payload has 12 bytes" in failure("publish", path, "a", text="1\neleven bytes\n")


def test_publish_one_message(file: Path) -> None:
    assert call("publish", file, "a", "first").stdout == "Published 1 message, last id 1\n"
    assert call("publish", file, "a", "").stdout == "Published 1 message, last id 2\n"
    assert payloads(file) == ["first", ""]


def test_a_key_publishes_once(file: Path) -> None:
    call("publish", file, "a", "first", "--key", "k")
    again = call("publish", file, "a", "second", "--key", "k").stdout
    assert again == "Published 0 messages, last id 1; 1 already there under the same key\n"
    assert payloads(file) == ["first"]


def test_publish_lines(file: Path) -> None:
    assert run("publish", file, "a", text="one\ntwo\r\n\nwörld").stdout == "Published 4 messages, last id 4\n"
    assert payloads(file) == ["one", "two", "", "wörld"]
    assert run("publish", file, "a", text="").stdout == "Published 0 messages\n"


def test_lines_go_in_transactions_of_1000(file: Path) -> None:
    stop = "CREATE TRIGGER stop AFTER INSERT ON vpubsub WHEN NEW.payload = '2500'"
    sqlite_shell(file, f"{stop} BEGIN SELECT RAISE(ABORT, 'stopped here'); END")
    done = run("publish", file, "a", text="".join(f"{n}\n" for n in range(1, 5001)), code=1)
    assert done.stderr == f"Published 2000 messages, last id 2000\nError: {file}: stopped here\n"
    assert payloads(file, "--start", "earliest") == [str(n) for n in range(1, 2001)]


def test_a_slow_writers_line_is_not_held_back(file: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("publish", file, "a")
    assert process.stdin is not None
    for n in range(1, 4):
        process.stdin.write(f"{n}\nhalf")
        process.stdin.flush()
        wait_for(lambda n=n: sqlite_shell(file, "SELECT count(*) FROM vpubsub").strip() == str(n), "the line is there")
    output, error = process.communicate(timeout=DEADLINE)
    assert (output, error) == ("Published 4 messages, last id 4\n", "")
    assert payloads(file) == ["1", "half2", "half3", "half"]


def test_json_lines(file: Path) -> None:
    lines = [
        {"channel": "a", "payload": "text"},
        {"channel": "a", "payload": {"nested": [1, "ü"]}},
        {"payload": 1.5, "key": "k"},
        {"payload": "again", "key": "k"},
        {"channel": "c", "blob": base64.b64encode(b"\0\xff").decode()},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    done = call("publish", file, "b", "--json-lines", text=text).stdout
    assert done == "Published 4 messages, last id 4; 1 already there under the same key\n"
    found = [json.loads(line) for line in call("tail", file, "--json").stdout.splitlines()]
    assert [(message["channel"], message.get("payload", message.get("blob"))) for message in found] == [
        ("a", "text"),
        ("a", '{"nested":[1,"ü"]}'),
        ("b", "1.5"),
        ("c", "AP8="),
    ]


def test_what_tail_writes_publish_reads(file: Path, tmp_path: Path) -> None:
    run("publish", file, "a", text="one\ntwo\n")
    run("publish", file, "--json-lines", text='{"channel":"b","blob":"AP8="}')
    copy = tmp_path / "copy.db"
    run("install", copy, "--create")
    run("publish", copy, "--json-lines", text=run("tail", file, "--json").stdout)
    query = "SELECT channel, typeof(payload), hex(payload) FROM vpubsub ORDER BY id"
    assert sqlite_shell(copy, query) == sqlite_shell(file, query) != ""


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "must be an object with channel and payload"),
        ('{"payload": 1}', "channel is required, as text"),
        ('{"channel": "", "payload": 1}', "channel is empty"),
        ('{"channel": "a"}', "payload is required and must not be null"),
        ('{"channel": "a", "payload": 1, "topic": 2}', "topic is not a field of a message"),
        ('{"channel": "a", "blob": "!"}', "blob must be base64 text"),
        ('{"channel": "a", "payload": NaN}', "payload holds a number that JSON does not have"),
        ('{"channel": "a", "payload": "\\ud800"}', "payload holds half of a surrogate pair"),
    ],
)
def test_a_wrong_line_ends_publish_and_is_named(file: Path, line: str, wrong: str) -> None:
    good = '{"channel": "a", "payload": 1}\n'
    error = failure("publish", file, "--json-lines", text=f"{good}\n{line}\n{good}")
    assert error.startswith(f"line 3: {wrong}"), error
    assert error.endswith("Published 1 message, last id 1")
    assert payloads(file) == ["1"]


def test_a_line_whose_expectation_is_not_met(file: Path) -> None:
    call("publish", file, "a", "first")
    lines = [{"payload": "second", "expected_last_id": 1}, {"payload": "lost", "expected_last_id": 1}]
    error = failure("publish", file, "a", "--json-lines", text="".join(f"{json.dumps(line)}\n" for line in lines))
    assert error == (
        "expected_last_id is 1, but the newest message of channel 'a' is 2; nothing was stored of its transaction. "
        "Published 0 messages"
    )
    assert payloads(file) == ["first"]


def test_lines_that_are_no_text_or_too_long(file: Path) -> None:
    done = subprocess.run([*PUBSUB, "publish", str(file), "a"], input=b"fine\n\xff\n", capture_output=True, timeout=60)
    assert done.stderr == b"Error: line 2: not UTF-8. Published 1 message, last id 1\n"
    error = failure("publish", file, "a", text="fine\n" + "x" * 5_000_000)
    assert error.startswith("line 2: longer than 1048576 bytes")
    assert error.endswith("Published 1 message, last id 2")


def test_where_tail_begins(file: Path) -> None:
    call("publish", file, "a", text="".join(f"a{n}\n" for n in range(1, 13)))
    call("publish", file, "b/x", "b13")
    call("publish", file, "b/y", "b14")
    times = [
        json.loads(line)["createdAt"]
        for line in call("tail", file, "--json", "--start", "earliest").stdout.splitlines()
    ]
    assert payloads(file) == [*(f"a{n}" for n in range(5, 13)), "b13", "b14"]
    assert payloads(file, "-n", 3) == ["a12", "b13", "b14"]
    assert payloads(file, "-n", 0) == []
    assert payloads(file, "a", "-n", 2) == ["a11", "a12"]
    assert payloads(file, "a", "b/y", "-n", 2) == ["a12", "b14"]
    assert payloads(file, "--pattern", "b/*") == ["b13", "b14"]
    assert payloads(file, "--pattern", "?/y", "--pattern", "?/x", "-n", 1) == ["b14"]
    assert payloads(file, "nothing") == []
    assert len(payloads(file, "--start", "earliest")) == 14
    assert payloads(file, "--after", 12) == ["b13", "b14"]
    ahead = call("tail", file, "--after", 99)
    assert (ahead.stdout, ahead.stderr) == (
        "",
        "Gap: the log ends at 14, so it is not the one that was read up to 99\n",
    )
    assert payloads(file, "--since", times[12]) == ["b13", "b14"]
    assert payloads(file, "--since", "2999-01-01") == []


def test_tail_tells_what_was_trimmed(file: Path) -> None:
    call("publish", file, "a", text="1\n2\n3\n4\n5\n")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        retention.trim(conn, {"a": 3})
        conn.execute("COMMIT")
    done = call("tail", file, "--after", 1, "--json")
    assert done.stderr == "Gap: 2 messages trimmed before this could read them\n"
    assert [json.loads(line).get("missed") for line in done.stdout.splitlines()] == ["2", None]
    for options in (["--after", 3], ["--start", "earliest"], [], ["-n", 3]):
        done = call("tail", file, *options)
        assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["4", "5"]
        assert done.stderr == ""


def test_before_newest_is_where_newest_begins() -> None:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.install(conn, Settings())
        log.append(conn, [Item("abc"[n * n % 3], str(n)) for n in range(50)], log.now())
        for selector in (Selector(patterns=("*",)), Selector.of(["a"]), Selector.of(["b", "x"], ["[ac]"])):
            for count in (1, 2, 7, 16, 17, 49, 50, 51, 1000):
                after = log.before_newest(conn, selector, count)
                read = Reader(selector).page(conn, after, 10**6).messages
                assert read == search.newest(conn, selector, count).messages[::-1]
            assert log.before_newest(conn, selector, 0) == 50


def test_a_plain_line_shows_control_characters_and_hides_none(file: Path) -> None:
    hostile = "\x1b[2Jdone\nnext\t\u202e"
    call("publish", file, "--json-lines", text=json.dumps({"channel": "a\x07", "payload": hostile}))
    call("publish", file, "--json-lines", text='{"channel":"blob","blob":"AP8="}')
    first, second = call("tail", file).stdout.splitlines()
    assert first.split("\t")[2:] == ["a\\x07", "\\x1b[2Jdone\\nnext\\t\\u202e"]
    assert second.split("\t")[2:] == ["blob", "(2 bytes)"]
    assert "a\\x07" in call("channels", file).stdout
    assert payloads(file, "--pattern", "a*") == [hostile]


def test_tail_follows_what_other_processes_publish(file: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    call("publish", file, "a", text="one\ntwo\n")
    process = start("tail", file, "-f", "-n", 1, "--json", "--pattern", "a*")
    assert json.loads(next_line(process))["payload"] == "two"
    for n in range(3):
        sqlite_shell(file, f"INSERT INTO vpubsub (channel, payload) VALUES ('b', 'no'), ('a{n}', '{n}')")
        assert json.loads(next_line(process)) | {"createdAt": ""} == {
            "messageId": str(2 * n + 4),
            "channel": f"a{n}",
            "payload": str(n),
            "createdAt": "",
        }
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=DEADLINE) == ("", "")
    assert process.returncode == 0


def test_tail_follows_from_an_id_that_is_still_to_come(file: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("tail", file, "-f", "--after", 1000)

    def arrives() -> bool:
        # What was published before the process had looked is not for it, so there must be another.
        call("publish", file, "a", "new")
        return bool(select.select([process.stdout], [], [], 0)[0])

    wait_for(arrives, "a line")
    assert next_line(process).endswith("\ta\tnew\n")


@pytest.mark.parametrize("options", [["--start", "earliest"], ["-f", "-n", "1"]])
def test_tail_ends_in_silence_when_its_reader_leaves(
    file: Path, start: Callable[..., subprocess.Popen[str]], options: list[str]
) -> None:
    run("publish", file, "a", text="x" * 1000 + "\n" + ("x" * 1000 + "\n") * 2000)
    process = start("tail", file, *options)
    assert process.stdout is not None
    next_line(process)
    process.stdout.close()
    assert process.wait(DEADLINE) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_beside_a_server(serve: Callable[..., Server], start: Callable[..., subprocess.Popen[str]]) -> None:
    server = serve()
    run("install", server.path)
    with Sse(f"{server.pubsub}/-/stream", channel="a") as reader:
        reader.until("ready")
        assert run("publish", server.path, "a", text="one\ntwo\n").stdout == "Published 2 messages, last id 2\n"
        assert [message["payload"] for message in reader.messages(2)] == ["one", "two"]
        process = start("tail", server.path, "-f", "-n", 1, "--json")
        assert json.loads(next_line(process))["payload"] == "two"
        server.publish(channel="a", payload="three")
        assert json.loads(next_line(process)) == reader.messages(1)[0]


def test_channels(file: Path) -> None:
    assert call("channels", file, "--json").stdout == "[]\n"
    call("publish", file, "b", text="1\n2\n")
    call("publish", file, "a", "3")
    found = json.loads(call("channels", file, "--json").stdout)
    assert [(row["channel"], row["count"], row["newest_id"]) for row in found] == [("a", 1, 3), ("b", 2, 2)]
    heads, *rows = call("channels", file).stdout.splitlines()
    assert heads.split("  ")[0] == "channel"
    assert [row.split()[:3] for row in rows] == [["a", "1", "3"], ["b", "2", "2"]]


def test_subscriptions(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="a", payload="1")
    with Sse(f"{server.pubsub}/-/stream", channel="a", pattern="b/*", subscription="s") as reader:
        reader.until("ready")
    wait_for(
        lambda: json.loads(call("subscriptions", server.path, "--json").stdout)[0]["cursor"] == 1, "the cursor is saved"
    )
    server.publish({"channel": "a", "payload": "2"}, {"channel": "b/1", "payload": "3"}, {"channel": "c", "payload": 4})
    (row,) = json.loads(call("subscriptions", server.path, "--json").stdout)
    assert row.pop("created_at") <= row.pop("last_seen_at")
    reads = {"channels": ["a"], "patterns": ["b/*"], "filter": ""}
    assert row == {"owner": "", "subscription": "s", **reads, "cursor": 1, "lag": 2}
    _, line = call("subscriptions", server.path).stdout.splitlines()
    assert line.split()[:6] == ["(anonymous)", "s", "a,", "b/*", "1", "2"]


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


def test_the_demo_script(tmp_path: Path) -> None:
    root = ROOT
    folder = tmp_path / "checkout"
    (folder / "demo").mkdir(parents=True)
    shutil.copy(root / "demo" / "run", folder / "demo" / "run")
    shutil.copy(root / "metadata.yml", folder)
    port = free_port()
    environment = {**os.environ, "PORT": str(port), "BIN": str(Path(sys.executable).parent)}
    shown = tmp_path / "shown"
    with shown.open("w") as output:
        process = subprocess.Popen(
            ["sh", "demo/run"], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_for(
            lambda: f"The live page: http://127.0.0.1:{port}/weather/-/pubsub\n" in shown.read_text(), "the address"
        )
        with Sse(f"http://127.0.0.1:{port}/weather/-/pubsub/-/stream", channel="observations") as days:
            assert json.loads(days.messages(1)[0]["payload"])["date"].startswith("2012-")
        taken = subprocess.run(["sh", "demo/run"], cwd=folder, env=environment, capture_output=True, text=True)
        wrong = (
            f"demo: port {port} cannot be used (address already in use); choose another: make demo PORT={port + 1}\n"
        )
        assert (taken.returncode, taken.stdout, taken.stderr) == (1, "", wrong)
        # What a terminal does at Ctrl+C: all of them are told.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(DEADLINE) == 0
        assert "Replayed " in shown.read_text()
        assert "Traceback" not in shown.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")


def test_reading_changes_nothing(tmp_path: Path, file: Path) -> None:
    call("publish", file, "a", "one")
    sqlite_shell(file, "PRAGMA wal_checkpoint(TRUNCATE)")
    before = file.read_bytes()
    for command in ("tail", "channels", "subscriptions"):
        call(command, file)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "command", [["install"], ["publish", "a", "b"], ["tail"], ["tail", "-f"], ["channels"], ["subscriptions"], ["trim"]]
)
def test_files_that_cannot_be_used(tmp_path: Path, command: list[str]) -> None:
    name, *rest = command
    missing = tmp_path / "missing.db"
    assert failure(name, missing, *rest) == f"{missing}: there is no such file"
    assert not missing.exists()
    assert failure(name, tmp_path, *rest) == f"{tmp_path} is a directory, not a database"
    text = tmp_path / "text.db"
    text.write_text("no database, but long enough to be taken for one" * 100)
    assert failure(name, text, *rest) == f"{text} is not an SQLite database"
    other = tmp_path / "other.db"
    sqlite_shell(other, "CREATE TABLE vpubsub (id, body)")
    assert "vpubsub already exists in this database and is not" in failure(name, other, *rest)
    if name != "install":
        empty = tmp_path / "empty.db"
        sqlite_shell(empty, "CREATE TABLE t (a)")
        assert failure(name, empty, *rest) == f"{empty}: no log is installed; run: datasette pubsub install {empty}"


def test_an_error_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "missing.db"
    assert run("tail", path, code=1).stderr == f"Error: {path}: there is no such file\n"
    path.write_bytes(b"no database" * 100)
    assert run("install", path, code=1).stderr == f"Error: {path} is not an SQLite database\n"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["publish", "FILE", "", "x"], "channel is empty"),
        (["publish", "FILE", "c" * 256, "x"], "channel has 256 bytes; the limit is 255 bytes"),
        (["publish", "FILE", "a", "x", "--key", ""], "key is empty"),
        (["tail", "FILE", ""], "channel is empty"),
        (["tail", "FILE", "--pattern", ""], "pattern is empty"),
        (["trim", "FILE", "--pattern", ""], "pattern is empty"),
        (["tail", "FILE", "--after", "-1"], "--after must be a message id: a whole number, 0 or more"),
        (["tail", "FILE", "--after", "x"], "--after must be a message id: a whole number, 0 or more"),
        (["tail", "FILE", "--since", "noon"], "--since must be an ISO 8601 time like 2026-01-31T12:00:00Z"),
    ],
)
def test_wrong_values(file: Path, arguments: list[str], wrong: str) -> None:
    assert failure(*(file if argument == "FILE" else argument for argument in arguments)) == wrong


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["publish", "FILE"], "CHANNEL is required"),
        (["publish", "FILE", "a", "--key", "k"], "--key belongs to one PAYLOAD"),
        (["publish", "FILE", "a", "b", "--json-lines"], "--json-lines takes payloads and keys from standard input"),
        (["tail", "FILE", "--after", "1", "--start", "earliest"], "exclude each other"),
        (["tail", "FILE", "-n", "1", "--since", "2026-01-01"], "exclude each other"),
        (["trim", "FILE", "--vacuum", "--dry-run"], "exclude each other"),
        (["trim", "FILE", "--days", "0"], "--days"),
        (["trim", "FILE", "--messages", "0"], "--messages"),
        (["trim", "FILE", "--bytes", "0"], "--bytes"),
    ],
)
def test_wrong_use(file: Path, arguments: list[str], wrong: str) -> None:
    done = call(*(file if argument == "FILE" else argument for argument in arguments), code=2)
    assert wrong in done.stderr


@pytest.mark.slow
def test_a_lock_is_waited_for_and_then_named(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        error = failure("publish", file, "a", "x")
        assert error == f"{file} is locked: another program has been writing for more than 10 seconds"
        assert payloads(file) == []
