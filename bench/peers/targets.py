"""The requests of a system, as bytes on a socket; this project's are here, and those of its peers in peers.py.

One class per system builds the bytes to publish a batch and to subscribe, and
resets the system. The module measures nothing: load.c, sink.c and latency.py
send the bytes.

Standard library only: without a client library, none is measured.
"""

from __future__ import annotations

import json
import struct
import urllib.parse
from dataclasses import dataclass

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
