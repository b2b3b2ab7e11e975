"""The client for Python against real servers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from auth import cookie
from docstrings import blocks
from nats_servers import trim
from python_clients import Driver
from servers import OPEN, Server, sqlite_shell, wait_for

from datasette_pubsub import client as package
from datasette_pubsub.client import Forbidden, Gap, Item, Message, Refused, Superseded


def test_it_loads_no_part_of_datasette() -> None:
    code = "import datasette_pubsub.client, sys; print(sorted(name for name in sys.modules if 'datasette' in name))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    rooms = {name.split(".")[1] for name in json.loads(done.stdout.replace("'", '"')) if "." in name}
    assert rooms == {"client", "hooks", "lazy"}


def test_what_is_published_arrives(serve: Callable[..., Server], client_of: Callable[..., Driver]) -> None:
    server = serve(config=OPEN)
    client = client_of(server)
    assert client.publish("a", "text") == 1
    payloads: list[Any] = [{"n": 1}, [1, "zwei"], 7, 1.5, b"\0\xff", "\u2028 line", True]
    items = [Item(channel="a", payload=payload, key=str(n)) for n, payload in enumerate(payloads)]
    assert client.publish_many(items) == list(range(2, 9))
    assert client.publish_many(items) == list(range(2, 9)), "each key once"
    assert client.publish_many([]) == []
    reading = client.subscribe("a", start="earliest")
    found = reading.take(8)
    assert [message.id for message in found] == list(range(1, 9))
    assert [message.payload for message in found] == [
        "text", '{"n":1}', '[1,"zwei"]', "7", "1.5", b"\0\xff", "\u2028 line", "true",
    ]  # fmt: skip
    assert found[1].json() == {"n": 1}
    assert {message.channel for message in found} == {"a"}
    assert found[0].created_at.endswith("Z")
    assert client.publish("a", "live", expected_last_id=8) == 9
    assert reading.take(1)[0].payload == "live"
    reading.close()
    filtered = client.subscribe(patterns=["a*"], filter="payload = 7", after=0)
    assert [message.id for message in filtered.take(1)] == [4]
    filtered.close()


def test_acks_decide_what_comes_again(serve: Callable[..., Server], client_of: Callable[..., Driver]) -> None:
    client = client_of(serve(config=OPEN))
    client.publish_many([Item(channel="a", payload=str(n)) for n in range(5)])
    first = client.subscribe("a", subscription="s", ack="explicit", start="earliest")
    found = first.take(3)
    assert first.ack(found[1]) == 2
    assert first.ack(1) == 2
    first.close()
    again = client.subscribe(subscription="s", ack="explicit")
    assert [message.id for message in again.take(3)] == [3, 4, 5]
    assert client.ack("s", 5) == 5
    # A newer subscriber takes over, and the older one must not come back.
    newer = client.subscribe(subscription="s", ack="explicit")
    client.publish("a", "next")
    assert [message.id for message in newer.take(1)] == [6]
    with pytest.raises(Superseded):
        again.take(2)
    with pytest.raises(TypeError, match="only a subscription has acks"):
        client.subscribe("a").ack(1)
    with pytest.raises(TypeError, match="takes channels, patterns or the name"):
        client.subscribe()


def test_what_is_refused_is_told_and_not_repeated(
    serve: Callable[..., Server], client_of: Callable[..., Driver]
) -> None:
    server = serve(config={"permissions": {"publish-message": {"id": "ann"}}})
    nobody = client_of(server, retry_seconds=1000)
    with pytest.raises(Forbidden, match="publish-message") as forbidden:
        nobody.publish("a", "x", key="1")
    assert forbidden.value.status == 403
    ann = client_of(server, headers=cookie("ann"))
    assert ann.publish("a", "x") == 1
    with pytest.raises(Refused) as refused:
        ann.publish("x" * 300, "x")
    assert (refused.value.status, refused.value.field) == (400, "channel")
    with pytest.raises(Refused, match="expected_last_id is 7") as conflict:
        ann.publish("a", "x", expected_last_id=7)
    assert conflict.value.status == 409
    with pytest.raises(Refused, match="filter"):
        nobody.subscribe("a", filter="SELECT 1").take(1)
    with pytest.raises(Refused, match="nothing") as missing:
        client_of(f"{server.url}/nothing").subscribe("a").take(1)
    assert missing.value.status == 404
    for address in ("data.db", "http://127.0.0.1:8001", "ftp://x/data"):
        with pytest.raises(ValueError, match="is not the address of a database"):
            client_of(address)


def test_gaps_are_told(serve: Callable[..., Server], client_of: Callable[..., Driver]) -> None:
    server = serve(config=OPEN)
    client = client_of(server)
    client.publish_many([Item(channel="a", payload=str(n)) for n in range(10)])
    reading = client.subscribe("a", subscription="s", ack="explicit", start="earliest")
    reading.ack(reading.take(1)[0])
    reading.close()
    trim(server.path, "a", 4)
    gaps: list[Gap] = []
    reading = client.subscribe(subscription="s", ack="explicit", on_gap=gaps.append)
    assert [(each.id, each.missed) for each in reading.take(2)] == [(5, 3), (6, 0)]
    assert gaps == [Gap(3, 4)]


def test_a_restart_is_not_noticed(serve: Callable[..., Server], client_of: Callable[..., Driver]) -> None:
    """Before the first message, the place is the head of the first connection."""
    server = serve(config=OPEN)
    client = client_of(server)
    client.publish("a", "old")
    found: list[list[Message]] = []
    reading = client.subscribe("a", start="latest")
    thread = threading.Thread(target=lambda: found.append(reading.take(2)))
    thread.start()
    wait_for(lambda: reading.place is not None, "it knows where it is")
    server.kill()
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'while it was down')")
    server.start()
    server.publish(channel="a", payload="afterwards")
    thread.join(30)
    assert [message.payload for message in found[0]] == ["while it was down", "afterwards"]


def kill_now_and_then(server: Server, times: int, seconds: float) -> None:
    for _ in range(times):
        time.sleep(seconds)
        server.kill()
        server.start()


@pytest.mark.parametrize(
    ("times", "seconds"), [(3, 1.0), pytest.param(100, 3.0, marks=pytest.mark.slow)], ids=["short", "five minutes"]
)
def test_nothing_is_lost_while_the_server_is_killed(
    serve: Callable[..., Server], client_of: Callable[..., Driver], times: int, seconds: float
) -> None:
    """With keys and explicit acks: each message once and in order, and the ids that the publisher was told."""
    server = serve(config=OPEN)
    publisher, subscriber = client_of(server, retry_seconds=120), client_of(server, retry_seconds=120)
    told: list[int] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def publish() -> None:
        try:
            while not ended.is_set():
                number = len(told)
                told.append(publisher.publish("a", {"number": number}, key=f"key-{number}"))
                time.sleep(0.005)
        except BaseException as error:
            failed.append(error)

    found: list[Message] = []
    reading = subscriber.subscribe("a", subscription="s", ack="explicit", start="earliest")

    def read() -> None:
        try:
            while not (ended.is_set() and len(found) >= len(told)):
                (message,) = reading.take(1)
                found.append(message)
                if len(found) % 10 == 0:
                    reading.ack(message)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=publish, daemon=True), threading.Thread(target=read, daemon=True)]
    for thread in threads:
        thread.start()
    kill_now_and_then(server, times, seconds)
    ended.set()
    threads[0].join(60)
    # One more, so that the reader sees that it is the end.
    wait_for(lambda: failed or len(found) >= len(told), "everything has arrived", 60)
    server.publish(channel="a", payload={"number": len(told)})
    threads[1].join(60)
    assert not failed
    count = len(told)
    assert [message.json()["number"] for message in found][:count] == list(range(count))
    assert [message.id for message in found][:count] == told
    assert count > 20 * times


# -- the examples of the docstrings -----------------------------------------------------


def examples() -> list[Any]:
    rooms = [package.sync, package.aio, package.file, package]
    return [pytest.param(code, id=f"{room.__name__}.{owner}") for room in rooms for owner, code in blocks(room)]


@pytest.mark.parametrize("code", examples())
def test_an_example_runs(serve: Callable[..., Server], code: str) -> None:
    server = serve(config=OPEN)
    server.publish(channel="orders", payload={"order": 1})
    code = code.replace("127.0.0.1:8001", f"127.0.0.1:{server.port}")
    if "async with client.subscribe" in code:
        lines = "\n".join(f"        {line}" for line in code.splitlines())
        code = (
            "import asyncio\nfrom datasette_pubsub.client import AsyncClient\nasync def main():\n"
            f"    async with AsyncClient('{server.url}/data') as client:\n{lines}\nasyncio.run(main())"
        )
    elif "client.subscribe" in code and "Client(" not in code:
        code = (
            f"from datasette_pubsub.client import Client\nclient = Client('{server.url}/data')\n{code}\nclient.close()"
        )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=server.path.parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ('1 {"order":1}', '{"order":1}', "2", "1 {'order': 1}"), done.stdout
