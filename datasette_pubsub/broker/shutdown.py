"""Ends all streams when the server receives a signal to shut down.

Servers wait for open responses before they run the shutdown hooks, and streams never end by themselves. So this module
handles the signal first, and then calls the server's own handler.
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

#: How long after the signal a connection may stay open, in seconds. By then every stream has sent its last frame; a
#: connection that is still open has a subscriber that accepts no data.
PATIENCE_SECONDS = 1.5


def listen(datasette: Datasette) -> None:
    """Install the signal handlers, once, at the first request: the server has installed its own by then."""
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
    """Close the connection of a client that accepts no data, and drop its buffers.

    An application can only stop sending; the server would then wait for the
    client to accept the rest. Does nothing if the server's connections cannot be
    reached, or if other streams of an HTTP/2 connection still move.
    """
    transport = compat.transport_of(scope)
    if transport is not None and (transport.get_write_buffer_size() or not compat.is_multiplexed(scope)):
        compat.abort(transport)


def _abort(known: Registry) -> None:
    """Abort the connections with data in their write buffers."""
    for transport in compat.transports_of(known.server):
        if transport.get_write_buffer_size():
            compat.abort(transport)
