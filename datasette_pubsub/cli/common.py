"""Helpers that the commands share: errors on one line, transactions, tables, and text that is safe for a terminal.

A command reports an error on one line that names the file, without a traceback or SQL.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from typing import ParamSpec

import click

from ..core.errors import PubsubError
from ..core.settings import Settings
from ..storage import schema

#: How long a command waits for another program's write, in seconds: longer than any transaction of a server should be.
LOCK_SECONDS = 10.0

#: How often a command updates its progress, in seconds.
PROGRESS_SECONDS = 0.1

P = ParamSpec("P")

#: The messages for SQLite's errors, by their primary codes; the file's name comes first.
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
    """Wrap a command so that it reports errors on one line, and ends silently when its output pipe is closed."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        # Text that the terminal cannot encode must not end the command.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # The pipe is closed. Redirect the rest of the buffer to /dev/null, so that flushing it at exit cannot fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except PubsubError as error:
            raise click.ClickException(error.message) from None
        except sqlite3.Error as error:
            file = kwargs.get("file") or _last(kwargs.get("url")) or "the database"
            meaning = _MEANINGS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            raise click.ClickException(f"{file} {meaning}" if meaning else f"{file}: {error}") from None

    return wrapper


def _last(words: object) -> str | None:
    """The file of a command that takes addresses before it."""
    return str(words[-1]) if isinstance(words, tuple) and words else None


def require_log(conn: sqlite3.Connection, file: str) -> None:
    """Raise :class:`click.ClickException` unless the file has a complete log of this version."""
    if schema.check(conn):
        return
    what = (
        "the log is of an older version, or a part of it was dropped"
        if schema.inspect(conn).recorded
        else "no log is installed"
    )
    raise click.ClickException(f"{file}: {what}; run: datasette pubsub install {file}")


def settings_of(conn: sqlite3.Connection) -> Settings:
    """The default settings with the payload limit of the file, which a server's option may have set."""
    limit = schema.max_payload_bytes(conn)
    return Settings() if limit is None else Settings(max_payload_bytes=limit)


def visible(text: str) -> str:
    """The text on one line, with control characters escaped, so that it cannot control the terminal."""
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
    """A progress line on standard error, which is overwritten; prints nothing if that is not a terminal."""

    def __init__(self, shows: bool = True) -> None:
        self._shows = shows and sys.stderr.isatty()
        self._shown_at = 0.0

    def show(self, text: str) -> None:
        """Update the line, at most once in ``PROGRESS_SECONDS``."""
        if self._shows and time.monotonic() - self._shown_at >= PROGRESS_SECONDS:
            self._shown_at = time.monotonic()
            click.echo(f"\r{text}", nl=False, err=True)

    def clear(self) -> None:
        """Clear the line."""
        if self._shows:
            click.echo("\r\x1b[K", nl=False, err=True)
