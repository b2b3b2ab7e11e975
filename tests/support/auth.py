"""Who asks: cookies of actors, signed as by the servers of these tests."""

from __future__ import annotations

import time

import itsdangerous


def actor_cookies(actor: str) -> dict[str, str]:
    """The cookie of somebody who is logged in, for ``cookies=``."""
    return {"ds_actor": itsdangerous.URLSafeSerializer("tests", "actor").dumps({"a": {"id": actor}})}


def cookie(actor: str | None) -> dict[str, str]:
    """The headers of somebody who is logged in, or of a visitor."""
    return {} if actor is None else {"Cookie": f"ds_actor={actor_cookies(actor)['ds_actor']}"}


def headers(actor: str | None) -> dict[str, str]:
    """As :func:`cookie`, of a request that a page of this site has made."""
    return {} if actor is None else {**cookie(actor), "Sec-Fetch-Site": "same-origin"}


def token(actor: str) -> str:
    """An API token, as ``datasette create-token`` makes it."""
    value = {"a": actor, "t": int(time.time())}
    return f"dstok_{itsdangerous.URLSafeSerializer('tests', 'token').dumps(value)}"
