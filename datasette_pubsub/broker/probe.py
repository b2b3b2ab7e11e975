"""Measures the path of a message: publishes one to a channel of its own, and waits until a subscriber gets it.

So a monitor learns what a publisher and a subscriber would: whether the file can be written, the commit reaches the
disk, and the hub delivers. The report is kept for :data:`KEPT_SECONDS`, whoever asks and however often, and probes that
are asked for together are one. A log that follows a stream takes no messages: there, it is reported how long ago its
follower has heard from the stream.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from ..core.attachment import attached
from ..core.errors import PubsubError
from ..core.limits import HEALTH_CHANNEL
from ..core.selector import Selector
from ..core.validation import utc_text
from ..core.values import Item
from ..live.coalescing import SingleFlight
from ..protocol.frames import SseEncoder
from ..storage import sources
from .broker import Broker
from .subscribing import SubscribeOptions

#: How long a report is kept, in seconds: at most one message is written in this time.
KEPT_SECONDS = 5.0

#: How long publishing may take, and delivering after that, in seconds.
PUBLISH_SECONDS = 1.0
DELIVER_SECONDS = 1.0

#: How long ago the follower of a stream may have heard from it, in seconds: it notes that every ten seconds.
HEARD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a probe has found. Times are in seconds; ``None``: not reached."""

    checked_at: str
    message_id: int | None = None
    publish_seconds: float | None = None
    deliver_seconds: float | None = None
    follows: dict[str, Any] | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything was as it should be."""
        return self.error is None


class Probe:
    """The probe of one database."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._flight: SingleFlight[Report] = SingleFlight()
        self._kept: Report | None = None
        self._kept_until = float("-inf")

    async def report(self) -> Report:
        """What a probe finds now, or has found within the last ``KEPT_SECONDS``."""
        if self._kept is None or time.monotonic() >= self._kept_until:
            return await self._flight.ask(None, self._fresh)
        return self._kept

    async def _fresh(self) -> Report:
        if self._kept is None or time.monotonic() >= self._kept_until:
            self._kept = await self._look()
            self._kept_until = time.monotonic() + KEPT_SECONDS
        return self._kept

    async def _look(self) -> Report:
        checked_at = utc_text(datetime.now(UTC))
        try:
            follows = await self._broker.follows()
            if follows is not None:
                return await self._of_follower(checked_at, follows)
            return await self._of_log(checked_at)
        except PubsubError as error:
            return Report(checked_at, error=error.message)

    async def _of_follower(self, checked_at: str, follows: dict[str, Any]) -> Report:
        def silent_for(conn: sqlite3.Connection) -> float:
            found = sources.followed(conn)
            heard = found.heard_at if found is not None else None
            row = conn.execute("SELECT (julianday('now') - julianday(?)) * 86400", [heard]).fetchone()
            return float("inf") if row[0] is None else float(row[0])

        silent = await self._broker.read(silent_for)
        error = None
        if silent > HEARD_SECONDS:
            error = f"nothing was heard from the stream {follows['stream']} for more than {HEARD_SECONDS:g} s"
        return Report(checked_at, follows=follows, error=error)

    async def _of_log(self, checked_at: str) -> Report:
        broker, began = self._broker, time.monotonic()
        broker.store.check_writable()
        payload = f"{checked_at} {secrets.token_hex(8)}"
        asked = SubscribeOptions(selector=Selector.of([HEALTH_CHANNEL]), party=HEALTH_CHANNEL)
        async with broker.subscribe(asked, SseEncoder()) as subscriber, aclosing(subscriber.frames()) as frames:
            arrival = asyncio.ensure_future(_arrival(frames, payload.encode()))
            publish = asyncio.ensure_future(broker.publish([Item(HEALTH_CHANNEL, payload)]))
            try:
                if not (await asyncio.wait({publish}, timeout=PUBLISH_SECONDS))[0]:
                    # It goes on: a publish that was accepted is written.
                    publish.add_done_callback(lambda done: done.cancelled() or done.exception())
                    return Report(checked_at, error=f"a publish was not answered within {PUBLISH_SECONDS:g} s")
                (message_id,) = publish.result()
                published = time.monotonic()
                await asyncio.wait({arrival}, timeout=DELIVER_SECONDS)
                arrived_at = arrival.result() if arrival.done() else None
            finally:
                arrival.cancel()
                await asyncio.wait({arrival})
            if arrived_at is None:
                error = f"a message was not delivered within {DELIVER_SECONDS:g} s after its commit"
                return Report(checked_at, message_id, published - began, error=error)
            return Report(checked_at, message_id, published - began, max(0.0, arrived_at - published))


async def _arrival(frames: AsyncIterator[bytes], payload: bytes) -> float | None:
    """When the message with this payload has arrived, by the monotonic clock; ``None`` if the stream ends before."""
    async for frame in frames:
        if payload in frame:
            return time.monotonic()
    return None


class _Probes:
    """The probes of one Datasette."""

    def __init__(self) -> None:
        self.of: WeakKeyDictionary[Broker, Probe] = WeakKeyDictionary()


def probe(datasette: object, broker: Broker) -> Probe:
    """The one probe of a broker."""
    known = attached(datasette, _Probes, _Probes).of
    found = known.get(broker)
    if found is None:
        found = known[broker] = Probe(broker)
    return found
