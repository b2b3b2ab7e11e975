"""The command ``datasette pubsub watch``: a standing query in a process of its own.

:mod:`.storage.standing` publishes. :mod:`.cli.main` gives this module the function that opens a file.
"""

from __future__ import annotations

import signal
import sqlite3
from typing import Any

import click

from ..core.errors import InvalidArgument, PayloadTooLarge, PubsubError
from ..core.standing import OPERATIONS, StandingQuery
from ..storage import log, schema, standing
from ..storage.sqlite_codes import is_busy
from ..storage.standing import Ran
from ..storage.transaction import transaction
from .broadcast import Opener, prepare
from .common import LOCK_SECONDS, counted, plainly, require_log, settings_of, visible
from .following import Following, Options, Snapshots, here, query_options, translated

#: Errors of the query itself, which are stored for the page; others are about the file.
_OF_QUERY = (InvalidArgument, PayloadTooLarge)


def command(opened: Opener) -> click.Command:
    """Make the command, with a function that opens a file."""

    @click.command(name="watch")
    @click.argument("file")
    @click.argument("name")
    @click.argument("sql", required=False)
    @click.option("--channel", help="Where changes of the result are published.")
    @click.option(
        "--on", "operations", multiple=True, type=click.Choice(OPERATIONS), help="Only this operation; repeats."
    )
    @click.option("--initial", is_flag=True, help="Publish the rows of the first result, too.")
    @click.option("--once", is_flag=True, help="Run once and end, for cron.")
    @click.option("--forget", is_flag=True, help="Delete the stored result of NAME, and end.")
    @query_options
    @plainly
    def watch(
        file: str,
        name: str,
        sql: str | None,
        channel: str | None,
        operations: tuple[str, ...],
        initial: bool,
        once: bool,
        forget: bool,
        **options: Any,
    ) -> None:
        """Publish what changes in the result of SQL into a channel of FILE, each change exactly once.

        The last result stands in FILE under NAME. The first run stores the result
        and publishes nothing; later ones publish each row that came, changed or
        went since, also while this command did not run. Ctrl+C ends.
        """
        if forget:
            if sql is not None or channel is not None or once or initial:
                raise click.UsageError("--forget takes FILE and NAME, and nothing else")
            _forget(opened, file, name)
            return
        if sql is None or channel is None:
            raise click.UsageError("SQL is required" if sql is None else "--channel is required")
        chosen = Options(**options)
        query = StandingQuery.checked(
            name, sql, channel, chosen.key, operations or OPERATIONS, chosen.params, initial=initial
        )
        chosen.check(sql)
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with opened(file, True) as conn:
                following = Following(conn, file, chosen.interval)
                prepare(conn, file, chosen.extensions, chosen.plugins_dir)
                require_log(conn, file)
                schema.set_durability(conn, settings_of(conn))
                watcher = Watcher(conn, query, chosen)
                watcher.begin()
                if not once:
                    watcher.follow(file, following)
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, previous)

    return watch


def _forget(opened: Opener, file: str, name: str) -> None:
    with opened(file, True) as conn:
        require_log(conn, file)
        with transaction(conn):
            found = standing.forget(conn, name)
    if not found:
        raise click.ClickException(f"there is no standing query {visible(name)}")
    click.echo(f"Forgot the result of {visible(name)}")


class Watcher:
    """One standing query on one connection."""

    def __init__(self, conn: sqlite3.Connection, query: StandingQuery, options: Options) -> None:
        self._conn = conn
        self._query = query
        self._options = options
        self._snapshots = Snapshots(conn, standing.question(query), options.limits)

    def begin(self) -> None:
        """Run once. Raises :class:`~.core.errors.PubsubError`, which is stored if it is about the query."""
        try:
            self._run(at_once=True)
        except _OF_QUERY as error:
            self._fail(error)
            raise translated(error) from None

    def follow(self, file: str, following: Following) -> None:
        """Run after each commit, for ever; errors are told once, and the next run follows."""
        for _ in following.runs():
            try:
                self._run()
            except _OF_QUERY as error:
                self._fail(error)
                following.tell(here(error))
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                following.tell(
                    f"{file} is locked: another program has been writing for more than {LOCK_SECONDS:g} seconds"
                )
                following.run_again()
            else:
                following.tell(None)

    def _run(self, at_once: bool = False) -> None:
        """Publish what has changed; the write lock is taken only if something has, or ``at_once`` for the time."""
        result = self._snapshots.read()
        stored = standing.load(self._conn, self._query.name)
        if standing.is_due(stored, self._query, result):
            try:
                with transaction(self._conn):
                    ran = standing.run(self._conn, self._query, self._options.limits)
            except sqlite3.IntegrityError as error:
                # A trigger of the user's refuses the message.
                raise log.refusal(error, self._conn) from None
            self._tell(ran, first=stored is None)
        elif at_once or (stored is not None and standing.is_stale(stored)):
            with transaction(self._conn):
                standing.touch(self._conn, self._query.name)

    def _fail(self, error: PubsubError) -> None:
        stored = standing.load(self._conn, self._query.name)
        if stored is None or stored.error != error.message:
            with transaction(self._conn):
                standing.fail(self._conn, self._query, error.message)

    def _tell(self, ran: Ran, first: bool) -> None:
        if ran.replaced is not None:
            click.echo(f"The stored result was replaced, and no change was published: {ran.replaced}", err=True)
        if ran.published:
            parts = ", ".join(f"{number} {operation}" for operation, number in ran.published.items())
            click.echo(f"{log.now()}\t{counted(sum(ran.published.values()))}\t{parts}")
        elif first:
            click.echo(f"{log.now()}\tstored {counted(ran.rows, 'row')}")
