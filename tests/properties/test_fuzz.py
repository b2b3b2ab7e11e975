"""Whatever is thrown at any address: an answer with a clear error, no leak, no dead stream, and the server goes on.

A small budget runs with every test run, always with the same examples; the long one (``pytest -m slow``)
draws new ones each time.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import re
import socket
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from raw import RawConnect
from servers import DEADLINE, OPEN, Server, Sse, wait_for

from datasette_pubsub.gen.db_pb2 import AckRequest, PublishBatchRequest, PublishItem, SubscribeRequest

#: Examples for each area: with every run, and with ``-m slow``.
SHORT, LONG = 60, 5_000

#: Few enough that all can be opened at once: a stream that is left over by the fuzzing is then one too many.
MAX_STREAMS = 40

#: A body over this is refused, so that going over it is cheap.
MAX_BODY_BYTES = 64 * 1024

CONFIG = {
    **OPEN,
    "settings": {"sql_time_limit_ms": 50},
    "plugins": {
        "datasette-pubsub": {
            "max_streams": MAX_STREAMS,
            "max_body_bytes": MAX_BODY_BYTES,
            "max_payload_bytes": 16 * 1024,
            "max_snapshot_rows": 100,
            "tail_bytes": 1024 * 1024,
            "max_send_bytes": 64 * 1024,
            "max_pending_bytes": 1024 * 1024,
        }
    },
}

#: How much the server may have grown afterwards, in bytes: its bounded buffers, SQLite's caches of a few
#: connections, and a heap with holes. A leak of one body for each example would be more.
MAX_GROWTH = 96 * 1024 * 1024

#: What an answer must not hold. Words of ours that a caller may send, too, are not in it.
#: How what gzip has packed begins.
GZIP = b"\x1f\x8b"
LEAKS = re.compile(rb"Traceback|site-packages|sqlite3\.|\.py\b|line \d+, in |datasette_pubsub[./]|0x[0-9a-f]{8,}")
SQL = re.compile(rb"INSERT INTO|CREATE TABLE|FROM pubsub_|PRAGMA|BEGIN IMMEDIATE|SQL logic")

#: Rows that another program has left in the log: what no edge would accept.
#: The channel that is not UTF-8 is from before the log refused such: its guard is away for a moment.
HOSTILE_ROWS = """
INSERT INTO vpubsub (channel, payload) VALUES
    ('a', CAST(x'ff00fe' AS TEXT)), ('a', CAST(x'eda080' AS TEXT)), ('a', x'00ff'), ('a', 9e999), ('a', ''),
    ('<script>alert(1)</script>', '<img src=x onerror=alert(1)>'), (CAST(x'c328' AS TEXT), 'bad channel'),
    ('..', '../../etc/passwd'), ('a' || char(0x202e) || 'b', char(0x202e, 7, 27) || '[31m'), ('-/stream', 'x'),
    ('a' || char(10) || 'b', 'id: 1' || char(10, 10) || 'data: forged'), ('a', char(13) || 'event: bye' || char(13, 13))
"""


@dataclass(frozen=True)
class Ask:
    """One request, byte for byte."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    #: The SQL of the caller's own may come back to it.
    has_sql: bool = False

    def wire(self) -> bytes:
        head = self.method.encode() + b" " + self.target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        length = b"Content-Length: %d\r\n" % len(self.body) if self.body or self.method == "POST" else b""
        return head + length + b"".join(b"%s: %s\r\n" % pair for pair in self.headers) + b"\r\n" + self.body


# -- strategies --------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "orders", "user/1", "s", "*", "", "..", "-/", "%", "é", "a\0b", "\ud800", "\u202e"])
TEXTS = st.one_of(
    NAMES,
    st.text(max_size=20),
    st.text(alphabet=st.characters(), max_size=20),
    st.integers(1, 400).map("x".__mul__),
    st.sampled_from(["[" * 300, "[a", "[^", "[]-a]", "a" * 20_000, "2026-01-31T12:00:00Z", "99999-01-01", "-1", "1e3"]),
)
NUMBERS = st.one_of(
    st.integers(-2, 30),
    st.sampled_from([2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400]),
    st.floats(),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "channel",
        "payload",
        "blob",
        "key",
        "expected_last_id",
        "expectedLastId",
        "items",
        "subscription",
        "message_id",
        "dbName",
        "db_name",
        "subscriptionName",
        "channels",
        "patterns",
        "start",
        "after",
        "since",
        "ackMode",
        "lastMessageId",
        "heartbeatSeconds",
        "status",
        "messageId",
        "",
        "@type",
    ]
)


