"""Sinks and ``pubsub_messages`` of another plugin, in a real server: nothing is missed, whatever happens to it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import call
from servers import OPEN, Server, sqlite_shell, wait_for

PLUGIN = """
import json, os
from datasette import hookimpl
from datasette_pubsub.api import Sink

OUT = {out!r}


def note(**what):
    with open(OUT, "a") as file:
        file.write(json.dumps(what) + "\\n")
        file.flush()
        os.fsync(file.fileno())


@hookimpl
def pubsub_sinks(datasette):
    async def store(messages):
        broken = os.path.exists(OUT + ".broken")
        note(pid=os.getpid(), ids=[message.id for message in messages], failed=broken)
        # What it does with its list is its own affair.
        messages.clear()
        if broken:
            raise RuntimeError("the archive is away")

    return [Sink(name="archive", handle=store, **{options!r})]


@hookimpl
def pubsub_messages(database, messages):
    async def seen():
        note(seen=[message.id for message in messages], database=database)

    return seen()
"""


class Sunk:
    """What the plugin has noted."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.broken = Path(f"{out}.broken")

    def notes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.exists() else []

    def stored(self) -> list[int]:
        return [number for note in self.notes() if "ids" in note and not note["failed"] for number in note["ids"]]

    def seen(self) -> list[int]:
        return [number for note in self.notes() for number in note.get("seen", ())]

    def by(self) -> set[int]:
        return {note["pid"] for note in self.notes() if "ids" in note}


@pytest.fixture
def sunk(tmp_path: Path) -> Sunk:
    return Sunk(tmp_path / "out.jsonl")


@pytest.fixture
def begin(serve: Callable[..., Server], tmp_path: Path, sunk: Sunk) -> Callable[..., Server]:
    """Start a server with the plugin, on the same file each time."""

    def start(**options: Any) -> Server:
        options = {"database": "data", "patterns": ["orders/*"], **options}
        plugins = tmp_path / "plugins"
        plugins.mkdir(exist_ok=True)
        source = PLUGIN.replace("{out!r}", repr(str(sunk.out))).replace("{options!r}", repr(options))
        (plugins / "archive.py").write_text(source)
        return serve(config=OPEN, options=["--plugins-dir", str(plugins)])

    return start


def subscribed(server: Server) -> None:
    wait_for(lambda: server.rows("SELECT 1 FROM sqlite_master WHERE name = 'pubsub_subscriptions'"))
    wait_for(lambda: server.rows("SELECT 1 FROM pubsub_subscriptions WHERE name = 'archive'"), "it is subscribed")


def orders(server: Server, count: int) -> list[int]:
    return [server.publish(channel=f"orders/{number}", payload="x")[0] for number in range(count)]


def cursor(server: Server) -> int:
    return int(server.rows("SELECT cursor FROM pubsub_subscriptions WHERE name = 'archive'")[0][0])


def test_a_sink_gets_what_any_program_publishes(begin: Callable[..., Server], sunk: Sunk) -> None:
    server = begin()
    subscribed(server)
    wanted = orders(server, 3)
    server.publish(channel="other", payload="not for it")
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('orders/sql', 'x')")
    wait_for(lambda: sunk.stored() == [*wanted, 5], f"all are stored: {sunk.stored()}")
    wait_for(lambda: sunk.seen() == [1, 2, 3, 4, 5], f"all are seen: {sunk.seen()}")
    wait_for(lambda: cursor(server) == 5)
    assert {note["database"] for note in sunk.notes() if "seen" in note} == {"data"}
    assert httpx.get(f"{server.pubsub}/-/subscriptions.json").json()["subscriptions"] == [], "it is no visitor's"


def test_batches_are_bounded(begin: Callable[..., Server], sunk: Sunk) -> None:
    server = begin(batch=4, start="earliest")
    subscribed(server)
    server.publish(*({"channel": "orders/1", "payload": str(number)} for number in range(30)))
    wait_for(lambda: sunk.stored() == list(range(1, 31)), "all are stored")
    assert max(len(note["ids"]) for note in sunk.notes() if "ids" in note) == 4


def test_what_failed_comes_again(begin: Callable[..., Server], sunk: Sunk) -> None:
    server = begin()
    subscribed(server)
    sunk.broken.touch()
    wanted = orders(server, 2)
    wait_for(lambda: sum("ids" in note for note in sunk.notes()) >= 3, "it was tried again")
    assert sunk.stored() == []
    assert cursor(server) < wanted[0]
    wanted += orders(server, 2)
    sunk.broken.unlink()
    wait_for(lambda: sunk.stored() == wanted, "all are stored")
    assert "sink archive: messages from 1 on: RuntimeError('the archive is away'); trying again" in server.log


def test_nothing_is_missed_over_kills(begin: Callable[..., Server], sunk: Sunk) -> None:
    server = begin()
    subscribed(server)
    wanted = []
    for _ in range(5):
        wanted += orders(server, 7)
        server.kill()
        sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('orders/away', 'x')")
        wanted.append(wanted[-1] + 1)
        server.start()
    wait_for(lambda: set(sunk.stored()) >= set(wanted), f"all are stored: {set(wanted) - set(sunk.stored())}")
    assert list(dict.fromkeys(sunk.stored())) == wanted, "in order, and again only what may not have been done"


def test_one_of_two_processes_runs_it(begin: Callable[..., Server], sunk: Sunk) -> None:
    first = begin()
    subscribed(first)
    wanted = orders(first, 2)
    wait_for(lambda: sunk.stored() == wanted)
    second = begin()
    wait_for(lambda: "sink archive: another process runs it" in first.log or cursor(first) == wanted[-1])
    wanted += orders(first, 3)
    wait_for(lambda: sunk.stored() == wanted, f"once each: {sunk.stored()}")
    (newest,) = {note["pid"] for note in sunk.notes() if wanted[-1] in note.get("ids", ())}
    assert first.process is not None
    assert second.process is not None
    assert newest == second.process.pid, "who came last has it"
    second.stop(signal.SIGTERM)
    wanted += orders(first, 3)
    wait_for(lambda: sunk.stored() == wanted, f"the first goes on: {sunk.stored()}", deadline=60)
    assert sunk.by() == {first.process.pid, second.process.pid}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patterns": []}, "sink archive: channel is required for a new subscription: name at least one"),
        ({"database": "nowhere"}, "database nowhere: sink archive: database not found: nowhere"),
        ({"filter": "payload ->> '$.level' ="}, "sink archive: filter"),
    ],
)
def test_what_is_wrong_is_told_once(begin: Callable[..., Server], options: dict[str, Any], said: str) -> None:
    server = begin(**options)
    call("install", server.path)
    wait_for(lambda: said in server.log, f"it is told: {server.log}")
    assert server.publish(channel="orders/1", payload="x") == [1]
