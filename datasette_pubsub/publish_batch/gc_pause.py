"""The garbage collector rests while a SQL function waits for another thread.

The law of this module: it knows no SQL. A statement that runs holds its
connection until it ends. Garbage may hold a statement of the same connection,
which an error has left behind; whichever thread collects it waits for the
connection. If that is the thread for which a function of the running statement
waits, or one that it needs, both would wait for ever.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import Unavailable

#: How long a collection that is under way may take, in seconds; more than one of a large heap does. One that takes
#: longer is taken to wait for the caller's connection.
UNDER_WAY_SECONDS = 1.0

#: After how many seconds without a pause, while one function or another waited, the next of them collects for all.
#: Its own thread may: whatever connection it has to wait for, nobody waits for it.
STARVING_SECONDS = 1.0

_lock = threading.Lock()
_waiting = 0
_enabled = False
_since = 0.0


@contextmanager
def gc_paused() -> Iterator[None]:
    """No thread begins to collect garbage within this block, unless it asks for it by name.

    Raises :class:`Unavailable`, before the block, when a collection is under way that does not end.
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
    """Whether some thread is collecting: then Python does not collect, nor count it, when asked to."""
    before = gc.get_stats()[0]["collections"]
    gc.collect(0)
    return bool(gc.get_stats()[0]["collections"] == before)
