"""The tools for datasette-mcp (https://github.com/datasette/datasette-mcp), by its hook ``register_mcp_tools``.

Imported only when that plugin asks: its package and the MCP SDK are no dependencies.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

from ..core.errors import PubsubError
from . import tools

if TYPE_CHECKING:
    from datasette.app import Datasette

_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)


def register(datasette: Datasette, server: Any) -> None:
    """Register the four tools on this server."""

    @server.tool(description=tools.LIST, annotations=_READS)
    async def list_channels(database: str, ctx: Context) -> dict[str, Any]:
        return await _told(tools.list_channels(datasette, _request(ctx), database))

    @server.tool(description=tools.READ, annotations=_READS)
    async def read_messages(
        database: str,
        ctx: Context,
        channels: list[str] | None = None,
        patterns: list[str] | None = None,
        before: int | None = None,
        limit: int = 20,
    ) -> dict[str, Any]:
        return await _told(
            tools.read_messages(datasette, _request(ctx), database, channels or (), patterns or (), before, limit)
        )

    @server.tool(description=tools.WAIT, annotations=_READS)
    async def wait_for_message(
        database: str,
        ctx: Context,
        channels: list[str] | None = None,
        patterns: list[str] | None = None,
        after: int | None = None,
        seconds: float = 20.0,
    ) -> dict[str, Any]:
        return await _told(
            tools.wait_for_message(datasette, _request(ctx), database, channels or (), patterns or (), after, seconds)
        )

    @server.tool(description=tools.PUBLISH, annotations=_WRITES)
    async def publish_message(
        database: str, channel: str, payload: str, ctx: Context, key: str | None = None
    ) -> dict[str, Any]:
        return await _told(tools.publish_message(datasette, _request(ctx), database, channel, payload, key))


async def _told(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    try:
        return await work
    except PubsubError as error:
        raise ToolError(error.message) from None


def _request(ctx: Context) -> Request:
    """The request of Datasette that the call came in, with its actor."""
    scope = getattr(ctx.request_context.request, "scope", None)
    return tools.request_of(None) if not isinstance(scope, dict) else Request(scope, None)
