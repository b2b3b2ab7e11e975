"""The Connect service for Python: the generated client, and what plain HTTP shows of the protocol."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from pyqwest import Client, HTTPTransport, HTTPVersion, SyncClient, SyncHTTPTransport
from servers import DEADLINE, OPEN, Server, sqlite_shell

from datasette_pubsub.gen.db_connect import DbServiceClient, DbServiceClientSync
from datasette_pubsub.gen.db_pb2 import (
    AckMode,
    AckRequest,
    ErrorDetail,
    Kind,
    PublishBatchRequest,
    PublishItem,
    PublishStreamRequest,
    Start,
    SubscribeRequest,
    SubscribeResponse,
)

#: How the client is made, by name. Requests are not compressed: see test_a_compressed_request.
CLIENTS: dict[str, dict[str, Any]] = {
    "connect": {},
    "json": {"codec": google_protobuf_json_codec()},
    "grpc-web": {"protocol": ProtocolType.GRPC_WEB},
}

CLOSED = {"closed": {"allow": False, "permissions": {"publish-message": False}}}


def _batch(server: Server, *items: PublishItem) -> PublishBatchRequest:
    return PublishBatchRequest(db_name=server.database, items=items)


def _follow(server: Server, **fields: Any) -> SubscribeRequest:
    return SubscribeRequest(**{"db_name": server.database, "status": True, **fields})


async def _backlog(stream: AsyncIterator[SubscribeResponse]) -> list[SubscribeResponse]:
    """Everything that is there for the subscriber: all messages up to READY."""
    found: list[SubscribeResponse] = []
    async for message in stream:
        if message.kind == Kind.KIND_READY:
            return found
        found.append(message)
    raise AssertionError("the stream ended")


async def _everything(client: DbServiceClient, server: Server) -> None:
    """Publish, subscribe and acknowledge with a client of any protocol."""
    items = [
        PublishItem(channel="a", payload="grüße 😀"),
        PublishItem(channel="b", blob=bytes(range(256))),
        PublishItem(channel="a", payload="last", key="k"),
    ]
    assert list((await client.publish_batch(_batch(server, *items))).message_ids) == [1, 2, 3]
    again = PublishItem(channel="a", payload="again", key="k")
    assert list((await client.publish_batch(_batch(server, again))).message_ids) == [3]

    found = await _backlog(client.subscribe(_follow(server, patterns=["*"], start=Start.START_EARLIEST)))
    assert [(message.message_id, message.channel) for message in found] == [(1, "a"), (2, "b"), (3, "a")]
    assert [(message.payload, message.blob) for message in found] == [(item.payload, item.blob) for item in items]
    ((stored,),) = server.rows("SELECT created_at FROM vpubsub WHERE id = 1")
    assert found[0].created_at.ToDatetime(UTC) == datetime.fromisoformat(stored)

    work = _follow(server, subscription_name="work", channel="a", ack_mode=AckMode.ACK_MODE_EXPLICIT)
    for _ in range(2):
        assert [message.message_id for message in await _backlog(client.subscribe(work))] == [1, 3]
    ack = AckRequest(db_name=server.database, subscription_name="work", message_id=1)
    assert (await client.ack(ack)).cursor == 1
    assert [message.message_id for message in await _backlog(client.subscribe(work))] == [3]

    for request in (
        client.publish_batch(PublishBatchRequest(db_name="nowhere", items=items)),
        _backlog(client.subscribe(SubscribeRequest(db_name="nowhere", channel="a"))),
        client.ack(AckRequest(db_name=server.database, subscription_name="never made", message_id=1)),
    ):
        with pytest.raises(ConnectError) as error:
            await request
        assert error.value.code == Code.NOT_FOUND
    with pytest.raises(ConnectError, match=r"items\[0\].channel is empty") as error:
        await client.publish_batch(_batch(server, PublishItem(payload="x")))
    assert error.value.code == Code.INVALID_ARGUMENT
    with pytest.raises(ConnectError, match="channel is required") as error:
        await _backlog(client.subscribe(_follow(server)))
    assert error.value.code == Code.INVALID_ARGUMENT
    with pytest.raises(ConnectError, match="publish-message") as error:
        await client.publish_batch(PublishBatchRequest(db_name="closed", items=items))
    assert error.value.code == Code.PERMISSION_DENIED
    with pytest.raises(ConnectError) as error:
        await _backlog(client.subscribe(SubscribeRequest(db_name=server.database, channel="a"), timeout_ms=300))
    assert error.value.code == Code.DEADLINE_EXCEEDED

    older = client.subscribe(_follow(server, subscription_name="taken", channel="t"))
    assert await _backlog(older) == []
    newer = client.subscribe(_follow(server, subscription_name="taken", channel="t"))
    assert await _backlog(newer) == []
    with pytest.raises(ConnectError, match="superseded") as error:
        await anext(older)
    assert error.value.code == Code.ABORTED
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('t', 'for the newer')")
    assert (await anext(newer)).payload == "for the newer"

    assert "Traceback" not in server.log


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", CLIENTS)
async def test_the_async_client(serve: Callable[..., Server], kind: str) -> None:
    server = serve(databases=["data", "closed"], config={**OPEN, "databases": CLOSED})
    async with DbServiceClient(server.url, send_compression=None, **CLIENTS[kind]) as client:
        await _everything(client, server)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["connect", "json", "grpc"])
async def test_a_publish_stream_that_outlives_the_server(serve: Callable[..., Server], kind: str) -> None:
    """What was sent before the server ends is answered, and the rest told, by every protocol."""
    server = serve(http2=True)
    http = Client(HTTPTransport(http_version=HTTPVersion.HTTP2))
    how = CLIENTS.get(kind) or {"protocol": ProtocolType.GRPC}
    answered = asyncio.Event()

    async def requests() -> AsyncIterator[PublishStreamRequest]:
        items = [PublishItem(channel="a", payload="x")]
        yield PublishStreamRequest(db_name=server.database, items=items)
        yield PublishStreamRequest(items=[PublishItem(channel="")])
        yield PublishStreamRequest(items=items)
        await answered.wait()
        await asyncio.to_thread(server.stop)

    async with DbServiceClient(server.url, send_compression=None, http_client=http, **how) as client:
        found = []

        async def read() -> None:
            async for answer in client.publish_stream(requests()):
                found.append((answer.request, list(answer.message_ids), answer.error.code))
                if len(found) == 3:
                    answered.set()

        with pytest.raises(ConnectError) as error:
            await read()
        # Its own request is still open when the connection goes down, and may hide the reason.
        assert error.value.code in (Code.UNAVAILABLE, Code.UNKNOWN, Code.INTERNAL, Code.CANCELED)
        assert found == [(1, [1], ""), (2, [], "invalid_argument"), (3, [2], "")]
    assert "Traceback" not in server.log


STREAM_HEAD = (
    b"POST /db.v1.DbService/PublishStream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: application/connect+json\r\n\r\n"
)


def _stream_chunk(repeat: int = 1, more: int = 0) -> bytes:
    """So many requests of a publish stream, and the first bytes of another one."""
    message = json.dumps({"dbName": "data", "items": [{"channel": "a", "payload": "x"}]}).encode()
    frame = struct.pack(">BI", 0, len(message)) + message
    data = frame * repeat + frame[:more]
    return b"%x\r\n%s\r\n" % (len(data), data)


def _receive(sock: socket.socket, text: bytes) -> bytes:
    data = b""
    while text not in data:
        part = sock.recv(65536)
        assert part, data
        data += part
    return data


def test_a_stream_request_that_never_ends(serve: Callable[..., Server], tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "impatient.py").write_text("from datasette_pubsub.rpc import publish\npublish.BODY_SECONDS = 0.5\n")
    server = serve(options=["--plugins-dir", str(plugins)])
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as sock:
        sock.sendall(STREAM_HEAD + _stream_chunk())
        _receive(sock, b"messageIds")
        # Silence between requests may last longer than a request.
        time.sleep(1)
        sock.sendall(_stream_chunk(2, more=3))
        end = _receive(sock, b"0.5 seconds")
    assert end.count(b"messageIds") == 2
    assert b"deadline_exceeded" in end


def test_a_publish_stream_is_told_that_the_server_ends(serve: Callable[..., Server]) -> None:
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as sock:
        sock.sendall(STREAM_HEAD + _stream_chunk(3))
        _receive(sock, b'"request": "3"')
        with ThreadPoolExecutor() as threads:
            ended = threads.submit(server.stop)
            end = _receive(sock, b"from request 4 on nothing was published")
            ended.result(DEADLINE)
    assert b"unavailable" in end
    assert "Traceback" not in server.log


@pytest.mark.asyncio
async def test_grpc_over_http2(serve: Callable[..., Server]) -> None:
    server = serve(databases=["data", "closed"], config={**OPEN, "databases": CLOSED}, http2=True)
    http = Client(HTTPTransport(http_version=HTTPVersion.HTTP2))
    grpc = ProtocolType.GRPC
    async with DbServiceClient(server.url, protocol=grpc, send_compression=None, http_client=http) as client:
        await _everything(client, server)


def test_the_sync_client(serve: Callable[..., Server]) -> None:
    server = serve()
    with DbServiceClientSync(server.url, send_compression=None) as client:
        items = [PublishItem(channel="a", payload=str(n)) for n in range(3)]
        assert list(client.publish_batch(_batch(server, *items)).message_ids) == [1, 2, 3]

        request = _follow(server, subscription_name="s", channel="a", status=False)
        stream = client.subscribe(request)
        assert [next(stream).payload for _ in range(3)] == ["0", "1", "2"]
        client.publish_batch(_batch(server, PublishItem(channel="a", payload="live")))
        assert next(stream).payload == "live"
        assert client.ack(AckRequest(db_name="data", subscription_name="s", message_id=4)).cursor == 4
        with pytest.raises(ConnectError) as error:
            client.ack(AckRequest(db_name="data", subscription_name="s", message_id=5))
        assert error.value.code == Code.OUT_OF_RANGE
        server.restart()
        with pytest.raises(ConnectError) as error:
            next(stream)
        assert error.value.code == Code.UNAVAILABLE

        client.publish_batch(_batch(server, PublishItem(channel="a", payload="after the restart")))
        assert next(client.subscribe(request)).payload == "after the restart"


def test_a_subscription_belongs_to_its_actor(serve: Callable[..., Server]) -> None:
    """With one name, the actor of a token and an anonymous client have a cursor each."""
    server = serve(options=["--root"])
    cookie = server.root_cookie()
    headers = {"cookie": "; ".join(f"{name}={value}" for name, value in cookie.items())}
    with DbServiceClientSync(server.url, send_compression=None) as client:
        client.publish_batch(_batch(server, PublishItem(channel="a", payload="x")))
        request = _follow(server, subscription_name="s", channel="a", ack_mode=AckMode.ACK_MODE_EXPLICIT)
        for caller in ({}, headers):
            assert next(client.subscribe(request, headers=caller)).message_id == 1
        ack = AckRequest(db_name="data", subscription_name="s", message_id=1)
        client.ack(ack, headers=headers)
    owners = server.rows("SELECT owner, cursor FROM pubsub_subscriptions ORDER BY owner")
    assert owners == [("", 0), ("root", 1)]


def test_a_compressed_request(serve: Callable[..., Server]) -> None:
    """The client compresses what it sends unless told otherwise."""
    server = serve()
    with DbServiceClientSync(server.url) as client:
        reply = client.publish_batch(_batch(server, PublishItem(channel="a", payload="x" * 10_000)))
        assert list(reply.message_ids) == [1]
        assert len(next(client.subscribe(_follow(server, channel="a", after=0))).payload) == 10_000


# -- the detail of errors ---------------------------------------------------------


def _detail(error: ConnectError) -> ErrorDetail:
    (found,) = error.details
    assert found.type_name == "db.v1.ErrorDetail"
    return ErrorDetail.FromString(found.message_bytes)


@pytest.mark.parametrize("how", [*CLIENTS, "grpc"])
def test_an_error_has_a_detail(serve: Callable[..., Server], how: str) -> None:
    """What a program needs to know, so that it need not read the text."""
    limits = {"plugins": {"datasette-pubsub": {"max_streams_per_actor": 1, "max_payload_bytes": 100}}}
    server = serve(config={**OPEN, **limits}, http2=how == "grpc")
    http = SyncClient(SyncHTTPTransport(http_version=HTTPVersion.HTTP2))
    options = {"protocol": ProtocolType.GRPC, "http_client": http} if how == "grpc" else CLIENTS[how]

    def wrong(call: Callable[[], Any]) -> ErrorDetail:
        with pytest.raises(ConnectError) as error:
            call()
        return _detail(error.value)

    with DbServiceClientSync(server.url, send_compression=None, **options) as client:
        large = PublishItem(channel="a", payload="x" * 101)
        assert wrong(lambda: client.publish_batch(_batch(server, large))) == ErrorDetail(
            field="payload", limit="max_payload_bytes"
        )
        assert wrong(lambda: client.publish_batch(PublishBatchRequest(db_name="nothing"))) == ErrorDetail()
        first = client.subscribe(_follow(server, channel="a", subscription_name="s"))
        assert next(iter(first)).kind == Kind.KIND_READY
        busy = wrong(lambda: next(iter(client.subscribe(_follow(server, channel="a")))))
        assert (busy.limit, busy.retry_after_seconds) == ("max_streams_per_actor", 1)
        server.stop()
        assert wrong(lambda: list(first)) == ErrorDetail(ended="shutdown")
