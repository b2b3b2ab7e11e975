"""Compares a log with a stream, message by message: what ``relay --check`` and ``follow --verify`` print."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from nats.aio.client import Client

from . import logfile
from .follow import existing
from .logfile import LogFile
from .outcomes import TryAgain
from .record import NotOurs, Record, Trimmed
from .stream import PAGE_BYTES, PAGE_MESSAGES, Stream

#: The most differences that are told one by one.
TOLD = 10


class Comparison:
    """Compares the ids that both have, or those of a range. ``tell`` is called with each of the first differences."""

    def __init__(
        self, file: LogFile, name: str, tell: Callable[[str], None], first: int = 1, last: int = 2**62
    ) -> None:
        self._file = file
        self._name = name
        self._tell = tell
        self._first = first
        self._last = last
        #: How many messages were compared, and how many ids differ.
        self.compared = 0
        self.differences = 0
        self._told = 0

    async def run(self, client: Client) -> None:
        """Compare, over one connection."""
        self.compared = self.differences = self._told = 0
        stream = Stream(client, self._name)
        state = await existing(stream)
        # What retention has removed on one side is no difference.
        first = max(self._first, state.first, await self._file.run(logfile.earliest))
        last = min(self._last, state.last, await self._file.run(logfile.head))
        if first > last:
            return
        rows: dict[int, Record] = {}
        read = first - 1
        expected = first
        async with aclosing(_records(stream, first, last)) as records:
            async for sequence, theirs in records:
                if sequence > expected:
                    await self._explain_hole(stream, expected, sequence - 1)
                expected = sequence + 1
                if read < sequence:
                    page = await self._file.run(logfile.rows, sequence - 1, PAGE_MESSAGES, PAGE_BYTES)
                    rows = {row.id: row for row in page}
                    read = page[-1].id if page else last
                self.compared += 1
                self._compare(sequence, rows.get(sequence), theirs)
        if expected <= last:
            await self._explain_hole(stream, expected, last)

    def _compare(self, sequence: int, ours: Record | None, theirs: Record | Trimmed | None) -> None:
        # Retention may have removed the log's message after it was relayed, but never the other way round.
        if ours is None and theirs is not None:
            return
        if ours is None or ours != theirs:
            what = "was published by somebody else" if theirs is None else "differs"
            self._differs(1, f"the message {sequence} {what}")

    async def _explain_hole(self, stream: Stream, first: int, last: int) -> None:
        # Its limits may have removed them while they were compared.
        first = max(first, (await existing(stream)).first)
        if first <= last:
            if await stream.message(first) is not None:
                raise TryAgain("the server left out messages")
            span = f"message {first} is" if first == last else f"messages {first} to {last} are"
            self._differs(last - first + 1, f"the {span} not in the stream")

    def _differs(self, number: int, what: str) -> None:
        if self._told < TOLD:
            self._tell(what)
            self._told += 1
        self.differences += number


async def _records(stream: Stream, first: int, last: int) -> AsyncGenerator[tuple[int, Record | Trimmed | None], None]:
    """The messages of the stream in a range; ``None`` for one that no relay has published."""
    async with aclosing(stream.pages(first)) as pages:
        async for page in pages:
            for raw in page:
                if raw.sequence > last:
                    return
                try:
                    yield raw.sequence, raw.record()
                except NotOurs:
                    yield raw.sequence, None
            # An empty page comes when the rest was deleted.
            if not page or page[-1].sequence >= last:
                return
