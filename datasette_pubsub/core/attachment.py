"""What belongs to one Datasette, and lives and ends with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")

#: The one attribute that the plugin adds to a Datasette object.
_ATTRIBUTE = "_pubsub"


def attached(datasette: object, kind: type[T], make: Callable[[], T]) -> T:
    """The one object of this kind that belongs to this Datasette, made when it is first asked for. Thread-safe.

    Where two threads ask at the same time, both may make one, and both get the same.
    """
    found = datasette.__dict__.get(_ATTRIBUTE)
    if found is None:
        # setdefault is one step, so that two threads cannot make two.
        found = datasette.__dict__.setdefault(_ATTRIBUTE, {})
    thing = found.get(kind)
    if thing is None:
        thing = found.setdefault(kind, make())
    return cast(T, thing)
