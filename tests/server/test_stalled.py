"""Readers that open a stream and never read: bounded memory, undisturbed others, and a way back in for them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from memory import peak
from raw import Raw, RawConnect, RawSse
from servers import DEADLINE, OPEN, Server, wait_for

MIB = 1024 * 1024

#: The settings that the bound is made of, in bytes.
SEND_BYTES = 64 * 1024
TAIL_BYTES = 4 * MIB

#: Payload of one message, in bytes; all of them together are more than all the buffers of a stalled connection hold.
PAYLOAD_BYTES = 48 * 1024
MESSAGES = 80

#: What a web server keeps for a connection before it makes the application wait, in bytes (uvicorn's high water mark).
HIGH_WATER = 64 * 1024

#: A connection, its request and its tasks, in bytes.
STREAM_BYTES = 64 * 1024

#: Everything that does not grow with the number of streams: pages of the log, bodies of publishes, the heap's holes.
CONSTANT = 64 * MIB

SEND_TIMEOUT_SECONDS = 5

#: Small buffers on the way, so that a reader that takes nothing is felt after a few hundred kilobytes.
RECEIVE_BUFFER = 4096
SEGMENT = 536

_SSE_IDS = re.compile(rb'^id: (\d+)\ndata: \{"messageId":"\d+".*\}\n\n', re.MULTILINE)


def bound(streams: int) -> int:
    """Memory that so many stalled readers may cost, in bytes; docs/threats.md has the same sum."""
    # One send as the stream holds it, once more as the web server frames it, and what the server had before.
    return streams * (2 * SEND_BYTES + HIGH_WATER + STREAM_BYTES) + 3 * TAIL_BYTES + CONSTANT


def sockets(server: Server) -> int:
    """The connections that the server has, and the socket that it listens on."""
    assert server.process is not None
    found = 0
    for path in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(path).startswith("socket:")
    return found


class Stalled:
    """A reader that has seen its stream begin, and reads no more until :meth:`rest`."""

    def __init__(self, server: Server, n: int) -> None:
        self.is_sse = n % 2 == 0
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        sock.settimeout(DEADLINE)
        sock.connect(("127.0.0.1", server.port))
        self.sock = sock
        if self.is_sse:
            target = f"/{server.database}/-/pubsub/-/stream?channel=a"
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        else:
            message = json.dumps({"dbName": server.database, "channel": "a", "status": True}).encode()
            head = "POST /db.v1.DbService/Subscribe HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\n"
            body = struct.pack(">BI", 0, len(message)) + message
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def begun(self) -> None:
        """Read up to the word that the stream is live, byte for byte no further than that."""
        wanted = b"event: ready" if self.is_sse else b"KIND_READY"
        data = b""
        while wanted not in data:
            part = self.sock.recv(1)
            assert part, data
            data += part

    def rest(self) -> int:
        """Read what had been sent before the end; the last message id that came as a whole, 0 for none."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while part := self.sock.recv(1 << 16):
                data += part
        assert not data.endswith(b"0\r\n\r\n"), "cut off, not ended in order"
        data = _joined(data)
        if self.is_sse:
            ids = [int(number) for number in _SSE_IDS.findall(data)]
        else:
            ids = [int(found) for found in re.findall(rb'\{"messageId":"(\d+)"[^{}]*\}', data)]
        assert ids == list(range(ids[0], ids[0] + len(ids))) if ids else True, ids
        return ids[-1] if ids else 0

    def resume(self, server: Server, last: int) -> Raw:
        if self.is_sse:
            return RawSse(server, f"channel=a&last_event_id={last}")
        return RawConnect(server, channel="a", lastMessageId=str(last))

    def close(self) -> None:
        self.sock.close()


