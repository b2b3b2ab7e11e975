"""Bad input: a clear error with the right status or code, nothing lost, and the server goes on."""

from __future__ import annotations

import concurrent.futures
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import DEADLINE, OPEN, Server, Sse, wait_for

from datasette_pubsub.core.configuration import read_settings
from datasette_pubsub.core.settings import ConfigError

LIMITS = {
    **OPEN,
    "plugins": {"datasette-pubsub": {"max_payload_bytes": 100, "max_batch_messages": 3, "max_body_bytes": 2000}},
}


@pytest.mark.parametrize(
    ("body", "status", "code", "reason"),
    [
        ({"channel": "", "payload": "x"}, 400, "invalid_argument", "channel is empty"),
        ({"channel": "c" * 256, "payload": "x"}, 400, "invalid_argument", "the limit is 255 bytes"),
        ({"channel": "ä" * 128, "payload": "x"}, 400, "invalid_argument", "256 bytes; the limit is 255 bytes"),
        ({"channel": "a\0b", "payload": "x"}, 400, "invalid_argument", "must not contain NUL"),
        ({"channel": "a", "payload": "x" * 101}, 413, "resource_exhausted", "limit is 100 bytes (max_payload_bytes)"),
        ({"channel": "a", "payload": "x", "key": "k" * 256}, 400, "invalid_argument", "key has 256 bytes"),
    ],
)
def test_the_same_over_http_and_connect(
    serve: Callable[..., Server], body: dict[str, Any], status: int, code: str, reason: str
) -> None:
    server = serve(config=LIMITS)
    good = {"channel": "a", "payload": "good"}
    plain = httpx.post(f"{server.pubsub}/-/publish", json={"items": [good, body]})
    assert plain.status_code == status
    assert reason in plain.json()["error"]
    rpc = httpx.post(
        f"{server.url}/db.v1.DbService/PublishBatch", json={"dbName": server.database, "items": [good, body]}
    )
    assert rpc.json()["code"] == code
    assert reason in rpc.json()["message"]
    assert server.publish(good) == [1], "nothing of the refused requests was stored, and the server goes on"


def test_http_requests(serve: Callable[..., Server]) -> None:
    server = serve(config=LIMITS)
    url = f"{server.pubsub}/-/publish"
    json_type = {"Content-Type": "application/json"}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"content": b"{", "headers": json_type}, 400, "not valid JSON at character 1"),
        # How deep is too deep is the interpreter's to say.
        ({"content": b"[" * 1900, "headers": json_type}, 400, "the body is n"),
        ({"content": b'{"channel": "a", "payload": ' + b"[" * 1900, "headers": json_type}, 400, "the body is n"),
        ({"content": b"\xff\xfe", "headers": json_type}, 400, "not valid JSON"),
        ({"content": b"[]", "headers": json_type}, 400, "must be a JSON object"),
        ({"content": b"{}", "headers": {"Content-Type": "text/plain"}}, 415, "content-type must be application/json"),
        ({"content": b"{}", "headers": {**json_type, "Content-Encoding": "gzip"}}, 415, "content-encoding"),
        ({"content": b" " * 2001, "headers": json_type}, 413, "limit of 2000 bytes (max_body_bytes)"),
        ({"json": {}}, 400, "channel is required"),
        ({"json": {"channel": "a"}}, 400, "payload is required"),
        ({"json": {"channel": "a", "payload": None}}, 400, "payload is required and must not be null"),
        ({"json": {"channel": 5, "payload": "x"}}, 400, "channel is required, as text"),
        ({"json": {"channel": "a", "payload": "x", "colour": 1}}, 400, "colour is not a field of a message"),
        ({"json": {"channel": "a", "blob": "not base64!"}}, 400, "blob must be base64"),
        ({"json": {"channel": "a", "blob": "AA==", "payload": "x"}}, 400, "exclude each other"),
        ({"json": {"items": {}}}, 400, "items must be a list"),
        ({"json": {"items": [1]}}, 400, "items[0] must be an object"),
        ({"json": {"items": [{"channel": "a", "payload": "x"}, {"payload": "x"}]}}, 400, "items[1].channel"),
        ({"json": {"items": [{"channel": "a", "payload": "x"}] * 4}}, 413, "limit is 3 (max_batch_messages)"),
        ({"json": {"channel": "a", "payload": 2**63}}, 400, "more than 64 bits"),
        ({"content": b'{"channel": "a", "payload": "\\ud800"}', "headers": json_type}, 400, "surrogate"),
        ({"content": b'{"channel": "a", "payload": NaN}', "headers": json_type}, 400, "NaN"),
    ]
    for request, status, reason in cases:
        answer = httpx.post(url, **request)
        assert (answer.status_code, answer.json()["status"]) == (status, status), (request, answer.text)
        assert reason in answer.json()["error"], answer.text
    assert httpx.get(url).status_code == 405
    assert httpx.post(url.replace("/data/", "/nowhere/"), json={"channel": "a", "payload": "x"}).status_code == 404
    assert server.publish(channel="a", payload="x") == [1]


