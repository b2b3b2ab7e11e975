"""What the HTTP and Connect edges refuse, and how they say so: text, numbers, methods, sizes."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from servers import OPEN, Server, Sse

from datasette_pubsub.core.errors import InvalidArgument
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.core.validation import check_item, check_items
from datasette_pubsub.core.values import Item
from datasette_pubsub.protocol.items import items_of_json

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
CONNECT = {"Content-Type": "application/connect+json"}

#: Publishes that are refused, and the field that the error names.
REFUSED = [
    ('{"channel": "c", "payload": {"temperature": NaN}}', "payload"),
    ('{"channel": "c", "payload": {"x": 1e400}}', "payload"),
    ('{"channel": "c", "payload": [[{"deep": [1, -1e400]}]]}', "payload"),
    ('{"channel": "c", "payload": {"a": NaN, "b": -Infinity}}', "payload"),
    ('{"channel": "c", "payload": 1e400}', "payload"),
    ('{"channel": "c", "payload": -1e400}', "payload"),
    ('{"channel": "c", "payload": NaN}', "payload"),
    ('{"items": [{"channel": "c", "payload": 1}, {"channel": "c", "payload": [Infinity]}]}', "items[1].payload"),
    ('{"channel": "\\ud800", "payload": "x"}', "channel"),
    ('{"channel": "c", "payload": "\\udfff"}', "payload"),
    ('{"channel": "c", "payload": {"\\ud800": 1}}', "payload"),
    ('{"channel": "c", "payload": ["\\ud83d"]}', "payload"),
    ('{"channel": "c", "payload": "x", "key": "\\ude00"}', "key"),
    ('{"items": [{"channel": "c", "payload": 1}, {"channel": "\\ud800", "payload": 1}]}', "items[1].channel"),
]


def enveloped(body: str | bytes) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    return struct.pack(">BI", 0, len(data)) + data


def frames(body: bytes) -> Iterator[dict[str, Any]]:
    while body:
        size = int.from_bytes(body[1:5], "big")
        yield json.loads(body[5 : 5 + size] or b"{}")
        body = body[5 + size :]


def count(server: Server) -> int:
    found = server.rows("SELECT count(*) FROM sqlite_master WHERE name = 'vpubsub'")
    return int(server.rows("SELECT count(*) FROM vpubsub")[0][0]) if found[0][0] else 0


def test_numbers_and_text_that_json_or_utf8_do_not_have(serve: Callable[..., Server]) -> None:
    server = serve()
    for body, field in REFUSED:
        answer = httpx.post(f"{server.pubsub}/-/publish", content=body, headers=JSON)
        assert answer.status_code == 400, (body, answer.text)
        assert answer.json()["field"] == field, body
        assert answer.json()["error"].startswith(f"{field} holds "), body
    # Each line of a publish stream is refused by itself, and what stands between is published.
    lines = [line for body, _ in REFUSED for line in (body, '{"channel": "c", "payload": "good"}')]
    answer = httpx.post(f"{server.pubsub}/-/publish", content="\n".join(lines), headers=NDJSON)
    answers = [json.loads(line) for line in answer.text.splitlines()]
    for (body, field), refused, good in zip(REFUSED, answers[::2], answers[1::2], strict=True):
        assert (refused["ok"], refused["status"], refused["field"]) == (False, 400, field), body
        assert good["ok"], body
    assert count(server) == len(REFUSED)
    # What is a number or text of JSON is not touched.
    server.publish(channel="e", payload={"big": 1e300, "pair": "\U0001f600", "half": "\\ud800"})
    with Sse(f"{server.pubsub}/-/stream", channel="e", start="earliest") as reader:
        [message] = reader.messages(1)
    assert json.loads(message["payload"]) == {"big": 1e300, "pair": "\U0001f600", "half": "\\ud800"}


def test_half_surrogates_elsewhere(serve: Callable[..., Server]) -> None:
    server = serve()
    half = "\\ud800"
    bodies: dict[str, list[tuple[dict[str, Any], str]]] = {
        "/-/ack": [({"subscription": half, "message_id": 1}, "subscription")],
        "/-/subscriptions/delete": [
            ({"subscription": half}, "subscription"),
            ({"subscription": "a", "owner": half}, "owner"),
        ],
    }
    for path, cases in bodies.items():
        for fields, field in cases:
            text = json.dumps(fields).replace("\\\\", "\\")
            answer = httpx.post(server.pubsub + path, content=text, headers=JSON)
            assert (answer.status_code, answer.json()["field"]) == (400, field), (path, text, answer.text)
    # Over Connect: unary, streams, and a field's name.
    rpc = f"{server.url}/db.v1.DbService"
    unary = [
        ("PublishBatch", '{"dbName": "data", "items": [{"channel": "%s", "payload": "x"}]}', "channel"),
        ("PublishBatch", '{"dbName": "data", "items": [{"channel": "c", "payload": "%s"}]}', "payload"),
        ("PublishBatch", '{"dbName": "data", "items": [{"channel": "c", "payload": "x", "key": "%s"}]}', "key"),
        ("PublishBatch", '{"dbName": "data", "%s": 1}', "name of a field"),
        ("Ack", '{"dbName": "data", "subscriptionName": "%s", "messageId": "1"}', "subscriptionName"),
    ]
    for method, body, field in unary:
        answer = httpx.post(f"{rpc}/{method}", content=body % half, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument"), (body, answer.text)
        assert field in answer.json()["message"], body
        assert "SystemError" not in answer.text
    streams = [
        ("Subscribe", '{"dbName": "data", "channel": "%s"}', "channel"),
        ("Subscribe", '{"dbName": "data", "patterns": ["%s"]}', "patterns"),
        ("Subscribe", '{"dbName": "data", "channel": "c", "subscriptionName": "%s"}', "subscriptionName"),
        ("PublishStream", '{"dbName": "data", "items": [{"channel": "%s", "payload": "x"}]}', "channel"),
    ]
    for method, body, field in streams:
        answer = httpx.post(f"{rpc}/{method}", content=enveloped(body % half), headers=CONNECT)
        [end] = frames(answer.content)
        assert end["error"]["code"] == "invalid_argument", (body, end)
        assert field in end["error"]["message"], body
    # In a form and in a query string they are bytes, as others that are no text.
    for wrong in ("%ED%A0%80", "%FF", "a%C3"):
        form = httpx.post(
            f"{server.pubsub}/-/publish-form",
            content=f"channel={wrong}&payload=x",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert form.status_code == 400, wrong
        queries = {
            f"/-/stream?channel={wrong}": "channel",
            f"/-/stream?pattern={wrong}": "pattern",
            f"/-/stream?channel=c&subscription={wrong}": "subscription",
            f"/-/messages.json?q={wrong}": "q",
            f"/-/messages.csv?channel={wrong}": "channel",
            f"/-/snapshot.json?sql=select+:a&a={wrong}": "a",
            f"/-/subscriptions.json?owner={wrong}": "owner",
        }
        for path, field in queries.items():
            answer = httpx.get(server.pubsub + path)
            assert (answer.status_code, answer.json()["field"]) == (400, field), path
            assert f"query parameter {field} is not UTF-8" in answer.json()["error"]
        for path in (f"?q={wrong}", f"/-/publish-form?channel={wrong}", f"/-/subscriptions?delete={wrong}"):
            answer = httpx.get(server.pubsub + path)
            assert answer.status_code == 400, path
            assert "is not UTF-8" in answer.text
    assert count(server) == 0
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name = 'pubsub_subscriptions'") in ([(0,)], [(1,)])
    assert httpx.get(f"{server.pubsub}/-/messages.json", params={"q": "ü+ %"}).status_code == 200


@pytest.mark.parametrize("payload", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_whoever_publishes(payload: float) -> None:
    with pytest.raises(InvalidArgument, match=r"payload holds a number that JSON does not have"):
        check_item(Item("c", payload), Settings())
    with pytest.raises(InvalidArgument):
        check_items([Item("c", "x"), Item("c", payload)], Settings())


def test_ordinary_numbers_pass() -> None:
    [item] = items_of_json(b'{"channel": "c", "payload": [1e308, -0.5, 12345678901234567890]}', "the body")
    assert item.payload == "[1e+308,-0.5,12345678901234567890]"
    [item] = items_of_json(b'{"channel": "c", "payload": 1.5}', "the body")
    assert item.payload == 1.5


READ = ("GET", "HEAD")
FORM = ("GET", "HEAD", "POST")
WRITE = ("POST",)

#: What each address answers.
METHODS = {
    "/data/-/pubsub": READ,
    "/data/-/pubsub/c": READ,
    "/data/-/pubsub/-/stream?channel=c": (*READ, "POST", "QUERY"),
    "/data/-/pubsub/-/live?sql=SELECT+1": (*READ, "POST", "QUERY"),
    "/data/-/pubsub/-/messages.json": READ,
    "/data/-/pubsub/-/messages.csv": READ,
    "/data/-/pubsub/-/channels.json": READ,
    "/data/-/pubsub/-/subscriptions.json": READ,
    "/data/-/pubsub/-/activity.json": READ,
    "/data/-/pubsub/-/health": READ,
    "/data/-/pubsub/-/snapshot.json?table=existing": READ,
    "/data/-/pubsub/-/queries": READ,
    "/data/-/pubsub/-/queries.json": READ,
    "/data/-/pubsub/-/publish-form": FORM,
    "/data/-/pubsub/-/subscriptions": FORM,
    "/data/existing/-/broadcast": FORM,
    "/data/-/pubsub/-/publish": WRITE,
    "/data/-/pubsub/-/run": WRITE,
    "/data/-/pubsub/-/ack": WRITE,
    "/data/-/pubsub/-/subscriptions/delete": WRITE,
    "/db.v1.DbService/PublishBatch": WRITE,
    "/db.v1.DbService/PublishStream": WRITE,
    "/db.v1.DbService/Subscribe": WRITE,
    "/db.v1.DbService/LiveQuery": WRITE,
    "/db.v1.DbService/Ack": WRITE,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": WRITE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": WRITE,
}


def test_methods(serve: Callable[..., Server]) -> None:
    server = serve(config={"permissions": {"publish-message": True, "alter-table": True}})
    server.publish(channel="c", payload="x")
    for path, answered in METHODS.items():
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "PROPFIND", "QUERY"):
            if method in answered:
                continue
            answer = httpx.request(method, server.url + path)
            assert answer.status_code == 405, (method, path)
            allow = {each.strip() for each in answer.headers["Allow"].split(",")}
            assert allow == set(answered), (method, path)
            assert method != "HEAD" or not answer.content
        if "HEAD" in answered:
            head = httpx.head(server.url + path)
            assert (head.status_code, head.content) == (200, b""), path
            if "/-/stream" not in path and "/-/live" not in path:
                assert head.headers["Content-Type"] == httpx.get(server.url + path).headers["Content-Type"], path
    # HEAD is refused as GET is.
    for path in ("/nothing/-/pubsub", "/nothing/-/pubsub/-/channels.json", "/data/-/pubsub/-/messages.json?limit=0"):
        answers = [httpx.request(method, server.url + path) for method in ("GET", "HEAD")]
        assert answers[0].status_code == answers[1].status_code >= 400, path
    # curl -T sends a publish stream with PUT; without one, PUT is refused as all else.
    assert httpx.put(f"{server.pubsub}/-/publish", content='{"channel":"c","payload":"y"}', headers=NDJSON).json()["ok"]
    refused = httpx.get(f"{server.pubsub}/-/publish", headers=NDJSON)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST, PUT")
    # The health check publishes to a channel of its own.
    assert server.rows("SELECT count(*) FROM vpubsub WHERE channel = 'c'") == [(2,)]


def test_every_route_is_asked_for_its_methods() -> None:
    import re

    from datasette_pubsub.hooks import ROUTES

    for pattern, view in ROUTES:
        assert any(re.match(pattern, path.partition("?")[0]) for path in METHODS), f"{pattern} of {view} is not tested"


def test_the_limit_of_a_database_holds_over_connect(serve: Callable[..., Server]) -> None:
    """One database takes less than the instance, one takes more, and one has the instance's own limit."""
    plugin = "datasette-pubsub"
    server = serve(
        databases=["data", "large", "other"],
        config={
            **OPEN,
            "plugins": {plugin: {"max_body_bytes": 200_000, "max_payload_bytes": 1_000_000}},
            "databases": {
                "data": {"plugins": {plugin: {"max_body_bytes": 3000}}},
                "large": {"plugins": {plugin: {"max_body_bytes": 500_000}}},
            },
        },
    )
    rpc = f"{server.url}/db.v1.DbService"
    for name, limit in {"data": 3000, "large": 500_000, "other": 200_000}.items():
        told = f"over the limit of {limit} bytes (max_body_bytes)"
        for size, taken in ((limit - 200, True), (limit + 200, False)):
            item = {"channel": "c", "payload": "x" * size}
            plain = httpx.post(f"{server.url}/{name}/-/pubsub/-/publish", json=item)
            assert plain.status_code == (200 if taken else 413), (name, size, plain.text)
            body = json.dumps({"dbName": name, "items": [item]}).encode()
            for packed, more in ((body, {}), (gzip.compress(body), {"Content-Encoding": "gzip"})):
                batch = httpx.post(f"{rpc}/PublishBatch", content=packed, headers={**JSON, **more})
                assert (batch.status_code == 200) is taken, (name, size, batch.text)
                if not taken:
                    assert batch.json()["code"] == "resource_exhausted"
                    # What is over the largest limit of all is not unpacked to its end.
                    assert told in batch.json()["message"] or (more and name == "large"), batch.text
                    assert "max_body_bytes" in batch.json()["message"]
            if not taken:
                assert (plain.json()["limit"], told in plain.json()["error"]) == ("max_body_bytes", True)
            stream = httpx.post(f"{rpc}/PublishStream", content=enveloped(body), headers=CONNECT)
            answer = next(frames(stream.content))
            if taken:
                assert "messageIds" in answer, (name, size, answer)
            else:
                assert answer["error"]["code"] == "resource_exhausted"
                assert told in answer["error"]["message"], answer
    # In a stream, a request over its database's limit is refused by itself.
    bodies = [{"dbName": "data", "items": [{"channel": "s", "payload": "x" * size}]} for size in (10, 5000, 10)]
    sent = b"".join(enveloped(json.dumps(body)) for body in bodies)
    first, second, third, end = frames(httpx.post(f"{rpc}/PublishStream", content=sent, headers=CONNECT).content)
    assert ("messageIds" in first, "messageIds" in third, end) == (True, True, {})
    assert (second["request"], second["error"]["code"]) == ("2", "resource_exhausted")
    assert "over the limit of 3000 bytes (max_body_bytes)" in second["error"]["message"]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
