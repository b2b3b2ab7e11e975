"""One call of Connect RPC: its request, its ``send``, and how its errors look.

The law of this module: it knows no method. What connectrpc does not hand to a
method is found here.
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
from .codecs import connect_error


class Sender:
    """The ASGI ``send`` of one call. Drops the library's first body when a stream takes over from it."""

    def __init__(self, send: Any, headers: dict[str, str]) -> None:
        self._send = send
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self.taking_over = False
        #: The reader has taken nothing for too long: what is sent now would wait for ever.
        self.stuck = False
        #: Seconds after which to try again, when the call has failed.
        self.retry_after: int | None = None

    async def __call__(self, message: dict[str, Any]) -> None:
        task = asyncio.current_task()
        if self.stuck or (task is not None and task.cancelling()):
            # The library writes how a call ended even after the server has given it up: hypercorn, which has ended
            # the connection's own sender by then, would have it wait for ever, and keep the connection.
            raise OSError("nobody takes this any more")
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
        """Send frames as they are. Raises :class:`SendTimeout` when that takes longer than ``seconds``."""
        await send_frames(self._send, data, seconds)

    def frame_sender(self, seconds: float, arrival: Acknowledged | None = None) -> FrameSender:
        """What sends the frames of a stream, as :meth:`raw` does."""
        return FrameSender(self._send, seconds, arrival)


@dataclass(frozen=True, slots=True)
class Call:
    """The request that a call came with, and how to send past the library."""

    request: Request
    sender: Sender


#: The call that is being answered.
current: ContextVar[Call] = ContextVar("datasette_pubsub_call")


def as_connect_error(error: Exception) -> ConnectError:
    """Any error as connectrpc sends it."""
    if isinstance(error, ConnectError):
        return error
    known = error if isinstance(error, PubsubError) else internal(error)
    current.get().sender.retry_after = known.retry_after
    return connect_error(known)
