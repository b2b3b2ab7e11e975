"""The GC pause: Python's garbage collector is off while a SQL function waits for another thread.

This prevents a deadlock. A running statement holds its connection until it ends. Garbage may have another statement of
the same connection, which an error has left behind, and a thread that collects it waits for the connection. If the SQL
function of the running statement waits for that thread, or for one that it needs, both would wait for ever.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import Unavailable

#: How long to wait for a running collection, in seconds: longer than that of a large heap takes. A collection that
#: takes longer is assumed to wait for the caller's connection.
UNDER_WAY_SECONDS = 1.0

#: If the collector has been off for this long without a break, in seconds, the next SQL function that waits runs a
#: collection itself. Its thread may do so: it may wait for any connection, since no other thread waits for it.
STARVING_SECONDS = 1.0

_lock = threading.Lock()
_waiting = 0
_enabled = False
_since = 0.0


@contextmanager
def gc_paused() -> Iterator[None]:
    """Within this block, no thread begins a garbage collection, unless it calls :func:`gc.collect`.

    Raises :class:`Unavailable`, before the block, if a running collection does not end.
    """
    global _waiting, _enabled, _since
    starving = False
    with _lock:
        if _waiting == 0:
            _enabled = gc.isenabled()
            gc.disable()
            _since = time.monotonic()
        elif _enabled and time.monotonic() - _since > STARVING_SECONDS:
            starving = True
            _since = time.monotonic()
        _waiting += 1
    try:
        if starving:
            gc.collect()
        end = time.monotonic() + UNDER_WAY_SECONDS
        while _under_way():
            if time.monotonic() > end:
                raise Unavailable("publish_batch cannot wait for its messages just now; run the query again")
            time.sleep(0.001)
        yield
    finally:
        with _lock:
            _waiting -= 1
            if _waiting == 0 and _enabled:
                gc.enable()


def _under_way() -> bool:
    """Whether some thread is collecting: Python then ignores a further collection, and does not count it."""
    before = gc.get_stats()[0]["collections"]
    gc.collect(0)
    return bool(gc.get_stats()[0]["collections"] == before)
