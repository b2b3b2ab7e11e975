"""The web servers and proxies of docs/deploy.md, run with the commands and configurations that stand there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from places import ROOT
from servers import DEADLINE, ENDS_SECONDS, OPEN, Server, Sse, free_port, wait_for

BLOCKS = dict(
    re.findall(r"<!-- server: ([^\n]+) -->\n```\w+\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
)
SERVERS = ["datasette", "uvicorn", "hypercorn", "gunicorn", "granian"]

#: Where streams are ended by the server, before its application is told.
SILENT = {("granian", signal.SIGINT), ("granian", signal.SIGTERM), ("gunicorn", signal.SIGINT)}


def test_every_block_is_run() -> None:
    assert set(BLOCKS) == {*SERVERS, "nginx", "caddy", "file served.py"}


@dataclass
class Running:
    """A program of the page, and where it answers."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pubsub(self) -> str:
        return f"{self.url}/data/-/pubsub"

    def publish(self, *payloads: str) -> list[int]:
        items = [{"channel": "a", "payload": payload} for payload in payloads]
        answer = httpx.post(f"{self.pubsub}/-/publish", json={"items": items}, timeout=DEADLINE)
        assert answer.status_code == 200, (answer.text, self.log.read_text())
        return list(answer.json()["message_ids"])


@contextlib.contextmanager
def running(command: list[str], folder: Path, port: int, name: str) -> Iterator[Running]:
    log = folder / f"{name}.log"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment, start_new_session=True)

    def answers() -> bool:
        assert process.poll() is None, f"{name} ended: {log.read_text()}"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/-/versions.json", timeout=DEADLINE).status_code == 200
        return False

    try:
        wait_for(answers, f"{name} answers", 2 * DEADLINE)
        yield Running(process, port, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE)


@contextlib.contextmanager
def serving(name: str, folder: Path) -> Iterator[Running]:
    """One of the page's web servers, on a file on which everybody may publish."""
    with contextlib.closing(sqlite3.connect(folder / "data.db")) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS existing (id INTEGER PRIMARY KEY)")
    app = BLOCKS["file served.py"]
    assert app.count('["data.db"]') == 1
    (folder / "served.py").write_text(app.replace('["data.db"]', f'["data.db"], config={OPEN!r}'))
    (folder / "datasette.json").write_text(json.dumps(OPEN))
    port = free_port()
    assert BLOCKS[name].count("8001") == 1
    command = BLOCKS[name].replace("8001", str(port)).split()
    if name == "datasette":
        command += ["-c", "datasette.json"]
    with running(command, folder, port, name) as server:
        yield server


def enveloped(message: dict[str, Any]) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack(">BI", 0, len(data)) + data


class Wire:
    """A connection over HTTP/1.1 whose answer is read as bytes, until something stands in it."""

    def __init__(self, port: int, method: str, path: str, headers: dict[str, str], body: bytes | None = b"") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self.data = b""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append("Transfer-Encoding: chunked" if body is None else f"Content-Length: {len(body)}")
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    def chunk(self, data: bytes) -> None:
        self.sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def until(self, wanted: bytes, count: int = 1) -> None:
        """Read until this has come so many times. Fails with what came instead."""
        while self.data.count(wanted) < count:
            try:
                part = self.sock.recv(65536)
            except TimeoutError:
                part = b""
            assert part, (
                f"{self.data.count(wanted)} of {count} {wanted!r} in {len(self.data)} bytes: {self.data[-900:]!r}"
            )
            self.data += part

    def rest(self) -> bytes:
        with contextlib.suppress(ConnectionError):
            while part := self.sock.recv(65536):
                self.data += part
        return self.data

    def close(self) -> None:
        self.sock.close()


def event_stream(port: int, query: str, headers: dict[str, str] | None = None) -> Wire:
    return Wire(port, "GET", f"/data/-/pubsub/-/stream?{query}", headers or {})


def connect_stream(port: int, headers: dict[str, str] | None = None, **request: Any) -> Wire:
    headers = {"Content-Type": "application/connect+json", "Connect-Protocol-Version": "1", **(headers or {})}
    body = enveloped({"dbName": "data", "channel": "a", **request})
    return Wire(port, "POST", "/db.v1.DbService/Subscribe", headers, body)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", SERVERS)
