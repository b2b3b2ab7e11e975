"""The ``.live`` pages: the rows of a table, a view or a query, which the page's script keeps up to date.

Datasette offers them where it offers JSON and CSV (``register_output_renderer``): it has asked for the permission and
run the query before it calls :func:`page`. The script then follows the same question as a live query, and begins with
the differences from the rows on the page, so that nothing is missed between the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from datasette.resources import TableResource
from datasette.utils.asgi import Request, Response
from markupsafe import Markup

from ..access.questions import AskedQuery, question_of
from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.display import PLAIN_CHARACTERS, PLAIN_LINES
from ..core.errors import NotFound, PubsubError
from ..http.live import OWN
from ..storage.query import as_json
from .cells import RowLinks
from .layout import error_page, policy, silence

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The extension of these pages.
LIVE = "live"

#: Parameters of Datasette's pages that change how values are shown, which these pages do in one way.
_OF_OTHER_FORMATS = ("_labels", "_label", "_shape", "_extra", "_json", "_format")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a page shows: a table or view, a stored query, or SQL."""

    database: str
    table: str | None = None
    query_name: str | None = None
    sql: str | None = None

    @property
    def kind(self) -> str:
        return "table" if self.table else "query" if self.query_name else "sql"

    def asked(self, request: Request) -> tuple[str, list[tuple[str, str]]]:
        """What to ask of the live query: the value of :attr:`kind`, and all other parameters of the page."""
        pairs = [
            (name, value)
            for name, value in parse_qsl(request.query_string, keep_blank_values=True)
            if name not in _OF_OTHER_FORMATS and (self.table or self.query_name or name != "sql")
        ]
        if self.table:
            # A filter on a column that is called as a parameter of the stream.
            pairs = [(f"{name}__exact" if name in OWN else name, value) for name, value in pairs]
        return str(self.table or self.query_name or self.sql), pairs

    def path(self, datasette: Datasette, form: str | None = None) -> str:
        """The path of the page in this format, without its parameters."""
        urls = datasette.urls
        if self.table:
            return str(urls.table(self.database, self.table, format=form))
        if self.query_name:
            return str(urls.query(self.database, self.query_name, format=form))
        return f"{urls.database(self.database)}/-/query{'.' + form if form else ''}"

    def address(self, datasette: Datasette, request: Request, form: str | None = None) -> str:
        """The path of the page in this format, with all parameters of the request."""
        pairs = [pair for pair in request.query_string.split("&") if pair and not pair.startswith("_labels=")]
        return self.path(datasette, form) + ("?" + "&".join(pairs) if pairs else "")


def _broker(datasette: Datasette, database: str) -> Broker | None:
    """The broker of a database that can have live pages."""
    broker = registry(datasette).find(database)
    # Memory is of one process and an immutable file never changes: there is nothing to follow.
    if broker is None or not broker.settings.live_tables or not broker.store.writable:
        return None
    return broker


async def offered(datasette: Datasette, request: Request, source: Source) -> bool:
    """Whether a page of Datasette has a link to the live page."""
    if _broker(datasette, source.database) is None:
        return False
    if source.table:
        return True
    return bool(source.sql) and await _refusal(datasette, request, source) is None


async def _refusal(datasette: Datasette, request: Request, source: Source) -> PubsubError | None:
    """Why the live query would be refused before it runs: it writes, or a parameter has no value."""
    value, pairs = source.asked(request)
    args = tuple((name, text) for name, text in pairs if name not in OWN)
    asked = AskedQuery(query=value, args=args) if source.query_name else AskedQuery(sql=value, args=args)
    try:
        await question_of(datasette, request, source.database, asked)
    except PubsubError as error:
        return error
    return None


