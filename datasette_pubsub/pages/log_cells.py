"""The cells of the log on Datasette's own pages of its table: a channel leads to its live page, and JSON folds.

Only the table of the plugin's log has them, for actors who may view its live page. Without this module's help Datasette
shows a payload as one long line.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from datasette.utils import tilde_encode
from datasette.utils.asgi import Request
from markupsafe import Markup

from ..access import permissions, rules
from ..broker.registry import registry
from ..core.display import SHOWN_CHARACTERS, SUMMARY_CHARACTERS, present, visible
from ..core.errors import PubsubError
from ..core.verdicts import Verdicts
from ..storage import schema
from ..storage.objects import LOG

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The key in a request's scope for what the actor may view, which is asked once for all cells of a page.
_VIEWED = "pubsub_log_cells"

_FOLDED = Markup(
    '<details class="pubsub-folded"{}><summary><bdi>{}</bdi></summary><pre dir="auto">\n{}</pre>{}</details>'
)


def cell(
    datasette: Datasette, request: Request | None, database: str, table: str | None, column: str, value: Any
) -> Awaitable[Markup | None] | None:
    """The HTML of a cell, ``None`` for Datasette's own: of other tables, and for bytes, numbers and short texts."""
    if table != LOG or request is None or column not in ("channel", "payload") or not isinstance(value, str):
        return None
    return _cell(datasette, request, database, column, value)


async def _cell(datasette: Datasette, request: Request, database: str, column: str, value: str) -> Markup | None:
    viewed = await _viewed(datasette, request, database)
    if viewed is None:
        return None
    if column == "channel":
        if not viewed.allows(value):
            return None
        base = datasette.urls.database(database) + "/-/pubsub"
        return Markup('<a href="{}/{}">{}</a>').format(Markup(base), tilde_encode(value), visible(value))
    if "pks" in request.url_vars:
        # The row's own page: a payload is folded open, and what is too long for that is as Datasette shows it.
        return _folded(present(value), opened=True) if len(value) <= SHOWN_CHARACTERS else None
    most = datasette.setting("truncate_cells_html")
    if most and len(value) > most:
        return _folded(
            {
                "summary": visible(value[:SUMMARY_CHARACTERS]) + "…",
                "full": visible(value[:most]),
                "note": f"the first {most:,} of {len(value):,} characters",
            }
        )
    return _folded(present(value))


async def _viewed(datasette: Datasette, request: Request, database: str) -> Verdicts | None:
    """Which channels of the log the actor may view; ``None``: none, or the table is not a log of ours."""
    scope = request.scope
    if _VIEWED not in scope:
        scope[_VIEWED] = None
        broker = registry(datasette).find(database)
        if broker is not None:
            verdicts = await permissions.rights(datasette, request.actor, rules.VIEW, database)
            try:
                await broker.read(schema.check)
            except PubsubError:
                return None
            scope[_VIEWED] = None if verdicts.nothing else verdicts
    found: Verdicts | None = scope[_VIEWED]
    return found


def _folded(shown: dict[str, str | None], *, opened: bool = False) -> Markup | None:
    if shown["summary"] is None:
        return None
    note = Markup("<p><em>{}</em></p>").format(shown["note"]) if shown["note"] else ""
    return _FOLDED.format(Markup(" open") if opened else "", shown["summary"], shown["full"], note)


def style(table: str | None) -> list[str]:
    """The style sheet of these cells."""
    return ["/-/static-plugins/datasette_pubsub/pubsub_cells.css"] if table == LOG else []
