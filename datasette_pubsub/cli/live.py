"""The command ``datasette pubsub live``: the result of a query, as a table that stays up to date or as lines of JSON.

:mod:`.cli.main` gives this module the function that opens a file.
"""

from __future__ import annotations

import signal
import sqlite3
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import click

from ..core.errors import PubsubError
from ..core.result import Change, Result, difference
from ..protocol.frames import one_line
from ..protocol.query_frames import change_json, snapshot_json
from ..storage.query import Question
from ..storage.sqlite_codes import is_busy
from .broadcast import Opener, prepare
from .common import LOCK_SECONDS, plainly
from .following import Following, Options, Snapshots, here, query_options, translated
from .screen import Screen, Table


def command(opened: Opener) -> click.Command:
    """Make the command, with a function that opens a file."""

    @click.command(name="live")
    @click.argument("file")
    @click.argument("sql")
    @click.option("--once", is_flag=True, help="Print the result once, and end.")
    @click.option("--json", "as_json", is_flag=True, help="Lines of JSON, also on a terminal.")
    @query_options
    @plainly
    def live(file: str, sql: str, once: bool, as_json: bool, **options: Any) -> None:
        """Show the result of SQL in FILE, and what changes in it, whichever program changes it.

        On a terminal this is a table that stays up to date. In a pipe each line is
        a JSON object with "event": first "snapshot", then a "change" for each
        change, with the fields of a live query. Ctrl+C ends.
        """
        chosen = Options(**options)
        chosen.check(sql)
        question = Question(sql=sql, params=tuple(sorted(chosen.params)), key=chosen.key)
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with opened(file, False) as conn:
                following = Following(conn, file, chosen.interval)
                prepare(conn, file, chosen.extensions, chosen.plugins_dir)
                snapshots = Snapshots(conn, question, chosen.limits)
                if once:
                    _print_once(_first(snapshots), chosen.key, as_json)
                elif as_json or not sys.stdout.isatty():
                    _follow(file, following, snapshots, JsonLines(chosen.key))
                else:
                    with Screen() as screen:
                        _follow(file, following, snapshots, Table(screen, file))
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, previous)

    return live


def _first(snapshots: Snapshots) -> Result:
    """The first result, without which the command ends with an error."""
    try:
        return snapshots.read()
    except PubsubError as error:
        raise translated(error) from None


class View(Protocol):
    """Shows results."""

    def whole(self, result: Result) -> None: ...

    def changed(self, result: Result, change: Change) -> None: ...

    def problem(self, text: str | None) -> bool:
        """Show what is wrong, or that nothing is; returns whether it was shown."""
        ...

    def idle(self) -> None: ...


def _follow(file: str, following: Following, snapshots: Snapshots, view: View) -> None:
    """Show the result and its changes for ever; errors are told once, and the next run follows."""
    last: Result | None = None
    shown = False
    for _ in following.runs(view.idle):
        problem = None
        try:
            result = snapshots.read() if shown else _first(snapshots)
        except PubsubError as error:
            if not shown:
                raise
            problem = here(error)
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            problem = f"{file} is locked: another program has been writing for more than {LOCK_SECONDS:g} seconds"
            following.run_again()
        if not view.problem(problem):
            following.tell(problem)
        if problem is not None:
            last = None
            continue
        if last is None or last.columns != result.columns:
            view.whole(result)
        elif change := difference(last, result):
            view.changed(result, change)
        last, shown = result, True


class JsonLines:
    """Prints each result or change as a line of JSON."""

    def __init__(self, key: Sequence[str]) -> None:
        self._key = key

    def whole(self, result: Result) -> None:
        self._print("snapshot", snapshot_json(result, self._key))

    def changed(self, result: Result, change: Change) -> None:
        self._print("change", change_json(change))

    def problem(self, text: str | None) -> bool:
        return False

    def idle(self) -> None:
        pass

    def _print(self, event: str, fields: bytes) -> None:
        text = fields.decode() if fields.isascii() else one_line(fields.decode())
        # As bytes, since JSON is UTF-8 whatever the terminal's encoding is.
        out = sys.stdout.buffer
        out.write(f'{{"event":"{event}",{text[1:]}\n'.encode())
        out.flush()


def _print_once(result: Result, key: Sequence[str], as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        JsonLines(key).whole(result)
    else:
        Table.print_plain(result)
