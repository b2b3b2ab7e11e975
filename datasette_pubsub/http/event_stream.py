"""Sends the frames of a stream as an HTTP response of Server-Sent Events, until it ends or the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ..asgi.acknowledged import Acknowledged
from ..asgi.frame_sender import FrameSender, send_frames
from ..protocol.frames import SseEncoder
from .responses import STREAM_HEADERS

CONTENT_TYPE = "text/event-stream; charset=utf-8"

#: Called with the sender and what is known of the bytes that have arrived, before the first frame is asked for.
Through = Callable[[FrameSender, Acknowledged | None], None]


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def answer(
    frames: AsyncGenerator[bytes, None],
    receive: Any,
    send: Any,
    headers: dict[str, str],
    seconds: float,
    *,
    arrival: Acknowledged | None = None,
    through: Through | None = None,
) -> None:
    """Send the whole response. Raises :class:`~.asgi.frame_sender.SendTimeout` when a send takes over ``seconds``."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": _raw({"Content-Type": CONTENT_TYPE, **STREAM_HEADERS, **headers}),
        }
    )
    beginning = SseEncoder().beginning()
    await send_frames(send, beginning, seconds)
    if arrival is not None:
        arrival.sent(len(beginning))
    sender = FrameSender(send, seconds, arrival)
    if through is not None:
        through(sender, arrival)
    if await _send_until_gone(frames, receive, sender):
        await send({"type": "http.response.body", "body": b""})


async def _send_until_gone(frames: AsyncGenerator[bytes, None], receive: Any, sender: FrameSender) -> bool:
    """Send all frames; returns whether the client is still connected. Raises :class:`SendTimeout`."""
    task = asyncio.current_task()
    assert task is not None
    waiting = True

    def ended(_: asyncio.Task[None]) -> None:
        if waiting:
            task.cancel()  # the stream has ended: stop waiting for the client to disconnect

    sending = sender.start(frames)
    sending.add_done_callback(ended)
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except asyncio.CancelledError:
        if not sending.done() or task.uncancel():
            raise
    finally:
        waiting = False
        gone = not sending.done()
        sending.cancel()  # a send that has not ended does not count as taken
        await asyncio.wait([sending])
        failed = None if sending.cancelled() else sending.exception()
    if failed is not None and not gone:
        raise failed
    return not gone
