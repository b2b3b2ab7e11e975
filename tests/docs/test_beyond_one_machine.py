"""docs/beyond-one-machine.md and examples/relay/, as somebody follows them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import call
from doc_pages import BLOCK, DOCS
from nats.errors import Error
from nats.js import JetStreamContext
from nats_servers import NEWEST, NatsServer, execute, free_port, head, on_stream, publish, query, rows, wait_for_head
from places import ROOT
from servers import wait_for

RELAY = ROOT / "examples" / "relay"

PASSWORDS = {"ADMIN_PASSWORD": "a1", "RELAY_PASSWORD": "r1", "FOLLOWER_PASSWORD": "f1"}


class Terminals:
    """Terminals in one folder; what runs in them is ended with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, **PASSWORDS, "PATH": path}
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, code: str) -> Path:
        """Run what does not end; returns the file of what it prints."""
        printed = self._folder / f"terminal{len(self._running)}.txt"
        with printed.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-euc", code],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._running.append(process)
        return printed

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run what ends."""
        return subprocess.run(
            ["bash", "-euc", code],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def end(self) -> None:
        while self._running:
            process = self._running.pop()
            os.killpg(process.pid, 9)
            process.wait()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    found = Terminals(tmp_path)
    yield found
    found.end()


def test_the_examples(tmp_path: Path, terminals: Terminals) -> None:
    call("install", tmp_path / "data.db", "--create")
    port = str(free_port())
    blocks = [
        (match["kind"], match["code"].replace("4222", port)) for match in BLOCK.finditer(DOCS["beyond-one-machine"])
    ]
    # The server listens on its default port, which others may use.
    (_, server), (_, relay), (_, follow), (_, tail), (_, refused), (_, promote) = blocks
    assert [kind for kind, _ in blocks] == ["run", "run", "run", "sh", "refused", "sh"]
    printed = terminals.start(server.replace("nats.conf\n", f"nats.conf -p {port}\n") if "-c" in server else server)
    wait_for(lambda: "Server is ready" in printed.read_text(), "the server is ready")
    printed = terminals.start(relay)
    wait_for(lambda: "All relayed" in printed.read_text(), "the relay is ready")
    terminals.start(follow)
    wait_for(lambda: (tmp_path / "copy.db").exists() and query_follows(tmp_path / "copy.db"), "it follows")
    done = terminals.run(tail.replace("sleep 1", "until datasette pubsub tail copy.db | grep -q order; do :; done"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith('\torders/new\t{"order": 1}\n')
    done = terminals.run(refused)
    assert done.returncode == 1
    assert "this log follows the stream orders" in done.stderr
    assert rows(tmp_path / "copy.db") == rows(tmp_path / "data.db")
    terminals.end()
    done = terminals.run(promote)
    assert done.returncode == 0, done.stderr
    assert terminals.run(refused).returncode == 0


def query_follows(file: Path) -> bool:
    tables = query(file, "SELECT 1 FROM sqlite_master WHERE name = '_pubsub_sources'")
    return bool(tables and query(file, "SELECT 1 FROM _pubsub_sources WHERE kind = 'follow'"))


def example_server(folder: Path) -> NatsServer:
    """A server with the permissions of examples/relay/nats.conf."""
    server = NatsServer(folder, NEWEST)
    text = (RELAY / "nats.conf").read_text()
    for name, password in PASSWORDS.items():
        text = text.replace(f"${name}", password)
    text = text.replace("0.0.0.0:4222", f"127.0.0.1:{server.port}").replace("/data/jetstream", str(server.store))
    (folder / "nats.conf").write_text(text)
    return server


def test_the_permissions_suffice_and_keep_others_out(tmp_path: Path, file: Path, terminals: Terminals) -> None:
    server = example_server(tmp_path / "nats")
    server.start()
    try:
        relay, follower = (server.url.replace("//", f"//{name}@") for name in ("relay:r1", "follower:f1"))
        publish(file, 10)
        execute(file, "INSERT INTO pubsub_subscriptions (name, cursor) VALUES ('worker', 7)")
        words = f"datasette pubsub relay {file} --stream orders --to {relay}"
        done = terminals.run(f"{words} --create --once")
        assert done.returncode == 0, done.stderr
        printed = terminals.start(words)
        copy = tmp_path / "copy.db"
        following = terminals.start(f"datasette pubsub follow {follower} {copy} --stream orders")
        wait_for_head(copy, 10)
        wait_for(lambda: query(copy, "SELECT name, cursor FROM pubsub_subscriptions") == [("worker", 7)], "cursors")
        execute(copy, "UPDATE pubsub_subscriptions SET cursor = 9")
        moved = "SELECT cursor FROM pubsub_subscriptions WHERE name = 'worker'"
        wait_for(lambda: query(file, moved) == [(9,)], "the cursor goes back to the origin")
        assert "aiting" not in printed.read_text() + following.read_text()
        for command in (f"{words} --check", f"datasette pubsub follow {follower} {copy} --stream orders --verify"):
            done = terminals.run(command)
            assert (done.returncode, done.stdout) == (0, "Compared 10 messages: all the same\n"), done.stderr

        async def publish_to(stream: JetStreamContext) -> None:
            await stream.publish("orders.c", b"hello", timeout=2)

        with pytest.raises((Error, TimeoutError)):
            on_stream(follower, publish_to)
        publish(file, 1)
        wait_for_head(copy, 11)
    finally:
        server.kill()


@pytest.mark.parametrize("name", ["pubsub-relay.service", "pubsub-follow.service"])
def test_the_units_name_commands_that_there_are(tmp_path: Path, file: Path, terminals: Terminals, name: str) -> None:
    """Each option is one of the command's; with servers that do not answer, it waits."""
    text = (RELAY / name).read_text().replace("\\\n", " ")
    command = re.search(r"^ExecStart=/opt/datasette/bin/(.*)$", text, re.MULTILINE)
    assert command is not None
    port = free_port()
    code = re.sub(r"nats-\d:4222", f"127.0.0.1:{port}", command[1]).replace("/srv/data/orders.db", str(file))
    printed = terminals.start(code)
    wait_for(lambda: f"Waiting: nats://127.0.0.1:{port}: " in printed.read_text(), "it waits")
    assert "r1" not in printed.read_text().replace(str(tmp_path), "")


