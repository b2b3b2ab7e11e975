"""Table rules: the permission rules for the plugin's own tables, which prevent a permission bypass.

With these rules, Datasette's pages, its JSON API and its write SQL reach the plugin's tables only as far as the actor
may reach the channels in them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from datasette.permissions import PermissionSQL

from ..broker.registry import registry
from ..storage import schema
from ..storage.objects import FILE, LOG, PROBE, RECORDS, RELEASED, REPLACED, STANDING, SUBSCRIPTIONS, TABLES, TRIMS
from .permissions import rights
from .rulings import PUBLISH, VIEW, Actor, deny_unless_named, grants, in_plain, leave_nothing, once, others, rows_rule

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The tables that no actor may write to through Datasette: the tables of retention, the row about the file, the record
#: of broadcasts, the results of standing queries, SQLite's counter of message ids, and the record of migrations.
KEPT = (RELEASED, TRIMS, FILE, RECORDS, STANDING, "sqlite_sequence", "_sqlite_migrations")

#: The tables that an INSERT INTO vpubsub writes to, including those of a broadcast's triggers. Datasette requires all
#: three permissions for them even if the SQL only inserts; the log itself refuses to change or delete messages.
PUBLISHED_TO = (LOG, PROBE, REPLACED)

#: The reasons that Datasette's permission pages show.
NOT_ALL_SEEN = f"needs {VIEW} on every channel"
OWNERS_ONLY = "subscriptions belong to their actors"
RESULTS_ONLY = "results of standing queries have rows of other tables"

_WRITES = ("insert-row", "update-row", "delete-row")
_SHAPES = ("alter-table", "drop-table", "drop-view")


async def own_rules(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """The rules for the plugin's tables that this module adds to Datasette's."""
    if in_plain():
        return []
    if action == "view-table":
        return await _reading(datasette, actor)
    if action == "view-database-download":
        return await _download(datasette, actor)
    if action not in (*_WRITES, *_SHAPES):
        return []
    granted = await others(datasette, actor, action)
    if granted is None:
        return []
    rules = await _publishing(datasette, actor, action) if action in _WRITES else []
    if not grants(granted):
        # Only these rules allow anything, so there is nothing to deny.
        return [rule for rule, allow in rules if allow]
    found = [rule for rule, _ in rules]
    if action in _SHAPES:
        return [*found, _never(datasette, sorted({*TABLES, *KEPT}))]
    found.append(_never(datasette, KEPT if action == "delete-row" else (*KEPT, SUBSCRIPTIONS)))
    if action == "delete-row" and not _is_root(datasette, actor):
        found.append(deny_unless_named(_cursors(datasette), granted, OWNERS_ONLY))
    return found


async def _publishing(datasette: Datasette, actor: Actor, action: str) -> list[tuple[PermissionSQL, bool]]:
    """The rules for writing to the log, each with whether it allows; inserting needs publishing to every channel."""
    found: dict[bool, list[tuple[str, str | None]]] = {True: [], False: []}
    rules_of_others = await others(datasette, actor, PUBLISH)
    # An actor may publish to every channel only if some rule grants it in general.
    possible = rules_of_others is None or (grants(rules_of_others) and not leave_nothing(rules_of_others))
    for name in _names(datasette):
        everything = possible and (await rights(datasette, actor, PUBLISH, name)).everything
        found[everything] += [(name, table) for table in PUBLISHED_TO]
    rules = [(rows_rule(found[True], 1, f"has {PUBLISH} on every channel"), True)] if found[True] else []
    if found[False] and action == "insert-row":
        rules.append((rows_rule(found[False], 0, f"needs {PUBLISH} on every channel"), False))
    return rules


def _names(datasette: Datasette) -> list[str]:
    """The databases that have a broker."""
    return [name for name in list(datasette.databases) if registry(datasette).find(name) is not None]


def _never(datasette: Datasette, tables: Iterable[str]) -> PermissionSQL:
    denied: list[tuple[str, str | None]] = [(name, table) for name in _names(datasette) for table in tables]
    return rows_rule(denied, 0, "kept by datasette-pubsub")


async def _sees_all(datasette: Datasette, actor: Actor, name: str) -> bool:
    """Whether the actor may view every channel of a database, or no rule is about its channels."""
    rules = await others(datasette, actor, VIEW)
    if rules is None:
        return True
    broker = registry(datasette).find(name)
    restricted = any(rule.sql or rule.restriction_sql for rule in rules)
    # If no rule is about channels, the permission to view the table decides.
    if broker is None or not (restricted or broker.settings.channel_permissions):
        return True
    return not leave_nothing(rules) and (await rights(datasette, actor, VIEW, name)).everything


async def _reading(datasette: Datasette, actor: Actor) -> list[PermissionSQL]:
    """Deny our tables, and the views that read them, to actors who may not view every channel in them.

    A view stays allowed if another rule allows it to the actor by its name. The same holds for the tables of
    subscriptions and of standing queries, which otherwise only root may view.
    """
    granted = await others(datasette, actor, "view-table")
    if granted is None:
        return []
    denied: list[tuple[str, str | None]] = []
    derived: list[tuple[str, str]] = []
    for name in _names(datasette):
        broker = registry(datasette).find(name)
        if broker is not None and not await _sees_all(datasette, actor, name):
            denied += [(name, table) for table in TABLES]
            views = await once(("readers", name), functools.partial(broker.read, schema.readers))
            derived += [(name, table) for table in views]
    found = [rows_rule(denied, 0, NOT_ALL_SEEN)] if denied else []
    if derived:
        found.append(deny_unless_named(derived, granted, NOT_ALL_SEEN))
    if not _is_root(datasette, actor) and (cursors := _cursors(datasette)):
        found.append(deny_unless_named(cursors, granted, OWNERS_ONLY))
        found.append(deny_unless_named([(name, STANDING) for name, _ in cursors], granted, RESULTS_ONLY))
    return found


def _is_root(datasette: Datasette, actor: Actor) -> bool:
    return bool(datasette.root_enabled and (actor or {}).get("id") == "root")


def _cursors(datasette: Datasette) -> list[tuple[str, str]]:
    """The subscriptions table of each database."""
    return [(name, SUBSCRIPTIONS) for name in _names(datasette)]


async def _download(datasette: Datasette, actor: Actor) -> list[PermissionSQL]:
    """Deny downloading the file to actors who may not view the whole log."""
    denied: list[tuple[str, str | None]] = [
        (name, None) for name in _names(datasette) if not await _sees_all(datasette, actor, name)
    ]
    return [rows_rule(denied, 0, NOT_ALL_SEEN)] if denied else []
