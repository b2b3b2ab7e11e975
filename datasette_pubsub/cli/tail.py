"""Printing the log, page by page, and what is committed after it.

The law of this module: it reads, as any subscriber does, and tells of gaps. It
ends in silence when nobody reads what it prints.
"""

from __future__ import annotations

import select
import sqlite3
import sys
import time
from collections.abc import Callable

import click

from ..core.values import Message, text_of
from ..protocol.frames import as_json_line, message_fields
from ..storage import log
from ..storage.catchup import CatchUp
from .common import counted, visible

#: How often ``tail --follow`` asks for new commits, in seconds. Asking takes
#: microseconds, and 20 ms are not felt by a person who watches.
FOLLOW_SECONDS = 0.02

Line = Callable[[Message, int], str]


def json_line(message: Message, missed: int) -> str:
    """A message as subscribers get it."""
    return as_json_line(message_fields(message, missed)).decode()


def plain_line(message: Message, missed: int) -> str:
    """Id, time, channel and payload, divided by tabs; bytes only by their number."""
    payload = message.payload
    text = f"({counted(len(payload), 'byte')})" if isinstance(payload, bytes) else visible(text_of(payload))
    return f"{message.id}\t{message.created_at}\t{visible(message.channel)}\t{text}"


def print_up_to(conn: sqlite3.Connection, reader: CatchUp, position: int, end: int, line: Line) -> int:
    """Print in pages, so that neither memory nor a read transaction grows; the position reached."""
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
    """Print for ever. Raises ``BrokenPipeError`` when nobody reads any more."""
    wait = _waiter()
    seen: int | None = None
    while True:
        # Asked before the log is read: what commits after this answer changes the next one.
        version = conn.execute("PRAGMA data_version").fetchone()[0]
        if version != seen:
            seen = version
            position = print_up_to(conn, reader, position, log.head(conn), line)
        wait()


def _waiter() -> Callable[[], None]:
    """Waits a moment, and notices when the reader of standard output leaves while there is nothing to print."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: time.sleep(FOLLOW_SECONDS)
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)

    def wait() -> None:
        if poll.poll(FOLLOW_SECONDS * 1000):
            raise BrokenPipeError

    return wait
