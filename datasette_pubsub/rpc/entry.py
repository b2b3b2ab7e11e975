"""What every service does with a request before it reads it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request, Response

from ..http.request import header
from ..http.responses import preflight

if TYPE_CHECKING:
    from datasette.app import Datasette

#: https://grpc.github.io/grpc/core/md_doc_statuscodes.html
GRPC_UNIMPLEMENTED = 12


def early_answer(scope: Any, request: Request, datasette: Datasette) -> Response | None:
    """The answer to a request that connectrpc must not or cannot read; ``None`` for all others."""
    if request.method == "OPTIONS":
        return preflight(datasette)
    for name, value in scope["headers"]:
        try:
            value.decode()
        except UnicodeDecodeError:
            error = {"code": "invalid_argument", "message": f"header {name.decode('latin-1')} is not UTF-8"}
            return Response.json(error, status=400)
    is_grpc = re.match(r"application/grpc(\+|;|$)", header(request, b"content-type"))
    if is_grpc and "http.response.trailers" not in scope.get("extensions", {}):
        # https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md: a response of headers only.
        headers = {"grpc-status": str(GRPC_UNIMPLEMENTED), "grpc-message": "gRPC needs a server that speaks HTTP/2"}
        return Response("", status=200, headers=headers, content_type="application/grpc")
    return None
