"""The renderer ``.live``, beside ``.json`` and ``.csv``. Datasette asks for it whenever it is made, also by commands.

So the page itself is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import lazy

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request, Response

    from . import live_query
else:
    live_query = lazy.LazyModule("pages.live_query")


def renderer() -> dict[str, Any]:
    """For Datasette's hook ``register_output_renderer``; Datasette passes what the parameters are named after."""

    async def can_render(
        datasette: Datasette, request: Request, view_name: str, database: str, table: Any, query_name: Any, sql: Any
    ) -> bool:
        source = live_query.Source(database=database, table=table, query_name=query_name, sql=sql)
        return view_name != "row" and await live_query.offered(datasette, request, source)

    async def render(
        datasette: Datasette,
        request: Request,
        view_name: str,
        database: str,
        table: Any,
        query_name: Any,
        sql: Any,
        columns: list[str],
        rows: list[Any],
        truncated: bool,
        error: str | None,
    ) -> Response | None:
        if view_name == "row":
            return None
        source = live_query.Source(database=database, table=table, query_name=query_name, sql=sql)
        found = live_query.Rows(columns=columns, rows=rows, truncated=truncated, error=error)
        return await live_query.page(datasette, request, source, found)

    return {"extension": "live", "render": render, "can_render": can_render}
