"""The Connect protocol itself, byte by byte: what is refused, and what readers do that are no clients of Connect."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from memory import peak
from servers import DEADLINE, OPEN, Server, sqlite_shell, wait_for

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
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": {"cursor_save_interval_seconds": 60}}})
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
