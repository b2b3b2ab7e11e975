"""The layout that all pages share: the content security policy, error pages, and navigation between pages."""

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
from ..core.display import visible
from ..core.errors import FailedPrecondition, PubsubError
from ..http.request import check_query
from ..http.responses import View, error_headers, internal, without_body

if TYPE_CHECKING:
    from datasette.app import Datasette

#: What is written about followers.
FOLLOWERS = "https://github.com/datasette-pubsub/datasette-pubsub/blob/main/docs/beyond-one-machine.md"


def shown(view: View) -> View:
    """Wrap a view so that its responses have the content security policy, and its errors are HTML pages."""

    @functools.wraps(view)
    async def wrapper(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
        try:
            check_query(request)
            response = await view(scope, receive, send, request, datasette)
        except PubsubError as error:
            response = await error_page(datasette, request, error)
        except Exception as error:
            response = await error_page(datasette, request, internal(error))
        else:
            if response is not None:
                response.headers["Content-Security-Policy"] = await policy(datasette)
        without_body(request, response)
        return response

    return wrapper


async def error_page(datasette: Datasette, request: Request, error: PubsubError) -> Response:
    """An error on Datasette's own error page."""
    html = await datasette.render_template(
        ["error.html"], {"ok": False, "error": error.message, "status": error.status, "title": None}, request=request
    )
    return Response.html(html, status=error.status, headers=error_headers(error))


class _Policy:
    """The content security policy of one Datasette's pages; ``None`` before the first page."""

    text: str | None = None


async def policy(datasette: Datasette) -> str:
    """A content security policy that blocks every script inside a message.

    Datasette's base template has small inline scripts, and other plugins may add
    files: the policy allows exactly the scripts of a page without messages.
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
    """The silence after which a page considers its connection dead, in seconds.

    One and a half heartbeat intervals, and at least two seconds more than one: a busy server may be late.
    """
    heartbeat = broker.settings.heartbeat_seconds
    return max(1.5 * heartbeat, heartbeat + 2)


async def place(datasette: Datasette, request: Request, broker: Broker, channel: str | None = None) -> dict[str, Any]:
    """The template context for navigation between a database's pages; see ``pubsub_nav.html``."""
    actor, name = request.actor, broker.name
    base = datasette.urls.database(name) + "/-/pubsub"
    views = not (await permissions.rights(datasette, actor, rules.VIEW, name)).nothing
    publish = await publish_path(datasette, actor, name, channel)
    return {
        "database": name,
        "database_color": datasette.get_database(name).color,
        "base": base,
        "dark_scheme": broker.settings.dark_scheme,
        "publish_path": publish,
        "subscriptions_path": f"{base}/-/subscriptions" if views else None,
        "queries_path": f"{base}/-/queries" if views else None,
        "follows": await _follows(broker),
        "obstacle": _obstacle(broker),
    }


def _obstacle(broker: Broker) -> str | None:
    """Why nothing can ever be published to a database, as a sentence; ``None`` if something can."""
    try:
        broker.store.check_writable()
    except FailedPrecondition as error:
        return visible(error.message[:1].upper() + error.message[1:])
    return None


async def _follows(broker: Broker) -> dict[str, Any] | None:
    """What the log of a page follows, for display; ``None`` for an ordinary log."""
    found = await broker.follows()
    if found is None:
        return None
    address = found["publish_at"] or ""
    return {
        "stream": visible(found["stream"]),
        "behind": f"{found['behind']:,} behind" if found["behind"] else "up to date",
        "heard_at": found["heard_at"],
        "publish_at": visible(address) or None,
        # The address comes from the stream: nothing but a page may be linked.
        "link": address if address.startswith(("http://", "https://")) else None,
        "docs": FOLLOWERS,
    }


async def publish_path(
    datasette: Datasette, actor: dict[str, Any] | None, database: str, channel: str | None = None
) -> str | None:
    """The path of the publish form; ``None`` if the actor may publish to no channel, or the database is read-only."""
    broker = registry(datasette).find(database)
    if broker is None or not broker.store.writable:
        return None
    if (await permissions.rights(datasette, actor, rules.PUBLISH, database)).nothing:
        return None
    query = f"?{urlencode({'channel': channel})}" if channel else ""
    return str(datasette.urls.database(database)) + f"/-/pubsub/-/publish-form{query}"
