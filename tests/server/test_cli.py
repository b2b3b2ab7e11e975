"""The command line as a whole: help, errors, what it installs and lists, and the script of the demo."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from commands import call, failure, payloads, run
from places import ROOT
from servers import DEADLINE, Server, Sse, free_port, sqlite_shell, wait_for

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema


def test_every_command_is_explained() -> None:
    commands = run("--help").stdout
    for name in (
        "install",
        "publish",
        "tail",
        "channels",
        "subscriptions",
        "trim",
        "broadcast",
        "live",
        "watch",
        "demo",
    ):
        assert name in commands
        assert "Usage:" in call(name, "--help").stdout


def test_install_makes_every_program_a_publisher(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    sqlite_shell(path, "CREATE TABLE users (name)")
    assert run("install", path).stdout == f"{path} is ready: programs can publish to it and subscribe to it\n"
    assert run("install", path).stdout == f"{path} is ready: programs can publish to it and subscribe to it\n"
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
    assert row == {"owner": "", "subscription": "s", "relay_to": None, **reads, "cursor": 1, "lag": 2}
    _, line = call("subscriptions", server.path).stdout.splitlines()
    assert line.split()[:6] == ["(anonymous)", "s", "a,", "b/*", "1", "2"]


def test_the_demo_script(tmp_path: Path) -> None:
    root = ROOT
    folder = tmp_path / "checkout"
    shutil.copytree(root / "demo", folder / "demo")
    for name in ("metadata.yml", "datasette.yml"):
        shutil.copy(root / name, folder)
    port = free_port()
    environment = {**os.environ, "PORT": str(port), "BIN": str(Path(sys.executable).parent)}
    shown = tmp_path / "shown"
    with shown.open("w") as output:
        process = subprocess.Popen(
            ["sh", "demo/run"], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_for(lambda: "Ctrl+C ends it." in shown.read_text(), "the addresses")
        here = f"http://127.0.0.1:{port}"
        with Sse(f"{here}/weather/-/pubsub/-/stream", channel="observations") as days:
            assert json.loads(days.messages(1)[0]["payload"])["new"]["date"].startswith("2013-")
        wait_for(lambda: "alarms: alerts/frost " in shown.read_text(), "the durable subscriber prints an alert")
        found = re.findall(r"^ +([\w ]+): +(http\S+)$", shown.read_text(), re.MULTILINE)
        assert [name for name, _ in found] == [
            "Log in as root", "Live messages", "A live table", "A live query", "Publish", "Subscriptions",
        ]  # fmt: skip
        with httpx.Client(timeout=DEADLINE, follow_redirects=True) as browser:
            # The first one logs in; without it, the form refuses.
            assert httpx.get(dict(found)["Publish"], timeout=DEADLINE).status_code == 403
            pages = {name: browser.get(address) for name, address in found}
            assert {name: page.status_code for name, page in pages.items()} == dict.fromkeys(pages, 200)
            assert "alarms" in pages["Subscriptions"].text
            rows = browser.get(f"{here}/weather/-/pubsub/-/subscriptions.json").json()["subscriptions"]
            assert [(row["owner"], row["connected"], row["delivery"]) for row in rows] == [("root", True, "explicit")]
            (row,) = browser.get(f"{here}/weather/-/pubsub/-/queries.json").json()["queries"]
            assert (row["name"], row["configured"], row["error"]) == ("records", True, None)
            shows = browser.get(f"{here}/weather/this_month.json?_shape=array").json()
            assert all(row["years_before"] is not None for row in shows), "a year to compare with"
        addresses = {address.replace(str(port), "8001") for _, address in found}
        named = set(re.findall(r"<(http://127\.0\.0\.1:8001/weather/[^>]+)>", (root / "README.md").read_text()))
        assert f"{here.replace(str(port), '8001')}/weather/this_month.live" in named
        assert named <= addresses
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
