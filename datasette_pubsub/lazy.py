"""Modules that are loaded when something of them is first used.

Datasette imports every plugin whatever it is started for: ``datasette --version`` should not wait for Protobuf.
A server loads everything before its first request (:func:`load`).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from importlib import import_module
from types import ModuleType
from typing import Any

#: What the views' modules are called, filled by :func:`view`.
_OF_VIEWS: set[str] = set()


class LazyModule(ModuleType):
    """A module of this package, which is loaded when something of it is first asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{__package__}.{name}")

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def view(module: str, name: str) -> Callable[..., Awaitable[Any]]:
    """A view of a module that is loaded, at the latest, by the view's first request."""
    _OF_VIEWS.add(module)
    modules = LazyModule(module)

    async def called(scope: Any, receive: Any, send: Any, request: Any, datasette: Any) -> Any:
        return await getattr(modules, name)(scope, receive, send, request, datasette)

    # Datasette asks for the signature at every request.
    called.__signature__ = inspect.signature(called)  # type: ignore[attr-defined]
    return called


def load() -> None:
    """Load all views: for a server, before it takes requests."""
    for name in sorted(_OF_VIEWS):
        import_module(f"{__package__}.{name}")
