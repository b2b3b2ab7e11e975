"""What all pages share: the content security policy, errors as pages, and the way from one to the other.

The law of this module: it knows no page's content. A view under :func:`shown`
answers with HTML, whatever happens.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils.asgi import Request, Response

from ..access import permissions, rules
from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.attachment import attached
from ..core.errors import PubsubError
from ..http.request import check_query
from ..http.responses import View, error_headers, internal, without_body

if TYPE_CHECKING:
    from datasette.app import Datasette


def shown(view: View) -> View:
    """A view whose answers have the content security policy, and whose errors are pages."""

    @functools.wraps(view)
    async def wrapper(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
        try:
            check_query(request)
            response = await view(scope, receive, send, request, datasette)
        except PubsubError as error:
            response = await _error_page(datasette, request, error)
        except Exception as error:
            response = await _error_page(datasette, request, internal(error))
        else:
            if response is not None:
                response.headers["Content-Security-Policy"] = await policy(datasette)
        without_body(request, response)
        return response

    return wrapper


async def _error_page(datasette: Datasette, request: Request, error: PubsubError) -> Response:
    """An error on Datasette's own page for errors."""
    html = await datasette.render_template(
        ["error.html"], {"ok": False, "error": error.message, "status": error.status, "title": None}, request=request
    )
    return Response.html(html, status=error.status, headers=error_headers(error))


class _Policy:
    """The content security policy of one Datasette's pages; ``None`` before the first."""

    text: str | None = None


async def policy(datasette: Datasette) -> str:
    """A content security policy under which no script runs that a message brings.

    Datasette's frame has small inline scripts, and other plugins may add files:
    exactly those that stand in a page without messages are allowed.
    """
    known = attached(datasette, _Policy, _Policy)
    if known.text is None:
        frame = await datasette.render_template(["base.html"], {}, view_name="pubsub")
        sources = {"'self'"}
        for attributes, script in re.findall(r"<script([^>]*)>(.*?)</script>", frame, re.DOTALL):
            origin = re.search(r'src="(https?://[^/"]+)', attributes)
            if origin:
                sources.add(origin[1])
            elif "src=" not in attributes:
                digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
                sources.add(f"'sha256-{digest}'")
        known.text = (
            f"default-src 'self'; script-src {' '.join(sorted(sources))}; style-src 'self' 'unsafe-inline' https:; "
            "img-src 'self' data: https:; object-src 'none'; base-uri 'none'; form-action 'self'; "
            "frame-ancestors 'self'"
        )
    return known.text


def silence(broker: Broker) -> float:
    """After how many seconds without a word a page takes its connection for dead.

    A heartbeat and a half, and never less than two seconds after a heartbeat was due: a busy server is not a dead one.
    """
    heartbeat = broker.settings.heartbeat_seconds
    return max(1.5 * heartbeat, heartbeat + 2)


async def place(datasette: Datasette, request: Request, broker: Broker, channel: str | None = None) -> dict[str, Any]:
    """What the templates of a database's pages need to know to lead to each other; see ``pubsub_nav.html``."""
    actor, name = request.actor, broker.name
    base = datasette.urls.database(name) + "/-/pubsub"
    views = not (await permissions.rights(datasette, actor, rules.VIEW, name)).nothing
    publish = await publish_path(datasette, actor, name, channel)
    return {
        "database": name,
        "database_color": datasette.get_database(name).color,
        "base": base,
        "publish_path": publish,
        "subscriptions_path": f"{base}/-/subscriptions" if views else None,
    }


async def publish_path(
    datasette: Datasette, actor: dict[str, Any] | None, database: str, channel: str | None = None
) -> str | None:
    """The address of the form, for those who may publish to some channel of a database that stores messages."""
    broker = registry(datasette).find(database)
    if broker is None or not broker.store.writable:
        return None
    if (await permissions.rights(datasette, actor, rules.PUBLISH, database)).nothing:
        return None
    query = f"?{urlencode({'channel': channel})}" if channel else ""
    return str(datasette.urls.database(database)) + f"/-/pubsub/-/publish-form{query}"
