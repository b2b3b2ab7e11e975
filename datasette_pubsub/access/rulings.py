"""Reads the rules of Datasette and of other plugins for channels, for all databases together, once per request.

Permission rules are SQL that runs on Datasette's internal database. This module collects the rules of an actor for an
action once per request, and one query reads the rules for all actions that the plugin needs. The results are valid as
long as Datasette's own cache of permission checks, which ends with the request; outside a request nothing is cached.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from datasette.permissions import PermissionSQL

from .. import compat
from ..storage.objects import LOG

if TYPE_CHECKING:
    from datasette.app import Datasette

VIEW = "view-channel"
PUBLISH = "publish-message"

Actor = dict[str, Any] | None

T = TypeVar("T")

#: The restriction that Datasette makes for a token that does not name an action: it allows nothing.
_NOTHING = "SELECT NULL AS parent, NULL AS child WHERE 0"

#: Set while the rules of other plugins are collected: this plugin then adds none.
_plainly: ContextVar[bool] = ContextVar("datasette_pubsub_plainly", default=False)


def in_plain() -> bool:
    """Whether this plugin adds no rules to Datasette's now."""
    return _plainly.get()


@contextmanager
def _plain() -> Iterator[None]:
    """Within this block, Datasette decides without this plugin's rules, and caches nothing for the request."""
    token = _plainly.set(True)
    try:
        with compat.without_permission_cache():
            yield
    finally:
        _plainly.reset(token)


# -- once per request ----------------------------------------------------------


class Kept:
    """The cached results of one request. They are valid while Datasette's cache of permission checks is the same."""

    def __init__(self) -> None:
        self.cache: dict[Any, Any] | None = None
        self.answers: dict[Hashable, Any] = {}


#: The cache of the present request, set by the plugin's outermost wrapper.
request_answers: ContextVar[Kept | None] = ContextVar("datasette_pubsub_request_answers", default=None)


def kept() -> dict[Hashable, Any] | None:
    """The cache of the present request; ``None`` outside a request, or if results must not be cached."""
    cache, found = compat.permission_cache(), request_answers.get()
    if cache is None or found is None:
        return None
    if found.cache is not cache:
        found.cache, found.answers = cache, {}
    return found.answers


async def once(key: Hashable, answer: Callable[[], Awaitable[T]]) -> T:
    """The result of ``answer``, which runs once per request; simultaneous calls wait for the first one."""
    answers = kept()
    if answers is None:
        return await answer()
    if key not in answers:
        lock: asyncio.Lock = answers.setdefault(("lock", key), asyncio.Lock())
        async with lock:
            if key not in answers:
                answers[key] = await answer()
    found: T = answers[key]
    return found


#: ``json.dumps()`` with these options makes an encoder at each call.
_sorted_json = json.JSONEncoder(sort_keys=True, default=repr).encode


def identity(actor: Actor) -> str | None:
    """A text with all properties of an actor. Two actors are equal if their texts are."""
    return None if actor is None else _sorted_json(actor)


# -- rules of others -----------------------------------------------------------


async def others(datasette: Datasette, actor: Actor, action: str) -> list[PermissionSQL] | None:
    """The rules of Datasette and of other plugins for an action; ``None`` while checks are skipped."""

    async def collect() -> list[PermissionSQL] | None:
        with _plain():
            return await compat.permission_rules(datasette, actor, action)

    return await once(("others", identity(actor), action), collect)


def grants(rules: Sequence[PermissionSQL]) -> bool:
    """Whether any of these rules can allow anything: Datasette denies everything that no rule allows."""
    return any(rule.sql for rule in rules)


def leave_nothing(rules: Sequence[PermissionSQL]) -> bool:
    """Whether the actor's token is for other actions, so that this one is denied without reading the rules."""
    return any(rule.restriction_sql == _NOTHING for rule in rules)


def _renamed(sql: str, params: dict[str, Any] | None, prefix: str, into: dict[str, Any]) -> str:
    """The SQL of a rule with unique parameter names, so that several rules fit into one statement.

    Datasette does the same when it checks several actions at once.
    """
    for name, value in (params or {}).items():
        renamed = re.sub(f":{re.escape(name)}(?![A-Za-z0-9_])", f":{prefix}{name}", sql)
        if renamed != sql:
            sql = renamed
            into[f"{prefix}{name}"] = value
    return sql


def rows_rule(resources: Sequence[tuple[str, str | None]], allow: int, reason: str) -> PermissionSQL:
    """A rule for resources (parent, child), as the SQL that Datasette needs."""
    data = json.dumps(resources)
    key = f"pubsub_{sha256(f'{data}{allow}{reason}'.encode()).hexdigest()[:16]}"
    return PermissionSQL(
        sql=f"SELECT json_extract(value, '$[0]') AS parent, json_extract(value, '$[1]') AS child, "
        f"{allow} AS allow, '{reason}' AS reason FROM json_each(:{key})",
        params={key: data},
    )


