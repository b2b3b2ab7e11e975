"""When the permissions of one subscriber are to be checked again."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable


class Revalidation:
    """Calls ``allowed`` every so many seconds, and when the actor's token has expired; never if there is no function.

    Times are on the loop's clock.
    """

    __slots__ = ("_allowed", "_checked", "_seconds", "expiry")

    def __init__(
        self, allowed: Callable[[], Awaitable[bool]] | None, seconds: float, expires_in: float | None, now: float
    ) -> None:
        self._allowed = allowed
        self._seconds = seconds
        self._checked = now
        #: When the actor's token expires.
        self.expiry = math.inf if expires_in is None else now + expires_in

    def due(self, now: float) -> bool:
        """Whether it is time."""
        return self._allowed is not None and (now >= self.expiry or now - self._checked >= self._seconds)

    async def ask(self, now: float) -> bool:
        """Whether the subscriber still has its permissions."""
        assert self._allowed is not None
        self._checked = now
        if now >= self.expiry:
            self.expiry = math.inf
        return await self._allowed()
