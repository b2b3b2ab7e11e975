"""The heap that the start of a server leaves behind is frozen, and nothing else is kept in memory by that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import OPEN, Server, Sse, wait_for

#: Says how many objects are frozen, and how many others the collector knows after a full collection.
PLUGIN = """
import gc
from datasette import hookimpl
from datasette.utils.asgi import Response

async def heap():
    gc.collect()
    return Response.json({"frozen": gc.get_freeze_count(), "others": len(gc.get_objects())})

@hookimpl
def register_routes():
    return [("^/-/heap$", heap)]
"""


@pytest.fixture
def measured(serve: Callable[..., Server], tmp_path: Path) -> Callable[..., tuple[Server, Callable[[str], int]]]:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "heap.py").write_text(PLUGIN)

    def begin(**options: Any) -> tuple[Server, Callable[[str], int]]:
        config: dict[str, Any] = {**OPEN, "plugins": {"datasette-pubsub": options}}
        # A process that is not forked from another one, which has frozen its own heap.
        server = serve(config=config, options=["--plugins-dir", str(tmp_path / "plugins")], prefix=["env"])
        return server, lambda name: int(httpx.get(f"{server.url}/-/heap").json()[name])

    return begin


def test_what_the_start_leaves_behind_is_frozen(measured: Any) -> None:
    server, heap = measured()
    wait_for(lambda: heap("frozen") > 50_000, "the heap is frozen")
    assert heap("others") < heap("frozen")
    # What comes later is freed as ever: here, streams with all that belongs to them.
    server.publish(channel="a", payload="one")

    def streams(count: int) -> None:
        readers = [Sse(f"{server.pubsub}/-/stream", channel="a", start="earliest") for _ in range(count)]
        for reader in readers:
            reader.messages(1)
            reader.close()

    streams(20)
    before = heap("others")
    streams(100)
    # A hundred streams would be ten thousand objects and more.
    wait_for(lambda: heap("others") < before + 1000, "the streams are freed")


def test_it_can_be_turned_off(measured: Any) -> None:
    server, heap = measured(freeze_heap=False)
    server.publish(channel="a", payload="one")
    others = heap("others")
    assert heap("frozen") == 0
    assert others > 50_000
