"""How far relays are: rows of ``pubsub_subscriptions`` that they write, and that no subscriber can have."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from ..core.settings import RELAY_OWNER
from . import subscriptions
from .names import OF_CHANNEL, Name
from .objects import LOG


def positions(conn: sqlite3.Connection) -> dict[str, int]:
    """The newest id that each relay is known to have relayed, by stream."""
    return {row.name: row.cursor for row in subscriptions.of_owner(conn, RELAY_OWNER)}


def unrelayed(conn: sqlite3.Connection, goals: Mapping[Name, int], relayed: Mapping[str, int]) -> dict[str, int]:
    """How many messages up to these ids, by channel, each stream does not have; without those that have all of them.

    ``relayed`` is what :func:`positions` returns. A relay writes its position a moment after it has relayed.
    """
    found: dict[str, int] = {}
    sql = f"SELECT count(*) FROM {LOG} WHERE {OF_CHANNEL} AND id > ? AND id <= ?"
    for stream, position in relayed.items():
        number = sum(
            int(conn.execute(sql, [channel, position, goal]).fetchone()[0])
            for channel, goal in goals.items()
            if goal > position
        )
        if number:
            found[stream] = number
    return found