def test_readers_of_lines_get_whole_messages(serve: Callable[..., Server], end: str) -> None:
    """httpx's ``iter_lines``, which many programs use, divides at these characters."""
    server = serve()
    text, channel = f"one{end}two", f"marks/{end}"
    server.publish({"channel": channel, "payload": text}, {"channel": channel, "payload": {"a": text}})
    wanted = [text, json.dumps({"a": text}, ensure_ascii=False, separators=(",", ":"))]
    found: list[dict[str, Any]] = []
    url, parameters = f"{server.pubsub}/-/stream", {"pattern": "marks/*", "start": "earliest"}
    with httpx.stream("GET", url, params=parameters, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and "messageId" in line:
                found.append(json.loads(line.removeprefix("data: ")))
                if len(found) == 2:
                    break
    assert [(each["channel"], each["payload"]) for each in found] == [(channel, each) for each in wanted]
    # A publish stream answers line by line, also where an error repeats what was sent.
    lines = json.dumps({"channel": "c", "payload": "x", f"odd{end}": 1}) + '\n{"channel": "c", "payload": "y"}\n'
    first, second = httpx.post(f"{server.pubsub}/-/publish", content=lines, headers=NDJSON).text.splitlines()
    assert f"odd{end} is not a field" in json.loads(first)["error"]
    assert json.loads(second)["ok"]
    for path in ("messages.json", "channels.json"):
        answer = httpx.get(f"{server.pubsub}/-/{path}")
        assert len(answer.text.splitlines()) == 1
        assert channel in json.dumps(answer.json(), ensure_ascii=False)
