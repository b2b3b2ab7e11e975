"""The origin, NATS and a follower on three machines, over links that are slow, lose packets and are cut."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import PUBSUB
from links import Publisher
from lossy_link import Link, can_run, machine
from nats_servers import MAX_PAYLOAD, NEWEST, head, rows, wait_for_head
from servers import OPEN, wait_for

pytestmark = pytest.mark.slow

#: How long each link is cut, in seconds.
CUT_SECONDS = float(os.environ.get("PUBSUB_CUT_SECONDS", "60"))

DATASETTE = [sys.executable, "-m", "datasette"]

#: How many messages a second are published.
RATE = 200


@pytest.mark.skipif(not can_run(), reason="needs root, iproute2, network namespaces and TAP devices")
def test_slow_lossy_links_that_are_cut_for_a_minute(tmp_path: Path, file: Path) -> None:
    """The reader at the follower gets every message once and in order, and sees nothing but delay."""
    copy = tmp_path / "copy.db"
    with contextlib.ExitStack() as stack:

        def begin(where: str, name: str, *words: object) -> Path:
            printed = tmp_path / f"{name}.txt"
            command = ["ip", "netns", "exec", where, *map(str, words)]
            with printed.open("wb") as output:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            stack.callback(lambda: (process.kill(), process.wait()))
            return printed

        origin, middle, follower = (stack.enter_context(machine()) for _ in range(3))
        kind = {"delay": 0.04, "loss": 0.02, "bytes_per_second": 1_250_000}
        links = [
            Link((origin, "10.231.1.1"), (middle, "10.231.1.2"), **kind),
            Link((follower, "10.231.2.1"), (middle, "10.231.2.2"), **kind),
        ]
        for link in links:
            stack.callback(link.close)
        config = tmp_path / "nats.conf"
        config.write_text(
            f'listen: 0.0.0.0:4222\nmax_payload: {MAX_PAYLOAD}\njetstream {{ store_dir: "{tmp_path / "store"}" }}\n'
        )
        printed = begin(middle, "nats", NEWEST, "-c", config)
        wait_for(lambda: "Server is ready" in printed.read_text(), "the NATS server is ready")
        relay = begin(
            origin, "relay", *PUBSUB, "relay", file, "--to", "nats://10.231.1.2:4222", "--stream", "orders", "--create"
        )
        wait_for(lambda: "All relayed" in relay.read_text(), "the relay is ready")
        begin(follower, "follow", *PUBSUB, "follow", "nats://10.231.2.2:4222", copy, "--stream", "orders")
        publisher = Publisher(file, RATE)
        stack.callback(publisher.stop)
        wait_for_head(copy, 1)
        settings = tmp_path / "datasette.json"
        settings.write_text(json.dumps(OPEN))
        printed = begin(follower, "server", *DATASETTE, "serve", copy, "-c", settings, "-p", 8001)
        wait_for(lambda: "Uvicorn running" in printed.read_text(), "the server answers")
        address = "http://127.0.0.1:8001/copy/-/pubsub/-/stream?pattern=*&start=earliest"
        read = begin(follower, "reader", "curl", "-sN", address)

        for link in (*links, links[0]):
            link.cut()
            time.sleep(CUT_SECONDS)
            link.mend()
            time.sleep(5)
        published = publisher.stop()
        assert published > 3 * CUT_SECONDS * RATE / 2
        wait_for_head(copy, published, 300)
        assert head(file) == published
        assert rows(copy) == rows(file)

        def received() -> list[int]:
            lines = read.read_text().split("\n")[:-1]
            return [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]

        wait_for(lambda: received()[-1:] == [published], "the reader has the last message")
        assert received() == list(range(1, published + 1))
        assert "event: gap" not in read.read_text()
