"""A request over many attempts, without input and output: when to try again, and when not."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterable, Mapping
from typing import Any

from .session import PASSING, refusal
from .values import Item, NotPublished, Refused, Unreachable

#: The first wait before another attempt, in seconds; each further one is twice as long.
FIRST_WAIT_SECONDS = 0.1

LONGEST_WAIT_SECONDS = 5.0


class Attempts:
    """One request, which is tried again for ``retry_seconds``.

    If it ``repeats``, which means that the server does it once however often it is asked, it is tried again after every
    failure that may pass. Otherwise only if nothing can have been stored: no connection was made, or the server said
    that it was too busy to begin (429).
    """

    def __init__(self, body: dict[str, Any], *, repeats: bool, retry_seconds: float, now: float) -> None:
        self.content = json.dumps(body).encode()
        self._repeats = repeats
        self._end = now + retry_seconds
        self._failures = 0

    @classmethod
    def to_publish(cls, items: Iterable[Item], retry_seconds: float, now: float) -> Attempts:
        """Publish all items or none: it repeats if each has a key, which the log stores once."""
        found = list(items)
        repeats = all(item.key is not None for item in found)
        body = {"items": [item.as_json() for item in found]}
        return cls(body, repeats=repeats, retry_seconds=retry_seconds, now=now)

    @classmethod
    def to_acknowledge(cls, subscription: str, number: int, retry_seconds: float, now: float) -> Attempts:
        """Move a subscription's cursor to an id."""
        body = {"subscription": subscription, "message_id": number}
        return cls(body, repeats=True, retry_seconds=retry_seconds, now=now)

    @staticmethod
    def _of_ours(body: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            found = json.loads(body)
            if isinstance(found, dict) and not {"message_ids", "cursor"}.isdisjoint(found):
                return found
        # A page of a proxy, or a login.
        raise Refused("the address answers with something else than datasette-pubsub does", 200)

    def failed(self, reason: str, now: float, *, reached: bool) -> float:
        """No answer has come; returns how long to wait before the next attempt, in seconds.

        ``reached``: the server may have had the request. Raises :class:`Unreachable`, and :class:`NotPublished` if
        the messages may have been stored.
        """
        if reached and not self._repeats:
            raise NotPublished(f"{reason}; it is not known whether this was stored: with a key it would be tried again")
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0**self._failures) * random.uniform(0.5, 1.0)
        self._failures = min(self._failures + 1, 16)
        if now + wait > self._end:
            raise Unreachable(reason)
        return wait

    def answered(self, status: int, headers: Mapping[str, str], body: bytes, now: float) -> dict[str, Any] | float:
        """The server's answer, or how long to wait before the next attempt. Raises as :meth:`failed`; or a refusal."""
        if status == 200:
            return self._of_ours(body)
        error = refusal(status, body)
        if status not in PASSING:
            raise error
        wait = self.failed(str(error), now, reached=status != 429)
        asked = headers.get("retry-after", "")
        return max(wait, min(float(asked), LONGEST_WAIT_SECONDS)) if asked.isdecimal() else wait
