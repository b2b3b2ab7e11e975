"""The plugin's part of Datasette's permission system: the actions, their resource, and rules by default and by pattern.

Only Datasette calls this module; other code checks permissions with :mod:`.access.permissions`.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from datasette.permissions import Action, PermissionSQL, Resource
from datasette.resources import DatabaseResource
from datasette.utils import actor_matches_allow

from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.selector import Selector
from ..core.settings import Settings
from ..core.verdicts import Verdicts
from ..storage import log
from ..storage.names import shown
from .rulings import PUBLISH, VIEW, Actor, in_plain, once, rows_rule, rulings

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The most channels of one database in Datasette's lists of resources, the first by name: each is a row of the SQL
#: that decides, and a database may have any number of channels.
MAX_LISTED = 1000


class ChannelResource(Resource):
    """A channel of a database. Without a channel: all of them."""

    name = "channel"
    parent_class = DatabaseResource

    def __init__(self, database: str, channel: str | None = None) -> None:
        super().__init__(parent=database, child=channel)
        # Code that makes a resource is about to check it.
        _candidate.set(channel)

    @classmethod
    async def resources_sql(cls, datasette: Datasette, actor: Actor = None) -> str:
        rows = []
        for name in list(datasette.databases):
            broker = registry(datasette).find(name)
            if broker is not None:
                rows += [f"({_quote(name)}, {_quote(channel)})" for channel in await _channels(broker)]
        if not rows:
            return "SELECT NULL AS parent, NULL AS child WHERE 0"
        return f"SELECT column1 AS parent, column2 AS child FROM (VALUES {', '.join(rows)})"


def _listed(conn: sqlite3.Connection) -> list[str]:
    return [shown(name) for name in log.channel_names(conn, MAX_LISTED)]


async def _channels(broker: Broker) -> list[str]:
    """The channels that a database lists, read once per request."""
    return await once(("listed", broker.name), functools.partial(broker.read, _listed))


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''").replace("\0", "") + "'"


ACTIONS = [
    Action(
        name=VIEW,
        description="Receive the messages of a channel",
        resource_class=ChannelResource,
    ),
    Action(
        name=PUBLISH,
        description="Publish messages to a channel",
        resource_class=ChannelResource,
    ),
]


#: The channel that is being checked: rules by pattern also apply to channels that do not exist yet.
_candidate: ContextVar[str | None] = ContextVar("datasette_pubsub_candidate", default=None)

#: Set while this plugin checks one channel: the rules then need no other channels.
_alone: ContextVar[bool] = ContextVar("datasette_pubsub_alone", default=False)


async def own_rules(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """The rules for channels that this plugin adds to Datasette's."""
    if in_plain():
        return []
    if action in (VIEW, PUBLISH):
        return [*await _by_pattern(datasette, actor, action), *await _by_default(datasette, actor, action)]
    return []


async def _by_default(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """The default rule: an actor who may view the log table may view its channels. Publishing has no default."""
    if action != VIEW:
        return []
    found = await rulings(datasette, actor)
    if found is None:
        return []
    allowed: list[tuple[str, str | None]] = [(name, None) for name in list(datasette.databases) if found.sees_log(name)]
    return [rows_rule(allowed, 1, "may see the log table")]


def patterns_for(settings: Settings, actor: Actor, action: str) -> tuple[tuple[str, bool], ...]:
    """The configured patterns, with their verdicts for this actor."""
    found = []
    for pattern, view, publish in settings.channel_permissions:
        block = view if action == VIEW else publish
        if block is not None:
            found.append((pattern, bool(actor_matches_allow(actor, block))))
    return tuple(found)


async def _by_pattern(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """The configured rules by pattern, expanded to one rule for each channel."""
    allowed: dict[bool, list[tuple[str, str | None]]] = {True: [], False: []}
    for name in list(datasette.databases):
        broker = registry(datasette).find(name)
        patterns = () if broker is None else patterns_for(broker.settings, actor, action)
        if broker is None or not patterns:
            continue
        verdicts = Verdicts(patterns=patterns)
        matches = Selector(patterns=tuple(pattern for pattern, _ in patterns)).matches
        candidate = _candidate.get()
        listed = [] if _alone.get() else await _channels(broker)
        for channel in {*listed, *([candidate] if candidate else [])}:
            if matches(channel):
                allowed[verdicts.allows(channel)].append((name, channel))
    return [rows_rule(found, int(ok), "channel_permissions") for ok, found in allowed.items() if found]


@contextmanager
def about(channel: str | None) -> Iterator[None]:
    """Within this block, the plugin checks this channel or, without one, the database as a whole."""
    tokens = _candidate.set(channel), _alone.set(True)
    try:
        yield
    finally:
        _candidate.reset(tokens[0])
        _alone.reset(tokens[1])


__all__ = ["ACTIONS", "PUBLISH", "VIEW", "Actor", "ChannelResource", "about", "own_rules", "patterns_for"]
