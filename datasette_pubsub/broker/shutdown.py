"""Ending streams when the server is told to end.

The law of this module: servers wait for open responses before they run the
shutdown hooks, and streams never end by themselves. So the signal that ends
the server is heard here first, and then handed on to the server's own handler.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from .. import compat
from .registry import Registry, registry

if TYPE_CHECKING:
    from datasette.app import Datasette

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: How long after the signal a connection may still be open, in seconds. By then
#: every stream has said goodbye; what is left has a reader that takes nothing.
PATIENCE_SECONDS = 1.5


def listen(datasette: Datasette) -> None:
    """Hear the signals, once, from the first request on: by then the server's own handlers are in place."""
    known = registry(datasette)
    if known.listening:
        return
    known.listening = True
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        _chain(number, loop, known)


def _chain(number: signal.Signals, loop: asyncio.AbstractEventLoop, known: Registry) -> None:
    previous = signal.getsignal(number)
    if not callable(previous):
        return
    known.server = compat.server_of(previous)

    def handler(received: int, frame: FrameType | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(_end, loop, known)
        previous(received, frame)

    signal.signal(number, handler)


def _end(loop: asyncio.AbstractEventLoop, known: Registry) -> None:
    known.close_streams()
    loop.call_later(PATIENCE_SECONDS, _abort, known)


def cut_off(scope: Mapping[str, Any]) -> None:
    """Close the connection of a reader that takes nothing, with all that waits in its buffers.

    An application can only stop sending; the server would then wait for the
    reader to take the rest. Does nothing on a server whose connections cannot be
    reached, nor while the other streams of an HTTP/2 connection flow.
    """
    transport = compat.transport_of(scope)
    if transport is not None and (transport.get_write_buffer_size() or not compat.is_multiplexed(scope)):
        compat.abort(transport)


def _abort(known: Registry) -> None:
    """Abort the connections that are being written to."""
    for transport in compat.transports_of(known.server):
        if transport.get_write_buffer_size():
            compat.abort(transport)
