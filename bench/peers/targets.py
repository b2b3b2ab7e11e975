"""The requests of each system, as bytes on a socket.

One class per system builds the bytes to publish a batch and to subscribe, and
resets the system. The module measures nothing: load.c, sink.c and the latency
loop of bench.py send the bytes.

Standard library only: without a client library, none is measured.
"""

from __future__ import annotations

import json
import socket
import struct
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Every message contains the marker "~ exactly once, also when the payload is
# escaped inside another JSON text; sink.c counts it. The latency loop overwrites
# the run of x with its time stamp, so that all payloads are equally long.
PAYLOAD = '{"id":1000001,"kind":"order.updated","user":"user-00042","mark":"~","text":"xxxxxxxxxxxxxxxxxxxxxxxxxx"}'
STAMP_FORMAT = "T%020dE"
STAMP_FIELD = "x" * len(STAMP_FORMAT % 0)
CONNECTION_NUMBER = "@@@@"  # load.c and sink.c put the connection's number here
SOCKET_TIMEOUT = 20  # seconds, for the few requests that prepare a run


def stamped_payload(nanoseconds: int) -> str:
    """The payload with a time stamp in it; it is as long as PAYLOAD."""
    return PAYLOAD.replace(STAMP_FIELD, STAMP_FORMAT % nanoseconds, 1)


@dataclass(frozen=True, slots=True)
class Publish:
    """One publish request, and the bytes in the answer that show its success."""

    request: bytes
    token: bytes
    tokens: int = 1  # how often the answer to one request contains the token
    preamble: bytes = b""  # sent once per connection
    abort: tuple[bytes, ...] = ()


class Target:
    """A system under measurement. `channel` names are plain ASCII words."""

    scenarios: frozenset[str] = frozenset({"publish", "fanout", "latency"})
    durability = ""
    max_messages = 200_000  # per run, so that a run does not fill the disk

    def __init__(self, name: str, port: int, pid: int | None) -> None:
        self.name, self.port, self.pid = name, port, pid

    def prepare(self, subscribers: int) -> None:
        """Delete earlier messages, and prepare the system for that many subscribers."""

    def before_fanout(self, messages: int) -> None:
        """The bench calls this right before it publishes that many messages to subscribers."""

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        """One request that publishes the payloads. With `push` false the system only
        has to store them; with `push` true it must deliver them to subscribers."""
        raise NotImplementedError

    def subscribe(self, channel: str) -> bytes:
        """The bytes that a subscriber sends right after connecting."""
        raise NotImplementedError


# --- HTTP -------------------------------------------------------------------


