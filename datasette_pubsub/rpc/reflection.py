"""gRPC server reflection: ``buf curl`` and ``grpcurl`` call the service without its .proto file.

It says what ``db.proto`` says, to everybody, and nothing of this server or its databases. The first request loads
connectrpc-grpcreflect.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

from datasette.utils.asgi import Request, Response

from ..compat import descriptors
from ..core.attachment import attached
from ..core.limits import BODY_SECONDS
from ..gen import db_pb2
from ..http.request import SMALL_LIMIT
from ..http.responses import STREAM_HEADERS, cors_headers, with_signature
from .call import Call, Sender, as_connect_error, current
from .codecs import Gzip
from .entry import early_answer

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The file's name in the descriptors, as in an import of another .proto file.
FILE = "db/v1/db.proto"

#: The longest call, in seconds. A client asks for a few files, and has them within milliseconds; nobody may keep a call
#: open without asking, or without reading.
CALL_SECONDS = BODY_SECONDS


class _Made:
    """The applications of one Datasette, by the version of the protocol; empty until the first call."""

    def __init__(self) -> None:
        self.applications: dict[str, Any] = {}


def _applications() -> dict[str, Any]:
    """The applications of both versions of the protocol; none where the descriptors cannot be made."""
    # Takes tenths of a second, and most servers are never asked.
    import connectrpc_grpcreflect as grpcreflect

    file = descriptors.file_descriptor(db_pb2.DESCRIPTOR.serialized_pb, FILE)
    if file is None:
        return {}
    options: Any = {
        "read_max_bytes": SMALL_LIMIT.size,
        "compressions": [Gzip(SMALL_LIMIT.size, SMALL_LIMIT.why or "")],
    }
    return {
        "v1": grpcreflect.ServerReflectionASGIApplication(grpcreflect.ServerReflectionService(file), **options),
        "v1alpha": grpcreflect.ServerReflectionAlphaASGIApplication(
            grpcreflect.ServerReflectionAlphaService(file), **options
        ),
    }


def _receiver(receive: Any) -> Any:
    """A ``receive`` that ends the requests of a call after ``CALL_SECONDS``. Limits their size, taken together."""
    end = time.monotonic() + CALL_SECONDS
    size = 0

    async def received() -> Any:
        nonlocal size
        try:
            async with asyncio.timeout(max(0.0, end - time.monotonic())):
                message = await receive()
        except TimeoutError:
            return {"type": "http.request", "body": b"", "more_body": False}
        size += len(message.get("body", b""))
        if size > SMALL_LIMIT.size:
            raise as_connect_error(SMALL_LIMIT.exceeded("the call"))
        return message

    return received


@with_signature
async def view(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
    """The view of both versions. Datasette routes it, as it does the service itself."""
    if answer := early_answer(scope, request, datasette):
        return answer
    made = attached(datasette, _Made, _Made)
    if not made.applications:
        made.applications = await asyncio.to_thread(_applications)
    version = request.url_vars["version"]
    if version not in made.applications:
        return Response.json({"code": "unimplemented", "message": "there is no reflection here"}, status=501)
    sender = Sender(send, cors_headers(datasette) | STREAM_HEADERS)
    token = current.set(Call(request, sender))
    path = f"/grpc.reflection.{version}.ServerReflection/{request.url_vars['method']}"
    try:
        # The time to read the last answers, beside that to ask for them.
        async with asyncio.timeout(CALL_SECONDS + BODY_SECONDS):
            inner: Any = {**scope, "path": path, "root_path": ""}
            await made.applications[version](inner, _receiver(receive), cast(Any, sender))
    except TimeoutError:
        sender.stuck = True
    except OSError:
        if not sender.stuck:
            raise
    finally:
        current.reset(token)
    return None
