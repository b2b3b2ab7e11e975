"""The tools for datasette-agent (https://github.com/datasette/datasette-agent), by its hook ``register_agent_tools``.

Imported only when that plugin asks: its package is no dependency. Before it publishes, it asks the person whose
agent it is.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from datasette_agent.tools import AgentTool

from ..core.errors import PubsubError
from . import tools

if TYPE_CHECKING:
    from datasette.app import Datasette

Actor = dict[str, Any] | None

_DATABASE = {"type": "string", "description": "The database's name"}
_CHANNELS = {"type": "array", "items": {"type": "string"}, "description": "Channels, by their exact names"}
_PATTERNS = {"type": "array", "items": {"type": "string"}, "description": "Patterns of channels: * and ? as in GLOB"}


def agent_tools() -> list[AgentTool]:
    """The four tools."""
    return [
        _tool("list_channels", tools.LIST, {"database": _DATABASE}, ["database"], _calling(tools.list_channels)),
        _tool(
            "read_messages",
            tools.READ,
            {
                "database": _DATABASE,
                "channels": _CHANNELS,
                "patterns": _PATTERNS,
                "before": {"type": "integer", "description": "Only messages with smaller ids"},
                "limit": {"type": "integer", "minimum": 1, "maximum": tools.MAX_MESSAGES},
            },
            ["database"],
            _calling(tools.read_messages),
        ),
        _tool(
            "wait_for_message",
            tools.WAIT,
            {
                "database": _DATABASE,
                "channels": _CHANNELS,
                "patterns": _PATTERNS,
                "after": {"type": "integer", "description": "Only messages with greater ids"},
                "seconds": {"type": "number", "maximum": tools.MAX_WAIT_SECONDS},
            },
            ["database"],
            _calling(tools.wait_for_message),
        ),
        _tool(
            "publish_message",
            tools.PUBLISH,
            {
                "database": _DATABASE,
                "channel": {"type": "string"},
                "payload": {"type": "string", "description": "Text; JSON where the channel's readers expect it"},
                "key": {"type": "string", "description": "The message is stored once for each key"},
            },
            ["database", "channel", "payload"],
            _publish,
        ),
    ]


def _tool(
    name: str, description: str, properties: dict[str, Any], required: list[str], fn: Callable[..., Awaitable[str]]
) -> AgentTool:
    schema = {"type": "object", "properties": properties, "required": required}
    return AgentTool(name=name, description=description, input_schema=schema, fn=fn)


def _calling(tool: Callable[..., Awaitable[dict[str, Any]]]) -> Callable[..., Awaitable[str]]:
    async def call(datasette: Datasette, actor: Actor, **arguments: Any) -> str:
        return await _told(tool(datasette, tools.request_of(actor), **arguments))

    return call


async def _publish(
    datasette: Datasette, actor: Actor, context: Any, database: str, channel: str, payload: str, key: str | None = None
) -> str:
    if not await context.ask_user(f"Publish this to the channel {channel} of {database}?", text=payload):
        return json.dumps({"published": False, "reason": "the user said no"})
    return await _told(tools.publish_message(datasette, tools.request_of(actor), database, channel, payload, key))


async def _told(work: Awaitable[dict[str, Any]]) -> str:
    try:
        return json.dumps(await work)
    except PubsubError as error:
        return json.dumps({"error": error.message})
