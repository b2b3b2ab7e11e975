"""What one database tells telemetry: counts that are kept anyway and, while somebody asks, how far behind readers are.

The provider asks on a thread of its own, when it collects. Counts are numbers that only the event loop changes, and are
read without a lock. What stands in the file is read in the background after somebody has asked, every
:data:`SAMPLE_SECONDS` at most, and reported the next time: without a provider nothing is read.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from ..core.settings import RELAY_OWNER
from ..core.verdicts import ALL
from ..live.admission import Admission
from ..live.hub import Hub
from ..live_query.queries import LiveQueries
from ..storage import log, sources
from ..storage.filters import Filters
from ..storage.lag import lags
from ..telemetry import metrics
from ..telemetry.metrics import Measures
from .batcher import Batcher

#: How often the file is read for telemetry, in seconds, while somebody collects.
SAMPLE_SECONDS = 10.0

#: Runs a read of the file. Raises :class:`~.core.errors.PubsubError`.
Read = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Sample:
    """What was read from the file."""

    head: int = 0
    subscriptions: int | None = None
    lag: int | None = None
    relay_lag: int | None = None
    follow_lag: int | None = None


class Measuring:
    """The measures of one database."""

    def __init__(
        self,
        name: str,
        hub: Hub,
        batcher: Batcher,
        admission: Admission,
        live: LiveQueries,
        filters: Filters,
    ) -> None:
        self.name = name
        #: How many messages retention has removed, and how many streams were cut off.
        self.trimmed = self.cut_off = 0
        self._hub = hub
        self._batcher = batcher
        self._admission = admission
        self._live = live
        self._filters = filters
        self._sample = _Sample()
        #: When somebody has asked last, and when the file was read last, by the monotonic clock.
        self._asked = self._read_at = float("-inf")

    def start(self) -> None:
        """Report from now on, until the database is not served any more."""
        metrics.watch(self)

    def stop(self) -> None:
        """Report no longer."""
        metrics.unwatch(self)

    def measures(self) -> Measures:
        """What stands now; called on the provider's thread."""
        self._asked = time.monotonic()
        sample = self._sample
        return Measures(
            sent=self._batcher.commits.messages,
            consumed=self._hub.delivered,
            pending=self._batcher.pending,
            streams=dict(self._admission.kinds),
            ended=dict(self._admission.ended),
            cut_off=self.cut_off,
            head=max(self._hub.head, self._batcher.last, sample.head),
            trimmed=self.trimmed,
            live_queries=len(self._live),
            live_query_runs=self._live.ran,
            subscriptions=sample.subscriptions,
            lag=sample.lag,
            relay_lag=sample.relay_lag,
            follow_lag=sample.follow_lag,
        )

    async def sample(self, read: Read) -> None:
        """Read the file, if somebody has asked since the last time and that is long enough ago."""
        now = time.monotonic()
        if self._asked <= self._read_at or now - self._read_at < SAMPLE_SECONDS:
            return
        self._read_at = now
        self._sample = await read(self._of_file)

    def forget(self) -> None:
        """Another file is served now."""
        self._sample = replace(self._sample, head=0)

    def _of_file(self, conn: sqlite3.Connection) -> _Sample:
        head = log.head(conn)
        readers, relays = [], []
        for subscription, (lag, _) in lags(conn, self._filters, None, ALL):
            if subscription.owner == RELAY_OWNER:
                relays.append(head - subscription.cursor)
            else:
                readers.append(lag)
        followed = sources.followed(conn)
        return _Sample(
            head=head,
            subscriptions=len(readers),
            lag=max(readers, default=0),
            relay_lag=max(relays) if relays else None,
            follow_lag=None if followed is None else followed.behind(head),
        )
