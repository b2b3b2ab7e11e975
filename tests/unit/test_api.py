"""What other plugins get: publish and subscribe in the server's process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from doc_pages import BLOCK, DOCS
from nats_servers import trim
from servers import sqlite_shell

from datasette_pubsub.access.permissions import RESERVED, check_named
from datasette_pubsub.api import Item, Message, publish, subscribe
from datasette_pubsub.broker.registry import registry
from datasette_pubsub.core.errors import InvalidArgument, NotFound, PayloadTooLarge, PermissionDenied
from datasette_pubsub.core.settings import Settings

pytestmark = pytest.mark.asyncio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data.db"
    path.touch()
    return path


@asynccontextmanager
async def serving(path: Path, **options: Any) -> AsyncIterator[Datasette]:
    datasette = Datasette([str(path)], config={"plugins": {"datasette-pubsub": options}})
    await datasette.start_background_tasks()
    try:
        yield datasette
    finally:
        registry(datasette).close_streams()
        await datasette.invoke_shutdown()


async def taken(messages: Any, count: int) -> list[Message]:
    async with asyncio.timeout(20):
        return [await anext(messages) for _ in range(count)]


async def test_any_payload_of_any_program_arrives(path: Path) -> None:
    async with serving(path) as datasette:
        payloads: list[Any] = ["text \u2028", b"\0\xff", 7, 1.5, 2**62, ""]
        assert await publish(datasette, "data", [Item("a", payload) for payload in payloads]) == list(range(1, 7))
        assert await publish(datasette, "data", [Item("b", "other", key="k")]) == [7]
        assert await publish(datasette, "data", [Item("b", "again", key="k")]) == [7]
        assert await publish(datasette, "data", []) == []
        async with subscribe(datasette, "data", "a", start="earliest") as messages:
            found = await taken(messages, 6)
            assert [each.payload for each in found] == payloads
            assert found[0].created_at.endswith("Z")
            live = asyncio.create_task(taken(messages, 1))
            await asyncio.to_thread(
                sqlite_shell, path, "INSERT INTO vpubsub (channel, payload) VALUES ('b', 'no'), ('a', 'live')"
            )
            assert [(each.id, each.payload) for each in await live] == [(9, "live")]
        async with subscribe(datasette, "data", patterns=["*"], filter="payload = 'other'", after=1) as messages:
            assert [each.id for each in await taken(messages, 1)] == [7]


async def test_a_named_one_goes_on_over_restarts(path: Path) -> None:
    async with serving(path) as datasette:
        await publish(datasette, "data", [Item("a", str(n)) for n in range(10)])
        async with subscribe(datasette, "data", "a", subscription="mine", start="earliest") as messages:
            found = await taken(messages, 4)
            assert await messages.ack(found[1]) == 2
    trim(path, "a", 5)
    async with serving(path) as datasette:
        async with subscribe(datasette, "data", "a", subscription="mine") as messages:
            assert [each.id for each in await taken(messages, 2)] == [6, 7]
            assert messages.missed == 3
        async with subscribe(datasette, "data", "a") as messages:
            with pytest.raises(InvalidArgument, match="only a subscription has acks"):
                await messages.ack(found[0])


async def test_it_ends_with_the_server(path: Path) -> None:
    async with serving(path) as datasette:
        await publish(datasette, "data", [Item("a", "1")])
        async with subscribe(datasette, "data", "a", start="earliest") as messages:
            assert [each.id for each in await taken(messages, 1)] == [1]
            reading = asyncio.create_task(taken(messages, 1))
            await asyncio.sleep(0.05)
            registry(datasette).close_streams()
            with pytest.raises(StopAsyncIteration):
                await reading


async def test_what_is_refused(path: Path) -> None:
    async with serving(path, max_batch_messages=2) as datasette:
        with pytest.raises(NotFound, match="database not found: nothing"):
            await publish(datasette, "nothing", [Item("a", "x")])
        with pytest.raises(InvalidArgument, match="the limit is 255 bytes"):
            await publish(datasette, "data", [Item("x" * 300, "x")])
        with pytest.raises(PayloadTooLarge, match="max_batch_messages"):
            await publish(datasette, "data", [Item("a", "x")] * 3)
        with pytest.raises(InvalidArgument, match="channel is required"):
            async with subscribe(datasette, "data"):
                pass
        with pytest.raises(InvalidArgument, match="filter"):
            async with subscribe(datasette, "data", "a", filter="SELECT 1"):
                pass
        with pytest.raises(InvalidArgument, match="start must be earliest, latest or last"):
            async with subscribe(datasette, "data", "a", start="newest"):  # type: ignore[arg-type]
                pass
        with pytest.raises(InvalidArgument, match="after must be a message id"):
            async with subscribe(datasette, "data", "a", after=-1):
                pass
        with pytest.raises(InvalidArgument, match="subscription is empty"):
            async with subscribe(datasette, "data", "a", subscription=""):
                pass
        with pytest.raises(InvalidArgument, match="since must be an ISO 8601 time"):
            async with subscribe(datasette, "data", "a", since="yesterday"):
                pass


async def test_nobody_else_has_these_names() -> None:
    for owner in RESERVED:
        with pytest.raises(PermissionDenied, match=f"the actor id '{owner}' is reserved for "):
            check_named(Settings(), {"id": owner}, "mine")
        check_named(Settings(), {"id": owner}, None)


@pytest.mark.parametrize(
    "code", [match["code"] for match in BLOCK.finditer(DOCS["plugins"]) if match["kind"] == "plugin"]
)
async def test_an_example_of_the_page_runs(path: Path, code: str) -> None:
    async with serving(path) as datasette:
        await publish(datasette, "data", [Item("orders", "one")])
        lines = "\n".join(f"    {line}" for line in code.splitlines())
        found: dict[str, Any] = {}
        exec(f"async def example(datasette):\n{lines}", found)
        async with asyncio.timeout(20):
            await found["example"](datasette)
