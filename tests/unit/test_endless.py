"""What stands around a stream while it lives."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm
from servers import DEADLINE


class Around:
    """A plugin that wraps the application, and marks what it sends."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.last: Any = None

    @hookimpl
    def asgi_wrapper(self, datasette: Datasette) -> Any:
        def wrap(app: Any) -> Any:
            async def wrapped(scope: Any, receive: Any, send: Any) -> None:
                async def marked(message: Any) -> None:
                    if message["type"] == "http.response.start":
                        message = {**message, "headers": [*message["headers"], (b"x-around", b"1")]}
                    self.last = message
                    await send(message)

                self.inside.append(scope["path"])
                try:
                    await app(scope, receive, marked)
                finally:
                    self.inside.remove(scope["path"])

            return wrapped

        return wrap


def awaited(coroutine: Any) -> list[str]:
    """The names of the functions that a coroutine waits in, from the outermost on."""
    names = []
    while coroutine is not None and hasattr(coroutine, "cr_await"):
        names.append(coroutine.cr_code.co_qualname)
        coroutine = coroutine.cr_await
    return names


@pytest.mark.asyncio
async def test_a_stream_outlives_datasettes_calls_but_no_wrapper(tmp_path: Path) -> None:
    """Datasette's router has returned while a stream lives; what other plugins have put around it has not."""
    path = tmp_path / "data.db"
    sqlite3.connect(path).execute("CREATE TABLE t (a)").connection.close()
    around = Around()
    pm.register(around)
    datasette = Datasette([path], settings={"num_sql_threads": 1})
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def get(where: str) -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/data/-/pubsub/-/stream",
            "raw_path": b"/data/-/pubsub/-/stream",
            "query_string": where.encode(),
            "headers": [],
            "client": ("127.0.0.1", 1),
        }
        await datasette.app()(scope, receive, sent.put)

    try:
        async with asyncio.timeout(DEADLINE):
            await get("channel=")
            refused, body = await sent.get(), await sent.get()
            assert (refused["status"], dict(refused["headers"])[b"x-around"]) == (400, b"1")
            assert b"channel is empty" in body["body"]

            task = asyncio.create_task(get("channel=a"))
            started, first, ready = await sent.get(), await sent.get(), await sent.get()
            assert (started["status"], dict(started["headers"])[b"x-around"]) == (200, b"1")
            assert first["body"].startswith(b"retry: ")
            assert ready["body"].startswith(b"event: ready")
            # The task has gone on to its wait once another one has had its turn.
            await asyncio.sleep(0)
            names = awaited(task.get_coro())
            assert "Around.asgi_wrapper.<locals>.wrap.<locals>.wrapped" in names, names
            assert not [name for name in names if name.startswith("DatasetteRouter")], names
            assert around.inside == ["/data/-/pubsub/-/stream"]
            assert around.last is ready

            gone.set()
            await task
            assert around.inside == []
    finally:
        pm.unregister(around)
        datasette.close()
