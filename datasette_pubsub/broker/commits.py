"""What waits to be committed, and what telemetry is told of each commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from opentelemetry.trace import SpanContext

from ..core.errors import PubsubError
from ..core.values import Item
from ..storage.append_batch import CommitResult, Outcome
from ..telemetry import metrics, spans


@dataclass(slots=True)
class Submission:
    """Publishes that were submitted together; each is stored whole or not at all."""

    publishes: Sequence[Sequence[Item]]
    messages: int
    size: int
    done: asyncio.Future[list[Outcome]] = field(repr=False)
    since: float = field(default_factory=time.monotonic)
    #: The span in which they were submitted, if that is traced.
    cause: SpanContext | None = field(default_factory=spans.cause)

    def refuse(self, error: PubsubError) -> None:
        """Answer with an error, unless it was answered."""
        if not self.done.done():
            self.done.set_exception(error)


def since(taken: Sequence[Submission]) -> float:
    """The time since which the oldest of these has waited, by the monotonic clock."""
    return taken[0].since if taken else time.monotonic()


class Commits:
    """Measures the commits of one database. Lives on the event loop."""

    def __init__(self, name: str) -> None:
        #: How many messages were committed.
        self.messages = 0
        self._name = name
        self._metrics = metrics.Commits(name)

    def done(self, taken: Sequence[Submission], result: CommitResult | PubsubError, began: float, ended: float) -> None:
        """A transaction with these publishes has ended; times are those of the monotonic clock."""
        now = time.monotonic()
        failed = isinstance(result, PubsubError)
        # Ids have no holes: so many messages were added. Those whose keys were there already are not among them.
        messages = result.last - result.before if isinstance(result, CommitResult) and result.last else 0
        if not failed:
            self.messages += messages
            self._metrics.record(messages, ended - began, now - since(taken))
        causes = [submission.cause for submission in taken if submission.cause is not None]
        if causes:
            spans.committed(
                self._name,
                causes,
                messages=messages,
                publishes=sum(len(submission.publishes) for submission in taken),
                seconds=ended - began,
                ago=now - ended,
                error=result if isinstance(result, PubsubError) else None,
            )
