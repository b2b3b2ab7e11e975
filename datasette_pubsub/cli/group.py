"""The command group ``datasette pubsub``, which loads its commands on first use."""

from __future__ import annotations

import click


class Commands(click.Group):
    """Stands in for the commands of :mod:`.cli.main`, whose import takes time."""

    def __init__(self) -> None:
        super().__init__("pubsub", help="Publish to a database file and read its log, also while Datasette serves it.")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._commands().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._commands().get_command(ctx, cmd_name)

    def _commands(self) -> click.Group:
        from .main import pubsub

        return pubsub
