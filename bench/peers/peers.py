"""The peers: nchan, Redis, NATS and PostgreSQL, and how each publishes and subscribes (see targets.py)."""

from __future__ import annotations

import json
import socket
import struct
import time
from pathlib import Path
from typing import Any

from targets import CONNECTION_NUMBER, HTTP_REFUSALS, SOCKET_TIMEOUT, Publish, Target, http_request


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
