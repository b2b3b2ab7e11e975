"""The group ``datasette pubsub``, whose commands are loaded when one of them is asked for."""

from __future__ import annotations

import click


class Commands(click.Group):
    """Stands for the commands of :mod:`.cli.main`, which load the broker."""

    def __init__(self) -> None:
        super().__init__("pubsub", help="Publish to a database file and read its log, also while Datasette serves it.")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._commands().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._commands().get_command(ctx, cmd_name)

    def _commands(self) -> click.Group:
        from .main import pubsub

        return pubsub