def test_a_server(tmp_path: Path, name: str, number: signal.Signals) -> None:
    with serving(name, tmp_path) as server:
        assert server.publish("one", "two") == [1, 2]
        batch = {"dbName": "data", "items": [{"channel": "a", "payload": "three"}]}
        answer = httpx.post(f"{server.url}/db.v1.DbService/PublishBatch", json=batch, timeout=DEADLINE)
        assert answer.json() == {"messageIds": ["3"]}

        # Live, and from the log; over both.
        with Sse(f"{server.pubsub}/-/stream", channel="a", start="earliest") as reader:
            assert [each["payload"] for each in reader.messages(3)] == ["one", "two", "three"]
            stream = connect_stream(server.port, start="START_EARLIEST", status=True)
            stream.until(b"KIND_READY")
            server.publish("four")
            assert reader.messages(1)[0]["payload"] == "four"
            stream.until(b'"payload":"four"')
            stream.close()

        # A subscription goes on where its acks ended.
        named: dict[str, Any] = {"channel": "a", "subscription": "s", "ack": "explicit", "start": "earliest"}
        with Sse(f"{server.pubsub}/-/stream", **named) as reader:
            assert [each["messageId"] for each in reader.messages(4)] == ["1", "2", "3", "4"]
        acked = {"subscription": "s", "message_id": 2}
        assert httpx.post(f"{server.pubsub}/-/ack", json=acked, timeout=DEADLINE).json() == {"ok": True, "cursor": 2}
        server.publish("five")
        with Sse(f"{server.pubsub}/-/stream", subscription="s", ack="explicit") as reader:
            assert [each["messageId"] for each in reader.messages(3)] == ["3", "4", "5"]

        # A publish stream answers line by line.
        lines = Wire(server.port, "POST", "/data/-/pubsub/-/publish", {"Content-Type": "application/x-ndjson"}, None)
        for n in (6, 7):
            lines.chunk(b'{"channel": "a", "payload": "line"}\n')
            lines.until(b'"message_ids":[%d]' % n)
        lines.chunk(b"")
        lines.until(b"0\r\n\r\n")
        lines.close()

        open_streams = [
            event_stream(server.port, "channel=a&subscription=open"),
            connect_stream(server.port, status=True),
        ]
        open_streams[0].until(b"event: ready")
        open_streams[1].until(b"KIND_READY")
        began = time.monotonic()
        server.process.send_signal(number)
        server.process.wait(DEADLINE)
        took = time.monotonic() - began
        ends = [stream.rest() for stream in open_streams]
        for stream in open_streams:
            stream.close()
        assert took < ENDS_SECONDS, f"{took} s; {server.log.read_text()}"
        if (name, number) not in SILENT:
            assert b"event: bye" in ends[0]
            assert b'"code": "unavailable"' in ends[1]
        assert "Traceback" not in server.log.read_text()

    # What was stored is there, and so is the subscription.
    with serving(name, tmp_path) as server:
        assert server.publish("eight") == [8]
        with Sse(f"{server.pubsub}/-/stream", subscription="open") as reader:
            assert reader.messages(1)[0]["messageId"] == "8"
        with Sse(f"{server.pubsub}/-/stream", subscription="s", ack="explicit") as reader:
            assert [each["messageId"] for each in reader.messages(6)] == list("345678")


# -- what stands between ------------------------------------------------------------

#: A reader that takes everything, as browsers and Python's libraries say.
GREEDY = {"Accept-Encoding": "gzip, deflate, br, zstd"}

#: Larger than what any of them waits for before it begins to compress.
REPLAY = [f"replay {n} ".ljust(400, ".") for n in range(5)]


