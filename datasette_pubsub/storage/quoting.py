"""Quotes identifiers and literals for SQL."""

from __future__ import annotations


def identifier(name: str) -> str:
    """A name of a table, column or other object, in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
