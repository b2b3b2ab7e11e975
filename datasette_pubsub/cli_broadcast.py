"""``datasette pubsub broadcast``: a table that publishes its own changes, from the command line.

The law of this module: it is handed the means to open a file and opens none
itself. What the triggers are stands in ``broadcast`` and ``broadcast_file``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import click

from . import broadcast_file as files
from . import schema
from .broadcast import OPERATIONS, Broadcast, Trigger, default_channel
from .cli_common import counted, plainly, require_log, settings_of, transaction, visible
from .errors import InvalidArgument

#: Opens a file, for writing or not.
Opener = Callable[[str, bool], closing[sqlite3.Connection]]


def command(opened: Opener) -> click.Command:
    """The command, with its way to open a file."""

    @click.command(name="broadcast")
    @click.argument("file")
    @click.argument("table")
    @click.option("--channel", help="Where changes are published; default changes/TABLE.")
    @click.option(
        "--per-row", metavar="SQL", help="The value of this expression of columns follows the channel's name."
    )
    @click.option("--column", "columns", multiple=True, help="Only this column, and the key; repeats.")
    @click.option(
        "--on", "operations", multiple=True, type=click.Choice(OPERATIONS), help="Only this operation; repeats."
    )
    @click.option("--when-insert", metavar="SQL", help="Inserts only where this is true of NEW.")
    @click.option("--when-update", metavar="SQL", help="Updates only where this is true of NEW and OLD.")
    @click.option("--when-delete", metavar="SQL", help="Deletes only where this is true of OLD.")
    @click.option("--no-new", is_flag=True, help="Leave the new values out.")
    @click.option("--no-old", is_flag=True, help="Leave the old values out.")
    @click.option("--dry-run", is_flag=True, help="Print the triggers, and create nothing.")
    @click.option("--show", is_flag=True, help="Print the triggers that are there.")
    @click.option("--remove", is_flag=True, help="Remove the triggers that are there.")
    @plainly
    def broadcast(
        file: str,
        table: str,
        channel: str | None,
        per_row: str | None,
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
    ) -> None:
        """Have TABLE of FILE publish its inserts, updates and deletes, whichever program makes them.

        Creates triggers, in place of those that this command or Datasette made before.
        """
        conditions = {"insert": when_insert, "update": when_update, "delete": when_delete}
        chosen = channel, per_row, columns, operations, *conditions.values(), no_new, no_old
        if show + remove + dry_run > 1 or ((show or remove) and any(chosen)):
            raise click.UsageError(
                "--show, --remove and --dry-run exclude each other, and the first two take no options"
            )
        if show:
            with opened(file, False) as conn:
                _show(conn, table)
            return
        for operation, condition in conditions.items():
            if condition is not None and operations and operation not in operations:
                raise click.UsageError(f"--when-{operation} needs --on {operation}")
        with opened(file, True) as conn:
            if remove:
                with transaction(conn):
                    count = files.remove(conn, files.shape_of(conn, table).table)
                click.echo(f"Removed {counted(count, 'trigger')}; {visible(table)} is not broadcast")
                return
            require_log(conn, file)
            schema.set_durability(conn, settings_of(conn))
            with transaction(conn):
                shape = files.shape_of(conn, table)
                wanted = Broadcast(
                    channel if channel is not None else default_channel(shape.table),
                    per_row or "",
                    columns or None,
                    not no_new,
                    not no_old,
                    {each: conditions[each] or "" for each in OPERATIONS if not operations or each in operations},
                )
                if dry_run:
                    _print(files.preview(conn, shape.table, wanted))
                    return
                made = files.create(conn, shape.table, wanted)
            click.echo(
                f"Created {counted(len(made), 'trigger')}: {visible(table)} is broadcast to {visible(where(wanted))}"
            )
            if shape.replaces_silently:
                click.echo(REPLACES, err=True)

    return broadcast


#: What must be known of a table with more than one way to be unique.
REPLACES = (
    "REPLACE can remove rows of this table by another column than the key, and SQLite tells triggers of that "
    "only under PRAGMA recursive_triggers = ON"
)


def where(broadcast: Broadcast) -> str:
    return f"{broadcast.channel}…" if broadcast.per_row else broadcast.channel


def _show(conn: sqlite3.Connection, table: str) -> None:
    found = files.find(conn, files.shape_of(conn, table).table)
    if found is None:
        raise InvalidArgument(f"{table} is not broadcast")
    for problem in found.problems:
        click.echo(f"It no longer fits: {visible(problem)}", err=True)
    _print(list(found.triggers))


def _print(triggers: list[Trigger]) -> None:
    for trigger in triggers:
        click.echo(f"{trigger.sql};")
