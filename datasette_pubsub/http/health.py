"""``GET …/health``: measures the path of a message, for monitors; see :mod:`.broker.probe`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request, Response

from ..access import permissions
from ..broker.probe import probe
from ..core.limits import HEALTH_CHANNEL
from ..core.values import Item
from .request import broker_of, only_get
from .responses import mapped

if TYPE_CHECKING:
    from datasette.app import Datasette


@mapped
async def health(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """Answers 200 if a message was published and delivered in time, else 503; the body says what was found.

    Needs the permission to publish to the channel of health checks.
    """
    only_get(request)
    broker = broker_of(datasette, request)
    await permissions.require_items(datasette, request.actor, broker.name, [Item(HEALTH_CHANNEL, "")])
    report = await probe(datasette, broker).report()
    found = {name: value for name, value in asdict(report).items() if value is not None}
    return Response.json(
        {"ok": report.ok, "database": broker.name, **found},
        status=200 if report.ok else 503,
        headers={"cache-control": "no-store"},
    )