def http_request(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


HTTP_REFUSALS = (b"HTTP/1.1 3", b"HTTP/1.1 4", b"HTTP/1.1 5")


def connect_envelope(message: bytes) -> bytes:
    """One message of a Connect stream: a flag byte and the length before it."""
    return struct.pack("!BI", 0, len(message)) + message


class Project(Target):
    """datasette-pubsub, in one of its stream formats."""

    FORMATS = ("raw", "envelope", "connect", "connect-proto")
    durability = "as the project is configured"

    def __init__(self, base: str, database: str, token: str | None, pid: int | None, stream_format: str) -> None:
        url = urllib.parse.urlsplit(base)
        if url.scheme != "http" or url.hostname not in ("127.0.0.1", "localhost"):
            raise ValueError("--project must be an http:// URL on 127.0.0.1")
        name = "project" if stream_format == "raw" else f"project:{stream_format}"
        super().__init__(name, url.port or 80, pid)
        self.prefix = url.path.rstrip("/")
        self.database, self.stream_format = database, stream_format
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        if stream_format != "raw":
            self.scenarios = frozenset({"fanout"})

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        items = [{"channel": channel, "payload": payload} for payload in payloads]
        body = items[0] if len(items) == 1 else {"items": items}
        path = f"{self.prefix}/{self.database}/-/pubsub/-/publish"
        headers = self.headers | {"Content-Type": "application/json"}
        request = http_request("POST", path, headers, json.dumps(body).encode())
        # A refusal contains "ok", too (false); only a success contains "message_ids".
        return Publish(request, b'"message_ids"', abort=HTTP_REFUSALS)

    def subscribe(self, channel: str) -> bytes:
        if self.stream_format in ("raw", "envelope"):
            path = f"{self.prefix}/{self.database}/-/pubsub/-/stream?channel={channel}"
            path += "&format=raw" if self.stream_format == "raw" else ""
            return http_request("GET", path, self.headers | {"Accept": "text/event-stream"})
        if self.stream_format == "connect":
            kind = "json"
            message = json.dumps({"dbName": self.database, "channel": channel}).encode()
        else:  # db_name is field 1, channel is field 3, both strings below 128 bytes
            kind = "proto"
            message = b"".join(
                bytes([number << 3 | 2, len(text)]) + text.encode()
                for number, text in ((1, self.database), (3, channel))
            )
        headers = self.headers | {
            "Content-Type": f"application/connect+{kind}",
            "Connect-Protocol-Version": "1",
        }
        path = f"{self.prefix}/db.v1.DbService/Subscribe"
        return http_request("POST", path, headers, connect_envelope(message))


class ProjectStream(Project):
    """datasette-pubsub, with one publish stream per connection."""

    def __init__(self, project: Project, fanout: bool = False) -> None:
        name = f"{project.name}+streams" if fanout else "project:stream"
        Target.__init__(self, name, project.port, project.pid)
        self.prefix, self.database, self.headers = project.prefix, project.database, project.headers
        self.stream_format = project.stream_format
        self.scenarios = frozenset({"fanout"} if fanout else {"publish", "pipeline", "latency"})

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        """A batch is one line, which is one chunk of the request that the preamble begins."""
        items = [{"channel": channel, "payload": payload} for payload in payloads]
        line = json.dumps(items[0] if len(items) == 1 else {"items": items}).encode() + b"\n"
        headers = self.headers | {"Content-Type": "application/x-ndjson"}
        head = http_request("PUT", f"{self.prefix}/{self.database}/-/pubsub/-/publish", headers)
        preamble = head.removesuffix(b"\r\n") + b"Transfer-Encoding: chunked\r\n\r\n"
        refusals = (*HTTP_REFUSALS, b'"ok":false')
        return Publish(b"%x\r\n%s\r\n" % (len(line), line), b'"message_ids"', preamble=preamble, abort=refusals)


class ProjectConnect(Project):
    """datasette-pubsub, with the Connect call PublishBatch."""

    def __init__(self, project: Project, binary: bool) -> None:
        name = "project:connect-proto" if binary else "project:connect"
        Target.__init__(self, name, project.port, project.pid)
        self.prefix, self.database, self.headers = project.prefix, project.database, project.headers
        self.scenarios = frozenset({"publish"})
        self.binary = binary

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        path = f"{self.prefix}/db.v1.DbService/PublishBatch"
        if not self.binary:
            items = [{"channel": channel, "payload": payload} for payload in payloads]
            body = json.dumps({"dbName": self.database, "items": items}).encode()
            headers = self.headers | {"Content-Type": "application/json"}
            return Publish(http_request("POST", path, headers, body), b'"messageIds"', abort=HTTP_REFUSALS)
        # db_name is field 1, items is field 2; channel and payload are fields 1 and 2 of an item.
        parts = [proto_text(1, channel) + proto_text(2, payload) for payload in payloads]
        body = proto_text(1, self.database) + b"".join(proto_bytes(2, part) for part in parts)
        headers = self.headers | {"Content-Type": "application/proto"}
        return Publish(http_request("POST", path, headers, body), b"HTTP/1.1 200", abort=HTTP_REFUSALS)


class EmptyRoute(Target):
    """A route of the same server that does nothing: the cost of a request without the plugin."""

    scenarios = frozenset({"publish"})
    durability = "publishes nothing"

    def __init__(self, project: Project, path: str) -> None:
        super().__init__("empty route", project.port, project.pid)
        self.path, self.headers = f"{project.prefix}{path}", project.headers

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        if len(payloads) > 1:
            raise RuntimeError("has no batches")
        return Publish(http_request("GET", self.path, self.headers), b"HTTP/1.1 200", abort=HTTP_REFUSALS)


def proto_bytes(field: int, data: bytes) -> bytes:
    """A field of a Protobuf message with its length."""
    length, size = b"", len(data)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + data


def proto_text(field: int, text: str) -> bytes:
    return proto_bytes(field, text.encode())


class Nchan(Target):
    durability = "memory only"
    # A subscriber gets at most 32,768 messages of one channel in one second of the
    # clock and then stalls. So a run has fewer, and starts at the start of a second.
    max_messages = 25_000
    CROWDED_MESSAGES = 2_000  # a smaller run cannot reach the limit

    def before_fanout(self, messages: int) -> None:
        if messages > self.CROWDED_MESSAGES:
            time.sleep(1.02 - time.time() % 1)

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        # One POST is one message; a batch is that many requests in a pipeline.
        headers = {"Content-Type": "application/json"}
        path = f"/publish?channel={channel}"
        request = b"".join(http_request("POST", path, headers, p.encode()) for p in payloads)
        return Publish(request, b"HTTP/1.1 2", len(payloads), abort=HTTP_REFUSALS)

    def subscribe(self, channel: str) -> bytes:
        return http_request("GET", f"/subscribe?channel={channel}", {"Accept": "text/event-stream"})


# --- Redis ------------------------------------------------------------------


def redis_command(*words: str) -> bytes:
    parts = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{parts}".encode()


class Redis(Target):
    """Each message is a stream entry; with push, also a PUBLISH to live subscribers."""

    scenarios = Target.scenarios | {"pipeline"}
    durability = "appendfsync always"

    def prepare(self, subscribers: int) -> None:
        with socket.create_connection(("127.0.0.1", self.port), SOCKET_TIMEOUT) as connection:
            connection.sendall(redis_command("FLUSHALL"))
            connection.recv(100)

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        request = b""
        for payload in payloads:
            request += redis_command("XADD", f"log:{channel}", "*", "payload", payload)
            if push:
                request += redis_command("PUBLISH", channel, payload)
        # XADD answers "$15\r\n17...-0\r\n", PUBLISH answers ":<receivers>\r\n".
        token = b"\r\n:" if push else b"\r\n1"
        return Publish(request, token, len(payloads), abort=(b"-ERR", b"-MISCONF", b"-OOM"))

    def subscribe(self, channel: str) -> bytes:
        return redis_command("SUBSCRIBE", channel)


class RedisEverysec(Redis):
    durability = "appendfsync everysec"


class RedisPubSub(Redis):
    """PUBLISH alone, on the same server, which stores nothing."""

    scenarios = frozenset({"fanout"})
    durability = "not stored"

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        request = b"".join(redis_command("PUBLISH", channel, payload) for payload in payloads)
        return Publish(request, b":", len(payloads), abort=(b"-ERR",))


# --- NATS -------------------------------------------------------------------

NATS_CONNECT = 'CONNECT {"verbose":false,"pedantic":false}\r\n'


class JetStream(Target):
    """A file stream; every subscriber has its own ephemeral push consumer."""

    STREAM = "BENCH"
    INACTIVE_NANOSECONDS = 600 * 10**9
    durability = "file, fsync every 2 min"

    def prepare(self, subscribers: int) -> None:
        self._api([(f"STREAM.DELETE.{self.STREAM}", {})], may_fail=True)
        stream = {"name": self.STREAM, "subjects": ["bench.>"], "storage": "file"}
        self._api([(f"STREAM.CREATE.{self.STREAM}", stream)])
        self._api(
            [
                (
                    f"CONSUMER.CREATE.{self.STREAM}",
                    {
                        "stream_name": self.STREAM,
                        "config": {
                            "deliver_subject": f"deliver.{number:04d}",
                            "deliver_policy": "new",
                            "ack_policy": "none",
                            "replay_policy": "instant",
                            "inactive_threshold": self.INACTIVE_NANOSECONDS,
                        },
                    },
                )
                for number in range(subscribers)
            ]
        )

    def _api(self, calls: list[tuple[str, dict[str, Any]]], *, may_fail: bool = False) -> None:
        """Send JetStream API requests, and wait for one answer to each."""
        with socket.create_connection(("127.0.0.1", self.port), SOCKET_TIMEOUT) as connection:
            requests = NATS_CONNECT + "SUB _INBOX.api 1\r\n"
            for subject, content in calls:
                body = json.dumps(content)
                requests += f"PUB $JS.API.{subject} _INBOX.api {len(body)}\r\n{body}\r\n"
            connection.sendall(requests.encode())
            answers = b""
            while answers.count(b"MSG _INBOX.api ") < len(calls):
                received = connection.recv(1 << 20)
                if not received:
                    raise ConnectionError("NATS closed the connection")
                answers += received
        if b'"error"' in answers and not may_fail:
            raise RuntimeError(f"JetStream refused: {answers[-400:]!r}")

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        inbox = f"_INBOX.{CONNECTION_NUMBER}"
        request = "".join(
            f"PUB bench.{channel} {inbox} {len(payload.encode())}\r\n{payload}\r\n" for payload in payloads
        )
        preamble = NATS_CONNECT + f"SUB {inbox} 1\r\n"
        return Publish(request.encode(), b'"seq"', len(payloads), preamble.encode(), (b"-ERR", b'"error"'))

    def subscribe(self, channel: str) -> bytes:
        return (NATS_CONNECT + f"SUB deliver.{CONNECTION_NUMBER} 1\r\nPING\r\n").encode()


class NatsCore(Target):
    """Plain NATS on the same server, which stores nothing."""

    scenarios = frozenset({"fanout"})
    durability = "not stored"

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        request = "".join(f"PUB core.{channel} {len(payload.encode())}\r\n{payload}\r\n" for payload in payloads)
        return Publish((request + "PING\r\n").encode(), b"PONG", 1, NATS_CONNECT.encode(), (b"-ERR",))

    def subscribe(self, channel: str) -> bytes:
        return (NATS_CONNECT + f"SUB core.{channel} 1\r\nPING\r\n").encode()


# --- PostgreSQL -------------------------------------------------------------


def postgres_message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def postgres_startup() -> bytes:
    parameters = b"user\0postgres\0database\0postgres\0\0"
    protocol_3 = 196608
    return struct.pack("!II", len(parameters) + 8, protocol_3) + parameters


POSTGRES_SYNC = postgres_message(b"S", b"")


class Postgres(Target):
    """INSERT and NOTIFY in one statement, prepared once per connection.

    With `push`, NOTIFY sends the id and payload of every row (NOTIFY would merge equal
    payloads without the id). Without `push`, NOTIFY sends one wake-up per statement,
    for a subscriber that then selects the rows.
    """

    durability = "synchronous_commit on"

    def prepare(self, subscribers: int) -> None:
        self._execute(
            "create table if not exists bench_messages (id bigserial primary key,"
            " channel text not null, payload jsonb, created_at timestamptz default now());"
            "create index if not exists bench_messages_channel on bench_messages (channel, id);"
            "truncate bench_messages"
        )

    def _execute(self, sql: str) -> None:
        with socket.create_connection(("127.0.0.1", self.port), SOCKET_TIMEOUT) as connection:
            connection.sendall(postgres_startup() + postgres_message(b"Q", sql.encode() + b"\0"))
            answer = b""
            ready = b"Z\0\0\0\5I"  # once after the start, once after the query
            while answer.count(ready) < 2:
                received = connection.recv(1 << 16)
                if not received:
                    raise ConnectionError(f"PostgreSQL closed the connection: {answer!r}")
                answer += received
            if b"SERROR\0" in answer:
                raise RuntimeError(f"PostgreSQL refused: {answer!r}")

    def publish(self, channel: str, payloads: list[str], *, push: bool) -> Publish:
        single = len(payloads) == 1
        rows = "$1::text::jsonb" if single else "unnest($1::text[])::jsonb"
        notify = "id || ':' || payload" if push else "max(id)::text"
        sql = (
            "with inserted as (insert into bench_messages (channel, payload)"
            f" select '{channel}', {rows} returning id, payload)"
            f" select pg_notify('{channel}', {notify}) from inserted"
        )
        parameter = payloads[0] if single else postgres_array(payloads)
        encoded = parameter.encode()
        parse = postgres_message(b"P", b"publish\0" + sql.encode() + b"\0" + struct.pack("!H", 0))
        text_format, one_parameter = struct.pack("!H", 0), struct.pack("!H", 1)
        bind = postgres_message(
            b"B",
            b"\0publish\0" + text_format + one_parameter + struct.pack("!I", len(encoded)) + encoded + text_format,
        )
        execute = postgres_message(b"E", b"\0" + struct.pack("!I", 0))
        selected = len(payloads) if push else 1
        return Publish(
            bind + execute + POSTGRES_SYNC,
            b"SELECT %d\0Z" % selected,
            preamble=postgres_startup() + parse + POSTGRES_SYNC,
            abort=(b"SERROR\0", b"SFATAL\0"),
        )

    def subscribe(self, channel: str) -> bytes:
        query = postgres_message(b"Q", f"listen {channel}".encode() + b"\0")
        return postgres_startup() + query


def postgres_array(items: list[str]) -> str:
    quoted = (item.replace("\\", "\\\\").replace('"', '\\"') for item in items)
    return "{" + ",".join(f'"{item}"' for item in quoted) + "}"


# --- the list ---------------------------------------------------------------

# Name on the command line: class, and the name of the process in peers.sh.
PEERS: dict[str, tuple[type[Target], str]] = {
    "redis": (Redis, "redis"),
    "redis-everysec": (RedisEverysec, "redis-everysec"),
    "redis-pubsub": (RedisPubSub, "redis-everysec"),
    "nats": (JetStream, "nats"),
    "nats-core": (NatsCore, "nats"),
    "nchan": (Nchan, "nchan"),
    "postgres": (Postgres, "postgres"),
}


def open_peer(name: str, folder: Path) -> Target:
    """The peer that peers.sh started; raises OSError if it is not running."""
    kind, process = PEERS[name]
    port = int((folder / f"{process}.port").read_text())
    pid = int((folder / f"{process}.pid").read_text())
    with socket.create_connection(("127.0.0.1", port), SOCKET_TIMEOUT):
        return kind(name, port, pid)
