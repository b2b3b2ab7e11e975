"""The definition of a broadcast: which changes of a table are published, and to which channel.

It exists as values, as JSON, and as a comment in each of its triggers. This module runs no SQL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import InvalidArgument
from ..core.settings import MAX_CHANNEL_BYTES
from ..core.validation import check_channel
from .expressions import check_expression
from .harmless import harmless
from .shape import Shape

OPERATIONS = ("insert", "update", "delete")

#: The prefix of our triggers' names; the kind of trigger and the table follow.
PREFIX = "pubsub_broadcast_"

#: The kinds of triggers that note the rows which REPLACE may remove, and publish those that it did remove.
NOTING = ("before_insert", "after_insert", "before_update", "after_update")

#: All kinds of our triggers, in the order in which they are created: SQLite runs the newest first, so the rows that
#: REPLACE has removed are published before the row that has replaced them.
KINDS = (*OPERATIONS, *NOTING)


#: The smallest payload limit under which a table can be broadcast, in bytes: room for a message without values.
MIN_LIMIT = 1024

_PER_ROW = "the channel's expression"
_ROWS = ("NEW", "OLD")

_MARK = "datasette-pubsub broadcast 1:"
_COMMENT = re.compile(re.escape(f"/* {_MARK} ") + r"(\{.*?\}) \*/", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Which changes of a table are published, and to which channel.

    ``channel`` is the channel. With ``per_row``, an SQL expression over the
    row's columns, it is the beginning of the channel's name, and the
    expression's value follows. ``columns`` of ``None`` means all columns.
    ``conditions`` has an SQL condition, or an empty text, for each operation that
    is broadcast. ``limit`` is the largest payload, in bytes.
    """

    channel: str
    per_row: str = ""
    columns: tuple[str, ...] | None = None
    new: bool = True
    old: bool = True
    conditions: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(OPERATIONS, ""))
    limit: int = 1024 * 1024

    def checked(self, shape: Shape) -> Broadcast:
        """Check the broadcast against a table; returns it with trimmed texts. Raises :class:`InvalidArgument`."""
        check_channel(self.channel)
        if self.per_row and len(follow_pattern(self.channel).encode()) > MAX_CHANNEL_BYTES:
            raise InvalidArgument(
                f"channel is too long to be continued: as a pattern it is over {MAX_CHANNEL_BYTES} bytes"
            )
        if self.limit < MIN_LIMIT + 2 * len(json.dumps(shape.table)):
            raise InvalidArgument(
                f"messages of {self.limit} bytes (max_payload_bytes) are too small to broadcast rows",
                limit="max_payload_bytes",
            )
        if not self.conditions:
            raise InvalidArgument("choose at least one of insert, update and delete")
        if self.columns == () and (self.new or self.old):
            raise InvalidArgument("choose at least one column, or neither new nor old values")
        for name in self.columns or ():
            shape.column(name)
        names = [column.name for column in shape.columns]
        if self.per_row.strip():
            harmless(check_expression(self.per_row, _PER_ROW), _PER_ROW, names)
        for operation, condition in self.conditions.items():
            if condition.strip():
                field = _condition(operation)
                harmless(check_expression(condition, field), field, names, _ROWS)
        return Broadcast(
            self.channel,
            check_expression(self.per_row, _PER_ROW) if self.per_row.strip() else "",
            None if self.columns is None else tuple(dict.fromkeys(self.columns)),
            self.new,
            self.old,
            {
                operation: check_expression(self.conditions[operation], _condition(operation))
                if self.conditions[operation].strip()
                else ""
                for operation in OPERATIONS
                if operation in self.conditions
            },
            self.limit,
        )

    def follows(self) -> tuple[list[str], list[str]]:
        """The channels and the patterns that a subscriber to all changes follows."""
        return ([], [follow_pattern(self.channel)]) if self.per_row else ([self.channel], [])

    def as_json(self, table: str) -> str:
        """The broadcast as JSON; ``table`` is the table's name in messages, even after the table is renamed."""
        data = {
            "table": table,
            "channel": self.channel,
            "per_row": self.per_row,
            "columns": self.columns,
            "new": self.new,
            "old": self.old,
            "conditions": dict(self.conditions),
            "limit": self.limit,
        }
        return json.dumps(data, ensure_ascii=False)

    def as_comment(self, table: str) -> str:
        """The comment inside each trigger."""
        return f"/* {_MARK} {self.as_json(table).replace('/', chr(92) + '/')} */"


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger: its kind, its name and its SQL."""

    kind: str
    name: str
    sql: str

    @property
    def operation(self) -> str:
        """The operation that fires it."""
        return self.kind.rpartition("_")[2]


def default_channel(table: str) -> str:
    """The default channel of a table's changes."""
    return f"changes/{table}"


def follow_pattern(channel: str) -> str:
    """The GLOB pattern of all channels that begin with this text."""
    return re.sub(r"[*?[]", r"[\g<0>]", channel) + "*"


def read_comment(sql: str) -> tuple[str, Broadcast] | None:
    """The table's name in messages, and the broadcast, from a trigger's comment; ``None`` for a trigger without one.

    Raises :class:`InvalidArgument` if the comment was edited and cannot be read.
    """
    found = _COMMENT.search(sql)
    return None if found is None else read_json(found[1])


def read_json(text: str) -> tuple[str, Broadcast]:
    """The table's name in messages, and the broadcast, from :meth:`Broadcast.as_json`.

    Raises :class:`InvalidArgument` for anything else.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        table, columns, conditions = str(data.pop("table")), data.pop("columns"), data.pop("conditions")
        if set(conditions) - set(OPERATIONS):
            raise ValueError
        broadcast = Broadcast(
            columns=None if columns is None else tuple(map(str, columns)),
            conditions={operation: str(condition) for operation, condition in conditions.items()},
            **data,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InvalidArgument("the note in a trigger, which says what it broadcasts, cannot be read") from None
    return table, broadcast


def name_of(kind: str, table: str) -> str:
    return f"{PREFIX}{kind}_{table}"


def kind_of(name: str) -> str | None:
    """The kind of trigger that a name belongs to; ``None`` if it is not one of our names."""
    if not name.startswith(PREFIX):
        return None
    rest = name.removeprefix(PREFIX)
    return next((kind for kind in KINDS if rest.startswith(f"{kind}_")), None)


def kinds_of(broadcast: Broadcast, shape: Shape) -> list[str]:
    """The kinds of triggers that a broadcast needs."""
    operations = [operation for operation in OPERATIONS if operation in broadcast.conditions]
    # If REPLACE removes a row with the new row's key, both are in one channel, unless each row has its own channel.
    moves = bool(broadcast.per_row) and any(column.name != shape.alias for column in shape.columns)
    noting = "delete" in operations and (shape.replaces_silently or moves)
    return operations + list(NOTING if noting else ())


def _condition(operation: str) -> str:
    return f"the condition for {operation}"
