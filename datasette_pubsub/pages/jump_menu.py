"""Channels in Datasette's jump menu.

It returns a bounded number of channels that the actor may view, since the menu sends a request at every key press.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from datasette.jump import JumpSQL
from datasette.utils import tilde_encode

from ..access import permissions, rules
from ..broker.registry import registry
from ..core.display import visible
from ..core.errors import PubsubError
from ..storage import activity
from ..storage.names import shown
from ..storage.schema import installed

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..core.verdicts import Verdicts

#: The most channels of one database in the result: the menu shows 100 entries.
MAX_FOUND = 101

#: The most channels of one database that a search reads.
MAX_WALKED = 10_000


async def channels(datasette: Datasette, actor: dict[str, Any] | None, words: str) -> JumpSQL | None:
    """The channels of all databases whose names contain the words in this order, as Datasette's own search does."""
    terms = words.lower().split()
    items: list[tuple[str, str, str]] = []
    for database in list(datasette.databases):
        broker = registry(datasette).find(database)
        if broker is None:
            continue
        verdicts = await permissions.rights(datasette, actor, rules.VIEW, database)
        if verdicts.nothing:
            continue
        base = datasette.urls.database(database) + "/-/pubsub/"
        try:
            names = await broker.read(functools.partial(_names, database=database, verdicts=verdicts, terms=terms))
        except PubsubError:
            continue
        items += [(f"{database}: {visible(name)}", f"{database} {name}", base + tilde_encode(name)) for name in names]
    if not items:
        return None
    return JumpSQL(
        sql="""
            SELECT 'channel' AS type, json_extract(value, '$[0]') AS label, 'Live messages' AS description,
                   json_extract(value, '$[2]') AS url, json_extract(value, '$[1]') AS search_text,
                   NULL AS display_name
            FROM json_each(:channels)""",
        params={"channels": json.dumps(items)},
    )


def _names(conn: Any, database: str, verdicts: Verdicts, terms: list[str]) -> list[str]:
    found: list[str] = []
    if not installed(conn):
        return found
    for name in map(shown, activity.walk(conn, MAX_WALKED)):
        if verdicts.allows(name) and _in_order(f"{database} {name}".lower(), terms):
            found.append(name)
            if len(found) == MAX_FOUND:
                break
    return found


def _in_order(text: str, terms: list[str]) -> bool:
    at = 0
    for term in terms:
        at = text.find(term, at)
        if at < 0:
            return False
        at += len(term)
    return True
