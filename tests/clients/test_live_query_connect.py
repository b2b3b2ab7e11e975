"""``LiveQuery``: the official client in both formats, and its errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from servers import OPEN, Server, sqlite_shell

from datasette_pubsub.gen.db_connect import DbServiceClient
from datasette_pubsub.gen.db_pb2 import Argument, LiveQueryRequest

#: How the client is made, by name.
CLIENTS: dict[str, dict[str, Any]] = {
    "connect": {},
    "json": {"codec": google_protobuf_json_codec()},
    "grpc-web": {"protocol": ProtocolType.GRPC_WEB},
}


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    found = serve(config={**OPEN, "plugins": {"datasette-pubsub": {"live_query_interval_seconds": 0.02}}})
    sqlite_shell(found.path, "CREATE TABLE t (id INTEGER PRIMARY KEY, n); INSERT INTO t VALUES (1, 'a'), (2, x'00')")
    return found


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_official_client(server: Server, kind: str) -> None:
    request = LiveQueryRequest(db_name="data", sql="SELECT * FROM t WHERE id > :least", key=["id"], heartbeat_seconds=1)
    request.args.append(Argument(name="least", value="0"))

    async def follow() -> None:
        async with DbServiceClient(server.url, **CLIENTS[kind]) as client:
            async with contextlib.aclosing(client.live_query(request)) as stream:
                first = await anext(stream)
                assert (list(first.snapshot.columns), list(first.snapshot.key)) == (["id", "n"], ["id"])
                rows = [json.loads(row) for row in first.snapshot.rows]
                assert rows == [[1, "a"], [2, {"$base64": True, "encoded": "AA=="}]]
                heartbeat = await anext(stream)
                assert not (heartbeat.HasField("snapshot"))
                assert not (heartbeat.HasField("change"))
                change = "DELETE FROM t WHERE id = 2; UPDATE t SET n = 'b'; INSERT INTO t VALUES (7, 9007199254740993)"
                await asyncio.to_thread(sqlite_shell, server.path, f"BEGIN; {change}; COMMIT")
                while not (response := await anext(stream)).HasField("change"):
                    pass
                told = response.change
                assert [(row.at, json.loads(row.row)) for row in told.removed] == [(1, rows[1])]
                assert [(row.at, json.loads(row.row)) for row in told.inserted] == [(1, [7, 9007199254740993])]
                assert [(row.at, row.row, row.was) for row in told.changed] == [(0, '[1,"b"]', '[1,"a"]')]
                await asyncio.to_thread(sqlite_shell, server.path, "DROP TABLE t")
                while not (response := await anext(stream)).HasField("error"):
                    pass
                assert (response.error.code, response.error.field) == ("invalid_argument", "sql")

    asyncio.run(follow())


def test_a_table_by_its_name(server: Server) -> None:
    request = LiveQueryRequest(db_name="data", table="t", args=[Argument(name="id__gt", value="1")])

    async def follow() -> None:
        async with DbServiceClient(server.url) as client:
            async with contextlib.aclosing(client.live_query(request)) as stream:
                snapshot = (await anext(stream)).snapshot
                assert (len(snapshot.rows), list(snapshot.key), snapshot.count) == (1, ["id"], 1)

    asyncio.run(follow())


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (LiveQueryRequest(db_name="data"), Code.INVALID_ARGUMENT, "give one of sql, table and query"),
        (LiveQueryRequest(db_name="data", sql="SELECT * FROM nowhere"), Code.INVALID_ARGUMENT, "no such table"),
        (LiveQueryRequest(db_name="nowhere", sql="SELECT 1"), Code.NOT_FOUND, "database not found"),
        (LiveQueryRequest(db_name="data", table="nowhere"), Code.NOT_FOUND, "table not found"),
        (LiveQueryRequest(db_name="data", sql="SELECT 1", heartbeat_seconds=4000), Code.INVALID_ARGUMENT, "heartbeat"),
        (LiveQueryRequest(db_name="data", sql="SELECT 1 -- " + "x" * 50_000), Code.INVALID_ARGUMENT, "50000 bytes"),
    ],
)
def test_what_is_refused(server: Server, request_: LiveQueryRequest, code: Code, text: str) -> None:
    async def follow() -> None:
        async with DbServiceClient(server.url) as client:
            async with contextlib.aclosing(client.live_query(request_)) as stream:
                await anext(stream)

    with pytest.raises(ConnectError) as refused:
        asyncio.run(follow())
    assert refused.value.code == code
    assert text in refused.value.message


def test_the_end_of_the_server_ends_the_stream(server: Server) -> None:
    async def follow() -> None:
        async with DbServiceClient(server.url) as client:
            async with contextlib.aclosing(
                client.live_query(LiveQueryRequest(db_name="data", sql="SELECT 1"))
            ) as stream:
                await anext(stream)
                stopped = asyncio.create_task(asyncio.to_thread(server.stop))
                with pytest.raises(ConnectError) as ended:
                    await anext(stream)
                assert ended.value.code == Code.UNAVAILABLE
                await stopped

    asyncio.run(follow())
