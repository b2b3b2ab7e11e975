"""Publish streams over HTTP/1.1: answers come while the request goes on, one for each line, in order."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import DEADLINE, OPEN, Server, Sse, wait_for


class Lines:
    """One publish stream, full duplex."""

    def __init__(self, server: Server, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        self.connection.connect()
        self.socket = self.connection.sock
        self.connection.putrequest("POST", f"/{server.database}/-/pubsub/-/publish")
        self.connection.putheader("Content-Type", "application/x-ndjson")
        self.connection.putheader("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            self.connection.putheader(name, value)
        self.connection.endheaders()
        self.response = self.connection.getresponse()

    def write(self, data: bytes) -> None:
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def send(self, *lines: Any) -> None:
        self.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def finish(self) -> None:
        self.socket.sendall(b"0\r\n\r\n")

    def answer(self) -> dict[str, Any]:
        line = self.response.readline()
        assert line.endswith(b"\n"), f"no answer, but {line!r}"
        return dict(json.loads(line))

    def ids(self) -> list[int]:
        answer = self.answer()
        assert answer["ok"], answer
        return list(answer["message_ids"])

    def error(self) -> tuple[int, int, str]:
        answer = self.answer()
        assert not answer["ok"]
        assert answer["errors"] == [answer["error"]]
        return answer["line"], answer["status"], answer["error"]

    def rest(self) -> bytes:
        """All that still comes, up to the end of the answer."""
        return self.response.read()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self.connection.close()


def test_answers_come_while_the_request_goes_on(serve: Callable[..., Server]) -> None:
    server = serve()
    with Sse(f"{server.pubsub}/-/stream", pattern="*") as reader, Lines(server) as stream:
        reader.until("ready")
        assert stream.response.status == 200
        assert stream.response.headers["content-type"] == "application/x-ndjson"
        stream.send({"channel": "a", "payload": "one"})
        (first,) = stream.ids()
        assert reader.messages(1)[0]["messageId"] == str(first)
        stream.send({"items": [{"channel": "a", "payload": {"n": [1, None]}}, {"channel": "b", "payload": 2.5}]})
        assert stream.ids() == [first + 1, first + 2]
        # Lines are cut anywhere, and a blank one says nothing.
        stream.write(b'{"channel":"a","pay')
        stream.write(b'load":"\xc3')
        stream.write(b'\xa4"}\r\n\n  \n{"items":[]}\n{"channel":"blob","blob":"AP8="}')
        assert stream.ids() == [first + 3]
        assert stream.ids() == []
        stream.finish()
        assert stream.ids() == [first + 4]
        assert stream.rest() == b""
    assert server.rows("SELECT channel, payload FROM vpubsub ORDER BY id") == [
        ("a", "one"),
        ("a", '{"n":[1,null]}'),
        ("b", 2.5),
        ("a", "ä"),
        ("blob", b"\x00\xff"),
    ]


def test_a_refused_line_stores_nothing_and_the_stream_goes_on(serve: Callable[..., Server]) -> None:
    limits = {"max_payload_bytes": 1000, "max_batch_messages": 3, "max_body_bytes": 5000}
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": limits}})
    good = {"channel": "a", "payload": "x"}
    cases: list[tuple[bytes, int, str]] = [
        (b"nonsense", 400, "not valid JSON"),
        (b"[1]", 400, "the line must be a JSON object"),
        (b'{"channel":"a","payload":"x"} {"channel":"a","payload":"x"}', 400, "not valid JSON"),
        (b'{"channel":"a","payload":"\xff"}', 400, "not valid JSON"),
        (b'{"channel":"a","payload":"\\ud800"}', 400, "payload holds half of a surrogate pair"),
        (b'{"channel":"a","payload":NaN}', 400, "payload holds a number that JSON does not have"),
        (b'{"channel":"a"}', 400, "payload is required"),
        (b'{"channel":"","payload":"x"}', 400, "channel is empty"),
        (b'{"channel":"a","payload":"x","colour":1}', 400, "colour is not a field"),
        (b'{"items":[{"channel":"a","payload":"x"},{"channel":"a"}]}', 400, "items[1].payload is required"),
        (json.dumps({"items": [good] * 4}).encode(), 413, "limit is 3 (max_batch_messages)"),
        (json.dumps({"channel": "a", "payload": "ä" * 501}).encode(), 413, "limit is 1000 bytes (max_payload_bytes)"),
        (json.dumps({"items": [good, {**good, "expected_last_id": 7}]}).encode(), 409, "expected_last_id is 7"),
        (b'{"channel":"a","payload":"' + b"x" * 9000 + b'"}', 413, "limit of 5000 bytes (max_body_bytes)"),
    ]
    with Lines(server) as stream:
        # All in one piece, and then, for the longest line, in many.
        everything = b"".join(line + b"\n" + json.dumps(good).encode() + b"\n" for line, _, _ in cases)
        for piece in (everything, *(everything[n : n + 700] for n in range(0, len(everything), 700))):
            stream.write(piece)
        stream.finish()
        number = 0
        stored: list[int] = []
        for _, status, text in cases * 2:
            line, found, error = stream.error()
            number += 2
            assert (line, found) == (number - 1, status), error
            assert text in error
            stored += stream.ids()
        assert stream.rest() == b""
    assert server.rows("SELECT id FROM vpubsub ORDER BY id") == [(number,) for number in stored]
    assert len(stored) == 2 * len(cases)


def test_publish_once_and_only_if(serve: Callable[..., Server]) -> None:
    server = serve()
    with Lines(server) as stream:
        stream.send(*({"channel": "a", "payload": str(n), "key": "same"} for n in range(3)))
        assert stream.ids() == stream.ids() == stream.ids() == [1]
        stream.send(
            {"channel": "a", "payload": "y", "expected_last_id": 1},
            {"channel": "a", "payload": "z", "expected_last_id": 1},
        )
        assert stream.ids() == [2]
        assert stream.error()[:2] == (5, 409)


def test_what_cannot_begin_is_an_ordinary_error(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(
        databases=["data", "closed"],
        config={
            "databases": {"data": {"permissions": {"publish-message": True}}},
            "plugins": {"datasette-pubsub": {"max_subscribers_per_actor": 1}},
        },
    )
    headers = {"Content-Type": "application/x-ndjson"}
    body = b'{"channel":"a","payload":"x"}\n'

    def status(path: str, **more: str) -> int:
        return httpx.post(f"{server.url}/{path}/-/pubsub/-/publish", content=body, headers=headers | more).status_code

    assert status("closed") == 403
    assert status("nowhere") == 404
    assert status("data", **{"Content-Encoding": "gzip"}) == 415
    assert status("data", Origin="http://elsewhere.example") == 403
    with Lines(server) as stream:
        assert stream.response.status == 200
        assert status("data") == 429
    wait_for(lambda: status("data") == 200, "a place is free again")
    assert httpx.put(f"{server.pubsub}/-/publish", content=body, headers=headers).json()["ok"]
    assert httpx.put(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "x"}).status_code == 405


def test_rights_are_looked_at_again(serve: Callable[..., Server], tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    revoked = tmp_path / "revoked"
    (plugins / "rule.py").write_text(
        "import os\nfrom datasette import hookimpl\nfrom datasette.permissions import PermissionSQL\n"
        "@hookimpl\ndef permission_resources_sql(datasette, actor, action):\n"
        f"    if action == 'publish-message' and os.path.exists({str(revoked)!r}):\n"
        "        return PermissionSQL(sql=\"SELECT 'data' AS parent, 'a' AS child, 0 AS allow, 'r' AS reason\")\n"
    )
    options = {"recheck_seconds": 0.2, "channel_rules": {"secret/*": {"publish": False}}}
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": options}}, options=["--plugins-dir", str(plugins)])
    line = 0
    with Lines(server) as stream:
        stream.send({"channel": "secret/x", "payload": "x"}, {"items": [{"channel": "a", "payload": "x"}] * 2})
        number, status, text = stream.error()
        assert (number, status) == (1, 403)
        assert "publish-message on channel 'secret/x'" in text
        assert len(stream.ids()) == 2
        line = 2
        revoked.touch()

        def refused() -> bool:
            nonlocal line
            stream.send({"channel": "a", "payload": "x"}, {"channel": "b", "payload": "x"})
            line += 2
            answer = stream.answer()
            assert stream.ids()
            assert answer["ok"] or (answer["line"], answer["status"]) == (line - 1, 403)
            return not answer["ok"]

        wait_for(refused, "the right to channel a has ended")


def test_a_full_queue_makes_it_wait_and_refuses_nothing(serve: Callable[..., Server]) -> None:
    count = 3000
    limits = {"max_pending_messages": 20, "max_pending_bytes": 100_000, "max_payload_bytes": 50_000}
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": limits}})
    server.publish(channel="first", payload="installs the log")
    payload = "x" * 10_000
    with Lines(server) as stream, contextlib.closing(sqlite3.connect(server.path)) as writer:
        sent = 0

        def send() -> None:
            nonlocal sent
            for n in range(count):
                stream.send({"channel": "a", "payload": f"{n} {payload}"})
                sent += 1
            stream.finish()

        writer.execute("BEGIN IMMEDIATE")
        sender = threading.Thread(target=send)
        sender.start()
        stuck = [0]

        def waits() -> bool:
            before, stuck[0] = stuck[0], sent
            return sent > 20 and before == sent and sender.is_alive()

        # What the batcher, the stream and the sockets hold is far less than all of it.
        wait_for(waits, "the sender is held up")
        writer.rollback()
        ids = [stream.ids()[0] for _ in range(count)]
        sender.join(DEADLINE)
        assert stream.rest() == b""
    assert server.rows("SELECT id FROM vpubsub WHERE channel = 'a' ORDER BY id") == [(n,) for n in ids]
    assert server.rows(
        "SELECT count(*) FROM vpubsub WHERE channel = 'a' AND substr(payload, 1, instr(payload, ' ') - 1) + 2 = id"
    ) == [(count,)]


def test_a_locked_database_refuses_lines_and_the_stream_goes_on(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="first", payload="installs the log")
    with Lines(server) as stream:
        with contextlib.closing(sqlite3.connect(server.path)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            stream.send({"channel": "a", "payload": "x"})
            line, status, text = stream.error()
            assert (line, status) == (1, 503)
            assert "locked" in text
        stream.send({"channel": "a", "payload": "y"})
        assert stream.ids() == [2]


@pytest.mark.parametrize("http2", [False, True])
def test_the_server_ends_and_accounts_for_every_line(serve: Callable[..., Server], http2: bool) -> None:
    server = serve(http2=http2)
    lines = [json.dumps({"channel": "a", "payload": str(n)}).encode() + b"\n" for n in range(200_000)]
    with Lines(server) as stream, Lines(server) as idle:
        told = threading.Event()

        def send() -> None:
            for n in range(0, len(lines), 100):
                if told.is_set():
                    break
                stream.write(b"".join(lines[n : n + 100]))
            stream.finish()

        sender = threading.Thread(target=send)
        sender.start()
        assert stream.ids() == [1]
        took = threading.Thread(target=server.stop)
        took.start()
        ids = [1]
        while (answer := stream.answer())["ok"]:
            ids += answer["message_ids"]
        told.set()
        assert (answer["line"], answer["status"]) == (len(ids) + 1, 503)
        assert "server is going away" in answer["error"]
        assert idle.error()[:2] == (1, 503)
        idle.finish()
        assert stream.rest() == idle.rest() == b""
        took.join(DEADLINE)
        sender.join(DEADLINE)
    assert server.rows("SELECT count(*), max(id) FROM vpubsub") == [(len(ids), ids[-1])]
    assert "Traceback" not in server.log


def test_a_line_that_never_ends_and_a_stream_that_says_nothing(serve: Callable[..., Server], tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "impatient.py").write_text("from datasette_pubsub.http import ndjson\nndjson.BODY_SECONDS = 0.5\n")
    server = serve(options=["--plugins-dir", str(plugins)])
    with Lines(server) as quiet, Lines(server) as slow:
        quiet.send({"channel": "a", "payload": "before"})
        assert quiet.ids()
        slow.send({"channel": "a", "payload": "x"})
        assert slow.ids()
        slow.write(b'{"channel":')
        line, status, text = slow.error()
        assert (line, status) == (2, 408)
        assert "0.5 seconds" in text
        assert slow.rest() == b""
        # It has been silent for longer than a line may take.
        quiet.send({"channel": "a", "payload": "after"})
        assert quiet.ids()


def test_who_takes_no_answers_is_cut_off(serve: Callable[..., Server]) -> None:
    options = {"send_timeout_seconds": 0.5}
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": options}})
    with Lines(server) as stream:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            stream.write(b"nonsense\n" * 10_000_000)
    server.publish(channel="a", payload="still there")


def test_a_publisher_that_disappears_leaves_what_was_taken(serve: Callable[..., Server]) -> None:
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": {"max_subscribers": 1}}})
    with Lines(server) as stream:
        stream.send({"channel": "a", "payload": "x"})
        stream.ids()
        stream.write(b'{"channel":"a","payload":"not compl')

    def again() -> bool:
        with Lines(server) as stream:
            return stream.response.status == 200

    wait_for(again, "its place is free again")
    assert server.rows("SELECT payload FROM vpubsub") == [("x",)]
    assert "Traceback" not in server.log
