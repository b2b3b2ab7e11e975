"""What the commands share: errors in one line, transactions, and text that a terminal can show.

The law of this module: it is given a connection and opens none. Nobody sees a
traceback or SQL: what can go wrong is one line that names the file.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec

import click

from ..core.errors import PubsubError
from ..core.settings import Settings
from ..storage import schema

#: How long to wait for another program's write to end, in seconds: longer than
#: any transaction that a server should hold.
LOCK_SECONDS = 10.0

#: How often the progress of a command is shown, in seconds.
PROGRESS_SECONDS = 0.1

P = ParamSpec("P")

#: What an SQLite error means to the person at the keyboard, by its primary code.
_MEANINGS = {
    sqlite3.SQLITE_BUSY: f"is locked: another program has been writing for more than {LOCK_SECONDS:g} seconds",
    sqlite3.SQLITE_LOCKED: "is locked by another program",
    sqlite3.SQLITE_NOTADB: "is not an SQLite database",
    sqlite3.SQLITE_CORRUPT: "is damaged; SQLite cannot read it",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PERM: "cannot be opened: permission denied",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error",
}


def plainly(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors are one line, and that a closed pipe ends in silence."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        # What a terminal cannot show must not end the command.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has left. What is still buffered goes nowhere, also at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except PubsubError as error:
            raise click.ClickException(error.message) from None
        except sqlite3.Error as error:
            file = str(kwargs.get("file", "the database"))
            meaning = _MEANINGS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            raise click.ClickException(f"{file} {meaning}" if meaning else f"{file}: {error}") from None

    return wrapper


def require_log(conn: sqlite3.Connection, file: str) -> None:
    """Raise :class:`click.ClickException` unless the file holds a log that this program knows."""
    if schema.check(conn):
        return
    what = (
        "the log is of an older version, or a part of it was dropped"
        if schema.inspect(conn).recorded
        else "no log is installed"
    )
    raise click.ClickException(f"{file}: {what}; run: datasette pubsub install {file}")


def settings_of(conn: sqlite3.Connection) -> Settings:
    """The defaults, and the payload limit that the file holds: a server may have been given another."""
    limit = schema.max_payload_bytes(conn)
    return Settings() if limit is None else Settings(max_payload_bytes=limit)


@contextmanager
def transaction(conn: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    conn.execute(begin)
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def visible(text: str) -> str:
    """Text on one line, with nothing in it that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, noun: str = "message") -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = [[visible(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[n]) for row in shown) for n in range(len(heads))]
    for row in shown:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Progress:
    """One line on standard error that is written over; silent where that is no terminal."""

    def __init__(self, shows: bool = True) -> None:
        self._shows = shows and sys.stderr.isatty()
        self._shown_at = 0.0

    def show(self, text: str) -> None:
        """Say how far it is, unless that was said just now."""
        if self._shows and time.monotonic() - self._shown_at >= PROGRESS_SECONDS:
            self._shown_at = time.monotonic()
            click.echo(f"\r{text}", nl=False, err=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._shows:
            click.echo("\r\x1b[K", nl=False, err=True)
