"""Writes a stream that a relay has made into a follower's file, under the same ids.

The file's head is the cursor: each page is one transaction, and after whatever ends the process, the next message is
the one after the head. The file's guard takes nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing

from nats.aio.client import Client

from . import logfile
from .cursors import Cursors
from .logfile import LogFile
from .outcomes import Refused, TryAgain
from .record import NotOurs, Record, Trimmed, parse
from .session import Reporter, beside
from .stream import PAGE_MESSAGES, Raw, State, Stream

#: How often the file notes that the stream was heard from, in seconds, while nothing arrives.
HEAR_SECONDS = 10.0


class Follow:
    """One follower. ``progress`` is called with the head of the file and the newest id of the stream."""

    def __init__(
        self, file: LogFile, name: str, reporter: Reporter, progress: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        self._file = file
        self._name = name
        self._reporter = reporter
        self._progress = progress

    async def run(self, client: Client) -> None:
        """Follow over one connection, for ever. Raises as :func:`.session.sessions` expects."""
        stream = Stream(client, self._name)
        state = await existing(stream)
        head = await self._begin(stream, state)
        self._reporter.say(
            f"following the stream {self._name}, which is at {state.last}, from {head + 1}", about="following"
        )
        shared = Cursors(self._file, client, self._name, self._reporter)
        await beside(self._follow(stream, state, head), shared.run())

    async def _follow(self, stream: Stream, state: State, head: int) -> None:
        heard = 0.0
        newest = state.last
        behind = True
        async with aclosing(stream.pages(head + 1)) as pages:
            async for page in pages:
                if page:
                    newest = max(newest, page[-1].newest)
                    head = await self._append(stream, head, page, newest)
                    heard = time.monotonic()
                    self._reporter.works()
                elif time.monotonic() - heard > HEAR_SECONDS:
                    await self._file.run(logfile.hear, newest)
                    heard = time.monotonic()
                self._progress(head, newest)
                if head >= newest and behind:
                    self._reporter.works()
                    self._reporter.say(f"up to date, at {head}")
                # A few messages that come while it runs are no change of state.
                behind = head < newest and (behind or newest - head > PAGE_MESSAGES)

    async def _begin(self, stream: Stream, state: State) -> int:
        """The head of the file, which is a message of the stream, or before its first one."""
        origin = await self._file.run(logfile.origin_id)
        if None not in (origin, state.instance_id) and origin != state.instance_id:
            raise Refused(f"the stream {self._name} was made from another log than the one that this file copies")
        head = await self._file.run(logfile.head)
        if not head and state.first > 1:
            await self._file.run(logfile.begin_at, state.first)
            head = await self._file.run(logfile.head)
        _check_reach(state, head)
        ours = await self._file.run(logfile.row, head)
        found = await stream.message(head) if head and state.first <= head <= state.last else None
        if ours is not None and found is not None and not _same(ours, found):
            raise Refused(f"this file is no copy of the stream {self._name}: the message {head} differs")
        return head

    async def _append(self, stream: Stream, head: int, page: list[Raw], newest: int) -> int:
        records: list[Record | Trimmed] = []
        for raw in page:
            if raw.sequence <= head:
                continue
            if raw.sequence != head + len(records) + 1:
                await self._explain_hole(stream, head + len(records) + 1, raw.sequence)
            try:
                records.append(raw.record())
            except NotOurs:
                raise Refused(
                    f"somebody else has published the message {raw.sequence} of the stream {self._name}"
                ) from None
        return await self._file.run(logfile.append, records, newest) if records else head

    async def _explain_hole(self, stream: Stream, expected: int, found: int) -> None:
        """A message is missing: the stream has lost it, or the consumer has skipped it."""
        state = await existing(stream)
        _check_reach(state, expected - 1)
        if await stream.message(expected) is None:
            raise Refused(f"the stream {self._name} has lost its messages {expected} to {found - 1}: begin a new file")
        raise TryAgain("the server left out messages")


def _same(ours: Record, found: tuple[dict[str, str] | None, bytes]) -> bool:
    try:
        return ours == parse(ours.id, *found)
    except NotOurs:
        return False


async def existing(stream: Stream) -> State:
    """The state of a stream. Raises :class:`Refused` if there is none."""
    state = await stream.state()
    if state is None:
        raise Refused(f"there is no stream {stream.name}")
    return state


def _check_reach(state: State, head: int) -> None:
    """Refuse to follow a stream that has lost the messages after the head."""
    if state.first > head + 1 and (state.messages or state.last > head):
        raise Refused(
            f"the stream has lost the messages {head + 1} to {state.first - 1}, which this file does not have: "
            "begin a new file, and let the stream keep messages for longer (max_age)"
        )