def deny_unless_named(
    resources: Sequence[tuple[str, str]], rules: Sequence[PermissionSQL], reason: str
) -> PermissionSQL:
    """A rule that denies those of these tables that none of the ``rules`` allows by the table's own name."""
    data = json.dumps(resources)
    key = f"pubsub_{sha256(f'{data}{reason}'.encode()).hexdigest()[:16]}"
    params: dict[str, Any] = {key: data}
    named = " UNION ALL ".join(
        f"SELECT parent, child, allow FROM ({_renamed(rule.sql, rule.params, f'{key}_{number}_', params)})"
        for number, rule in enumerate(rules)
        if rule.sql
    )
    sql = (
        "SELECT json_extract(value, '$[0]') AS parent, json_extract(value, '$[1]') AS child, "
        f"0 AS allow, '{reason}' AS reason FROM json_each(:{key}) AS own"
    )
    if named:
        sql += (
            f" WHERE NOT EXISTS (SELECT 1 FROM ({named}) AS rule WHERE rule.allow "
            "AND rule.parent = json_extract(own.value, '$[0]') "
            "AND rule.child = json_extract(own.value, '$[1]') COLLATE NOCASE)"
        )
    return PermissionSQL(sql=sql, params=params)


# -- what they say -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ruling:
    """The rules of Datasette and other plugins for one action, for every database and child.

    It decides as Datasette does: the more specific rule wins, a denial wins among
    equally specific rules, and a restriction must include the resource.
    """

    rules: dict[tuple[str | None, str | None], bool]
    #: The resources that the actor is restricted to; ``None`` without a restriction.
    within: frozenset[tuple[str | None, str | None]] | None = None

    def allows(
        self, parent: str, child: str | None, at_parent: bool | None = None, at_child: bool | None = None
    ) -> bool:
        """The verdict on a resource, including the verdicts of this plugin's rules for the parent and the child."""
        levels = [
            (at_parent, self.rules.get((parent, None))),
            (self.rules.get((None, None)),),
        ]
        if child is not None:
            levels.insert(0, (at_child, self.rules.get((parent, child)), self.rules.get((None, child))))
        spoken = next((found for level in levels if (found := [one for one in level if one is not None])), [False])
        return all(spoken) and self.leaves_in(parent, child)

    def leaves_in(self, parent: str, child: str | None) -> bool:
        """Whether the actor's restrictions include a resource."""
        if self.within is None:
            return True
        return any((place, name) in self.within for place in (parent, None) for name in {child, None})

    def children(self, parent: str) -> set[str]:
        """The children of a parent that a rule or a restriction names."""
        places = [*self.rules, *(self.within or ())]
        return {child for place, child in places if child is not None and place in (parent, None)}


@dataclass(frozen=True, slots=True)
class Rulings:
    """The rules for one actor: for viewing channels, for publishing to them, and for viewing the log table."""

    channels: dict[str, Ruling]
    log: tuple[Ruling, ...]
    log_name: str

    def sees_log(self, database: str) -> bool:
        """Whether the actor may view a database's log table by these rules."""
        return all(ruling.allows(database, self.log_name) for ruling in self.log)


async def rulings(datasette: Datasette, actor: Actor) -> Rulings | None:
    """The rules for an actor, read with one query for all databases; ``None`` while checks are skipped."""
    return await once(("rulings", identity(actor)), lambda: _read(datasette, actor))


async def _read(datasette: Datasette, actor: Actor) -> Rulings | None:
    # Datasette itself applies the restrictions of the actor's token, to the action on channels.
    whole = None if actor is None else {key: value for key, value in actor.items() if key != "_r"}
    chain = ["view-table"]
    while (required := datasette.actions[chain[-1]].also_requires) is not None:
        chain.append(required)
    asked = [(actor, VIEW), (actor, PUBLISH), *((whole, action) for action in chain)]
    parts: list[str] = []
    params: dict[str, Any] = {"log": LOG}
    restrictions: list[int] = []
    for number, (who, action) in enumerate(asked):
        rules = await others(datasette, who, action)
        if rules is None:
            return None
        # Of the tables that rules name, only the log table matters.
        where = "" if action in (VIEW, PUBLISH) else " WHERE child IS NULL OR child = :log COLLATE NOCASE"
        restrictions.append(0)
        for rule in rules:
            prefix = f"r{len(parts)}_"
            if rule.sql:
                sql = _renamed(rule.sql, rule.params, prefix, params)
                parts.append(f"SELECT {number}, NULL, parent, child, allow FROM ({sql}){where}")
            if rule.restriction_sql:
                sql = _renamed(rule.restriction_sql, rule.params, prefix + "r_", params)
                parts.append(f"SELECT {number}, {restrictions[-1]}, parent, child, NULL FROM ({sql}){where}")
                restrictions[-1] += 1
    rows: list[Any] = []
    if parts:
        rows = (await datasette.get_internal_database().execute(" UNION ALL ".join(parts), params)).rows
    log_name = datasette.actions["view-table"].normalize_child(LOG)
    found = []
    for number, (_, action) in enumerate(asked):
        name_of = datasette.actions[action].normalize_child
        if action not in (VIEW, PUBLISH):
            # Names in rules for tables are compared as Datasette compares table names.
            name_of = datasette.actions["view-table"].normalize_child
        found.append(_ruling([row for row in rows if row[0] == number], restrictions[number], name_of))
    return Rulings({VIEW: found[0], PUBLISH: found[1]}, tuple(found[2:]), log_name)


def _ruling(rows: list[Any], restrictions: int, name_of: Callable[[Any], Any]) -> Ruling:
    rules: dict[tuple[str | None, str | None], bool] = {}
    within: list[set[tuple[str | None, str | None]]] = [set() for _ in range(restrictions)]
    for _, restriction, parent, child, allow in rows:
        place = parent, name_of(child) if isinstance(child, str) else child
        if restriction is None:
            rules[place] = bool(allow) and rules.get(place, True)
        else:
            within[restriction].add(place)
    return Ruling(rules, frozenset(set.intersection(*within)) if within else None)
