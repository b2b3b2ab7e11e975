"""What all pages share: the content security policy, and errors as pages.

The law of this module: it knows no page's content. A view under :func:`shown`
answers with HTML, whatever happens.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request, Response

from .edge import View, internal
from .errors import PubsubError

if TYPE_CHECKING:
    from datasette.app import Datasette


def shown(view: View) -> View:
    """A view whose answers have the content security policy, and whose errors are pages."""

    @functools.wraps(view)
    async def wrapper(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
        try:
            response = await view(scope, receive, send, request, datasette)
        except PubsubError as error:
            return await _error_page(datasette, request, error)
        except Exception as error:
            return await _error_page(datasette, request, internal(error))
        if response is not None:
            response.headers["Content-Security-Policy"] = await policy(datasette)
        return response

    return wrapper


async def _error_page(datasette: Datasette, request: Request, error: PubsubError) -> Response:
    """An error on Datasette's own page for errors."""
    html = await datasette.render_template(
        ["error.html"], {"ok": False, "error": error.message, "status": error.status, "title": None}, request=request
    )
    return Response.html(html, status=error.status)


async def policy(datasette: Datasette) -> str:
    """A content security policy under which no script runs that a message brings.

    Datasette's frame has small inline scripts, and other plugins may add files:
    exactly those that stand in a page without messages are allowed.
    """
    found: str | None = getattr(datasette, "_pubsub_policy", None)
    if found is None:
        frame = await datasette.render_template(["base.html"], {}, view_name="pubsub")
        sources = {"'self'"}
        for attributes, script in re.findall(r"<script([^>]*)>(.*?)</script>", frame, re.DOTALL):
            origin = re.search(r'src="(https?://[^/"]+)', attributes)
            if origin:
                sources.add(origin[1])
            elif "src=" not in attributes:
                digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
                sources.add(f"'sha256-{digest}'")
        found = (
            f"default-src 'self'; script-src {' '.join(sorted(sources))}; style-src 'self' 'unsafe-inline' https:; "
            "img-src 'self' data: https:; object-src 'none'; base-uri 'none'; form-action 'self'; "
            "frame-ancestors 'self'"
        )
        datasette._pubsub_policy = found
    return found
