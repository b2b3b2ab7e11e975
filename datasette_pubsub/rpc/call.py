"""The context of one Connect RPC call: its request, its ``send`` and its errors.

It has what connectrpc does not pass to a method.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from connectrpc.errors import ConnectError
from datasette.utils.asgi import Request

from ..asgi.acknowledged import Acknowledged
from ..asgi.frame_sender import FrameSender, send_frames
from ..core.errors import PubsubError
from ..http.responses import internal
from .details import connect_error


class Sender:
    """The ASGI ``send`` of one call. When a stream bypasses connectrpc, it drops connectrpc's first body."""

    def __init__(self, send: Any, headers: dict[str, str]) -> None:
        self._send = send
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self.taking_over = False
        #: Whether the client has not accepted data for too long: a send would wait for ever.
        self.stuck = False
        #: The seconds to wait before trying again, if the call has failed.
        self.retry_after: int | None = None

    async def __call__(self, message: dict[str, Any]) -> None:
        task = asyncio.current_task()
        if self.stuck or (task is not None and task.cancelling()):
            # connectrpc writes the end of a call even after the server has cancelled it. Hypercorn has ended the
            # connection's sender by then: the send would wait for ever, and keep the connection open.
            raise OSError("the client does not accept data any more")
        if message["type"] == "http.response.start":
            more = [*self._headers]
            if self.retry_after is not None and message["status"] >= 400:
                more.append((b"retry-after", str(self.retry_after).encode()))
            message = {**message, "headers": [*message["headers"], *more]}
        if self.taking_over and message["type"] == "http.response.body":
            self.taking_over = False
            message = {**message, "body": b""}
        await self._send(message)

    async def raw(self, data: bytes, seconds: float) -> None:
        """Send frames past connectrpc. Raises :class:`SendTimeout` if that takes longer than ``seconds``."""
        await send_frames(self._send, data, seconds)

    def frame_sender(self, seconds: float, arrival: Acknowledged | None = None) -> FrameSender:
        """A sender for the frames of a stream, which bypasses connectrpc as :meth:`raw` does."""
        return FrameSender(self._send, seconds, arrival)


@dataclass(frozen=True, slots=True)
class Call:
    """The request of a call, and its sender, which can bypass connectrpc."""

    request: Request
    sender: Sender


#: The present call.
current: ContextVar[Call] = ContextVar("datasette_pubsub_call")


def as_connect_error(error: Exception) -> ConnectError:
    """Convert any error to connectrpc's."""
    if isinstance(error, ConnectError):
        return error
    known = error if isinstance(error, PubsubError) else internal(error)
    current.get().sender.retry_after = known.retry_after
    return connect_error(known)
