"""Permission checks for every protocol and page.

Datasette decides: this module asks its permission system, and has no rules of its own. :mod:`.access.rules` has the
rules that the plugin gives to Datasette.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any

from datasette.resources import DatabaseResource, TableResource
from datasette.utils.asgi import Request

from .. import compat
from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.errors import InvalidArgument, PermissionDenied
from ..core.limits import PLUGIN_OWNER
from ..core.selector import Selector
from ..core.settings import RELAY_OWNER, Settings
from ..core.values import Item
from ..core.verdicts import ALL, Verdicts
from ..storage import log
from ..storage.objects import SUBSCRIPTIONS
from .rules import PUBLISH, VIEW, Actor, ChannelResource, about, patterns_for
from .rulings import identity, kept, others, rulings

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The owners of subscriptions that are nobody's, and whose they are: no actor may have these ids.
RESERVED = {RELAY_OWNER: "relays", PLUGIN_OWNER: "other plugins"}


async def _may(datasette: Datasette, actor: Actor, action: str, database: str, channel: str | None) -> bool:
    with about(channel):
        resource = ChannelResource(database, channel)
        return bool(await datasette.allowed(action=action, resource=resource, actor=actor))


async def publishes(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Whether the actor may publish to any channel."""
    if compat.checks_are_off():
        return True
    found = await recent_rights(datasette, actor, PUBLISH, database, None, lambda verdicts: not verdicts.nothing)
    return not found.nothing


async def may_view(datasette: Datasette, actor: Actor, database: str, channel: str | None = None) -> bool:
    """Whether the actor may view this channel or, without one, the database as a whole."""
    return await _may(datasette, actor, VIEW, database, channel)


async def rights(datasette: Datasette, actor: Actor, action: str, database: str) -> Verdicts:
    """The verdicts of Datasette's rules for all channels of a database, however many there are.

    Only channels that a rule names can differ from the database as a whole, so
    only they are decided one by one. The rules are read once per request, for all databases.
    """
    if compat.checks_are_off():
        return ALL
    broker = registry(datasette).find(database)
    patterns = () if broker is None else patterns_for(broker.settings, actor, action)
    if action == PUBLISH and await _nobody_may(datasette, actor):
        return Verdicts(False, frozenset(), patterns)
    found = await rulings(datasette, actor)
    if found is None:
        return ALL
    ruling = found.channels[action]
    by_default = True if action == VIEW and found.sees_log(database) else None
    by_pattern = Verdicts(patterns=patterns)
    matches = Selector(patterns=tuple(pattern for pattern, _ in patterns)).matches

    def allows(channel: str) -> bool:
        at_child = by_pattern.allows(channel) if matches(channel) else None
        return ruling.allows(database, channel, at_parent=by_default, at_child=at_child)

    named = frozenset((channel, allows(channel)) for channel in ruling.children(database))
    if not ruling.leaves_in(database, None):
        # Rules by pattern apply only if the actor's token is for the whole database.
        return Verdicts(False, named)
    return Verdicts(ruling.allows(database, None, at_parent=by_default), named, patterns)


async def _nobody_may(datasette: Datasette, actor: Actor) -> bool:
    """Whether only the plugin has rules for publishing: without others it is denied, and nothing has to be read."""
    rules = await others(datasette, actor, PUBLISH)
    return rules is not None and not any(rule.sql or rule.restriction_sql for rule in rules)


async def require_publish(datasette: Datasette, actor: Actor, database: str, channels: Iterable[str]) -> None:
    """Raise :class:`PermissionDenied`, naming the channel, unless the actor may publish to all of them."""
    await _require(datasette, actor, PUBLISH, database, set(channels))


async def require_items(datasette: Datasette, actor: Actor, database: str, items: Iterable[Item]) -> None:
    """As :func:`require_publish`, for messages. A condition reveals the channel's newest id: it needs viewing, too."""
    items = list(items)
    await _require(datasette, actor, PUBLISH, database, {item.channel for item in items})
    conditional = {item.channel for item in items if item.expected_last_id is not None}
    if conditional:
        await _require(datasette, actor, VIEW, database, conditional)


