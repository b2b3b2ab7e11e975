"""Runs a query of the command line again after each commit to its file; and the options of such commands."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from datasette.utils import LoadExtension, named_parameters

from ..core.errors import PubsubError
from ..core.result import Result
from ..storage import log, query
from ..storage.query import Limits, Question, missing_parameters
from ..storage.sqlite_codes import is_busy
from .common import LOCK_SECONDS
from .tail import waiter

#: All runs together take at most this part of the time, as in a server: a slow query runs less often.
BUSY_SHARE = 0.25

#: How often it is looked whether the file at the path is still the one that is open, in seconds.
FILE_SECONDS = 1.0

#: What the limits are called here, by their names in a server.
_HERE = {
    "Datasette's sql_time_limit_ms": "--time-limit",
    "Datasette's max_returned_rows": "--max-rows",
    "max_live_query_bytes": "--max-bytes",
}

F = TypeVar("F", bound=Callable[..., Any])


def query_options(command: F) -> F:
    """Add the options that ``live`` and ``watch`` share; :class:`Options` takes their values."""
    options = (
        click.option("--key", multiple=True, metavar="COLUMN", help="A result column that recognises a row; repeats."),
        click.option(
            "--param",
            "params",
            multiple=True,
            nargs=2,
            metavar="NAME VALUE",
            help="A parameter of the query, its name and its value; repeats.",
        ),
        click.option(
            "--interval",
            type=click.FloatRange(min=0.02, max=3600),
            default=0.5,
            show_default=True,
            metavar="SECONDS",
            help="Run the query at most this often, in seconds; a slow query runs for at most a quarter of the time.",
        ),
        click.option(
            "--time-limit",
            type=click.FloatRange(min=0.001, max=3600),
            default=1.0,
            show_default=True,
            metavar="SECONDS",
            help="The longest run, in seconds.",
        ),
        click.option(
            "--max-rows",
            type=click.IntRange(min=1),
            default=1000,
            show_default=True,
            help="The most rows of a result.",
        ),
        click.option(
            "--max-bytes",
            type=click.IntRange(min=1024, max=256 * 1024 * 1024),
            default=4 * 1024 * 1024,
            show_default=True,
            help="The largest result, in bytes as JSON.",
        ),
        click.option(
            "--load-extension",
            "extensions",
            type=LoadExtension(),
            envvar="DATASETTE_LOAD_EXTENSION",
            multiple=True,
            help="An SQLite extension that the query needs, path or path:entrypoint as for Datasette; repeats.",
        ),
        click.option(
            "--plugins-dir",
            type=click.Path(exists=True, file_okay=False),
            help="A folder of Datasette plugins that register functions and collations that the query needs.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The values of :func:`query_options`."""

    key: tuple[str, ...]
    params: tuple[tuple[str, str], ...]
    interval: float
    time_limit: float
    max_rows: int
    max_bytes: int
    extensions: Sequence[str | tuple[str, str]]
    plugins_dir: str | None

    @property
    def limits(self) -> Limits:
        return Limits(seconds=self.time_limit, rows=self.max_rows, bytes=self.max_bytes)

    def check(self, sql: str) -> None:
        """Raise :class:`InvalidArgument` naming a parameter of the query that has no value."""
        missing_parameters(named_parameters(sql), dict(self.params))


class Snapshots:
    """The results of a query; :meth:`read` raises :class:`~.core.errors.PubsubError`."""

    def __init__(self, conn: sqlite3.Connection, question: Question, limits: Limits) -> None:
        self._conn = conn
        self._question = question
        self._limits = limits
        #: The schema version for which the query is known to only read.
        self._checked: int | None = None

    def read(self) -> Result:
        """Run the query once, in a read transaction."""
        with log.moment(self._conn):
            version = int(self._conn.execute("PRAGMA schema_version").fetchone()[0])
            if version != self._checked:
                query.reads(self._conn, self._question)
                self._checked = version
            return query.run(self._conn, self._question, self._limits)


def here(error: PubsubError) -> str:
    """The error's text, with the limits named as options of the command."""
    text = error.message
    for there, option in _HERE.items():
        text = text.replace(there, option)
    return text


def translated(error: PubsubError) -> PubsubError:
    """The error with the text of :func:`here`."""
    return type(error)(here(error), field=error.field, limit=error.limit)


class Following:
    """Follows the commits to a file, by any program. Make it as soon as the file was opened."""

    def __init__(self, conn: sqlite3.Connection, file: str, interval: float) -> None:
        self._conn = conn
        self._file = file
        self._interval = interval
        self._opened = _identity(file)
        self._looked = time.monotonic()
        self._told: str | None = None
        self._again = False

    def runs(self, idle: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Yield when the query should run: at once, and then after commits; ``idle`` is called while it waits."""
        wait: Callable[[], None] | None = None
        seen: int | None = None
        due = float("-inf")
        while True:
            # Read the version before the query runs: a commit after this changes the next version.
            version = self._version()
            if (version != seen or self._again) and time.monotonic() >= due:
                seen, self._again = version, version is None
                began = time.monotonic()
                if version is not None:
                    yield
                took = time.monotonic() - began
                due = began + max(self._interval, took / BUSY_SHARE)
            wait = wait or waiter()
            wait()
            idle()
            self._check_file()

    def _version(self) -> int | None:
        """A number that changes with each commit of others; ``None`` while the file is locked."""
        try:
            return int(self._conn.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            self.tell(
                f"{self._file} is locked: another program has been writing for more than {LOCK_SECONDS:g} seconds"
            )
            return None

    def run_again(self) -> None:
        """Yield once more, without a commit, after the interval."""
        self._again = True

    def tell(self, problem: str | None) -> None:
        """Print a problem on standard error, once until another comes; ``None``: there is none any more."""
        if problem is not None and problem != self._told:
            click.echo(f"Error: {problem}", err=True)
        self._told = problem

    def _check_file(self) -> None:
        """Raise :class:`click.ClickException` if the file at the path is another one, whose commits are not seen."""
        now = time.monotonic()
        if now - self._looked >= FILE_SECONDS:
            self._looked = now
            if _identity(self._file) != self._opened:
                raise click.ClickException(f"{self._file} was deleted or replaced")


def _identity(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
