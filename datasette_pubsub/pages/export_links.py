"""Export links: the messages of a page as JSON and CSV, and in Datasette as a table and as SQL.

Every link leads to the messages that the page shows. A page has no link that its actor may not open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from datasette.resources import DatabaseResource
from datasette.utils.asgi import Request

from ..http.messages import LIMIT, Query
from ..storage.objects import LOG

if TYPE_CHECKING:
    from datasette.app import Datasette


async def links(
    datasette: Datasette, request: Request, database: str, query: Query, may_view_log: bool
) -> dict[str, str]:
    """The links by kind; the page's script replaces the search text in them.

    ``sql_text`` is ``sql`` with a condition for the search text, which ``sql`` lacks without a search.
    """
    before = [] if query.before is None else [("before", str(query.before))]
    own = f"{datasette.urls.database(database)}/-/pubsub/-/messages"
    asked = "?" + urlencode([*query.parameters, *before])
    found = {"json": f"{own}.json{asked}".rstrip("?"), "csv": f"{own}.csv{asked}".rstrip("?")}
    if not may_view_log:
        return found
    if len(query.channels) + len(query.patterns) < 2:
        found["table"] = datasette.urls.table(database, LOG) + "?" + urlencode(_filters(query))
    if await datasette.allowed(action="execute-sql", resource=DatabaseResource(database), actor=request.actor):
        found["sql"] = _sql(datasette, database, query, bool(query.text))
        found["sql_text"] = _sql(datasette, database, query, True)
    return found


def _filters(query: Query) -> list[tuple[str, str]]:
    """The query as filters of Datasette's table page."""
    pairs = [("_sort_desc", "id")]
    pairs += [("channel__exact", channel) for channel in query.channels]
    pairs += [("channel__glob", pattern) for pattern in query.patterns]
    pairs += [("payload__contains", query.text)] if query.text else []
    return pairs + ([] if query.before is None else [("id__lt", str(query.before))])


def _sql(datasette: Datasette, database: str, query: Query, with_text: bool) -> str:
    """The query as SQL to view and edit, with its values as parameters."""
    values: dict[str, str] = {}
    either = []
    for kind, operator, wanted in (("channel", "=", query.channels), ("pattern", "glob", query.patterns)):
        for number, value in enumerate(wanted, 1):
            name = kind if number == 1 else f"{kind}_{number}"
            values[name] = value
            either.append(f"channel {operator} :{name}")
    conditions = [either[0] if len(either) == 1 else f"({' or '.join(either)})"] if either else []
    if with_text:
        values["text"] = query.text
        conditions.append("instr(lower(payload), lower(:text)) > 0 and typeof(payload) <> 'blob'")
    if query.before is not None:
        values["before"] = str(query.before)
        conditions.append("id < :before")
    where = "\nwhere " + "\n  and ".join(conditions) if conditions else ""
    sql = f"select id, channel, payload, created_at\nfrom {LOG}{where}\norder by id desc limit {LIMIT}"
    address: str = datasette.urls.database_query(database, sql)
    return address + ("&" + urlencode(values) if values else "")
