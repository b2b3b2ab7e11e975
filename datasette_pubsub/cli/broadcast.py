"""The command ``datasette pubsub broadcast``: makes a table publish its own changes.

The room :mod:`.broadcast` makes the triggers. :mod:`.cli.main` gives this module the function that opens a file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import click
from datasette.app import Datasette
from datasette.plugins import pm
from datasette.utils import LoadExtension

from ..broadcast import tables as files
from ..broadcast.definition import OPERATIONS, Broadcast, Trigger, default_channel
from ..broadcast.shape import shape_of
from ..core.errors import InvalidArgument
from ..storage import schema
from ..storage.transaction import transaction
from .common import counted, plainly, require_log, settings_of, visible

#: Opens a file, for writing or not.
Opener = Callable[[str, bool], closing[sqlite3.Connection]]


def command(opened: Opener) -> click.Command:
    """Make the command, with a function that opens a file."""

    @click.command(name="broadcast")
    @click.argument("file")
    @click.argument("table", required=False)
    @click.option("--channel", help="Where changes are published; changes/TABLE by default.")
    @click.option(
        "--channel-suffix", metavar="SQL", help="An SQL expression of columns, whose value follows the channel's name."
    )
    @click.option("--column", "columns", multiple=True, help="Only this column, and the key; repeats.")
    @click.option(
        "--on", "operations", multiple=True, type=click.Choice(OPERATIONS), help="Only this operation; repeats."
    )
    @click.option("--when-insert", metavar="SQL", help="Inserts only where this SQL condition holds for NEW.")
    @click.option("--when-update", metavar="SQL", help="Updates only where it holds for NEW and OLD.")
    @click.option("--when-delete", metavar="SQL", help="Deletes only where it holds for OLD.")
    @click.option("--no-new", is_flag=True, help="Leave the new values out.")
    @click.option("--no-old", is_flag=True, help="Leave the old values out.")
    @click.option("--dry-run", is_flag=True, help="Print the triggers, and create nothing.")
    @click.option("--show", is_flag=True, help="Print the present triggers, and say if they no longer fit the table.")
    @click.option("--remove", is_flag=True, help="Remove the triggers.")
    @click.option("--again", is_flag=True, help="Create the broadcast again that TABLE had before it was rebuilt.")
    @click.option(
        "--check",
        is_flag=True,
        help="Without TABLE: print the tables that have lost their broadcast, and exit with 1 if there are any.",
    )
    @click.option(
        "--load-extension",
        "extensions",
        type=LoadExtension(),
        envvar="DATASETTE_LOAD_EXTENSION",
        multiple=True,
        help="An SQLite extension that TABLE needs, path or path:entrypoint as for Datasette; repeats.",
    )
    @click.option(
        "--plugins-dir",
        type=click.Path(exists=True, file_okay=False),
        help="A folder of Datasette plugins that register functions and collations that TABLE needs.",
    )
    @plainly
    def broadcast(
        file: str,
        table: str | None,
        channel: str | None,
        channel_suffix: str | None,
        columns: tuple[str, ...],
        operations: tuple[str, ...],
        when_insert: str | None,
        when_update: str | None,
        when_delete: str | None,
        no_new: bool,
        no_old: bool,
        dry_run: bool,
        show: bool,
        remove: bool,
        again: bool,
        check: bool,
        extensions: Sequence[str | tuple[str, str]],
        plugins_dir: str | None,
    ) -> None:
        """Make TABLE of FILE publish its inserts, updates and deletes, whichever program makes them.

        Creates triggers, and replaces those that this command or Datasette made before.
        """
        conditions = {"insert": when_insert, "update": when_update, "delete": when_delete}
        chosen = channel, channel_suffix, columns, operations, *conditions.values(), no_new, no_old
        if show + remove + dry_run + again + check > 1 or ((show or remove or again or check) and any(chosen)):
            raise click.UsageError(
                "--show, --remove, --again, --check and --dry-run exclude each other, and only the last takes options"
            )
        if check:
            if table is not None:
                raise click.UsageError("--check looks at all tables and takes none")
            with opened(file, False) as conn:
                _check(conn)
            return
        if table is None:
            raise click.UsageError("TABLE is required")
        if show:
            with opened(file, False) as conn:
                prepare(conn, file, extensions, plugins_dir)
                _show(conn, table)
            return
        for operation, condition in conditions.items():
            if condition is not None and operations and operation not in operations:
                raise click.UsageError(f"--when-{operation} needs --on {operation}")
        with opened(file, True) as conn:
            prepare(conn, file, extensions, plugins_dir)
            if remove:
                with transaction(conn):
                    count = files.remove(conn, _removable(conn, table))
                click.echo(f"Removed {counted(count, 'trigger')}; {visible(table)} is not broadcast")
                return
            require_log(conn, file)
            schema.set_durability(conn, settings_of(conn))
            with transaction(conn):
                shape = shape_of(conn, table)
                if again:
                    made = files.again(conn, shape.table)
                else:
                    wanted = Broadcast(
                        channel if channel is not None else default_channel(shape.table),
                        channel_suffix or "",
                        columns or None,
                        not no_new,
                        not no_old,
                        {each: conditions[each] or "" for each in OPERATIONS if not operations or each in operations},
                    )
                    if dry_run:
                        _print(files.preview(conn, shape.table, wanted))
                        return
                    made = files.create(conn, shape.table, wanted)
                found = files.find(conn, shape.table)
            channels = visible(where(found.broadcast)) if found and found.broadcast else "its channel"
            click.echo(f"Created {counted(len(made), 'trigger')}: {visible(table)} is broadcast to {channels}")
            if shape.replaces_untold:
                click.echo(UNTOLD, err=True)

    return broadcast


#: The warning for a table with a unique index on an expression or a generated column.
UNTOLD = (
    "REPLACE can remove rows of this table by a unique index on an expression or a generated column, and SQLite "
    "tells triggers of that only under PRAGMA recursive_triggers = ON"
)


def where(broadcast: Broadcast) -> str:
    return f"{broadcast.channel}…" if broadcast.per_row else broadcast.channel


def _show(conn: sqlite3.Connection, table: str) -> None:
    name = shape_of(conn, table).table
    found, lost = files.find(conn, name), files.lost(conn).get(name)
    if lost is not None:
        click.echo(f"{visible(name)}: {visible(lost.reason)}", err=True)
    if found is None:
        raise InvalidArgument(f"{table} is not broadcast")
    for problem in found.problems:
        click.echo(f"It no longer fits: {visible(problem)}", err=True)
    _print(list(found.triggers))


def prepare(
    conn: sqlite3.Connection, file: str, extensions: Sequence[str | tuple[str, str]], plugins_dir: str | None
) -> None:
    """Give a connection the functions and collations that Datasette's connections have with these options.

    Raises :class:`InvalidArgument` for an extension that cannot be loaded.
    """
    if extensions:
        _load(conn, extensions)
    if plugins_dir is not None:
        # Making a Datasette registers the plugins of the folder; it opens no file.
        datasette = Datasette([], plugins_dir=plugins_dir)
        pm.hook.prepare_connection(conn=conn, database=Path(file).stem, datasette=datasette)


def _load(conn: sqlite3.Connection, extensions: Sequence[str | tuple[str, str]]) -> None:
    if not hasattr(conn, "enable_load_extension"):
        raise InvalidArgument("this Python cannot load SQLite extensions: https://datasette.io/help/extensions")
    conn.enable_load_extension(True)
    try:
        for extension in extensions:
            path, entrypoint = (extension, None) if isinstance(extension, str) else extension
            try:
                # Connection.load_extension() accepts an entrypoint only since Python 3.12.
                conn.execute("SELECT load_extension(?, ?)", [path, entrypoint]).fetchone()
            except sqlite3.Error as error:
                raise InvalidArgument(f"the extension {path} cannot be loaded: {error}") from None
    finally:
        conn.enable_load_extension(False)


def _check(conn: sqlite3.Connection) -> None:
    """Print the tables that have lost their broadcast. Exits with 1 if there are any."""
    lost = files.lost(conn)
    for found in lost.values():
        click.echo(f"{visible(found.table)}: {visible(found.reason)}")
    if lost:
        raise click.exceptions.Exit(1)
    click.echo(f"{counted(len(files.standing(conn)), 'table')} broadcast, as made")


def _removable(conn: sqlite3.Connection, table: str) -> str:
    """The table's name, including a table that no longer exists but is recorded as broadcast."""
    for found in files.lost(conn).values():
        if found.gone and found.table.lower() == table.lower():
            return found.table
    return shape_of(conn, table).table


def _print(triggers: list[Trigger]) -> None:
    for trigger in triggers:
        click.echo(f"{trigger.sql};")
