"""Modules that are loaded on first use.

Datasette imports every plugin for every command: ``datasette --version`` should not wait for Protobuf. A server loads
all modules before its first request (:func:`load`).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

#: The names of the modules that hold views, filled by :func:`view`.
_OF_VIEWS: set[str] = set()


class LazyModule:
    """Stands in for a module of this package and loads it on the first access to an attribute.

    What is found is kept: functions, classes and context variables, which no module rebinds. Every request to Datasette
    makes a dozen accesses, and ``import_module()`` takes longer than what most of them call.
    """

    def __init__(self, name: str) -> None:
        self._name = f"{__package__}.{name}"

    def __getattr__(self, name: str) -> Any:
        found = getattr(import_module(self._name), name)
        setattr(self, name, found)
        return found


def view(module: str, name: str) -> Callable[..., Awaitable[Any]]:
    """A view whose module is loaded, at the latest, by the view's first request."""
    _OF_VIEWS.add(module)
    modules = LazyModule(module)

    async def called(scope: Any, receive: Any, send: Any, request: Any, datasette: Any) -> Any:
        return await getattr(modules, name)(scope, receive, send, request, datasette)

    # Datasette reads the signature at every request; this keeps it from being computed each time.
    called.__signature__ = inspect.signature(called)  # type: ignore[attr-defined]
    return called


def load() -> None:
    """Load the modules of all views; a server calls this before it accepts requests."""
    for name in sorted(_OF_VIEWS):
        import_module(f"{__package__}.{name}")
