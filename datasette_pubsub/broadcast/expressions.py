"""Checks the SQL expressions that users write into a broadcast.

An expression that passes cannot leave the brackets that are put around it, and can read only its own row. This module
runs no SQL.
"""

from __future__ import annotations

import re

from ..core.errors import InvalidArgument

#: The longest expression, in characters: longer than any condition that a person can check by reading.
MAX_EXPRESSION = 2_000

#: The tokens of an expression, with strings and quoted names as SQLite reads them
#: (https://sqlite.org/lang_keywords.html).
_TOKEN = re.compile(
    r"""
    (?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    |(?P<open>['"`\[])
    |(?P<comment>--|/\*)
    |(?P<end>;)
    |(?P<parameter>[?:@\#$])
    |(?P<bracket>[()])
    |(?P<word>[^\W\d][\w$]*)
    |(?P<other>\d[\w.]*|.)
    """,
    re.VERBOSE | re.DOTALL,
)

#: Words that would begin a query, or have an effect beyond the row.
_REFUSED = {
    "SELECT": "a query",
    "VALUES": "a query",
    "WITH": "a query",
    "RAISE": "RAISE",
}

#: Words that may stand before a bracket without calling a function.
_BEFORE_BRACKETS = ("AND", "BETWEEN", "CASE", "ELSE", "IN", "IS", "NOT", "OR", "THEN", "WHEN")


def check_expression(text: str, field: str) -> str:
    """Return the expression without surrounding spaces, else raise :class:`InvalidArgument` naming the field.

    It does not check that the names and functions in it exist.
    """
    text = text.strip()
    if not text:
        raise InvalidArgument(f"{field} is empty")
    if len(text) > MAX_EXPRESSION:
        raise InvalidArgument(f"{field} has {len(text)} characters; the limit is {MAX_EXPRESSION}")
    if "\0" in text:
        raise InvalidArgument(f"{field} must not contain NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{field} holds half of a surrogate pair, which is not valid Unicode") from None
    depth = 0
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match.group()
        if kind == "open":
            raise InvalidArgument(f"{field}: a {token} is not closed")
        if kind == "comment":
            raise InvalidArgument(f"{field} must not contain comments")
        if kind in ("end", "parameter"):
            raise InvalidArgument(f"{field} must be one SQL expression, without {token}")
        if kind == "word" and token.upper() in _REFUSED:
            raise InvalidArgument(f"{field} must be about the row alone, without {_REFUSED[token.upper()]}")
        if kind == "bracket":
            depth += 1 if token == "(" else -1
            if depth < 0:
                break
    if depth != 0:
        raise InvalidArgument(f"{field}: the brackets do not match")
    return text


def index_condition(sql: str) -> str | None:
    """The condition of a partial index, from its SQL; ``None`` if it calls functions or cannot be found."""
    depth, begins, previous = 0, None, ""
    for match in _TOKEN.finditer(sql):
        kind, token = match.lastgroup, match.group()
        if kind in ("comment", "open", "end"):
            return None
        if kind == "bracket":
            depth += 1 if token == "(" else -1
            calls = token == "(" and begins is not None and previous not in ("", *_BEFORE_BRACKETS)
            if calls:
                return None
        elif kind == "word" and depth == 0 and begins is None and token.upper() == "WHERE":
            begins = match.end()
        if not token.isspace():
            previous = token.upper() if kind in ("word", "quoted") and match.end() != begins else ""
    return None if begins is None else sql[begins:].strip()
