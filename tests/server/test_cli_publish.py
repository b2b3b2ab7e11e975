"""`datasette pubsub publish`, as a real process and in this one."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import PUBSUB, call, failure, payloads, run
from servers import DEADLINE, sqlite_shell, wait_for


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
