"""gRPC server reflection: tools that know nothing of the service call it."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from connectrpc.errors import ConnectError
from doc_pages import BLOCK, DOCS
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from node_packages import _run, prepared
from protobuf import _codegen
from servers import Server

from datasette_pubsub.compat import descriptors
from datasette_pubsub.gen import db_pb2
from datasette_pubsub.http.request import SMALL_BODY_BYTES
from datasette_pubsub.rpc import call, reflection

SERVICES = [
    "db.v1.DbService",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
]
METHODS = [method.name for method in db_pb2.DESCRIPTOR.services_by_name["DbService"].methods]


@pytest.fixture(scope="module")
def buf() -> str:
    return str(prepared("v2") / "node_modules" / ".bin" / "buf")


@pytest.mark.node
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize("protocol", ["connect", "grpc", "grpcweb"])
def test_buf_curl_needs_no_file(serve: Callable[..., Server], buf: str, version: str, protocol: str) -> None:
    server = serve(http2=True)

    def curl(*more: str) -> str:
        how = ["--http2-prior-knowledge", "--reflect-protocol", f"grpc-{version}", "--protocol", protocol]
        done = subprocess.run([buf, "curl", *how, *more], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = curl("--list-methods", server.url).splitlines()
    assert {f"db.v1.DbService/{method}" for method in METHODS} <= set(listed)
    message = {"dbName": "data", "items": [{"channel": "a", "payload": "by buf"}]}
    assert json.loads(curl("-d", json.dumps(message), f"{server.url}/db.v1.DbService/PublishBatch")) == {
        "messageIds": ["1"]
    }
    assert server.rows("SELECT payload FROM vpubsub") == [("by buf",)]


@pytest.mark.node
def test_the_example(serve: Callable[..., Server]) -> None:
    server = serve(http2=True)
    ((_, code),) = [found for found in BLOCK.findall(DOCS["connect"]) if found[0] == "reflection"]
    code = code.replace("127.0.0.1:8001", f"127.0.0.1:{server.port}").replace("npx ", "npx --no ").replace("$TOKEN", "")
    output = _run(["bash", "-euc", code], prepared("v2"))
    assert output.startswith("db.v1.DbService/Ack\n")
    assert server.rows("SELECT payload FROM vpubsub") == [("one",)]


GRPCIO = """
import sys
import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

with grpc.insecure_channel(sys.argv[1]) as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    method = pool.FindServiceByName("db.v1.DbService").FindMethodByName("PublishBatch")
    Request, Response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    publish = channel.unary_unary(
        "/db.v1.DbService/PublishBatch",
        request_serializer=Request.SerializeToString, response_deserializer=Response.FromString,
    )
    found = publish(Request(db_name="data", items=[{"channel": "a", "payload": "by grpcio"}]))
    print(sorted(database.get_services()), list(found.message_ids))
"""


def test_grpcio_needs_no_file(serve: Callable[..., Server]) -> None:
    """Its client asks one thing after another in one call, and waits for each answer."""
    server = serve(http2=True)
    done = subprocess.run(
        [sys.executable, "-c", GRPCIO, f"127.0.0.1:{server.port}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == f"{SERVICES} [1]\n", done.stderr
    assert "Traceback" not in server.log


def ask(server: Server, *requests: dict[str, Any], path: str = "v1.ServerReflection/ServerReflectionInfo") -> list[Any]:
    """A whole call over HTTP/1.1, with all requests at once; the answers, and the end of the stream."""
    body = b"".join(
        struct.pack(">BI", 0, len(data)) + data for data in (json.dumps(each).encode() for each in requests)
    )
    kind = {"Content-Type": "application/connect+json"}
    answer = httpx.post(f"{server.url}/grpc.reflection.{path}", content=body, headers=kind)
    found, rest = [], answer.content
    while rest:
        (size,) = struct.unpack(">I", rest[1:5])
        found.append(json.loads(rest[5 : 5 + size]))
        rest = rest[5 + size :]
    return found


def test_over_http_1(serve: Callable[..., Server]) -> None:
    """Where a call is half-duplex. Nobody needs a permission: it tells nothing of this server."""
    server = serve(config={"allow": False})
    listed, missing, end = ask(server, {"listServices": "*"}, {"fileByFilename": "other.proto"})
    assert [each["name"] for each in listed["listServicesResponse"]["service"]] == SERVICES
    assert missing["errorResponse"]["errorMessage"] == "symbol not found"
    assert end == {}
    (wrong,) = ask(server, {})
    assert wrong["error"]["code"] == "invalid_argument"
    *_, end = ask(server, *[{"listServices": "x" * 1000}] * 100)
    assert end["error"]["code"] == "resource_exhausted"
    assert httpx.post(f"{server.url}/grpc.reflection.v2.ServerReflection/ServerReflectionInfo").status_code == 404
    assert "Traceback" not in server.log


def test_the_descriptor_is_that_of_the_file() -> None:
    serialized = db_pb2.DESCRIPTOR.serialized_pb
    found = FileDescriptorProto.FromString(descriptors.file_descriptor(serialized, reflection.FILE).proto.to_binary())
    own = FileDescriptorProto.FromString(serialized)
    assert found.name == "db/v1/db.proto"
    own.name = found.name
    assert found == own


def test_without_what_is_undocumented_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(reflection._applications()) == ["v1", "v1alpha"]
    # What is loaded by now no longer needs it.
    monkeypatch.delattr(_codegen, "file_desc")
    assert descriptors.file_descriptor(db_pb2.DESCRIPTOR.serialized_pb, "x") is None
    assert reflection._applications() == {}


def test_it_is_loaded_when_it_is_asked_for() -> None:
    code = "import datasette_pubsub.hooks, datasette_pubsub.lazy as lazy, sys; lazy.load(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "datasette_pubsub.rpc.reflection" in loaded
    assert [name for name in loaded if "grpcreflect" in name] == []


@pytest.mark.asyncio
async def test_a_call_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody keeps one open without asking, or asks without end."""
    monkeypatch.setattr(reflection, "CALL_SECONDS", 0.05)

    async def silent() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    received = reflection._receiver(silent)
    assert await received() == {"type": "http.request", "body": b"", "more_body": False}

    async def endless() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    token = call.current.set(call.Call(None, call.Sender(None, {})))  # type: ignore[arg-type]
    monkeypatch.setattr(reflection, "CALL_SECONDS", 60)
    received = reflection._receiver(endless)
    for _ in range(SMALL_BODY_BYTES // 1000):
        await received()
    with pytest.raises(ConnectError, match=str(SMALL_BODY_BYTES)):
        await received()
    call.current.reset(token)
