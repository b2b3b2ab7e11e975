"""A broadcast: what of a table's changes is published, and where; as values, as JSON, and as a note in its triggers.

Text in, text out: this module opens and runs nothing.
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

#: How our triggers' names begin; the kind of trigger and the table follow.
PREFIX = "pubsub_broadcast_"

#: The triggers that note rows which REPLACE may remove, and tell those that it did, beside those for each operation.
NOTING = ("before_insert", "after_insert", "before_update", "after_update")

#: All kinds of our triggers, in the order in which they are created: SQLite runs the newest first, and what
#: REPLACE has removed is told before what has taken its place.
KINDS = (*OPERATIONS, *NOTING)


#: Smallest payload limit under which a table can be broadcast, in bytes: room for a message without values.
MIN_LIMIT = 1024

_PER_ROW = "the channel's expression"
_ROWS = ("NEW", "OLD")

_MARK = "datasette-pubsub broadcast 1:"
_COMMENT = re.compile(re.escape(f"/* {_MARK} ") + r"(\{.*?\}) \*/", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What of a table's changes is published, and where.

    ``channel`` is the channel, or with ``per_row``, an SQL expression over the
    row's columns, how every channel begins; the expression's value follows.
    ``columns`` of ``None`` are all columns. ``conditions`` holds for each
    operation that is broadcast an SQL condition, empty for none. ``limit`` is
    the largest payload, in bytes.
    """

    channel: str
    per_row: str = ""
    columns: tuple[str, ...] | None = None
    new: bool = True
    old: bool = True
    conditions: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(OPERATIONS, ""))
    limit: int = 1024 * 1024

    def checked(self, shape: Shape) -> Broadcast:
        """This broadcast with its texts tidied. Raises :class:`InvalidArgument`, naming the field."""
        check_channel(self.channel)
        if self.per_row and len(follow_pattern(self.channel).encode()) > MAX_CHANNEL_BYTES:
            raise InvalidArgument(
                f"channel is too long to be continued: as a pattern it is over {MAX_CHANNEL_BYTES} bytes"
            )
        if self.limit < MIN_LIMIT + 2 * len(json.dumps(shape.table)):
            raise InvalidArgument(f"messages of {self.limit} bytes (max_payload_bytes) are too small to broadcast rows")
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
        """The channels and the patterns that a reader of all changes follows."""
        return ([], [follow_pattern(self.channel)]) if self.per_row else ([self.channel], [])

    def as_json(self, table: str) -> str:
        """All of it as JSON; ``table`` is what messages call the table, also after it is renamed."""
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
        """The note inside each trigger."""
        return f"/* {_MARK} {self.as_json(table).replace('/', chr(92) + '/')} */"


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger: its kind, its name and its text."""

    kind: str
    name: str
    sql: str

    @property
    def operation(self) -> str:
        """The operation that fires it."""
        return self.kind.rpartition("_")[2]


def default_channel(table: str) -> str:
    """Where a table's changes go unless somebody chooses."""
    return f"changes/{table}"


def follow_pattern(channel: str) -> str:
    """The GLOB pattern of all channels that begin so."""
    return re.sub(r"[*?[]", r"[\g<0>]", channel) + "*"


def read_comment(sql: str) -> tuple[str, Broadcast] | None:
    """What messages call the table, and the broadcast that a trigger was made of; ``None`` for one that is not ours.

    Raises :class:`InvalidArgument` for one of ours that somebody has edited beyond recognition.
    """
    found = _COMMENT.search(sql)
    return None if found is None else read_json(found[1])


def read_json(text: str) -> tuple[str, Broadcast]:
    """What messages call the table, and the broadcast, from :meth:`Broadcast.as_json`.

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
    """Which of our triggers a name is for, or would be."""
    if not name.startswith(PREFIX):
        return None
    rest = name.removeprefix(PREFIX)
    return next((kind for kind in KINDS if rest.startswith(f"{kind}_")), None)


def kinds_of(broadcast: Broadcast, shape: Shape) -> list[str]:
    """The triggers that a broadcast consists of."""
    operations = [operation for operation in OPERATIONS if operation in broadcast.conditions]
    # A row that REPLACE removes by its own key is in the new row's channel, unless rows have channels of their own.
    moves = bool(broadcast.per_row) and any(column.name != shape.alias for column in shape.columns)
    noting = "delete" in operations and (shape.replaces_silently or moves)
    return operations + list(NOTING if noting else ())


def _condition(operation: str) -> str:
    return f"the condition for {operation}"