@st.composite
def near(draw: Any, valid: Any) -> Any:
    """A valid value with a few parts of it exchanged, added or taken away."""
    value = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(0, 3))):
        value = _changed(draw, value)
    return value


def _changed(draw: Any, value: Any) -> Any:
    what = draw(st.integers(0, 4))
    if isinstance(value, dict) and what < 4:
        found = dict(value)
        if what == 0 or not found:
            found[draw(FIELDS)] = draw(VALUES)
        elif what == 1:
            del found[draw(st.sampled_from(sorted(found)))]
        else:
            name = draw(st.sampled_from(sorted(found)))
            found[name] = _changed(draw, found[name])
        return found
    if isinstance(value, list) and value and what < 4:
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _changed(draw, value[place]), *value[place:]][: draw(st.integers(0, 9))]
    return draw(VALUES)


@st.composite
def scratched(draw: Any, data: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with a few of them exchanged, or cut short, or with more behind them."""
    found = bytearray(draw(data))
    for _ in range(draw(st.integers(0, 3))):
        match draw(st.integers(0, 3)):
            case 0 if found:
                found[draw(st.integers(0, len(found) - 1))] = draw(st.integers(0, 255))
            case 1:
                del found[draw(st.integers(0, len(found))) :]
            case 2:
                found += draw(st.binary(max_size=8))
            case _:
                place = draw(st.integers(0, len(found)))
                found[place:place] = draw(st.binary(max_size=8))
    return bytes(found)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def bodies(valid: Any) -> st.SearchStrategy[bytes]:
    """JSON bodies: near a valid one mostly, and anything else."""
    deep = st.builds(
        lambda depth, open_, close: b'{"channel": "a", "payload": ' + open_ * depth + b"1" + close * depth + b"}",
        st.sampled_from([10, 100, 400, 900, 970, 985, 995, 1_000, 5_000, 20_000]),
        *[st.just(b"["), st.just(b"]")],
    )
    return st.one_of(
        near(valid).map(_dumped),
        near(valid).map(_dumped),
        scratched(near(valid).map(_dumped)),
        VALUES.map(_dumped),
        st.binary(max_size=200),
        deep,
        st.sampled_from([b" " * (MAX_BODY_BYTES + 1), b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"1" * 5_000]),
    )


#: Header values as bytes; a line's end would begin another header, which is the server's affair.
HEADER_BYTES = st.binary(max_size=30).map(lambda data: re.sub(rb"[\r\n\0]", b"", data))
HEADER_VALUES = st.one_of(
    HEADER_BYTES, st.sampled_from([b"gzip", b"identity", b"deflate, gzip", b"1", b"-1", b"9" * 30])
)
CONTENT_TYPES = st.one_of(
    st.just(b"application/json"),
    st.just(b"application/json"),
    st.just(b"application/json; charset=utf-8"),
    st.sampled_from(
        [
            b"application/connect+json",
            b"application/connect+proto",
            b"application/proto",
            b"text/plain",
            b"",
            b"application/x-www-form-urlencoded",
            b"multipart/form-data",
            b"application/grpc",
            b"application/grpc-web+proto",
        ]
    ),
    HEADER_BYTES,
)


@st.composite
def headers(draw: Any, content_types: st.SearchStrategy[bytes] = CONTENT_TYPES) -> tuple[tuple[bytes, bytes], ...]:
    found = [(b"Content-Type", draw(content_types))]
    names = [
        b"Content-Encoding",
        b"Last-Event-ID",
        b"Accept",
        b"Accept-Encoding",
        b"Connect-Protocol-Version",
        b"Cookie",
    ]
    names += [b"Connect-Content-Encoding", b"Connect-Accept-Encoding", b"Authorization", b"X-Forwarded-For", b"Origin"]
    for name in draw(st.lists(st.sampled_from(names), max_size=2) if draw(st.booleans()) else st.just([])):
        found.append((name, draw(HEADER_VALUES)))
    return tuple(found)


PARTS = st.one_of(
    st.sampled_from([b"a", b"1", b"0", b"%", b"%0", b"%00", b"%ff", b"%ED%A0%80", b"%zz", b"~", b"~ff", b"~ED~A0~80"]),
    st.sampled_from(
        [b"%u0041", b"+", b"%2F", b"%2e%2e", b"..", b"\xff", b"\xc3", "é".encode(), b";", b"=", b"&", b"a[]"]
    ),
    st.sampled_from(
        [b"earliest", b"latest", b"9" * 19, b"9" * 400, b"s" * 300, b"2026-01-31T12:00:00Z", b"explicit", b"raw"]
    ),
    st.binary(min_size=1, max_size=4).map(lambda data: re.sub(rb"[\r\n\0 \t#?]", b"_", data)),
)
QUERY_VALUES = st.lists(PARTS, max_size=2).map(b"".join)


def queries(*names: bytes) -> st.SearchStrategy[bytes]:
    pair = st.tuples(st.sampled_from([*names, b"x"]), QUERY_VALUES).map(b"=".join)
    return st.lists(st.one_of(pair, pair, pair, QUERY_VALUES), max_size=5).map(b"&".join)


BASE = b"/data/-/pubsub"
PUBLISH = {"items": [{"channel": "a", "payload": "x", "key": "k"}, {"channel": "b", "blob": "AAE="}]}


def posts(path: bytes, *valid: Any) -> st.SearchStrategy[Ask]:
    body = st.one_of(*[bodies(one) for one in valid])
    return st.builds(lambda h, b: Ask("POST", BASE + path, h, b), headers(), body)


SNAPSHOT_SQL = st.sampled_from(
    [
        "select 1",
        "select :x",
        "select 9e999, -9e999",
        "select cast(x'ff' as text)",
        "select x'ff'",
        "select char(0)",
        "select * from nothing",
        "select",
        "delete from existing",
        "select 1; select 2",
        "select 1 as a, 2 as a",
        "selec",
        "with recursive c(n) as (select 1 union all select n + 1 from c) select max(n) from c",
        "pragma table_info(existing)",
        "with recursive c(n) as (select 1 union all select n + 1 from c limit 200) select n from c",
        "select ?",
        "select ?2",
        "select publish_batch('a', 'x')",
        "select publish_batch('', null)",
        "select randomblob(-1)",
        "explain select 1",
        "select load_extension('x')",
        "select zeroblob(2000000000)",
        "select '\ud800'",
        "select 1 --\0",
        "/* */ select 1",
        "select json('{')",
        "select abs(-9223372036854775808)",
    ]
)

HTTP = st.one_of(
    posts(b"/-/publish", PUBLISH, {"channel": "a", "payload": {"n": 1}}),
    posts(b"/-/publish", PUBLISH),
    posts(b"/-/ack", {"subscription": "s", "message_id": 1}),
    posts(b"/-/subscriptions/delete", {"subscription": "s"}),
    st.builds(
        lambda path, query: Ask("GET", BASE + path + b"?" + query),
        st.sampled_from([b"/-/channels.json", b"/-/subscriptions.json", b"/-/snapshot.json"]),
        queries(b"table", b"sql"),
    ),
    st.builds(
        lambda sql, query: Ask("GET", BASE + b"/-/snapshot.json?sql=" + _percent(sql) + b"&" + query, has_sql=True),
        SNAPSHOT_SQL,
        queries(b"x", b"1", b":x"),
    ),
    st.builds(
        lambda method, path: Ask(method, path),
        st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"]),
        st.sampled_from([b"/-/publish", b"/-/ack", b"/-/channels.json", b"/-/snapshot.json"]).map(BASE.__add__),
    ),
)

STREAMS = st.builds(
    lambda query, last, kind: Ask(
        kind,
        BASE + b"/-/stream?" + query,
        ((b"Last-Event-ID", last),) if last is not None else (),
    ),
    st.one_of(
        queries(
            b"channel", b"pattern", b"subscription", b"after", b"start", b"since", b"ack", b"format", b"last_event_id"
        ),
        st.builds(
            lambda query: b"channel=a&" + query,
            queries(b"pattern", b"subscription", b"after", b"start", b"since", b"ack", b"format", b"last_event_id"),
        ),
    ),
    st.one_of(st.none(), st.none(), HEADER_VALUES, st.integers(0, 2**64).map(lambda number: b"%d" % number)),
    st.sampled_from(["GET", "GET", "GET", "HEAD"]),
)

PAGES = st.builds(
    lambda database, channel, query: Ask("GET", b"/" + database + b"/-/pubsub" + channel + b"?" + query),
    # Without a name, Datasette's own router fails.
    st.one_of(st.just(b"data"), st.just(b"data"), QUERY_VALUES.filter(bool)),
    st.one_of(
        st.just(b""),
        st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: b"/" + b"".join(parts)),
        st.sampled_from([b"/~3Cscript~3E", b"/~C3~28", b"/a~00", b"/-~2Fstream", b"/..", b"/a/b/c", b"/" + b"a" * 300]),
    ),
    queries(b"before", b"_shape", b"_sort", b"channel"),
)


def _percent(text: str) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in text.encode("utf-8", "surrogatepass"))


SUBSCRIBE = {"dbName": "data", "channel": "a", "status": True, "start": "START_EARLIEST", "heartbeatSeconds": 1}
BATCH = {"dbName": "data", **PUBLISH}
ACK = {"dbName": "data", "subscriptionName": "s", "messageId": "1"}
ITEMS = [PublishItem(channel="a", payload="x", key="k"), PublishItem(channel="b", blob=b"\0", expected_last_id=3)]
BINARY = {
    "PublishBatch": PublishBatchRequest(db_name="data", items=ITEMS).SerializeToString(),
    "Ack": AckRequest(db_name="data", subscription_name="s", message_id=1).SerializeToString(),
    "Subscribe": SubscribeRequest(db_name="data", channel="a", patterns=["b*"], status=True).SerializeToString(),
}
AS_JSON = {"PublishBatch": BATCH, "Ack": ACK, "Subscribe": SUBSCRIBE}
BOMB = gzip.compress(b" " * (200 * MAX_BODY_BYTES))
METHODS = st.sampled_from(["PublishBatch", "Ack", "Subscribe"])


@st.composite
def connect_messages(draw: Any, method: str) -> tuple[bytes, bool]:
    """One message of a method, and whether it is JSON."""
    if draw(st.booleans()):
        return draw(bodies(AS_JSON[method])), True
    return draw(st.one_of(scratched(st.just(BINARY[method])), st.binary(max_size=60))), False


@st.composite
def unary(draw: Any) -> Ask:
    method = draw(METHODS)
    body, as_json = draw(connect_messages(method))
    sent = [*draw(headers(st.just(b"application/json" if as_json else b"application/proto") | CONTENT_TYPES))]
    match draw(st.integers(0, 5)):
        case 0:
            body = gzip.compress(body)
            sent.append((b"Content-Encoding", b"gzip"))
        case 1:
            body = draw(scratched(st.sampled_from([gzip.compress(body), BOMB])))
            sent.append((b"Content-Encoding", b"gzip"))
    return Ask("POST", b"/db.v1.DbService/" + method.encode(), tuple(sent), body)


@st.composite
def enveloped(draw: Any) -> Ask:
    """Envelopes of a stream: flags, lengths and contents that do not agree."""
    method = draw(st.sampled_from(["Subscribe", "Subscribe", "Subscribe", "PublishBatch", "Ack"]))
    parts = []
    as_json = True
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 0, 2, 3, 50]))):
        data, as_json = draw(connect_messages(method))
        flags = draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3, 128, 255]))
        if flags & 1 and draw(st.booleans()):
            data = draw(st.sampled_from([gzip.compress(data), BOMB, gzip.compress(data)[:-4], b""]))
        length = draw(st.sampled_from([len(data)] * 5 + [0, 1, max(0, len(data) - 1), len(data) + 1, 2**31, 2**32 - 1]))
        parts.append(struct.pack(">BI", flags, length) + data)
    body = b"".join(parts)
    if draw(st.integers(0, 4)) == 0:
        body = draw(scratched(st.just(body)))
    kind = b"json" if as_json else b"proto"
    types = st.sampled_from(
        [b"application/connect+", b"application/connect+", b"application/grpc-web+", b"application/grpc+"]
    )
    sent = [*draw(headers(types.map(lambda prefix: prefix + kind)))]
    # The stream ends by itself, so that its end can be looked at.
    sent.append((b"Connect-Timeout-Ms", draw(st.sampled_from([b"20", b"20", b"20", b"0", b"-1", b"x", b"9" * 20]))))
    if draw(st.booleans()):
        sent.append((b"Connect-Content-Encoding", draw(st.sampled_from([b"gzip", b"identity", b"br", b""]))))
    return Ask("POST", b"/db.v1.DbService/" + method.encode(), tuple(sent), body)


AREAS: dict[str, st.SearchStrategy[Ask]] = {
    "http": HTTP,
    "streams": STREAMS,
    "pages": PAGES,
    "connect": unary(),
    "envelopes": enveloped(),
}


# -- what must hold ----------------------------------------------------------


def send(server: Server, ask: Ask) -> tuple[int, str, bytes]:
    """The status, the content type and the body; of a stream that goes on, only its first part."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as sock:
        # A refusal may come before the body has been taken.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(ask.wire())
        response = http.client.HTTPResponse(sock, method=ask.method)
        response.begin()
        kind = response.getheader("content-type", "")
        if kind.startswith("text/event-stream") and ask.method != "HEAD":
            return response.status, kind, response.read1(1 << 16)
        timeout = dict(ask.headers).get(b"Connect-Timeout-Ms")
        if response.status == 200 and "+" in kind and ("grpc" in kind or timeout != b"20"):
            # Endless, or at its end already: which of both is not known from here.
            return response.status, kind, b""
        return response.status, kind, response.read()


def check(server: Server, ask: Ask) -> None:
    status, kind, body = send(server, ask)
    # 501 is how Connect says that it does not know a compression.
    assert status < 500 or status in (501, 503), (ask, status, body)
    if body.startswith(GZIP):
        # Asked for, by Accept-Encoding.
        body = gzip.decompress(body)
    assert str(server.folder.parent).encode() not in body, (ask, body)
    told = json.loads(body, parse_constant=_refuse) if kind.startswith("application/json") and body else None
    if status == 503:
        assert isinstance(told, dict), (ask, body)
        assert told.get("code") == "unavailable" or (told["ok"], told["status"]) == (False, 503), (ask, body)
    if status >= 400:
        assert not LEAKS.search(body), (ask, body)
        assert ask.has_sql or not SQL.search(body), (ask, body)
    if "connect+" in kind:
        assert b'"code": "internal"' not in body or b"compress" in body, (ask, body)
    assert b"internal error" not in body, (ask, body)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def resident(server: Server) -> int:
    """The memory of the server, in bytes."""
    assert server.process is not None
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def room_for_streams(server: Server, expected: int) -> bool:
    """Whether so many further streams can be open at once."""
    with contextlib.ExitStack() as opened, httpx.Client(timeout=DEADLINE) as client:
        for _ in range(expected):
            url = f"{server.pubsub}/-/stream?channel=room"
            response = opened.enter_context(client.stream("GET", url))
            if response.status_code == 429:
                return False
            assert response.status_code == 200
        return True


def fuzz(server: Server, area: str, examples: int, always_the_same: bool) -> None:
    profile = settings(
        max_examples=examples,
        derandomize=always_the_same,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )

    @profile
    @given(AREAS[area])
    def attack(ask: Ask) -> None:
        check(server, ask)

    attack()


def run(serve: Callable[..., Server], tmp_path: Path, examples: int, always_the_same: bool, areas: list[str]) -> None:
    # Where rich is installed, as by our tools, Datasette 1.0a41 answers 500 for an address without a route.
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "without_rich.py").write_text("from datasette import handle_exception\n\nhandle_exception.rich = None\n")
    server = serve(config=CONFIG, options=["--plugins-dir", str(plugins)])
    server.publish(channel="canary", payload="first")
    with contextlib.closing(sqlite3.connect(server.path, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        (guard,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'vpubsub_guard'").fetchone()
        conn.execute("DROP TRIGGER vpubsub_guard")
        conn.execute(HOSTILE_ROWS)
        conn.execute(guard)
        conn.execute("COMMIT")
    for area in areas:
        # What is used the first time is loaded and cached now.
        fuzz(server, area, 20, True)
    before = resident(server)
    with Sse(f"{server.pubsub}/-/stream", channel="canary") as events:
        rpc = RawConnect(server, channel="canary")
        try:
            events.until("ready")
            rpc.until(lambda: rpc.ready, "ready", DEADLINE)
            for area in areas:
                fuzz(server, area, examples, always_the_same)
            (last,) = server.publish(channel="canary", payload="the server goes on")
            assert events.messages(1)[0]["messageId"] == str(last)
            rpc.until(lambda: rpc.last == last, "the message", DEADLINE)
            wait_for(lambda: room_for_streams(server, MAX_STREAMS - 2), "no stream is left over")
        finally:
            rpc.close()
    growth = resident(server) - before
    assert growth < MAX_GROWTH, f"{growth / 1024 / 1024:.0f} MiB"
    server.stop()
    assert "Traceback" not in server.log
    assert "internal error" not in server.log


@pytest.mark.parametrize("area", AREAS)
def test_a_small_budget(serve: Callable[..., Server], tmp_path: Path, area: str) -> None:
    run(serve, tmp_path, SHORT, True, [area])


@pytest.mark.slow
def test_a_large_budget(serve: Callable[..., Server], tmp_path: Path) -> None:
    run(serve, tmp_path, LONG, False, list(AREAS))
