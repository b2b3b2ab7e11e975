"""Ending streams when the server is told to end.

The law of this module: servers wait for open responses before they run the
shutdown hooks, and streams never end by themselves. So the signal that ends
the server is heard here first, and then handed on to the server's own handler.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from .brokers import brokers

if TYPE_CHECKING:
    from datasette.app import Datasette

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(datasette: Datasette) -> None:
    """Hear the signals, once, from the first request on: by then the server's own handlers are in place."""
    known = brokers(datasette)
    if known.listening:
        return
    known.listening = True
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        _chain(number, loop, known.close_streams)


def _chain(number: signal.Signals, loop: asyncio.AbstractEventLoop, close: Any) -> None:
    previous = signal.getsignal(number)
    if not callable(previous):
        return

    def handler(received: int, frame: FrameType | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(close)
        previous(received, frame)

    signal.signal(number, handler)
