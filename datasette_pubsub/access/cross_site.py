"""Requests that a page of another site made a browser send."""

from __future__ import annotations

from urllib.parse import urlsplit

from datasette.utils.asgi import Request

from ..core.errors import (
    PermissionDenied,
)


def refuse_elsewhere(request: Request, what: str) -> None:
    """Refuse a GET that changes something when a page of another site made a browser send it with a cookie.

    Datasette checks POST. A browser says where a GET comes from (``Sec-Fetch-Site``), but on plain HTTP it does not:
    there it at least asks for a page when it follows a link. Raises :class:`PermissionDenied`.
    """
    if "cookie" not in request.headers:
        return
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        allowed = site in ("same-origin", "none")
    else:
        source = request.headers.get("origin") or request.headers.get("referer") or ""
        allowed = not source or urlsplit(source).netloc == request.headers.get("host")
        allowed = allowed and "text/html" not in request.headers.get("accept", "")
    if not allowed:
        raise PermissionDenied(f"permission denied: {what} was asked for by a page or a link from elsewhere")