def messages_pass(backend: str, port: int, headers: dict[str, str], publish_streams: bool) -> None:
    """A replay and single messages arrive at once over all streams, and nothing of them is compressed."""

    def publish(payload: str) -> None:
        assert httpx.post(f"{backend}/-/publish", json={"channel": "a", "payload": payload}).status_code == 200

    for payload in REPLAY:
        publish(payload)
    streams = [
        event_stream(port, "channel=a&start=earliest", headers),
        event_stream(port, "channel=a&start=earliest&format=raw", headers),
        connect_stream(port, headers, start="START_EARLIEST"),
    ]
    for stream in streams:
        stream.until(REPLAY[-1].encode())
    # One small message at a time: nothing that comes after pushes it through a buffer.
    for n in range(3):
        publish(f"live {n}.")
        for stream in streams:
            stream.until(b"live %d." % n)
    for stream in streams:
        head = stream.data.partition(b"\r\n\r\n")[0].lower()
        assert b"content-encoding: identity" in head
        assert b"no-transform" in head
        stream.close()
    if publish_streams:
        lines = Wire(
            port, "POST", "/data/-/pubsub/-/publish", {"Content-Type": "application/x-ndjson", **headers}, None
        )
        for n in range(3):
            lines.chunk(b'{"channel": "a", "payload": "line"}\n')
            lines.until(b"message_ids", n + 1)
        assert b"content-encoding: identity" in lines.data.lower()
        lines.chunk(b"")
        lines.until(b"0\r\n\r\n")
        lines.close()
    # Other answers are compressed, where the reader and what stands between wish it.
    page = httpx.get(f"http://127.0.0.1:{port}/data/-/pubsub/-/messages.json", headers=headers)
    assert page.headers.get("content-encoding") == (None if headers["Accept-Encoding"] == "identity" else "gzip")


BOTH = pytest.mark.parametrize("headers", [GREEDY, {"Accept-Encoding": "identity"}], ids=["gzip", "identity"])

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
CADDY = shutil.which("caddy")

#: Where things are, and nothing else.
AROUND = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    gzip_types *;
    {server}
}}
"""

#: nginx with its defaults, but that it compresses all that it may: HTTP/1.0 to the server, and buffers.
PLAIN = "server { listen 127.0.0.1:8080; gzip on; location / { proxy_pass http://127.0.0.1:8001; } }"


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@BOTH
@pytest.mark.parametrize("config", ["page", "defaults"])
def test_nginx(serve: Callable[..., Server], tmp_path: Path, headers: dict[str, str], config: str) -> None:
    server = serve()
    port = free_port()
    text = BLOCKS["nginx"] if config == "page" else PLAIN
    block = text.replace("8080", str(port)).replace("8001", str(server.port))
    (tmp_path / "nginx.conf").write_text(AROUND.format(folder=tmp_path, server=block))
    command = [str(NGINX), "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path), "-e", str(tmp_path / "error.log")]
    # HTTP/1.0 has no chunks: a publish stream needs the page's last lines.
    with running(command, tmp_path, port, "nginx"):
        messages_pass(server.pubsub, port, headers, publish_streams=config == "page")


@pytest.mark.skipif(CADDY is None, reason="caddy is not installed")
@BOTH
def test_caddy(serve: Callable[..., Server], tmp_path: Path, headers: dict[str, str]) -> None:
    server = serve()
    port = free_port()
    block = BLOCKS["caddy"].replace("8080", str(port)).replace("8001", str(server.port))
    (tmp_path / "Caddyfile").write_text("{\n    admin off\n    auto_https off\n}\n" + block)
    # Over HTTP/1.1 Go's server does not answer while a request goes on.
    with running([str(CADDY), "run", "--config", "Caddyfile"], tmp_path, port, "caddy"):
        messages_pass(server.pubsub, port, headers, publish_streams=False)


#: All of datasette-gzip 0.2; the plugin itself would be loaded by every other test's server, too.
DATASETTE_GZIP = """
from datasette import hookimpl
from asgi_gzip import GZipMiddleware

@hookimpl(trylast=True)
def asgi_wrapper(datasette):
    return GZipMiddleware
"""


@BOTH
def test_datasette_gzip(serve: Callable[..., Server], tmp_path: Path, headers: dict[str, str]) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "datasette_gzip.py").write_text(DATASETTE_GZIP)
    server = serve(options=["--plugins-dir", str(plugins)])
    messages_pass(server.pubsub, server.port, headers, publish_streams=True)
