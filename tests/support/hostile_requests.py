"""Requests that are nearly right, as strategies of Hypothesis: for every address, over HTTP and over Connect."""

from __future__ import annotations

import gzip
import json
import re
import struct
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from datasette_pubsub.gen.db_pb2 import AckRequest, PublishBatchRequest, PublishItem, SubscribeRequest

#: A body over this is refused, so that going over it is cheap.
MAX_BODY_BYTES = 64 * 1024


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
