"""Revalidation: re-checks the actor and the permissions of an open stream.

It asks Datasette who the actor is now, and :mod:`.access.permissions` what that actor may do.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from datasette.plugins import pm
from datasette.tokens import TokenInvalid
from datasette.utils import await_me_maybe
from datasette.utils.asgi import Request

from .. import compat
from ..core.errors import PermissionDenied, PubsubError
from ..core.selector import Selector
from ..core.verdicts import Rights
from ..storage.query import Question
from .permissions import owner_of, recent_rights, rights, visible
from .questions import AskedQuery, question_of
from .rules import PUBLISH, VIEW, Actor

if TYPE_CHECKING:
    from datasette.app import Datasette

#: How long after a token expires the actor is re-checked, in seconds: the expiry is in whole seconds.
EXPIRY_SLACK_SECONDS = 0.1


def expires_in(actor: Actor) -> float | None:
    """Seconds until the actor's token has expired; ``None`` if it does not expire."""
    expires = (actor or {}).get("token_expires")
    if not isinstance(expires, (int, float)):
        return None
    return max(0.0, expires - time.time()) + EXPIRY_SLACK_SECONDS


async def still_visible(
    datasette: Datasette, request: Request, database: str, wanted: Selector, before: Selector
) -> bool:
    """Whether an open request still has the same actor, who may still view the same channels."""
    found, actor = await _actor_now(datasette, request)
    if not found:
        return False
    with compat.without_permission_cache():
        shared = actor is None and not compat.checks_are_off()
        # Ten thousand anonymous subscribers would need the same check.
        known = await recent_rights(datasette, None, VIEW, database, None, lambda _: True) if shared else None
        try:
            return await visible(datasette, actor, database, wanted, known) == before
        except PermissionDenied:
            return False


async def publish_rights(datasette: Datasette, request: Request, database: str) -> Rights | None:
    """What an open request may publish now; ``None`` if it no longer has the same actor."""
    found, actor = await _actor_now(datasette, request)
    if not found:
        return None
    with compat.without_permission_cache():
        may_publish_to = await rights(datasette, actor, PUBLISH, database)
        return Rights(may_publish_to, await rights(datasette, actor, VIEW, database))


async def still_asks(
    datasette: Datasette, request: Request, database: str, asked: AskedQuery, before: Question
) -> bool:
    """Whether an open request still has the same actor, who may still ask the same question."""
    found, actor = await _actor_now(datasette, request)
    if not found:
        return False
    now = Request({**request.scope, "actor": actor}, None)
    with compat.without_permission_cache():
        try:
            return _lasting(await question_of(datasette, now, database, asked)) == _lasting(before)
        except PubsubError:
            return False


def _lasting(question: Question) -> Question:
    """A question without the values of magic parameters, such as the time, which differ each time it is asked."""
    return replace(question, params=tuple(pair for pair in question.params if not pair[0].startswith("_")))


async def _actor_now(datasette: Datasette, request: Request) -> tuple[bool, Actor]:
    """Whether the request's cookie or token still means the same actor, and the actor's present properties.

    The token may have expired, and a plugin may give the actor other properties than before.
    """
    before = request.actor
    if not ("cookie" in request.headers or "authorization" in request.headers):
        return True, before
    found: Actor = None
    for result in pm.hook.actor_from_request(datasette=datasette, request=request):
        try:
            found = found or await await_me_maybe(result)
        except TokenInvalid:
            return False, None
    same = owner_of(found) == owner_of(before) and (found or {}).get("_r") == (before or {}).get("_r")
    return same, found
