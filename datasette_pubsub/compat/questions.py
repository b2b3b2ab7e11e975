"""What Datasette's own pages read, as SQL: for live queries of tables, views and stored queries.

``tests/server/test_live_query.py`` fails when these change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils import named_parameters
from datasette.utils.asgi import Request, Response
from datasette.views import database as _database_views
from datasette.views import table as _table_views

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database


@dataclass(frozen=True, slots=True)
class TableQuery:
    """The SQL of a table's page: its parameters, how many rows the page shows, its key columns, and how it counts."""

    sql: str
    params: dict[str, Any]
    rows: int
    key: tuple[str, ...]
    count_sql: str


class Refused(Exception):
    """Datasette refuses to show the table so; the text says why."""


async def table_query(
    datasette: Datasette, request: Request, db: Database, table: str, args: Sequence[tuple[str, str]]
) -> TableQuery | None:
    """The SQL of a table's page with these arguments in its URL, for the request's actor.

    Reason: filters, sort order and the columns' rules exist only inside Datasette's view of tables, and plugins add
    to them; the documented way to them, ``?_extra=query``, is an HTTP request, which would come from another address
    and perhaps from another actor. Fallback: ``None`` if the function is missing; tables then have no live queries.
    Raises :class:`Refused`.
    """
    view_data = getattr(_table_views, "table_view_data", None)
    if view_data is None:
        return None
    wanted = [(name, value) for name, value in args if name not in ("_extra", "_shape", "_facet", "_labels")]
    wanted += [("_extra", "query,count_sql,primary_keys"), ("_nocount", "1"), ("_nofacet", "1"), ("_nosuggest", "1")]
    scope = {
        **request.scope,
        "method": "GET",
        "path": datasette.urls.table(db.name, table, format="json"),
        "query_string": urlencode(wanted).encode(),
        "url_route": {"kwargs": {"database": db.route, "table": table, "format": "json"}},
    }
    asked = Request(scope, None)
    try:
        resolved = await datasette.resolve_table(asked)
        found = await view_data(datasette, asked, resolved)
    except Exception as error:
        # BadRequest, Forbidden, NotFound and DatasetteError have a text for people, and no common class.
        if isinstance(getattr(error, "status", None), int):
            raise Refused(str(getattr(error, "message", None) or error)) from None
        raise
    if isinstance(found, Response):
        raise Refused("these arguments are those of the filter form: use the address that it leads to")
    data, _, columns, _, sql, _ = found
    limit = re.search(r" limit (\d+)(?: offset \d+)?$", sql)
    key = tuple(data["primary_keys"]) or (("rowid",) if columns[:1] == ["rowid"] and not resolved.is_view else ())
    return TableQuery(
        sql,
        dict(data["query"]["params"]),
        max(0, int(limit[1]) - 1) if limit else datasette.page_size,
        key if not resolved.is_view and set(key) <= set(columns) else (),
        data["count_sql"],
    )


async def magic_parameters(datasette: Datasette, request: Request, sql: str) -> dict[str, Any]:
    """The values of a stored query's magic parameters (``:_actor_id``) for this request.

    Reason: Datasette documents the parameters and the hook, but not the class that asks the hook. Fallback: none of
    them has a value, and the query's error names the parameter.
    """
    magic = getattr(_database_views, "MagicParameters", None)
    names = [name for name in named_parameters(sql) if name.startswith("_") and name.count("_") >= 2]
    if magic is None or not names:
        return {}
    found = magic(sql, {}, request, datasette)
    await found.execute_params()
    values = {}
    for name in names:
        try:
            values[name] = found[name]
        except KeyError:
            continue
    return values