async def action(datasette: Datasette, request: Request, source: Source) -> list[dict[str, str]]:
    """The entry in the menu of a table, view or query."""
    if not await offered(datasette, request, source):
        return []
    href = source.address(datasette, request, LIVE)
    return [{"href": href, "label": "Live", "description": "These rows, and every change of them as it happens"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What Datasette has found: ``truncated`` by its limit of rows, or an ``error``."""

    columns: Sequence[str]
    rows: Sequence[Any]
    truncated: bool = False
    error: str | None = None


async def page(datasette: Datasette, request: Request, source: Source, found: Rows) -> Response:
    """The live page of a table, view or query."""
    broker = _broker(datasette, source.database)
    if broker is None:
        return await error_page(datasette, request, NotFound(f"database {source.database} has no live pages"))
    error, status = found.error, 400 if found.error else 200
    if error is None and not source.table:
        refusal = await _refusal(datasette, request, source)
        if refusal is not None:
            error, status = refusal.message, refusal.status
    context = await _context(datasette, request, source, found)
    rows = _rows(context, found, datasette.setting("truncate_cells_html"), broker.settings.max_live_query_bytes)
    html = await datasette.render_template(
        ["pubsub_query.html"],
        {**context, **rows, "silence": silence(broker), "error": error, "dark_scheme": broker.settings.dark_scheme},
        request=request,
        view_name="pubsub_query",
    )
    return Response.html(html, status=status, headers={"Content-Security-Policy": await policy(datasette)})


async def _context(datasette: Datasette, request: Request, source: Source, found: Rows) -> dict[str, Any]:
    database, db = source.database, datasette.get_database(source.database)
    value, pairs = source.asked(request)
    heading, sql, links = "SQL query", source.sql, RowLinks()
    if source.table:
        heading, sql, links = source.table, None, await _links(datasette, request, source, found)
    elif source.query_name:
        stored = await datasette.get_query(database, source.query_name)
        heading = (stored.title if stored else None) or source.query_name
        sql = None if stored and stored.hide_sql else sql
    return {
        "database": database,
        "database_color": db.color,
        "table": source.table,
        "kind": source.kind,
        "heading": heading,
        "sql": sql,
        "long_sql": sql is not None and (len(sql) > PLAIN_CHARACTERS or sql.count("\n") >= PLAIN_LINES),
        "parameters": [pair for pair in pairs if not pair[0].startswith("_hide_sql")],
        "base": f"{datasette.urls.database(database)}/-/pubsub",
        "follow": json.dumps({source.kind: value, "params": pairs}),
        "row_links": links,
        "links_json": json.dumps({"base": links.base, "key": links.key, "others": links.others}),
        "page": source.address(datasette, request),
        "exports": {form: source.address(datasette, request, form) for form in ("json", "csv")},
    }


async def _links(datasette: Datasette, request: Request, source: Source, found: Rows) -> RowLinks:
    """Where the values of a table's rows lead: to the row itself, and to the rows that it refers to."""
    db, table = datasette.get_database(source.database), str(source.table)
    if await db.view_exists(table):
        return RowLinks()
    key = tuple(await db.primary_keys(table) or ["rowid"])
    others: dict[str, str] = {}
    for reference in await db.foreign_keys_for_table(table):
        other = reference["other_table"]
        keys = await db.primary_keys(other)
        if reference["column"] not in found.columns or len(keys) != 1 or reference["other_column"] not in (None, *keys):
            continue
        if await datasette.allowed(action="view-table", resource=TableResource(db.name, other), actor=request.actor):
            others[reference["column"]] = datasette.urls.table(db.name, other)
    return RowLinks(datasette.urls.table(db.name, table), key if set(key) <= set(found.columns) else (), others)


def _rows(context: dict[str, Any], found: Rows, most: int, max_bytes: int) -> dict[str, Any]:
    """The rows for the template, and as JSON for the script; without the latter if they are over ``max_bytes``."""
    rows = [[value["value"] if isinstance(value, dict) else value for value in row] for row in found.rows]
    texts = [as_json(row) for row in rows]
    whole = None
    if sum(map(len, texts)) <= max_bytes:
        whole = f'{{"columns":{json.dumps(list(found.columns))},"rows":[{b",".join(texts).decode()}]}}'
    links: RowLinks = context["row_links"]
    return {
        "columns": list(found.columns),
        "rows": [links.cells(found.columns, row, most) for row in rows],
        "truncated": found.truncated,
        "truncate": most,
        # Inside of a script element, only this could end it.
        "rows_json": None if whole is None else Markup(whole.replace("<", "\\u003c")),
    }
