"""The Connect service for Python: the generated client, and what plain HTTP shows of the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import sqlite3
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import DEADLINE, OPEN, Server, sqlite_shell, wait_for
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from pyqwest import Client, HTTPTransport, HTTPVersion
from test_stalled import peak

from datasette_pubsub.gen.db_connect import DbServiceClient, DbServiceClientSync
from datasette_pubsub.gen.db_pb2 import (
    AckMode,
    AckRequest,
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
    found = []
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


# -- the protocol itself, byte by byte -------------------------------------------

JSON = {"content-type": "application/json"}
PROTO = {"content-type": "application/proto"}
STREAM_JSON = {"content-type": "application/connect+json"}
STREAM_PROTO = {"content-type": "application/connect+proto"}

#: The smallest limit on a body that these tests can work with, in bytes.
MAX_BODY_BYTES = 4096


def _envelope(data: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(data)) + data


def _publish(payload: str = "x", channel: str = "a") -> bytes:
    return json.dumps({"dbName": "data", "items": [{"channel": channel, "payload": payload}]}).encode()


SUBSCRIBE = json.dumps({"dbName": "data", "channel": "a"}).encode()
NAMED = json.dumps({"dbName": "data", "channel": "a", "subscriptionName": "never made"}).encode()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a small limit on bodies, for all the requests that it must refuse."""
    folder = tmp_path_factory.mktemp("small")
    sqlite_shell(folder / "data.db", "CREATE TABLE existing (id INTEGER PRIMARY KEY)")
    config = {**OPEN, "plugins": {"datasette-pubsub": {"max_body_bytes": MAX_BODY_BYTES}}}
    server = Server([folder / "data.db"], config, folder)
    server.start()
    server.publish(channel="a", payload="makes the tables")
    yield server
    server.kill()


@pytest.fixture
def service(small: Server) -> Iterator[str]:
    """The service's address. After the test, the server must still serve, and have seen no failure of its own."""
    seen = len(small.log)
    before = small.rows("SELECT count(*) FROM vpubsub")
    yield f"{small.url}/db.v1.DbService"
    assert small.rows("SELECT count(*) FROM vpubsub") == before, "what was refused was not stored"
    response = httpx.post(f"{small.url}/db.v1.DbService/PublishBatch", headers=JSON, content=_publish("still here"))
    assert response.status_code == 200, response.text
    assert small.rows("SELECT payload FROM vpubsub ORDER BY id DESC LIMIT 1") == [("still here",)]
    assert "Traceback" not in small.log[seen:]


def _end(response: httpx.Response) -> dict[str, Any]:
    """The error in the end of a stream that carries nothing else."""
    assert response.status_code == 200
    flags, size = struct.unpack(">BI", response.content[:5])
    assert flags == 2, "the first envelope is the end of the stream"
    assert len(response.content) == 5 + size
    return dict(json.loads(response.content[5:])["error"])


