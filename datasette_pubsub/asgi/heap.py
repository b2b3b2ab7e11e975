"""Freezes the heap that the start of a server leaves behind, so that no garbage collection looks at it again.

A Datasette with this plugin has some 75,000 objects when it has started, nearly all of them modules, classes and
functions. A full collection of Python's garbage collector looks at each, which takes 60 to 500 ms, and comes about once
a second under load. ``gc.freeze()`` (https://docs.python.org/3/library/gc.html#gc.freeze) takes those that are there
out of all later collections. The gain for a request of Datasette's own is a third; bench/run.py measures it.
"""

from __future__ import annotations

import asyncio
import gc

from .. import lazy

#: How long after the start of the server the heap is frozen, in seconds: the first requests load templates and modules.
SETTLE_SECONDS = 1.0

_frozen = False


def warm(freeze: bool) -> None:
    """A server starts: load what its first requests need, and freeze the heap of this process in ``SETTLE_SECONDS``.

    Only what is alive then is frozen: an object that goes out of use later is freed as ever, unless it is part of a
    cycle that existed by then.
    """
    lazy.load()
    if freeze and not _frozen and hasattr(gc, "freeze"):
        asyncio.get_running_loop().call_later(SETTLE_SECONDS, _freeze)


def _freeze() -> None:
    global _frozen
    if not _frozen:
        _frozen = True
        gc.collect()
        gc.freeze()
