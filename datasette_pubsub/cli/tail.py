"""Prints the log, page by page, and then new messages as they are committed.

It reports gaps as a subscriber does, and ends silently when its output pipe is closed.
"""

from __future__ import annotations

import select
import sqlite3
import sys
import time
from collections.abc import Callable

import click

from ..core.limits import PAGE_MESSAGES
from ..core.selector import Selector
from ..core.values import Message, text_of
from ..protocol.frames import as_json_line, message_fields
from ..storage import log, search
from ..storage.catchup import CatchUp
from ..storage.filters import Filters
from ..storage.last import Last
from .common import counted, visible

#: How often ``tail --follow`` polls for new commits, in seconds. A poll takes microseconds, and a user does not
#: notice a delay of 20 ms.
FOLLOW_SECONDS = 0.02

Line = Callable[[Message, int], str]


def json_line(message: Message, missed: int) -> str:
    """A message as the JSON that subscribers receive."""
    return as_json_line(message_fields(message, missed)).decode()


def plain_line(message: Message, missed: int) -> str:
    """Id, time, channel and payload, separated by tabs; of bytes, only their number."""
    payload = message.payload
    text = f"({counted(len(payload), 'byte')})" if isinstance(payload, bytes) else visible(text_of(payload))
    return f"{message.id}\t{message.created_at}\t{visible(message.channel)}\t{text}"


def before_newest(conn: sqlite3.Connection, selector: Selector, count: int, filters: Filters) -> int:
    """The id after which the newest ``count`` messages that pass the selector and its filter begin."""
    if not (selector.filter and count):
        return log.before_newest(conn, selector, count)
    before: int | None = None
    while True:
        found = search.newest(conn, selector, PAGE_MESSAGES, before=before)
        messages = found.messages
        while messages:
            verdicts = filters.passes(selector.filter, messages)
            for message, passes in zip(messages, verdicts, strict=False):
                count -= passes
                if not count:
                    return message.id - 1
            messages = messages[len(verdicts) :]
        if found.older is None:
            return 0
        before = found.older


def print_last(conn: sqlite3.Connection, last: Last, max_bytes: int, line: Line) -> None:
    """Print the newest message of each channel."""
    while last.ids:
        page = last.page(conn, PAGE_MESSAGES, max_bytes)
        sys.stdout.write("".join(line(message, 0) + "\n" for message in page.messages))
        sys.stdout.flush()


def print_up_to(conn: sqlite3.Connection, reader: CatchUp, position: int, end: int, line: Line) -> int:
    """Print in pages, which bounds memory and read transactions; returns the position reached."""
    while position < end:
        page = reader.page(conn, position)
        missed = page.missed
        if missed:
            click.echo(f"Gap: {counted(missed)} trimmed before this could read them", err=True)
        lines = []
        for message in page.messages:
            if message.id <= end:
                lines.append(line(message, missed) + "\n")
                missed = 0
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
        position = page.position
    return position


def follow_log(conn: sqlite3.Connection, reader: CatchUp, position: int, line: Line) -> None:
    """Print for ever. Raises ``BrokenPipeError`` when the output pipe is closed."""
    wait = waiter()
    seen: int | None = None
    while True:
        # Read the version before the log: a commit after this changes the next version.
        version = conn.execute("PRAGMA data_version").fetchone()[0]
        if version != seen:
            seen = version
            position = print_up_to(conn, reader, position, log.head(conn), line)
        wait()


def waiter() -> Callable[[], None]:
    """A function that waits a moment, and notices a closed output pipe even if there is nothing to print."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: time.sleep(FOLLOW_SECONDS)
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)

    def wait() -> None:
        if poll.poll(FOLLOW_SECONDS * 1000):
            raise BrokenPipeError

    return wait