@pytest.mark.parametrize(
    ("headers", "body", "code", "said"),
    [
        (STREAM_JSON, b"", "unimplemented", "zero messages"),
        (STREAM_JSON, b"\0\0", "invalid_argument", "envelope"),
        (STREAM_JSON, _envelope(SUBSCRIBE)[:-3], "invalid_argument", "promised"),
        (STREAM_JSON, _envelope(SUBSCRIBE) * 2, "unimplemented", "multiple messages"),
        (STREAM_JSON, _envelope(SUBSCRIBE, 1), "internal", "compress"),
        (STREAM_JSON, _envelope(SUBSCRIBE, 2), "invalid_argument", "flags"),
        (STREAM_JSON, _envelope(b"{nope"), "invalid_argument", "JSON"),
        (STREAM_JSON, _envelope(b'{"dbName": 1}'), "invalid_argument", "db"),
        (STREAM_JSON, _envelope(b'{"dbName": "data", "channel": "a", "after": -1}'), "invalid_argument", "after"),
        (STREAM_JSON, _envelope(b'{"dbName": "data", "channel": "a", "start": 9}'), "invalid_argument", "start"),
        (STREAM_JSON, _envelope(b'{"dbName": "data", "channel": "a", "since": "x"}'), "invalid_argument", "since"),
        (STREAM_JSON, _envelope(b'{"dbName": "data", "subscriptionName": "s"}'), "invalid_argument", "channel"),
        (STREAM_JSON, _envelope(b'{"channel": "a"}'), "invalid_argument", "db_name"),
        (STREAM_PROTO, _envelope(b"\xff\xff\xff"), "invalid_argument", "SubscribeRequest"),
        (STREAM_PROTO, _envelope(SUBSCRIBE), "invalid_argument", "SubscribeRequest"),
        (STREAM_JSON, b"\0\xff\xff\xff\xffx", "resource_exhausted", str(MAX_BODY_BYTES)),
        (STREAM_JSON, _envelope(SUBSCRIBE + b" " * MAX_BODY_BYTES), "resource_exhausted", str(MAX_BODY_BYTES)),
        ({**STREAM_JSON, "connect-timeout-ms": "100"}, _envelope(SUBSCRIBE), "deadline_exceeded", ""),
    ],
)
def test_streams_that_end_with_an_error(
    service: str, headers: dict[str, str], body: bytes, code: str, said: str
) -> None:
    error = _end(httpx.post(f"{service}/Subscribe", headers=headers, content=body))
    assert error["code"] == code
    assert said in error["message"]


@pytest.mark.parametrize(
    ("headers", "body", "status", "code", "said"),
    [
        (JSON, b"", 400, "invalid_argument", "JSON"),
        (JSON, b"{nope", 400, "invalid_argument", "JSON"),
        (JSON, b'{"dbName": "data", "items": 1}', 400, "invalid_argument", "items"),
        (JSON, _publish().replace(b'"x"', b'"\xff"'), 400, "invalid_argument", "utf-8"),
        (JSON, _publish("\ud800"), 400, "invalid_argument", "payload"),
        (JSON, _publish(channel="a\0b"), 400, "invalid_argument", "NUL"),
        (JSON, _publish(channel="c" * 256), 400, "invalid_argument", "256 bytes"),
        (PROTO, b"\xff\xff\xff", 400, "invalid_argument", "PublishBatchRequest"),
        (JSON, _publish("x" * MAX_BODY_BYTES), 429, "resource_exhausted", str(MAX_BODY_BYTES)),
        ({**JSON, "content-encoding": "snappy"}, _publish(), 501, "unimplemented", "snappy"),
        ({**JSON, "connect-timeout-ms": "soon"}, _publish(), 400, "invalid_argument", "soon"),
    ],
)
def test_requests_that_are_refused(
    service: str, headers: dict[str, str], body: bytes, status: int, code: str, said: str
) -> None:
    response = httpx.post(f"{service}/PublishBatch", headers=headers, content=body)
    error = response.json()
    assert (response.status_code, error["code"]) == (status, code)
    assert said in error["message"]


def test_a_name_cannot_forge_lines_of_the_log(small: Server, service: str) -> None:
    ack = {"dbName": "data", "subscriptionName": "x\nINFO: forged", "messageId": "1"}
    assert httpx.post(f"{service}/Ack", headers=JSON, json=ack).status_code == 404
    assert "\nINFO: forged" not in small.log


def test_a_body_without_a_length_is_limited_too(service: str) -> None:
    body = _publish("x" * MAX_BODY_BYTES)
    parts = (body[n : n + 100] for n in range(0, len(body), 100))
    response = httpx.post(f"{service}/PublishBatch", headers=JSON, content=parts)
    assert response.json()["code"] == "resource_exhausted"


