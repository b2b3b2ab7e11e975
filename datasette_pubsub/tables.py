"""The plugin's own tables in Datasette: no side door to the log.

The law of this module: Datasette's pages, its JSON API and its write SQL reach
the plugin's tables only as far as the channels in them may be reached. It adds
rules to Datasette's, and asks :mod:`permissions` what they follow from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from datasette.permissions import PermissionSQL
from datasette.utils.permissions import SKIP_PERMISSION_CHECKS, build_rules_union, gather_permission_sql_from_hooks

from . import schema
from .brokers import brokers
from .objects import FILE, LOG, PROBE, RECORDS, RELEASED, REPLACED, SUBSCRIPTIONS, TABLES, TRIMS
from .permissions import rights
from .rules import PUBLISH, VIEW, Actor, in_plain, plain, rows_rule

if TYPE_CHECKING:
    from datasette.app import Datasette

#: Tables that nobody writes to through Datasette: what frees messages for deletion, what the file says of itself, the
#: counter of the message ids (SQLite's own), and which migrations have run.
KEPT = (RELEASED, TRIMS, FILE, RECORDS, "sqlite_sequence", "_sqlite_migrations")

#: Tables that an INSERT INTO vpubsub touches, also by a broadcast's triggers. Datasette asks for all three rights to
#: them also where SQL only inserts; changing and deleting messages is refused by the log itself.
PUBLISHED_TO = (LOG, PROBE, REPLACED)

_WRITES = ("insert-row", "update-row", "delete-row")
_SHAPES = ("alter-table", "drop-table", "drop-view")


async def own_rules(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """What this module adds to Datasette's rules for an action."""
    if in_plain():
        return []
    if action == "view-table":
        return await _reading(datasette, actor)
    if action == "view-database-download":
        return await _download(datasette, actor)
    rules: list[PermissionSQL] = []
    if action in _WRITES:
        rules += await _publishing(datasette, actor, action)
    if action in _WRITES:
        rules.append(_never(datasette, KEPT))
    if action == "delete-row":
        rules += await _owners_only(datasette, actor, action)
    elif action in _WRITES:
        rules.append(_never(datasette, (SUBSCRIPTIONS,)))
    if action in _SHAPES:
        rules.append(_never(datasette, sorted({*TABLES, *KEPT})))
    return rules


async def _publishing(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """Whoever may publish to every channel may write to the log, and nobody else may insert."""
    found: dict[bool, list[tuple[str, str | None]]] = {True: [], False: []}
    for name in _names(datasette):
        everything = (await rights(datasette, actor, PUBLISH, name)).everything
        found[everything] += [(name, table) for table in PUBLISHED_TO]
    rules = [rows_rule(found[True], 1, f"has {PUBLISH} on every channel")] if found[True] else []
    if found[False] and action == "insert-row":
        rules.append(rows_rule(found[False], 0, f"needs {PUBLISH} on every channel"))
    return rules


def _names(datasette: Datasette) -> list[str]:
    """The databases that take part."""
    return [name for name in list(datasette.databases) if brokers(datasette).find(name) is not None]


def _never(datasette: Datasette, tables: Iterable[str]) -> PermissionSQL:
    denied: list[tuple[str, str | None]] = [(name, table) for name in _names(datasette) for table in tables]
    return rows_rule(denied, 0, "kept by datasette-pubsub")


async def _sees_all(datasette: Datasette, actor: Actor, name: str) -> bool:
    """Whether the actor sees every channel of a database, or nothing says anything about channels there."""
    with plain():
        others = await gather_permission_sql_from_hooks(datasette=datasette, actor=actor, action=VIEW)
    if others is SKIP_PERMISSION_CHECKS:
        return True
    broker = brokers(datasette).find(name)
    restricted = any(rule.sql or rule.restriction_sql for rule in others)
    # Viewing follows from the table itself where no rule says anything about channels.
    if broker is None or not (restricted or broker.settings.channel_rules):
        return True
    return (await rights(datasette, actor, VIEW, name)).everything


async def _reading(datasette: Datasette, actor: Actor) -> list[PermissionSQL]:
    """Close our tables, and the views that read them, to those who do not see every channel in them."""
    denied: list[tuple[str, str | None]] = []
    for name in _names(datasette):
        broker = brokers(datasette).find(name)
        if broker is not None and not await _sees_all(datasette, actor, name):
            readers = await broker.read(schema.readers)
            named = await _named(datasette, actor, "view-table", name, readers)
            denied += [(name, table) for table in (*TABLES, *(set(readers) - named))]
    found = [rows_rule(denied, 0, f"needs {VIEW} on every channel")] if denied else []
    return found + await _owners_only(datasette, actor, "view-table")


async def _owners_only(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL]:
    """Close the cursors of all to everybody but root and those whom a rule names for this table."""
    if datasette.root_enabled and (actor or {}).get("id") == "root":
        return []
    denied: list[tuple[str, str | None]] = [
        (name, SUBSCRIPTIONS)
        for name in _names(datasette)
        if not await _named(datasette, actor, action, name, [SUBSCRIPTIONS])
    ]
    return [rows_rule(denied, 0, "subscriptions belong to their actors")] if denied else []


async def _named(datasette: Datasette, actor: Actor, action: str, name: str, tables: list[str]) -> set[str]:
    """Those of these tables that somebody has opened to the actor by a rule of their own."""
    if not tables:
        return set()
    with plain():
        collected = await gather_permission_sql_from_hooks(datasette=datasette, actor=actor, action=action)
    if collected is SKIP_PERMISSION_CHECKS:
        return set(tables)
    union, params = build_rules_union(actor, collected)
    sql = (
        f"SELECT own.value FROM json_each(:pubsub_tables) AS own JOIN ({union}) AS rule ON rule.allow "
        "AND rule.parent = :pubsub_database AND rule.child = own.value COLLATE NOCASE"
    )
    values = {**params, "pubsub_database": name, "pubsub_tables": json.dumps(tables)}
    return {row[0] for row in (await datasette.get_internal_database().execute(sql, values)).rows}


async def _download(datasette: Datasette, actor: Actor) -> list[PermissionSQL]:
    """The whole file holds the log: not for those who do not see all of it."""
    denied: list[tuple[str, str | None]] = [
        (name, None) for name in _names(datasette) if not await _sees_all(datasette, actor, name)
    ]
    return [rows_rule(denied, 0, f"needs {VIEW} on every channel")] if denied else []
