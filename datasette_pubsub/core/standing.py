"""A standing query: a named SELECT whose changes are published into a channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .errors import InvalidArgument
from .validation import check_channel, check_subscription_name, check_unicode

#: What may happen to a row of the result: it comes, its values change while its key stays, or it goes. The names are
#: those of a broadcast's messages.
OPERATIONS = ("insert", "update", "delete")

#: The fields of a standing query in the configuration. (``on`` would be ``true`` in YAML.)
FIELDS = ("sql", "channel", "key", "operations", "params", "initial")


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingQuery:
    """A standing query as its owner has defined it.

    ``key`` names result columns that recognise a row. Only ``operations`` are
    published. ``initial``: the rows of the first result are published, too.
    :meth:`checked` makes one from what somebody has written.

    >>> from datasette_pubsub.core.errors import InvalidArgument
    >>> from datasette_pubsub.core.standing import StandingQuery
    >>> StandingQuery.checked("late", "SELECT 1 AS id", "alerts", operations=["insert"]).operations
    ('insert',)
    >>> try:
    ...     StandingQuery.checked("late", "SELECT 1 AS id", "")
    ... except InvalidArgument as error:
    ...     print(error)
    channel is empty
    """

    name: str
    sql: str
    channel: str
    key: tuple[str, ...] = ()
    operations: tuple[str, ...] = OPERATIONS
    params: tuple[tuple[str, Any], ...] = ()
    initial: bool = False

    @classmethod
    def checked(
        cls,
        name: object,
        sql: object,
        channel: object,
        key: object = (),
        operations: object = OPERATIONS,
        params: object = (),
        initial: object = False,
    ) -> StandingQuery:
        """Check every field. Raises :class:`InvalidArgument` naming the field."""
        if not isinstance(sql, str) or not sql.strip():
            raise InvalidArgument("sql is empty", field="sql")
        wanted = _texts(operations, "operations")
        if not wanted or set(wanted) - set(OPERATIONS):
            raise InvalidArgument(f"operations must be some of {', '.join(OPERATIONS)}", field="operations")
        if not isinstance(initial, bool):
            raise InvalidArgument("initial must be true or false", field="initial")
        return cls(
            name=check_subscription_name(name, "name"),
            sql=check_unicode(sql, "sql"),
            channel=check_channel(channel),
            key=_texts(key, "key"),
            operations=tuple(each for each in OPERATIONS if each in wanted),
            params=_params(params),
            initial=initial,
        )


def _texts(value: object, field: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(each, str) for each in value):
        raise InvalidArgument(f"{field} must be a list of texts", field=field)
    return tuple(check_unicode(each, field) for each in value)


def _params(value: object) -> tuple[tuple[str, Any], ...]:
    """The parameters by name, sorted, from a mapping or from pairs."""
    found: dict[str, Any] = dict(cast("Any", value)) if isinstance(value, (Mapping, tuple)) else {"": value}
    for name, each in found.items():
        if not isinstance(name, str) or not name:
            raise InvalidArgument("params must be a mapping of names", field="params")
        if each is not None and not isinstance(each, (str, int, float)):
            raise InvalidArgument(f"params: {name} must be a text, a number or null", field="params")
        if isinstance(each, int) and not -(2**63) <= each < 2**63:
            raise InvalidArgument(f"params: {name} is an integer of more than 64 bits", field="params")
        if isinstance(each, str):
            check_unicode(each, "params")
    return tuple(sorted(found.items()))


def read_standing_queries(value: object) -> tuple[StandingQuery, ...]:
    """The standing queries of a configuration, by name. Raises :class:`InvalidArgument` naming query and field."""
    if not isinstance(value, Mapping):
        raise InvalidArgument("must be a mapping of names")
    found = []
    for name, fields in value.items():
        if not isinstance(fields, Mapping):
            raise InvalidArgument(f"{name!r} must be a mapping with {', '.join(FIELDS)}")
        unknown = [each for each in fields if each not in FIELDS]
        if unknown:
            raise InvalidArgument(f"{name!r} has the unknown field {unknown[0]!r}; known: {', '.join(FIELDS)}")
        missing = [each for each in ("sql", "channel") if each not in fields]
        if missing:
            raise InvalidArgument(f"{name!r} needs {missing[0]}")
        try:
            found.append(StandingQuery.checked(name, **fields))
        except InvalidArgument as error:
            raise InvalidArgument(f"{name!r}: {error.message}", field=error.field) from None
    return tuple(found)
