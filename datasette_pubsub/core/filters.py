"""The text of filters: one SQL expression about a message, checked as text; and Datasette's form of it as parameters.

:mod:`.storage.filters` compiles and evaluates filters. An expression that passes :func:`normalised` cannot leave the
brackets that are put around it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable

from .errors import InvalidArgument

FIELD = "filter"

#: The columns of a message that a filter may name.
COLUMNS = ("id", "channel", "payload", "key", "created_at")

#: The tokens of an expression, with strings and quoted names as SQLite reads them
#: (https://sqlite.org/lang_keywords.html).
_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
    |(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    |(?P<open>['"`\[])
    |(?P<comment>--|/\*)
    |(?P<end>;)
    |(?P<parameter>[?:@\#$])
    |(?P<bracket>[()])
    |(?P<other>[^\W\d][\w$]*|\d[\w.]*|.)
    """,
    re.VERBOSE | re.DOTALL,
)

_REFUSED = {
    "open": "a string or a quoted name is not closed",
    "comment": "a filter has no comments",
    "end": "a filter is one expression, without ;",
    "parameter": "a filter has no parameters (?, :name, @name, $name): write the value",
}


#: Words that begin a query.
_QUERIES = ("SELECT", "VALUES", "WITH")


def refused(why: str, limit: str | None = None) -> InvalidArgument:
    """The error for a filter."""
    return InvalidArgument(f"{FIELD}: {why}", field=FIELD, limit=limit)


def normalised(text: str, max_bytes: int | None = None) -> str:
    """The expression with single spaces between its tokens, so that equal filters have equal texts.

    Raises :class:`InvalidArgument`, naming the field ``filter``, for a text that is no expression in itself, or has
    more than ``max_bytes`` (the option ``max_filter_bytes``). It does not check names and functions.

    >>> from datasette_pubsub.core.filters import normalised
    >>> normalised("payload  ->>  '$.level' = 'an  error'")
    "payload ->> '$.level' = 'an  error'"
    """
    if "\0" in text:
        raise refused("must not contain NUL")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise refused("holds half of a surrogate pair, which is not valid Unicode") from None
    if max_bytes is not None and size > max_bytes:
        raise refused(f"has {size} bytes; the limit is {max_bytes} bytes (max_filter_bytes)", "max_filter_bytes")
    depth = 0
    parts: list[str] = []
    for match in _TOKEN.finditer(text.strip()):
        kind, token = str(match.lastgroup), match.group()
        if kind in _REFUSED:
            raise refused(_REFUSED[kind])
        if kind == "bracket":
            depth += 1 if token == "(" else -1
            if depth < 0:
                break
        if token.upper() in _QUERIES:
            raise refused(f"is an expression about one message: it has no {token.upper()}")
        parts.append(" " if kind == "space" else token)
    if depth:
        raise refused("the brackets do not match")
    if not parts:
        raise refused("is empty")
    return "".join(parts)


def together(filters: Iterable[str]) -> str:
    """One filter that passes what all of these pass; empty for none."""
    found = list(filters)
    return found[0] if len(found) == 1 else " AND ".join(f"({each})" for each in found)


# -- Datasette's form: payload.level__exact=error ------------------------------


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _number(value: str) -> str | None:
    """The value as a number of SQL, if it is one."""
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        return repr(number) if math.isfinite(number) and len(value) < 100 else None
    return None


def _like(form: str, negated: bool = False) -> Callable[[str, str], str]:
    word = "NOT LIKE" if negated else "LIKE"
    return lambda column, value: f"{column} {word} {_quoted(form.format(value))}"


def _compared(operator: str) -> Callable[[str, str], str]:
    """As Datasette does: a value that is a number is compared as one."""
    return lambda column, value: f"{column} {operator} {_number(value) or _quoted(value)}"


def _any_of(values: Iterable[str]) -> str:
    """Each value as text and, if it is one, as a number: a member of JSON has no column type that converts it."""
    return ", ".join(part for value in values for part in (_quoted(value), _number(value) or "") if part)


def _listed(value: str) -> list[str]:
    if value.startswith("["):
        try:
            found = json.loads(value)
        except ValueError:
            found = None
        if isinstance(found, list) and all(isinstance(each, (str, int, float)) for each in found):
            return [str(each) for each in found]
    return [each.strip() for each in value.split(",")]


#: Datasette's operators (https://docs.datasette.io/en/latest/json_api.html#column-filter-arguments), without those that
#: need a table.
OPERATORS: dict[str, Callable[[str, str], str]] = {
    "exact": lambda column, value: f"{column} IN ({_any_of([value])})",
    "not": lambda column, value: f"{column} NOT IN ({_any_of([value])})",
    "contains": _like("%{}%"),
    "notcontains": _like("%{}%", negated=True),
    "startswith": _like("{}%"),
    "endswith": _like("%{}"),
    "like": _like("{}"),
    "notlike": _like("{}", negated=True),
    "glob": lambda column, value: f"{column} GLOB {_quoted(value)}",
    "gt": _compared(">"),
    "gte": _compared(">="),
    "lt": _compared("<"),
    "lte": _compared("<="),
    "in": lambda column, value: f"{column} IN ({_any_of(_listed(value))})",
    "notin": lambda column, value: f"{column} NOT IN ({_any_of(_listed(value))})",
    "date": lambda column, value: f"date({column}) = {_quoted(value)}",
    "isnull": lambda column, value: f"{column} IS NULL",
    "notnull": lambda column, value: f"{column} IS NOT NULL",
    "isblank": lambda column, value: f"({column} IS NULL OR {column} = '')",
    "notblank": lambda column, value: f"({column} IS NOT NULL AND {column} <> '')",
}


def of_parameter(name: str, value: str) -> str | None:
    """The filter of one parameter in Datasette's form; ``None`` if the parameter is of another kind.

    Raises :class:`InvalidArgument`, naming the parameter, for an unknown operator.

    >>> from datasette_pubsub.core.filters import of_parameter
    >>> print(of_parameter("payload.level__exact", "error"))
    payload ->> '$."level"' IN ('error')
    >>> print(of_parameter("payload.user.age__gte", "18"))
    payload ->> '$."user"."age"' >= 18
    """
    left, marker, operator = name.rpartition("__")
    if not marker:
        left, operator = name, "exact"
    column, dot, path = left.partition(".")
    if column not in COLUMNS or (dot and column != "payload") or not (marker or dot):
        return None
    if operator not in OPERATORS:
        raise InvalidArgument(
            f"{name}: {operator} is not an operator here; there are {', '.join(OPERATORS)}", field=name
        )
    if '"' in path or "\\" in path or (dot and not all(path.split("."))):
        raise InvalidArgument(f"{name}: not the path of a member, like payload.user.name__{operator}", field=name)
    if "\0" in value:
        raise InvalidArgument(f"{name} must not contain NUL", field=name)
    sql = column
    if dot:
        steps = "".join(f'."{step}"' for step in path.split("."))
        sql = f"payload ->> {_quoted('$' + steps)}"
    return OPERATORS[operator](sql, value)
