"""Runs a SELECT with publish_batch exactly once each time that a visitor asks for it.

A browser sends the same GET for a button, a reload, Back, a link and a prefetch,
so a page that a browser opens never publishes. Theory of operation:

1. The button of the SQL page (``pages/run_button.js``), or the one above a query that
   was not run, sends the form as a POST to :func:`run`.
2. :func:`run` runs the query once, as a request of the same actor to Datasette's
   own query page. It records what was published in a *receipt*, and redirects the
   browser to the query page with the receipt in the URL.
3. A page with a receipt in its URL publishes nothing: its publish_batch calls
   return the results in the receipt. Its CSV and JSON links have the receipt as well.

A receipt is signed and not stored: it is valid in every process with the same
secret, and after a restart. A process with another secret publishes nothing
either, but does not know what was published.

A client that is not a browser publishes by GET, once for each request. Datasette
runs a query twice for CSV; the second run returns the results of the first.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from datasette.utils import tilde_decode
from datasette.utils.asgi import Request, Response
from itsdangerous import BadSignature

from .. import compat
from ..access import permissions
from ..broker.registry import registry
from ..core.errors import FailedPrecondition, PermissionDenied, PubsubError
from ..http.request import broker_of, content_type, publish_limit, read_form, require_method
from ..http.responses import mapped
from ..publish_batch import aggregate, bridge
from ..publish_batch.aggregate import Plan, Run
from .layout import shown

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The URL parameter for a receipt. Datasette does not take names that begin with ``_`` for parameters of the query.
RECEIPT = "_pubsub_run"

#: The longest receipt that has the result of every call, in characters: proxies limit a URL to 8 KiB.
MAX_RECEIPT = 3000

#: The most fields in the form of a query: SQL written by hand has fewer parameters.
MAX_FIELDS = 200

#: The ways in which a page can embed another page, as ``Sec-Fetch-Dest`` names them.
FRAMES = ("iframe", "frame", "embed", "object", "fencedframe")

_NAMESPACE = "datasette-pubsub-run"

#: The run that the request which is about to begin asks for, within this process.
_wanted: ContextVar[Run | None] = ContextVar("datasette_pubsub_wanted", default=None)

Fields = list[tuple[str, str]]


class NotRun(FailedPrecondition):
    """A browser has opened the page of the query, without a request to run it."""


def take_wanted() -> Run | None:
    """The run that the request which begins now asks for; a second call returns ``None``."""
    wanted = _wanted.get()
    if wanted is not None:
        _wanted.set(None)
    return wanted


def note_table_page() -> None:
    """Note that the present request is for the page of a table or view."""
    serving = bridge.current.get()
    if serving is not None:
        serving.table_page = True


def plan(datasette: Datasette, database: str) -> Plan | None:
    """The plan for the publish_batch calls of the statement that begins now. Called in its SQL thread."""
    serving = bridge.current.get()
    if serving is None or serving.request is None:
        # SQL without a request is trusted. If the request has no actor yet, the permission check refuses.
        return None
    with serving.deciding:
        return _decided(datasette, database, serving, serving.request)


def _decided(datasette: Datasette, database: str, serving: bridge.RequestContext, request: Request) -> Plan:
    if serving.runs and (serving.asked_for is not None or _is_query(request)):
        return Plan(serving.runs[0], again=True, unlimited=True)
    if serving.asked_for is not None:
        run = serving.asked_for
    else:
        found = _refusal_or_receipt(datasette, database, serving, request)
        if isinstance(found, Plan):
            return found
        if found is not None:
            serving.refused = found
            return Plan(Run(failed=found), again=True)
        run = Run()
    serving.runs.append(run)
    return Plan(run)


def _refusal_or_receipt(
    datasette: Datasette, database: str, serving: bridge.RequestContext, request: Request
) -> PubsubError | Plan | None:
    if request.method == "HEAD":
        return NotRun("HEAD publishes nothing")
    if request.method != "GET":
        return None
    if serving.table_page:
        return FailedPrecondition(
            "the page of a table or view runs its SQL several times: run the query from Datasette's SQL page"
        )
    if RECEIPT in request.args:
        receipt = _receipt(datasette, database, request)
        if receipt is None:
            return NotRun(
                "this address does not say what was published: it was made for another query, or by a server with "
                "another secret. Nothing is published by opening it; run it from Datasette's SQL page"
            )
        return Plan(_run_of(receipt), again=True, unlimited=receipt["a"] == _actor_id(request))
    if _is_opened(request):
        return NotRun("opening or reloading a page publishes nothing; run it from Datasette's SQL page, by its button")
    return None


def _is_opened(request: Request) -> bool:
    """Whether a browser sends the request for a page that it opens, or for a part of a page, and not for a script.

    Browsers say so in ``Sec-Fetch-*`` (https://www.w3.org/TR/fetch-metadata/), but on plain HTTP only to their own
    machine. Without these headers, a browser is recognised by the headers that it sends when it opens a page.
    """
    headers = request.headers
    mode, dest = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    if mode is None and dest is None:
        return "upgrade-insecure-requests" in headers or "application/xhtml+xml" in headers.get("accept", "")
    return mode not in (None, "cors", "same-origin") or dest not in (None, "empty")


def _is_query(request: Request) -> bool:
    """Whether the request is for the SQL page or a stored query, in any format; each of these has one query."""
    names = request.url_vars
    return "database" in names and ("table" in names or _path(request).partition(".")[0].endswith("/-/query"))


def _path(request: Request) -> str:
    return str(request.scope.get("route_path") or request.scope["path"])


def _actor_id(request: Request) -> Any:
    return (request.actor or {}).get("id")


# -- receipts ----------------------------------------------------------------


def _digest(database: str, query: str, fields: Fields) -> str:
    """A hash of what a receipt is for: a query of a database, with its parameters."""
    asked = [database, query, sorted((name, value) for name, value in fields if not name.startswith("_"))]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def _fields(request: Request) -> Fields:
    return parse_qsl(request.query_string, keep_blank_values=True)


def _receipt(datasette: Datasette, database: str, request: Request) -> dict[str, Any] | None:
    """The receipt in the URL of a query, if it is for that query; else ``None``."""
    try:
        receipt: dict[str, Any] = datasette.unsign(request.args.get(RECEIPT) or "", _NAMESPACE)
    except BadSignature:
        return None
    query = tilde_decode(request.url_vars.get("table") or "")
    return receipt if receipt["d"] == _digest(database, query, _fields(request)) else None


def _sign(datasette: Datasette, run: Run, error: str | None, **about: Any) -> str:
    receipt = {**about, "t": int(time.time()), "n": run.published, "c": run.counts, "e": error}
    signed = str(datasette.sign(receipt, _NAMESPACE))
    if len(signed) > MAX_RECEIPT:
        error = error[:500] if error is not None else None
        signed = str(datasette.sign({**receipt, "c": None, "e": error}, _NAMESPACE))
    return signed


def _run_of(receipt: dict[str, Any]) -> Run:
    counts, error = receipt["c"], receipt["e"]
    failed: PubsubError | None = None
    if error is not None:
        failed = FailedPrecondition(error.removeprefix("publish_batch: "))
    elif counts is None:
        failed = FailedPrecondition(f"{_sentence(receipt)} The results of so many groups are not kept")
    return Run(counts or [], receipt["n"], failed)


def _sentence(receipt: dict[str, Any]) -> str:
    """A sentence that says what was published."""
    when = datetime.fromtimestamp(receipt["t"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    count = receipt["n"]
    verb = "message was" if count == 1 else "messages were"
    return f"{count:,} {verb} published at {when}."


# -- the button --------------------------------------------------------------


async def run(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
    """``POST /<db>/-/pubsub/-/run`` with the form of a query, and ``?query=`` for a stored one: runs it once.

    A browser is redirected to the query's page; other clients get the result as Datasette's JSON.
    """
    view = shown(_run) if _is_opened(request) else mapped(_run)
    return await view(scope, receive, send, request, datasette)


async def _run(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    require_method(request, "POST")
    if request.headers.get("sec-fetch-dest") in FRAMES:
        raise PermissionDenied("permission denied: a query is not run within a page of another")
    broker = broker_of(datasette, request)
    query = request.args.get("query") or ""
    stored = await datasette.get_query(broker.name, query) if query else None
    if stored is not None and stored.is_write:
        raise FailedPrecondition(f"query {query!r} writes: it is run by a POST to its own address")
    # A stored query without parameters has an empty form.
    form = await read_form(request, receive, publish_limit(broker), MAX_FIELDS) if content_type(request) else {}
    form.pop(RECEIPT, None)
    database = str(datasette.urls.database(broker.name))
    page = str(datasette.urls.query(broker.name, query)) if query else f"{database}/-/query"
    opened = _is_opened(request)
    shown_as = {name: value for name, value in form.items() if not (opened and name.startswith("_"))}
    noted = Run()
    token = _wanted.set(noted)
    try:
        answer = await datasette.client.request(
            "GET", f"{page}.json?{urlencode(shown_as)}", headers=_identity(request), avoid_path_rewrites=True
        )
    finally:
        _wanted.reset(token)
    if not opened:
        return Response(answer.text, status=answer.status_code, content_type="application/json; charset=utf-8")
    error = None
    if answer.status_code != 200:
        try:
            error = str(answer.json()["error"])
        except (ValueError, LookupError):
            error = f"the query failed with HTTP status {answer.status_code}"
    about = {"d": _digest(broker.name, query, list(form.items())), "a": _actor_id(request)}
    receipt = _sign(datasette, noted, error, **about)
    return Response.redirect(f"{page}?{urlencode({**form, RECEIPT: receipt})}")


def _identity(request: Request) -> dict[str, str]:
    """The headers that identify the actor, for a request on their behalf."""
    dropped = ("content-", "sec-", "accept-encoding", "transfer-encoding", "connection", "expect", "origin", "referer")
    return {name: value for name, value in request.headers.items() if not name.startswith(dropped)}


async def script(
    datasette: Datasette, request: Request | None, database: str | None, view_name: str
) -> list[dict[str, Any]]:
    """The script that makes the button of a query's form send a POST, for actors who may publish."""
    if request is None or database is None or view_name != "database":
        return []
    broker = registry(datasette).find(database)
    if (
        broker is None
        or not broker.store.writable
        or not await permissions.publishes(datasette, request.actor, database)
    ):
        return []
    return [{"url": "/-/static-plugins/datasette_pubsub/pages/run_button.js", "module": True}]


async def top(datasette: Datasette, request: Request, database: str, query: str | None) -> str:
    """The HTML above a query with publish_batch: what it published, or why it did not, and a button that runs it."""
    broker = registry(datasette).find(database)
    if broker is None or not broker.store.writable:
        return ""
    text = None
    serving = bridge.current.get()
    receipt = _receipt(datasette, database, request) if RECEIPT in request.args else None
    if receipt is not None:
        text = f"{_sentence(receipt)} Opening this page again, its CSV or its JSON publishes nothing."
    elif serving is not None and isinstance(serving.refused, NotRun):
        text = "This query publishes messages. It was not run, since opening a page publishes nothing."
    stored = await datasette.get_query(database, query) if query else None
    publishing = stored is not None and not stored.is_write and "publish_batch" in stored.sql.lower()
    if text is None and not publishing:
        return ""
    may = await permissions.publishes(datasette, request.actor, database)
    action = f"{datasette.urls.database(database)}/-/pubsub/-/run"
    html: str = await datasette.render_template(
        "pubsub_run.html",
        {
            "text": text,
            "action": f"{action}?{urlencode({'query': query})}" if query else action,
            "fields": [(name, value) for name, value in _fields(request) if not name.startswith("_")],
            "label": "Publish again" if receipt is not None else "Publish",
            "may": may,
        },
        request=request,
    )
    return html


# -- SQL that Datasette analyses ----------------------------------------------


def make_known(database: Any) -> None:
    """Let Datasette analyse SQL that calls publish_batch.

    Datasette compiles the SQL of stored queries and of its write page on a
    separate connection, which it shows to no plugin: the function would not exist
    there. SQL that is compiled there does not publish.
    """
    compat.prepare_isolated(database, aggregate.register_name)