async def _require(datasette: Datasette, actor: Actor, action: str, database: str, wanted: set[str]) -> None:
    """Raise :class:`PermissionDenied`, naming the channel, unless the actor may do this to all of them."""
    if compat.checks_are_off():
        return
    # A check of one channel is faster than one of the whole database.
    channel = next(iter(wanted)) if len(wanted) == 1 else None
    verdicts = await recent_rights(
        datasette, actor, action, database, channel, lambda verdicts: all(map(verdicts.allows, wanted))
    )
    refused = sorted(name for name in wanted if not verdicts.allows(name))
    if refused:
        raise PermissionDenied(f"permission denied: {action} on channel {refused[0]!r} of database {database}")


async def recent_rights(
    datasette: Datasette,
    actor: Actor,
    action: str,
    database: str,
    channel: str | None,
    suffices: Callable[[Verdicts], bool],
) -> Verdicts:
    """The verdicts for a channel, or for the whole database: cached ones if they suffice, else new ones.

    A permission check costs more than all the rest of a small publish, so verdicts
    are cached for a moment (:mod:`.live.coalescing`). Do not call it while checks are skipped.
    """
    known = registry(datasette)
    key = _key(actor, action, database, channel)
    found: Verdicts | None = known.ttl_cache.get(key, known.moment(database))
    if found is None or not suffices(found):
        asked = time.monotonic()
        found = await _together(datasette, actor, action, database, channel)
        # A refusal is cached for the request only: many refusals would push grants out of the cache.
        if suffices(found):
            known.ttl_cache.put(key, asked, found)
    return found


async def _together(datasette: Datasette, actor: Actor, action: str, database: str, channel: str | None) -> Verdicts:
    """The present verdicts for a channel, or for the whole database; simultaneous equal checks share one answer.

    Each check runs once per request. Do not call it while checks are skipped.
    """
    key = _key(actor, action, database, channel)
    answers = kept()
    if answers is not None and key in answers:
        known: Verdicts = answers[key]
        return known

    async def answer() -> Verdicts:
        if channel is None:
            return await rights(datasette, actor, action, database)
        return Verdicts(await _may(datasette, actor, action, database, channel))

    found: Verdicts
    if answers is not None and (
        channel is None
        or ("rulings", identity(actor)) in answers
        or (action == PUBLISH and await _nobody_may(datasette, actor))
    ):
        # The request has read the rules, or will read them: they decide all its checks.
        found = await rights(datasette, actor, action, database)
    else:
        found = await registry(datasette).single_flight.ask(key, answer)
    if answers is not None:
        answers[key] = found
    return found


def _key(actor: Actor, action: str, database: str, channel: str | None) -> Hashable:
    """The key of a check: everything that its verdict depends on. Actors are equal if all their properties are."""
    return (action, identity(actor), database, channel)


async def visible(
    datasette: Datasette, actor: Actor, database: str, selector: Selector, known: Verdicts | None = None
) -> Selector:
    """The part of a selector that the actor may view; ``known`` verdicts spare the check.

    A channel that is named must be allowed; a pattern matches only allowed
    channels, now and later. Raises :class:`PermissionDenied`.
    """
    if compat.checks_are_off():
        known = ALL
    for channel in selector.channels:
        found = await _together(datasette, actor, VIEW, database, channel) if known is None else known
        if not found.allows(channel):
            raise PermissionDenied(f"permission denied: {VIEW} on channel {channel!r} of database {database}")
    if not selector.patterns:
        return selector
    found = await _together(datasette, actor, VIEW, database, None) if known is None else known
    if found.nothing and not selector.channels:
        raise PermissionDenied(f"permission denied: {VIEW} on the channels of database {database}")
    return Selector(selector.channels, selector.patterns, ALL if found.everything else found, selector.filter)


async def visible_channels(datasette: Datasette, actor: Actor, broker: Broker) -> list[log.Channel]:
    """The channels of a database that the actor may view."""
    found = await rights(datasette, actor, VIEW, broker.name)
    if found.nothing:
        return []
    return [channel for channel in await broker.channels() if found.allows(channel.name)]


async def visible_follows(datasette: Datasette, actor: Actor, broker: Broker) -> dict[str, Any] | None:
    """What the log follows, as JSON; ``None`` for an ordinary log, and for an actor that may view no channel."""
    if (await rights(datasette, actor, VIEW, broker.name)).nothing:
        return None
    return await broker.follows()


