"""The hooks that this plugin has for others; docs/plugins.md shows how to use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from datasette.app import Datasette

hookspec = HookspecMarker("datasette")


@hookspec
def pubsub_sinks(datasette: Datasette) -> Any:
    """Return :class:`~.api.Sink` objects, in a list: each gets the messages of a database, and every one of them.

    Called once, when the server starts.
    """


@hookspec
def pubsub_messages(datasette: Datasette, database: str, messages: Sequence[Any]) -> Any:
    """Messages (:class:`~.api.Message`) were committed to a database, by any program; may return an awaitable.

    Called with some or many at a time, in the order of their ids. What is published while the server does not run, or
    while a call is not done, may be left out after a failure: for everything, return a sink from ``pubsub_sinks``.
    """
