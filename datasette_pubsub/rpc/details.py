"""The errors of the service, each with an ``ErrorDetail``: what a client must know without reading the text."""

from __future__ import annotations

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.errors import ErrorDetail as Detail
from protobuf.wkt import Any as AnyMessage

from ..core.errors import PubsubError
from ..gen.db_pb2 import ErrorDetail

_TYPE_URL = f"type.googleapis.com/{ErrorDetail.DESCRIPTOR.full_name}"


def failure(code: Code, message: str, detail: ErrorDetail | None = None) -> ConnectError:
    """An error with its detail. One without shows a client that the error is not of this service."""
    # connectrpc packs messages of protobuf-py only; what is in an Any already, it takes as it is.
    packed = AnyMessage(type_url=_TYPE_URL, value=(detail or ErrorDetail()).SerializeToString())
    return ConnectError(code, message, [Detail(packed)])


def connect_error(error: PubsubError) -> ConnectError:
    """Convert an error to connectrpc's."""
    detail = ErrorDetail(field=error.field, limit=error.limit, retry_after_seconds=error.retry_after)
    return failure(Code[error.code.upper()], error.message, detail)
