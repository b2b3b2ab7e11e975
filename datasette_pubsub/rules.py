"""What Datasette is told of channels: the actions, their resource, and the rules that hold by default and by pattern.

The law of this module: it is asked by Datasette, and decides nothing; who wants to know asks :mod:`.permissions`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from datasette.permissions import Action, PermissionSQL, Resource, _permission_check_cache
from datasette.resources import DatabaseResource, TableResource
from datasette.utils import actor_matches_allow

from . import log
from .brokers import brokers
from .config import Settings
from .names import shown
from .objects import LOG
from .selector import Selector, Verdicts

if TYPE_CHECKING:
    from datasette.app import Datasette

VIEW = "view-channel"
PUBLISH = "publish-message"

#: Channels of one database that Datasette's lists of resources show, the first by name, in channels: each is a
#: row of the SQL that decides, and there may be any number of them.
MAX_LISTED = 1000

Actor = dict[str, Any] | None


class ChannelResource(Resource):
    """A channel of a database. Without a channel: all of them."""

    name = "channel"
    parent_class = DatabaseResource

    def __init__(self, database: str, channel: str | None = None) -> None:
        super().__init__(parent=database, child=channel)
        # Whoever makes one is about to ask about it.
        _candidate.set(channel)

    @classmethod
    async def resources_sql(cls, datasette: Datasette, actor: Actor = None) -> str:
        rows = []
        for name in list(datasette.databases):
            broker = brokers(datasette).find(name)
            if broker is not None:
                rows += [f"({_quote(name)}, {_quote(channel)})" for channel in await broker.read(_listed)]
        if not rows:
            return "SELECT NULL AS parent, NULL AS child WHERE 0"
        return f"SELECT column1 AS parent, column2 AS child FROM (VALUES {', '.join(rows)})"


def _listed(conn: sqlite3.Connection) -> list[str]:
    return [shown(name) for name in log.channel_names(conn, MAX_LISTED)]


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


#: The channel that is asked about now: rules by pattern hold for channels that do not exist yet, too.
_candidate: ContextVar[str | None] = ContextVar("datasette_pubsub_candidate", default=None)

#: Set where this plugin asks: then there is no other channel to be told about.
_alone: ContextVar[bool] = ContextVar("datasette_pubsub_alone", default=False)

#: Set while Datasette is asked about the log table as such, without the protection that follows from channels.
_plainly: ContextVar[bool] = ContextVar("datasette_pubsub_plainly", default=False)


def in_plain() -> bool:
    """Whether this plugin adds nothing to Datasette's rules now."""
    return _plainly.get()


@contextmanager
def plain() -> Iterator[None]:
    """Within it, the answers of Datasette leave out what this plugin adds; they are not kept for the request."""
    tokens = _plainly.set(True), _permission_check_cache.set({})
    try:
        yield
    finally:
        _plainly.reset(tokens[0])
        _permission_check_cache.reset(tokens[1])


async def own_rules(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """What this plugin adds to Datasette's rules for an action."""
    if in_plain():
        return []
    if action in (VIEW, PUBLISH):
        return [*await _by_pattern(datasette, actor, action), *await _by_default(datasette, actor, action)]
    return []


def rows_rule(resources: list[tuple[str, str | None]], allow: int, reason: str) -> PermissionSQL:
    """Rules for resources (parent, child), as the SQL that Datasette wants."""
    data = json.dumps(resources)
    key = f"pubsub_{sha256(f'{data}{allow}{reason}'.encode()).hexdigest()[:16]}"
    return PermissionSQL(
        sql=f"SELECT json_extract(value, '$[0]') AS parent, json_extract(value, '$[1]') AS child, "
        f"{allow} AS allow, '{reason}' AS reason FROM json_each(:{key})",
        params={key: data},
    )


async def _by_default(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """Whoever may see the log table may view its channels. Publishing has no default."""
    if action != VIEW:
        return []
    # What a token of the actor's is restricted to, Datasette asks by itself, for this action.
    whole = None if actor is None else {key: value for key, value in actor.items() if key != "_r"}
    with plain():
        allowed: list[tuple[str, str | None]] = [
            (name, None)
            for name in list(datasette.databases)
            if await datasette.allowed(action="view-table", resource=TableResource(name, LOG), actor=whole)
        ]
    return [rows_rule(allowed, 1, "may see the log table")]


def patterns_for(settings: Settings, actor: Actor, action: str) -> tuple[tuple[str, bool], ...]:
    """The configured patterns with their verdict on this actor."""
    found = []
    for pattern, view, publish in settings.channel_rules:
        block = view if action == VIEW else publish
        if block is not None:
            found.append((pattern, bool(actor_matches_allow(actor, block))))
    return tuple(found)


async def _by_pattern(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """The configured rules for patterns, told to Datasette channel by channel."""
    allowed: dict[bool, list[tuple[str, str | None]]] = {True: [], False: []}
    for name in list(datasette.databases):
        broker = brokers(datasette).find(name)
        patterns = () if broker is None else patterns_for(broker.settings, actor, action)
        if broker is None or not patterns:
            continue
        verdicts = Verdicts(patterns=patterns)
        matches = Selector(patterns=tuple(pattern for pattern, _ in patterns)).matches
        candidate = _candidate.get()
        listed = [] if _alone.get() else await broker.read(_listed)
        for channel in {*listed, *([candidate] if candidate else [])}:
            if matches(channel):
                allowed[verdicts.allows(channel)].append((name, channel))
    return [rows_rule(found, int(ok), "channel_rules") for ok, found in allowed.items() if found]


@contextmanager
def about(channel: str | None) -> Iterator[None]:
    """Within it, Datasette is asked about this channel, or without one about the database as a whole."""
    tokens = _candidate.set(channel), _alone.set(True)
    try:
        yield
    finally:
        _candidate.reset(tokens[0])
        _alone.reset(tokens[1])
