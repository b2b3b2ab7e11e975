"""Cross-site checks: refuses requests that a page of another site made a browser send."""

from __future__ import annotations

from urllib.parse import urlsplit

from datasette.utils.asgi import Request

from ..core.errors import (
    PermissionDenied,
)


def refuse_elsewhere(request: Request, what: str) -> None:
    """Refuse a GET with a cookie that changes something, if a page of another site made the browser send it.

    Datasette checks POST. A browser says where a GET comes from (``Sec-Fetch-Site``), except on plain HTTP: there, a
    browser that follows a link accepts ``text/html``. Raises :class:`PermissionDenied`.
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