def test_streams_and_acks(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="a", payload="1")
    stream, ack = f"{server.pubsub}/-/stream", f"{server.pubsub}/-/ack"
    for params, status, reason in (
        ({}, 400, "channel is required"),
        ({"channel": ""}, 400, "channel is empty"),
        ({"channel": "a", "after": "x"}, 400, "after must be a message id"),
        ({"channel": "a", "after": "-1"}, 400, "after must be a message id"),
        ({"channel": "a", "start": "middle"}, 400, "start must be earliest, latest or last"),
        ({"channel": "a", "since": "yesterday"}, 400, "since must be an ISO 8601 time"),
        ({"channel": "a", "format": "xml"}, 400, "format must be json or raw"),
        ({"channel": "a", "ack": "never"}, 400, "ack must be auto or explicit"),
        ({"channel": "a", "last_event_id": "x"}, 400, "last_event_id must be a message id"),
        ({"channel": "a", "subscription": "s" * 256}, 400, "subscription has 256 bytes"),
        ({"channel": [f"c{n}" for n in range(101)]}, 400, "the limit is 100 (max_channels_per_stream)"),
    ):
        answer = httpx.get(stream, params=params)
        assert answer.status_code == status, (params, answer.text)
        assert reason in answer.json()["error"]
    assert httpx.post(stream, json={}).status_code == 415
    with Sse(stream, channel="a", subscription="s", ack="explicit") as reader:
        reader.messages(1)
    for body, status, reason in (
        ({"subscription": "unknown", "message_id": 1}, 404, "subscription not found: unknown"),
        ({"subscription": "s", "message_id": 2}, 400, "its newest is 1"),
        ({"subscription": "s", "message_id": "x"}, 400, "message_id must be a message id"),
        ({"subscription": "s"}, 400, "message_id must be a message id"),
        ({"message_id": 1}, 400, "subscription is empty"),
    ):
        answer = httpx.post(ack, json=body)
        assert answer.status_code == status, (body, answer.text)
        assert reason in answer.json()["error"]
    assert server.rows("SELECT name, cursor FROM pubsub_subscriptions") == [("s", 0)]
    rpc = httpx.post(
        f"{server.url}/db.v1.DbService/Ack", json={"dbName": "data", "subscriptionName": "s", "messageId": "9"}
    )
    assert (rpc.status_code, rpc.json()["code"]) == (400, "out_of_range")
    assert httpx.post(ack, json={"subscription": "s", "message_id": 1}).json() == {"ok": True, "cursor": 1}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_payload": 1}, "unknown option 'max_payload'"),
        ({"max_payload_bytes": "big"}, "'max_payload_bytes' must be a number of bytes"),
        ({"max_payload_bytes": 0}, "must be between 1 and"),
        ({"max_payload_bytes": 1.5}, "must be a whole number"),
        ({"synchronous": "off"}, "must be one of normal, full, extra"),
        ({"enabled": 1}, "'enabled' must be true or false"),
        ([], "must be a mapping"),
    ],
)
def test_options_are_checked(options: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_settings(options)
    with pytest.raises(ConfigError, match=reason):
        read_settings(None, options)


@pytest.mark.parametrize("level", ["instance", "database"])
def test_a_wrong_option_stops_the_server_at_start(serve: Callable[..., Server], level: str) -> None:
    plugin = {"plugins": {"datasette-pubsub": {"max_payload": 1}}}
    with pytest.raises(AssertionError, match="the server ended") as caught:
        serve(config=plugin if level == "instance" else {"databases": {"data": plugin}})
    assert "unknown option 'max_payload'" in str(caught.value)


def test_a_database_that_does_not_take_part(serve: Callable[..., Server]) -> None:
    config = {**OPEN, "databases": {"quiet": {"plugins": {"datasette-pubsub": {"enabled": False}}}}}
    server = serve(databases=["data", "quiet"], config=config)
    assert server.publish(channel="a", payload="x") == [1]
    answer = httpx.post(f"{server.url}/quiet/-/pubsub/-/publish", json={"channel": "a", "payload": "x"})
    assert (answer.status_code, answer.json()["error"]) == (404, "database not found: quiet")


def test_a_full_queue_pushes_back(serve: Callable[..., Server]) -> None:
    config = {**OPEN, "plugins": {"datasette-pubsub": {"max_pending_messages": 10}}}
    server = serve(config=config)
    server.publish(channel="a", payload="x")
    conn = sqlite3.connect(server.path, isolation_level=None)
    conn.execute("BEGIN IMMEDIATE")
    items = {"items": [{"channel": "a", "payload": "y"}] * 6}
    with concurrent.futures.ThreadPoolExecutor(11) as pool:
        waiting = [pool.submit(httpx.post, f"{server.pubsub}/-/publish", json=items, timeout=30) for _ in range(8)]
        wait_for(lambda: sum(f.done() for f in waiting) >= 5, "the queue is full")
        rpc = f"{server.url}/db.v1.DbService/PublishBatch"
        # What is being written and what waits are two: where but one came of the others, one of these is the second.
        calls = [pool.submit(httpx.post, rpc, json={"dbName": "data", **items}, timeout=30) for _ in range(3)]
        wait_for(lambda: sum(f.done() for f in (*waiting, *calls)) >= 9, "the queue is full for these, too")
        told = next(f for f in calls if f.done()).result()
        assert (told.status_code, told.json()["code"]) == (429, "resource_exhausted")
        assert ("max_pending_messages" in told.text, told.headers["retry-after"]) == (True, "1")
        conn.execute("ROLLBACK")
        conn.close()
        answers = [future.result() for future in (*waiting, *calls)]
    refused = [a for a in answers if a.status_code == 429]
    accepted = [a for a in answers if a.status_code == 200]
    assert len(refused) + len(accepted) == 11
    assert len(refused) >= 9
    assert "max_pending_messages" in refused[0].json()["error"]
    assert refused[0].headers["retry-after"] == "1"
    stored = server.rows("SELECT count(*) FROM vpubsub WHERE payload = 'y'")
    assert stored == [(6 * len(accepted),)]


def test_a_large_body_is_for_who_may_publish(serve: Callable[..., Server]) -> None:
    """Of others it is refused before it is read, or after a small part: they cannot fill the memory."""
    server = serve(config={})
    for path, length, wanted in (
        ("data/-/pubsub/-/publish", 10_000_000, b"403"),
        ("data/-/pubsub/-/ack", 10_000_000, b"413"),
        ("data/-/pubsub/-/subscriptions/delete", 10_000_000, b"413"),
        ("db.v1.DbService/PublishBatch", 10_000_000, b"429"),
        ("db.v1.DbService/Ack", 10_000_000, b"429"),
        ("db.v1.DbService/Subscribe", 10_000_000, b"429"),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as sock:
            head = f"POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            sock.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            if wanted != b"403":
                sock.sendall(b" " * 200_000)
            answer = sock.recv(65536)
            if path.endswith("Subscribe"):
                assert answer.startswith(b"HTTP/1.1 4"), answer
                continue
            assert answer.split()[1] == wanted, (path, answer)
    assert "Traceback" not in server.log


def test_a_body_that_does_not_arrive(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A body in drips ends after a fixed time; here of a server whose patience is short."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "impatient.py").write_text("from datasette_pubsub.http import request\nrequest.BODY_SECONDS = 0.5\n")
    server = serve(options=["--plugins-dir", str(plugins)])
    for path, told in (("/data/-/pubsub/-/publish", b"408"), ("/db.v1.DbService/PublishBatch", b"")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
            sock.sendall(head.encode())
            answer = sock.recv(65536)
            assert told in answer.partition(b"\r\n")[0], answer
    assert server.publish(channel="a", payload="x") == [1]
