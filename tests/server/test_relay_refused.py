"""What a relay refuses, with the reason and what to do; and what it waits for."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import sqlite3
import subprocess
from pathlib import Path

import pytest
from commands import call, run
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StreamConfig, StreamSource
from nats_servers import (
    OLDEST,
    NatsServer,
    Start,
    head,
    on_stream,
    publish,
    query,
    read_line,
    relay_once,
    rows,
    running,
    same,
    trim,
    wait_for_head,
)

from datasette_pubsub.relay.session import Reporter
from datasette_pubsub.relay.stream import State, Stream, describe


def refusal(file: Path, nats: NatsServer, *more: str, url: str = "") -> str:
    """Why the relay does not begin; it ends with exit code 1."""
    words = ["relay", file, "--to", url or nats.url, "--stream", "orders", "--once", *more]
    done = run(*words, code=1)
    assert "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    return error.removeprefix("Error: ")


# -- the five ways in which ids and sequences can part ------------------------


def test_an_old_server_cannot_begin_later(tmp_path: Path, file: Path) -> None:
    said = subprocess.run([OLDEST, "--version"], capture_output=True, text=True).stdout if OLDEST else ""
    if OLDEST is None or "v2.9." not in said:
        pytest.skip("needs a NATS server that is older than 2.10, as Debian bookworm has")
    publish(file, 20)
    trim(file, "c", 10)
    with running(tmp_path / "old", OLDEST) as old:
        text = refusal(file, old, "--create")
    assert text == (
        "retention has removed the messages before 11, and NATS {} cannot make a stream that begins later than 1: "
        "2.10 can"
    ).format(said.split("v")[-1].strip())


def test_a_hole_that_is_too_large(file: Path, nats: NatsServer) -> None:
    publish(file, 1)
    relay_once(file, nats)
    publish(file, 10_001)
    trim(file, "c", 10_002)
    publish(file, 1)
    assert refusal(file, nats).startswith("retention has removed the messages 2 to 10002 before they were relayed")
    # One less is filled.
    with contextlib.closing(sqlite3.connect(file)) as conn, conn:
        conn.execute("UPDATE sqlite_sequence SET seq = 10001 WHERE name = 'vpubsub'")
        conn.execute("UPDATE _pubsub_released SET id = 20000")
        conn.execute("DELETE FROM vpubsub WHERE id = 10003")
    publish(file, 1)
    relay_once(file, nats)
    assert "all the same" in run("relay", file, "--to", nats.url, "--stream", "orders", "--check").stdout


def test_a_backup_was_restored(tmp_path: Path, file: Path, nats: NatsServer) -> None:
    publish(file, 10)
    shutil.copy(file, tmp_path / "backup.db")
    publish(file, 10)
    relay_once(file, nats)
    backup = tmp_path / "backup.db"
    text = "ahead of the log, which is at 10: the stream was made from another log, or this file was restored"
    assert text in refusal(backup, nats)
    # It has gone on with other messages, up to where the stream is, or further.
    publish(backup, 15, "other")
    assert refusal(backup, nats) == (
        "the stream orders was made from another log: its message 20 differs from this one's"
    )


def test_another_log(tmp_path: Path, file: Path, nats: NatsServer) -> None:
    publish(file, 10)
    relay_once(file, nats)
    other = tmp_path / "other.db"
    call("install", other, "--create")
    publish(other, 20)
    assert refusal(other, nats) == "the stream orders was made from another log"
    assert refusal(other, nats, "--create") == "the stream orders was made from another log"


def test_somebody_else_publishes(file: Path, nats: NatsServer, start: Start) -> None:
    publish(file, 10)
    relay_once(file, nats)
    relay = start("relay", file, "--to", nats.url, "--stream", "orders")
    read_line(relay, "All relayed, up to 10")

    async def other(stream: JetStreamContext) -> None:
        await stream.publish("orders.c", b"hello")

    on_stream(nats.url, other)
    # Also without a publish to the log, the idle relay looks at the stream.
    line = read_line(relay, "Error: somebody else has published the message 11 of the stream orders")
    assert "NATS permissions" in line
    assert relay.wait(30) == 1
    publish(file, 3)
    assert refusal(file, nats).startswith("somebody else has published the message 11")


# -- what cannot work ---------------------------------------------------------


def test_there_is_no_stream(file: Path, nats: NatsServer) -> None:
    assert refusal(file, nats) == ("there is no stream orders: give its name with --stream, or make it with --create")


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (StreamConfig(subjects=["orders.>", "others.>"]), "its subjects are orders.>, others.> instead of orders.>"),
        (StreamConfig(retention=RetentionPolicy.WORK_QUEUE), "its retention is workqueue instead of limits"),
        (StreamConfig(max_msgs_per_subject=1), "max_msgs_per_subject removes messages from its middle"),
        (StreamConfig(no_ack=True), "it answers no publisher (no_ack)"),
        (StreamConfig(max_msg_size=1000), "max_msg_size is 1000, and must be 1050624 or more"),
        (StreamConfig(subjects=[], sources=[StreamSource("x")]), "its subjects are none"),
        (StreamConfig(sources=[StreamSource("x")]), "it copies other streams"),
    ],
)
def test_a_stream_with_wrong_settings(file: Path, nats: NatsServer, config: StreamConfig, wrong: str) -> None:
    config.name = "orders"
    config.subjects = ["orders.>"] if config.subjects is None else config.subjects
    on_stream(nats.url, lambda stream: stream.add_stream(config))
    publish(file, 1)
    assert refusal(file, nats).startswith(f"the stream orders cannot hold a log: {wrong}")


def test_max_payload_is_too_small(tmp_path: Path, file: Path) -> None:
    """The default of NATS is the default of this log, and has no room for headers."""
    server = NatsServer(tmp_path / "small")
    server.configure(max_payload=1024 * 1024)
    server.start()
    try:
        assert refusal(file, server, "--create") == (
            "the server takes messages of 1048576 bytes, and this log may have some of 1050624: set max_payload: "
            "1050624 in the server's file, or a lower max_payload_bytes for this database"
        )
    finally:
        server.kill()


def test_wrong_credentials(tmp_path: Path, file: Path) -> None:
    with running(tmp_path / "nats", more="authorization { user: relay, password: right }") as nats:
        address = nats.url.removeprefix("nats://")
        for user in ("", "relay:wrong@"):
            text = refusal(file, nats, "--create", url=f"nats://{user}{address}")
            assert text == f"nats://{address} refuses the connection: nats: 'Authorization Violation'"
        run("relay", file, "--to", f"nats://relay:right@{address}", "--stream", "orders", "--create", "--once")


def test_jetstream_is_off(tmp_path: Path, file: Path) -> None:
    with running(tmp_path / "nats", jetstream=False) as nats:
        assert refusal(file, nats) == "JetStream does not answer: turn it on (jetstream {} in the server's file)"


def test_the_file_is_open_already(file: Path, nats: NatsServer) -> None:
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.execute("SELECT * FROM vpubsub")
        done = call("relay", file, "--to", nats.url, "--stream", "orders", "--once", code=1)
    assert done.stderr == "Error: this process has other connections to the file\n"


def test_without_the_extra(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for words in (
        ("relay", file, "--to", "nats://x"),
        ("follow", "nats://x", file, "--stream", "s"),
        ("import", "nats://x", file, "--stream", "s", "--channel", "c"),
    ):
        done = call(*words, code=1)
        assert done.stderr == (
            "Error: this command needs apsw; install it with: datasette install 'datasette-pubsub[nats]'\n"
        )


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--to", "http://localhost"), "http://localhost is not the address of a NATS server"),
        (("--to", "nats://x", "--stream", "a.b"), "'a.b' cannot be the name of a stream"),
        (("--to", "nats://x", "--max-age", "7d"), "belong to --create"),
        (("--to", "nats://x", "--create", "--publish-at", "a b"), "--publish-at is an address, without spaces"),
        (("--to", "nats://x", "--create", "--max-age", "7 weeks"), "write 7d, 12h, 30m or 90s"),
        (("--to", "nats://x", "--create", "--max-age", "0s"), "not between 1s and 100 years"),
    ],
)
def test_wrong_options(file: Path, words: tuple[str, ...], wrong: str) -> None:
    assert wrong in call("relay", file, *words, code=2).stderr


# -- what is waited for -------------------------------------------------------


def test_the_server_is_full(tmp_path: Path, file: Path, start: Start) -> None:
    """The relay waits, says why once, and goes on when there is room; nothing is lost or doubled."""
    store = tmp_path / "nats" / "store"
    small = f'jetstream {{ store_dir: "{store}", max_file_store: 200KB }}'
    with running(tmp_path / "nats", more=small) as nats:
        publish(file, 5000)
        relay = start("relay", file, "--to", nats.url, "--stream", "orders", "--create")
        line = read_line(relay, "Waiting: ")
        assert "does not store messages" in line
        assert "insufficient" in line
        nats.kill()
        nats.configure()
        nats.start()
        read_line(relay, "All relayed, up to 5000")
        assert "Compared 5000" in run("relay", file, "--to", nats.url, "--stream", "orders", "--check").stdout


def test_nobody_is_there(tmp_path: Path, file: Path, start: Start) -> None:
    """A relay that goes on waits; the first line says for what."""
    server = NatsServer(tmp_path / "nats")
    publish(file, 1)
    relay = start("relay", file, "--to", server.url, "--stream", "orders", "--create")
    assert server.url in read_line(relay, "Waiting: ")
    server.start()
    try:
        read_line(relay, "All relayed, up to 1")
    finally:
        server.kill()


def test_somebody_takes_connections_and_says_nothing(file: Path, nats: NatsServer, start: Start) -> None:
    """As a proxy does whose NATS is away: that is no refusal, and the relay waits."""
    publish(file, 5)
    nats.kill()
    with socket.socket() as proxy:
        proxy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        proxy.bind(("127.0.0.1", nats.port))
        proxy.listen()
        proxy.settimeout(30)
        relay = start("relay", file, "--to", nats.url, "--stream", "orders", "--create")
        for _ in range(3):
            proxy.accept()[0].close()
    nats.start()
    read_line(relay, "All relayed, up to 5")


def test_several_addresses_are_tried(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    copy = tmp_path / "copy.db"
    publish(file, 10)
    nowhere = NatsServer(tmp_path / "nowhere").url
    run("relay", file, "--to", nowhere, "--to", nats.url, "--stream", "orders", "--create", "--once")
    start("follow", nowhere, nats.url, copy, "--stream", "orders")
    wait_for_head(copy, 10)
    same(file, copy, nats)
    assert (head(copy), len(rows(copy))) == (10, 10)


# -- two relays, and the log ----------------------------------------------------


def test_two_relays_make_the_stream_at_once(file: Path, nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each saw none; the second one finds the stream of the first, which had other settings."""
    publish(file, 3)
    state = Stream.state
    looks: list[str] = []

    async def there_is_none(stream: Stream) -> State | None:
        looks.append(stream.name)
        if looks.count(stream.name) > 1:
            return await state(stream)
        if stream.name == "orders":
            found = describe(str(query(file, "SELECT instance_id FROM _pubsub_file")[0][0]), "https://other.example/")
            config = StreamConfig(name="orders", subjects=["orders.>"], description=found)
        else:
            config = StreamConfig(name="orders-cursors", subjects=["orders-cursors.>"])
        await stream._js.add_stream(config)
        return None

    monkeypatch.setattr(Stream, "state", there_is_none)
    done = call("relay", file, "--to", nats.url, "--stream", "orders", "--create", "--once")
    assert "Made the stream" not in done.stderr
    assert "All relayed, up to 3" in done.stderr


def test_a_line_for_each_change_of_state() -> None:
    said: list[str] = []
    reporter = Reporter(said.append)
    for number in range(3):
        reporter.say("waiting: one")
        reporter.say("waiting: the other")
        reporter.say(f"the stream is at {number}", about="position")
    assert said == ["waiting: one", "waiting: the other", "the stream is at 0"]
    reporter.works()
    reporter.say("waiting: one")
    assert said[3:] == ["waiting: one"]