def test_a_compressed_body_is_limited_too(service: str) -> None:
    body = gzip.compress(_publish("x" * (10 * MAX_BODY_BYTES)))
    assert len(body) < MAX_BODY_BYTES
    response = httpx.post(f"{service}/PublishBatch", headers={**JSON, "content-encoding": "gzip"}, content=body)
    assert (response.status_code, response.json()["code"]) == (429, "resource_exhausted")
    assert f"{MAX_BODY_BYTES} bytes (max_body_bytes)" in response.json()["message"]


def test_what_unpacks_into_too_much_costs_nothing(serve: Callable[..., Server]) -> None:
    """A gigabyte of zeros in a megabyte; and a million empty members, each of which would move all that follow it."""
    server = serve()
    server.publish(channel="a", payload="x")
    grown = peak(server)
    members = gzip.compress(b"") * 800_000
    zeros = gzip.compress(bytes(1 << 30), 1)
    json_gzip = {**JSON, "content-encoding": "gzip"}
    stream_gzip = {**STREAM_JSON, "connect-content-encoding": "gzip"}
    rpc = f"{server.url}/db.v1.DbService"
    for body, code in ((members, "invalid_argument"), (zeros, "resource_exhausted")):
        response = httpx.post(f"{rpc}/PublishBatch", headers=json_gzip, content=body, timeout=DEADLINE)
        assert response.json()["code"] == code
        end = httpx.post(f"{rpc}/Subscribe", headers=stream_gzip, content=_envelope(body, 1), timeout=DEADLINE)
        # A subscriber has no large bodies.
        assert _end(end)["code"] == "resource_exhausted"
    small = gzip.compress(b"") * 1000
    end = httpx.post(f"{rpc}/Subscribe", headers=stream_gzip, content=_envelope(small, 1), timeout=DEADLINE)
    assert _end(end)["code"] == "invalid_argument"
    # The body, its parts put together, and what was unpacked up to the limit.
    assert peak(server) - grown < 8 * 16 * 1024 * 1024
    server.publish(channel="a", payload="still here")


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("PublishBatch", {"content-type": "text/plain"}),
        ("PublishBatch", {"content-type": "application/x-www-form-urlencoded"}),
        ("PublishBatch", {}),
        ("PublishBatch", STREAM_JSON),
        ("Subscribe", {"content-type": "text/plain"}),
        ("Subscribe", {"content-type": "application/connect+xml"}),
        ("Subscribe", JSON),
    ],
)
def test_wrong_content_types(service: str, method: str, headers: dict[str, str]) -> None:
    response = httpx.post(f"{service}/{method}", headers=headers, content=_publish())
    assert response.status_code == 415
    assert "application/json" in response.headers["accept-post"]