async def may_manage(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Whether the actor may view and delete everyone's subscriptions: the rows of their table."""
    table = TableResource(database, SUBSCRIPTIONS)
    return bool(
        await datasette.allowed(action="view-table", resource=table, actor=actor)
        and await datasette.allowed(action="delete-row", resource=table, actor=actor)
    )


async def owner_to_manage(datasette: Datasette, actor: Actor, database: str, owner: object) -> str:
    """The owner of a subscription to manage; the actor, if no ``owner`` is given. Raises :class:`PermissionDenied`."""
    own = owner_of(actor)
    if owner is None or owner == own:
        return own
    if not isinstance(owner, str):
        raise InvalidArgument("owner must be text")
    if not await may_manage(datasette, actor, database):
        raise PermissionDenied(f"permission denied: delete-row on table {SUBSCRIPTIONS} of database {database}")
    return owner


async def visible_subscriptions(
    datasette: Datasette, actor: Actor, broker: Broker, everyones: bool
) -> list[dict[str, Any]]:
    """The actor's own subscriptions, or everyone's. Raises :class:`PermissionDenied` if it may view no channel."""
    verdicts = await rights(datasette, actor, VIEW, broker.name)
    if verdicts.nothing:
        raise PermissionDenied(f"permission denied: {VIEW} on database {broker.name}")
    if not everyones and owner_of(actor) in RESERVED:
        return []
    if everyones and not await may_manage(datasette, actor, broker.name):
        raise PermissionDenied(f"permission denied: delete-row on table {SUBSCRIPTIONS} of database {broker.name}")
    return await broker.subscriptions(None if everyones else owner_of(actor), verdicts)


async def visible_standing_queries(datasette: Datasette, actor: Actor, broker: Broker) -> list[dict[str, Any]]:
    """The standing queries that publish into channels which the actor may view.

    Their SQL, parameters and errors are ``None`` to an actor without ``execute-sql``, who may not know the tables.
    Raises :class:`PermissionDenied` if it may view no channel.
    """
    verdicts = await rights(datasette, actor, VIEW, broker.name)
    if verdicts.nothing:
        raise PermissionDenied(f"permission denied: {VIEW} on database {broker.name}")
    found = [state for state in await broker.queries.standing.states() if verdicts.allows(state["channel"])]
    resource = DatabaseResource(broker.name)
    if not await datasette.allowed(action="execute-sql", resource=resource, actor=actor):
        for state in found:
            error = None if state["error"] is None else "the query cannot be run"
            state |= {"sql": None, "params": None, "error": error}
    return found


def warnings(datasette: Datasette) -> list[str]:
    """Warnings for an operator who restricts channels, logged at startup."""
    return [
        f"database {name}: channel_permissions restrict channels, but an actor with execute-sql on it can read the log "
        "with SQL; deny execute-sql to actors that may not view every channel"
        for name in list(datasette.databases)
        if (broker := registry(datasette).find(name)) is not None
        and any(view is not None for _, view, _ in broker.settings.channel_permissions)
    ]


def check_named(settings: Settings, actor: Actor, name: str | None) -> None:
    """Raise :class:`PermissionDenied` for a named subscription of an actor who may have none.

    That is an anonymous visitor, if the option forbids it, and an actor with a reserved id.
    """
    owner = owner_of(actor)
    if name and owner in RESERVED:
        raise PermissionDenied(
            f"the actor id {owner!r} is reserved for {RESERVED[owner]}, and may have no subscriptions"
        )
    if name and not owner_of(actor) and not settings.allow_anonymous_subscriptions:
        raise PermissionDenied("named subscriptions are for those who are logged in (allow_anonymous_subscriptions)")


def owner_of(actor: Actor) -> str:
    """The owner of an actor's subscriptions: its id, empty for anonymous visitors."""
    if not actor:
        return ""
    return str(actor["id"]) if actor.get("id") is not None else ""


def party_of(request: Request) -> str:
    """The party that a stream counts for: the actor, or the address of an anonymous visitor."""
    owner = owner_of(request.actor)
    client = request.scope.get("client")
    return f"actor {owner}" if owner else f"address {client[0] if client else ''}"
