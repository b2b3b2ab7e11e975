"""`datasette pubsub tail`, alone and beside a server."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call, next_line, payloads, run
from servers import DEADLINE, Server, Sse, sqlite_shell, wait_for

from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.core.values import Item
from datasette_pubsub.storage import log, retention, schema, search
from datasette_pubsub.storage.catchup import Reader


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