@pytest.mark.parametrize("verb", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("method", ["PublishBatch", "Subscribe", "Ack"])
def test_wrong_http_methods(service: str, verb: str, method: str) -> None:
    response = httpx.request(verb, f"{service}/{method}")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


def test_a_get_never_publishes(service: str) -> None:
    """Connect allows GET for methods without side effects; ours all have some."""
    query = {"connect": "v1", "encoding": "json", "message": _publish().decode()}
    assert httpx.get(f"{service}/PublishBatch", params=query).status_code == 405


@pytest.mark.parametrize(
    "method",
    ["Nope", "publishBatch", "Publish_Batch", "V2", "Ack/x", ""],
)
def test_unknown_methods(service: str, method: str) -> None:
    assert httpx.post(f"{service}/{method}", headers=JSON, content=b"{}").status_code == 404


def test_a_request_that_breaks_off(small: Server, service: str) -> None:
    """A client that promises more than it sends, and goes."""
    for path, content_type, body in (
        ("PublishBatch", "application/json", _publish("never sent as a whole")),
        ("Subscribe", "application/connect+json", _envelope(NAMED)),
    ):
        with socket.create_connection(("127.0.0.1", small.port), timeout=DEADLINE) as sock:
            head = f"POST /db.v1.DbService/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-5])
    subscribed = httpx.get(f"{small.pubsub}/-/subscriptions.json").json()["subscriptions"]
    assert subscribed == []


def test_grpc_needs_http2(service: str) -> None:
    """A server without trailers says so, in gRPC's own way, and takes it as no failure of its own."""
    response = httpx.post(
        f"{service}/PublishBatch", headers={"content-type": "application/grpc+proto"}, content=_envelope(b"")
    )
    assert response.headers["grpc-status"] == str(12)
    assert "HTTP/2" in response.headers["grpc-message"]


def test_a_foreign_page_cannot_publish(service: str) -> None:
    headers = {**JSON, "origin": "https://elsewhere.example", "sec-fetch-site": "cross-site"}
    assert httpx.post(f"{service}/PublishBatch", headers=headers, content=_publish()).status_code == 403


@pytest.mark.parametrize("send_timeout_seconds", [0.3, 60])
def test_a_reader_that_takes_nothing_does_not_keep_the_server(
    serve: Callable[..., Server], send_timeout_seconds: float
) -> None:
    """Whether it was cut off already or not, the operator can end the server."""
    plugin = {"send_timeout_seconds": send_timeout_seconds}
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": plugin}})
    # More than the buffers of two sockets hold.
    for _ in range(24):
        server.publish(channel="a", payload="x" * 1_000_000)
    request = {"dbName": "data", "channel": "a", "subscriptionName": "stuck", "ackMode": "ACK_MODE_EXPLICIT"}
    body = _envelope(json.dumps(request).encode())
    head = "POST /db.v1.DbService/Subscribe HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as sock:
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert sock.recv(1) == b"H", "the stream has begun"

        def connected() -> list[bool]:
            url = f"{server.pubsub}/-/subscriptions.json"
            return [found["connected"] for found in httpx.get(url).json()["subscriptions"]]

        if send_timeout_seconds < 1:
            wait_for(lambda: connected() == [False], "the reader is cut off")
        else:
            assert connected() == [True]
        assert server.stop(deadline=8) < 6


def _ask_for_a_while(ask: Callable[[], object], answer: object) -> None:
    """Ask the server up to 30 times, but stay well within the time that it waits for a lock."""
    end = time.monotonic() + 1.0
    for _ in range(30):
        assert ask() == answer
        if time.monotonic() > end:
            break


def test_a_quick_reconnect_while_the_database_is_busy(serve: Callable[..., Server]) -> None:
    """What was handed over is not sent again, also when its cursor could not be written yet."""
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": {"cursor_save_seconds": 60}}})
    server.publish(channel="a", payload="first")

    def connected() -> list[bool]:
        url = f"{server.pubsub}/-/subscriptions.json"
        return [found["connected"] for found in httpx.get(url).json()["subscriptions"]]

    url, body = f"{server.url}/db.v1.DbService/Subscribe", _envelope(NAMED)
    with ThreadPoolExecutor() as threads, contextlib.closing(sqlite3.connect(server.path)) as other:
        with httpx.stream("POST", url, headers=STREAM_JSON, content=body, timeout=DEADLINE) as stream:
            chunks = stream.iter_raw()
            assert b"first" in next(chunks)
            other.execute("BEGIN IMMEDIATE")
            publishing = threads.submit(server.publish, channel="a", payload="second")
            # Nothing shows that the publish waits for the lock; what is asked later is answered later.
            _ask_for_a_while(connected, [True])
        wait_for(lambda: connected() == [False], "the first connection is gone")

        def reconnect() -> bytes:
            with httpx.stream("POST", url, headers=STREAM_JSON, content=body, timeout=DEADLINE) as stream:
                return next(stream.iter_raw())

        again = threads.submit(reconnect)
        _ask_for_a_while(connected, [False])
        other.rollback()
        assert publishing.result() == [2]
        found = again.result()
    assert b"second" in found
    assert b"first" not in found