def _joined(data: bytes) -> bytes:
    """What a broken-off body in chunks holds; it begins somewhere before the end of a chunk."""
    found = []
    at = data.find(b"\r\n")
    while at >= 0:
        end = data.find(b"\r\n", at + 2)
        size = data[at + 2 : end]
        if end < 0 or not re.fullmatch(rb"[0-9a-f]+", size):
            break
        found.append(data[end + 2 : end + 2 + int(size, 16)])
        at = end + 2 + int(size, 16)
    return b"".join(found)


@pytest.fixture
def many_files() -> Iterator[Callable[[int], None]]:
    """Let this process, and the servers that it starts, have so many files open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def allow(count: int) -> None:
        if before[1] not in (resource.RLIM_INFINITY, -1) and before[1] < count:
            pytest.skip(f"at most {before[1]} open files are allowed here (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], count), before[1]))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the server's memory from /proc")
@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_readers_that_take_nothing(serve: Callable[..., Server], many_files: Callable[[int], None], count: int) -> None:
    many_files(count + 500)
    plugin: dict[str, Any] = {
        "max_send_bytes": SEND_BYTES,
        "tail_bytes": TAIL_BYTES,
        "max_payload_bytes": PAYLOAD_BYTES,
        "send_timeout_seconds": SEND_TIMEOUT_SECONDS,
        # One more than there are: nobody else gets in while they hold on, and all can come back afterwards.
        "max_streams": count + 1,
        "max_streams_per_actor": count + 1,
    }
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": plugin}})
    server.publish(channel="a", payload="first")
    idle = sockets(server)
    before = peak(server)
    with contextlib.ExitStack() as stack:
        healthy = RawSse(server, "channel=a")
        stack.callback(healthy.close)
        healthy.until(lambda: healthy.ready, "ready", DEADLINE)
        stalled = []
        for n in range(count):
            stalled.append(Stalled(server, n))
            stack.callback(stalled[-1].close)
            stalled[-1].begun()
        refused = httpx.get(f"{server.pubsub}/-/stream", params={"channel": "a"})
        assert (refused.status_code, "max_streams" in refused.text) == (429, True)

        # The publisher and the reader go on as if nobody else were there.
        acknowledged: list[int] = []

        def publish() -> None:
            with httpx.Client(timeout=DEADLINE) as client:
                for n in range(MESSAGES):
                    message = {"channel": "a", "payload": f"{n:08}" * (PAYLOAD_BYTES // 8)}
                    answer = client.post(f"{server.pubsub}/-/publish", json=message)
                    assert answer.status_code == 200, answer.text
                    acknowledged.extend(answer.json()["message_ids"])

        publisher = threading.Thread(target=publish)
        publisher.start()
        healthy.until(lambda: healthy.ids == MESSAGES, "all messages", 2 * DEADLINE)
        publisher.join(DEADLINE)
        assert acknowledged == list(range(2, MESSAGES + 2))
        assert (healthy.last, healthy.holes[1:], healthy.missed) == (MESSAGES + 1, [], 0)

        # They are cut off, whether they noticed or not, and their memory was bounded all the time.
        wait_for(lambda: sockets(server) <= idle + 1, "all stalled readers are cut off", 2 * DEADLINE)
        grown = peak(server) - before
        assert grown < bound(count), f"{grown / MIB:.0f} MiB; the bound is {bound(count) / MIB:.0f} MiB"
        assert server.log.count("a subscriber was disconnected") in (0, count), "told in the log, where it is shown"

        # Each comes back with the last id that it has, and lacks nothing.
        (newest,) = server.publish(channel="a", payload="the server goes on")
        healthy.until(lambda: healthy.last == newest, "the last message", DEADLINE)
        for reader in stalled[:100]:
            last = reader.rest()
            assert last < newest - 1, "it took everything: the messages are too small for this test"
            again = reader.resume(server, max(last, 1))
            again.last = max(last, 1)
            again.until(lambda: again.last == newest, "the rest", DEADLINE)  # noqa: B023 - called in this round
            assert (again.holes, again.missed) == ([], 0)
            again.close()
    server.stop()
    assert "Traceback" not in server.log
