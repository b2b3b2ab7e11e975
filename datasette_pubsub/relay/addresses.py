"""Addresses of NATS servers: what they may be, who logs in, and how they are shown, which is without a password."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

#: The port of NATS.
PORT = 4222


class Login(NamedTuple):
    """Who logs in, as an address says it: a user with a password, or a token alone. ``None`` is not there."""

    user: str | None = None
    password: str | None = None
    token: str | None = None


def check(url: str) -> None:
    """Raise :class:`ValueError`, whose text has no password, if this is not the address of a NATS server."""
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    # A slash, a question mark or a hash in a password ends the address there.
    if good and parts.scheme in ("nats", "tls") and not (parts.path.strip("/") or parts.query or parts.fragment):
        return
    # With such a password the address is shown without what may be a part of it.
    public = re.sub(r"//.*@", "//", url, flags=re.DOTALL)
    raise ValueError(
        f"{public} is not the address of a NATS server: nats://host:4222 or tls://host:4222; in a user's name and "
        "password, special characters are percent-encoded"
    )


def login(url: str) -> Login:
    """Who logs in."""
    parts = urlsplit(url)
    if parts.username is None:
        return Login()
    if parts.password is None:
        return Login(token=unquote(parts.username))
    return Login(unquote(parts.username), unquote(parts.password))


def shown(url: str) -> str:
    """An address without a password."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or PORT}"
