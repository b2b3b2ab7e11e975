"""Attach objects of this plugin to a Datasette instance, so that they live exactly as long as it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")

#: The one attribute that the plugin adds to a Datasette object.
_ATTRIBUTE = "_pubsub"


def attached(datasette: object, kind: type[T], make: Callable[[], T]) -> T:
    """The one object of this class that belongs to this Datasette; the first call makes it. Thread-safe.

    If two threads call at the same time, both may call ``make``, and both get the same object.
    """
    found = datasette.__dict__.get(_ATTRIBUTE)
    if found is None:
        # setdefault is atomic: two threads cannot store two objects.
        found = datasette.__dict__.setdefault(_ATTRIBUTE, {})
    thing = found.get(kind)
    if thing is None:
        thing = found.setdefault(kind, make())
    return cast(T, thing)
