"""Takes the messages of any stream into a log, under ids of its own, each exactly once.

The last sequence that was taken is stored in the transaction of its message, and each message has the key
``nats:<stream>:<sequence>``: killed at any point, the import goes on exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, NamedTuple

import apsw
from nats.aio.client import Client

from ..core.validation import utc_text
from ..storage.objects import LOG, NOW, SOURCES
from ..storage.transaction import transaction
from .follow import existing
from .logfile import LogFile
from .outcomes import Refused
from .session import Reporter
from .stream import PAGE_MESSAGES, Raw, Stream

#: Stands for the message's subject in ``--channel``, with slashes for dots.
SUBJECT = "{subject}"


class Taken(NamedTuple):
    """A message of the stream as it is stored."""

    sequence: int
    channel: str
    payload: str | bytes
    created_at: str


class Import:
    """One import. ``progress`` is called with the last sequence that was taken and the stream's newest."""

    def __init__(
        self,
        file: LogFile,
        name: str,
        channel: str,
        reporter: Reporter,
        once: bool = False,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._file = file
        self._name = name
        self._channel = channel
        self._reporter = reporter
        self._once = once
        self._progress = progress

    async def run(self, client: Client) -> None:
        """Import over one connection; returns only with ``once``. Raises as :func:`.session.sessions` expects."""
        stream = Stream(client, self._name)
        state = await existing(stream)
        position = await self._file.run(_position, self._name)
        if state.last < position:
            raise Refused(
                f"the stream {self._name} is at {state.last}, and its messages were taken up to {position}: it is "
                "another stream of this name"
            )
        self._reporter.say(
            f"importing the stream {self._name}, which is at {state.last}, from {position + 1}", about="importing"
        )
        newest = state.last
        behind = True
        if self._once and position >= newest:
            return
        async with aclosing(stream.pages(position + 1)) as pages:
            async for page in pages:
                if not page:
                    # The server may be slow, or the stream end with messages that were deleted.
                    ended = not behind or not await stream.has_after(position)
                else:
                    ended = page[-1].newest == page[-1].sequence
                    newest = max(newest, page[-1].newest)
                    taken = [self._taken(raw) for raw in page]
                    position = await self._file.run(_take, self._name, taken, newest)
                self._progress(position, newest)
                if ended:
                    newest = position
                    if behind:
                        self._reporter.works()
                        self._reporter.say(f"up to date, at {position}")
                    if self._once:
                        return
                behind = not ended and (behind or newest - position > PAGE_MESSAGES)

    def _taken(self, raw: Raw) -> Taken:
        channel = self._channel.replace(SUBJECT, raw.message.subject.replace(".", "/"))
        data = raw.message.data
        payload: str | bytes
        try:
            payload = data.decode()
        except UnicodeDecodeError:
            payload = data
        created = utc_text(datetime.fromtimestamp(raw.nanoseconds / 1e9, UTC))
        return Taken(raw.sequence, channel, payload, created)


def _position(conn: Any, stream: str) -> int:
    found = conn.execute(f"SELECT position FROM {SOURCES} WHERE kind = 'import' AND stream = ?", [stream]).get
    return int(found or 0)


def _take(conn: Any, stream: str, taken: list[Taken], newest: int) -> int:
    """Append messages, in one transaction; returns the position."""
    with transaction(conn):
        position = _position(conn, stream)
        new = [each for each in taken if each.sequence > position]
        for each in new:
            values = (each.channel, each.payload, each.created_at, f"nats:{stream}:{each.sequence}")
            try:
                conn.execute(f"INSERT INTO {LOG} (channel, payload, created_at, key) VALUES (?, ?, ?, ?)", values)
            except apsw.ConstraintError as error:
                raise Refused(f"the message {each.sequence} of the stream {stream} cannot be taken: {error}") from error
        position = new[-1].sequence if new else position
        conn.execute(
            f"INSERT INTO {SOURCES} (kind, stream, position, newest) VALUES ('import', ?, ?, ?) "
            f"ON CONFLICT (kind, stream) DO UPDATE SET position = excluded.position, newest = excluded.newest, "
            f"heard_at = {NOW}",
            [stream, position, newest],
        )
    return position