@pytest.mark.slow
def test_three_servers_and_one_is_lost(tmp_path: Path, file: Path, terminals: Terminals) -> None:
    """The commands of examples/relay/compose.yml, on ports of this machine."""
    compose = (RELAY / "compose.yml").read_text()
    commands = re.findall(r"command: -c /etc/nats.conf (.*)$", compose, re.MULTILINE)
    assert len(commands) == 3
    routes = {f"nats-{number}:6222": f"127.0.0.1:{free_port()}" for number in (1, 2, 3)}
    servers = []
    for number, command in enumerate(commands, 1):
        server = example_server(tmp_path / f"nats{number}")
        mine = routes[f"nats-{number}:6222"]
        for name, address in routes.items():
            command = command.replace(name, address)
        server.more = command.replace("0.0.0.0:6222", mine).split()
        servers.append(server.start())
    try:
        urls = " ".join(f"--to {server.url.replace('//', '//relay:r1@')}" for server in servers)
        publish(file, 5000)
        words = f"datasette pubsub relay {file} --stream orders {urls}"
        done = terminals.run(f"{words} --create --replicas 3 --once")
        assert done.returncode == 0, done.stderr
        terminals.start(words)
        copy = tmp_path / "copy.db"
        addresses = " ".join(server.url.replace("//", "//follower:f1@") for server in servers)
        terminals.start(f"datasette pubsub follow {addresses} {copy} --stream orders")
        wait_for_head(copy, 5000)
        for lost in servers:
            lost.kill()
            publish(file, 2000)
            wait_for_head(copy, head(file), 90)
            lost.start()
            wait_for_head(copy, head(file), 90)
        assert rows(copy) == rows(file)
    finally:
        for server in servers:
            server.kill()
