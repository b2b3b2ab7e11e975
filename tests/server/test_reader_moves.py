"""A reader that moves between the origin and two followers gets each message once and in order."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from links import Publisher
from nats_servers import Start, relay_once, running, wait_for_head
from servers import Server, Sse


@pytest.mark.parametrize("moves", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_with_its_last_event_id(
    tmp_path: Path, file: Path, start: Start, serve: Callable[..., Server], moves: int
) -> None:
    """While messages are published, and the followers are behind by what the way takes: it waits there."""
    rng = random.Random(moves)
    copies = [tmp_path / "one.db", tmp_path / "two.db"]
    with running(tmp_path / "nats") as nats, contextlib.ExitStack() as stack:
        relay_once(file, nats)
        start("relay", file, "--to", nats.url, "--stream", "orders")
        for copy in copies:
            start("follow", nats.url, copy, "--stream", "orders")
        publisher = Publisher(file, 500)
        stack.callback(publisher.stop)
        for copy in copies:
            wait_for_head(copy, 1)
        servers = [serve(databases=[name]) for name in ("data", "one", "two")]
        received: list[int] = []
        place = servers[0]
        for _ in range(moves):
            place = rng.choice([each for each in servers if each is not place])
            last = received[-1] if received else 0
            with Sse(f"{place.pubsub}/-/stream", {"Last-Event-ID": str(last)}, channel="a") as stream:
                for message in stream.messages(rng.randint(1, 300)):
                    assert "missed" not in message
                    received.append(int(message["messageId"]))
        assert received == list(range(1, len(received) + 1))
        assert len(received) > 20 * moves
