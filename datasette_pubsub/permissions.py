"""Who may do what: the actions, their resource and their defaults.

The law of this module: Datasette decides. Every entrance asks here, and here
Datasette's permission system is asked; no rule is kept beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette.permissions import Action, PermissionSQL, Resource
from datasette.resources import DatabaseResource, TableResource
from datasette.utils.permissions import (
    SKIP_PERMISSION_CHECKS,
    build_rules_union,
    gather_permission_sql_from_hooks,
)

from . import log
from .broker import Broker
from .brokers import brokers
from .errors import PermissionDenied
from .schema import LOG
from .selector import Selector

if TYPE_CHECKING:
    from datasette.app import Datasette

VIEW = "view-channel"
PUBLISH = "publish-message"

#: Channels of one database that Datasette's lists of resources show, in channels.
MAX_LISTED = 1000

Actor = dict[str, Any] | None


class ChannelResource(Resource):
    """A channel of a database. Without a channel: all of them."""

    name = "channel"
    parent_class = DatabaseResource

    def __init__(self, database: str, channel: str | None = None) -> None:
        super().__init__(parent=database, child=channel)

    @classmethod
    async def resources_sql(cls, datasette: Datasette, actor: Actor = None) -> str:
        rows = []
        for name in list(datasette.databases):
            broker = brokers(datasette).find(name)
            if broker is not None:
                for channel in await broker.read(log.channel_names):
                    rows.append(f"({_quote(name)}, {_quote(channel)})")
                    if len(rows) >= MAX_LISTED:
                        break
        if not rows:
            return "SELECT NULL AS parent, NULL AS child WHERE 0"
        return f"SELECT column1 AS parent, column2 AS child FROM (VALUES {', '.join(rows)})"


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


async def default_rules(datasette: Datasette, actor: Actor, action: str) -> PermissionSQL | None:
    """Whoever may see the log table may view its channels. Publishing has no default."""
    if action != VIEW:
        return None
    allowed = [
        name
        for name in list(datasette.databases)
        if await datasette.allowed(action="view-table", resource=TableResource(name, LOG), actor=actor)
    ]
    if not allowed:
        return None
    params = {f"pubsub_parent_{n}": name for n, name in enumerate(allowed)}
    rows = [f"SELECT :{key} AS parent, NULL AS child, 1 AS allow, 'may see the log table' AS reason" for key in params]
    return PermissionSQL(sql=" UNION ALL ".join(rows), params=params)


async def may_publish(datasette: Datasette, actor: Actor, database: str, channel: str | None = None) -> bool:
    """Whether the actor may publish to this channel; without one, to the database as a whole."""
    return bool(await datasette.allowed(action=PUBLISH, resource=ChannelResource(database, channel), actor=actor))


async def may_view(datasette: Datasette, actor: Actor, database: str, channel: str | None = None) -> bool:
    """Whether the actor may receive this channel; without one, the database as a whole."""
    return bool(await datasette.allowed(action=VIEW, resource=ChannelResource(database, channel), actor=actor))


@dataclass(frozen=True, slots=True)
class Rights:
    """An actor's right to one action in a database: in general, and for the channels that rules name."""

    general: bool
    named: dict[str, bool]

    def allows(self, channel: str) -> bool:
        """Whether the actor has the right to this channel, also if no such channel exists yet."""
        return self.named.get(channel, self.general)


async def rights(datasette: Datasette, actor: Actor, action: str, database: str) -> Rights:
    """What Datasette's rules say of the channels of a database, however many there are.

    Only channels that a rule names can differ from the database as a whole, so
    only they are asked for one by one.
    """
    general = await datasette.allowed(action=action, resource=ChannelResource(database), actor=actor)
    collected = await gather_permission_sql_from_hooks(datasette=datasette, actor=actor, action=action)
    if collected is SKIP_PERMISSION_CHECKS:
        return Rights(True, {})
    union, params = build_rules_union(actor, collected)
    parts = [f"SELECT child FROM ({union}) WHERE child IS NOT NULL AND parent = :pubsub_database"]
    parts += [
        f"SELECT child FROM ({rule.restriction_sql}) WHERE child IS NOT NULL AND parent = :pubsub_database"
        for rule in collected
        if rule.restriction_sql
    ]
    internal = datasette.get_internal_database()
    rows = await internal.execute(" UNION ".join(parts), {**params, "pubsub_database": database})
    named = {}
    for row in rows.rows:
        resource = ChannelResource(database, row[0])
        named[row[0]] = bool(await datasette.allowed(action=action, resource=resource, actor=actor))
    return Rights(bool(general), named)


async def require_publish(datasette: Datasette, actor: Actor, database: str, channels: Iterable[str]) -> None:
    """Raise :class:`PermissionDenied`, naming the channel, unless the actor may publish to all of them."""
    wanted = set(channels)
    if len(wanted) == 1:
        (channel,) = wanted
        refused = [] if await may_publish(datasette, actor, database, channel) else [channel]
    else:
        found = await rights(datasette, actor, PUBLISH, database)
        refused = sorted(channel for channel in wanted if not found.allows(channel))
    if refused:
        raise PermissionDenied(f"permission denied: {PUBLISH} on channel {refused[0]!r} of database {database}")


async def visible(datasette: Datasette, actor: Actor, database: str, selector: Selector) -> Selector:
    """What the actor receives of what it asked for.

    A channel that is named must be allowed; a pattern matches what is allowed,
    now and later. Raises :class:`PermissionDenied`.
    """
    for channel in selector.channels:
        if not await may_view(datasette, actor, database, channel):
            raise PermissionDenied(f"permission denied: {VIEW} on channel {channel!r} of database {database}")
    if not selector.patterns:
        return selector
    found = await rights(datasette, actor, VIEW, database)
    if found.general:
        denied = frozenset(channel for channel, allowed in found.named.items() if not allowed)
        return Selector(selector.channels, selector.patterns, denied)
    allowed = frozenset(channel for channel, ok in found.named.items() if ok and selector.matches(channel))
    if not allowed | selector.channels:
        raise PermissionDenied(f"permission denied: {VIEW} on the channels of database {database}")
    return Selector(selector.channels | allowed)


async def visible_channels(datasette: Datasette, actor: Actor, broker: Broker) -> list[log.Channel]:
    """The channels of a database that the actor may see."""
    found = await rights(datasette, actor, VIEW, broker.name)
    if not found.general and not any(found.named.values()):
        return []
    return [channel for channel in await broker.channels() if found.allows(channel.name)]


def owner_of(actor: Actor) -> str:
    """Whose subscriptions an actor has: its id, empty for anonymous visitors."""
    if not actor:
        return ""
    return str(actor["id"]) if actor.get("id") is not None else ""
