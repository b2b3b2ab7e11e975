"""Builds an SQL condition that detects invalid UTF-8: SQLite stores any bytes as text, without checking them.

The SQL uses only SQLite's own functions and no WITH, so that it works inside triggers.
"""

from __future__ import annotations

#: How many characters of a text are checked: as many as a channel or a key may have bytes.
CHARACTERS = 256

_SIXTEEN = ", ".join(f"({number})" for number in range(16))


def invalid_utf8(expression: str) -> str:
    """An SQL condition that is true if a text is not valid UTF-8, and false otherwise, including for NULL.

    ``expression`` is evaluated several times and must be text or NULL; its first
    ``CHARACTERS`` characters are checked, up to a NUL. Printable ASCII costs one
    GLOB.

    A character is valid if SQLite writes the same bytes for the code point that it
    reads from them: SQLite reads overlong forms, surrogates and broken sequences as
    U+FFFD or as the code point of another form. It does the same with U+FFFE and
    U+FFFF, which are valid and so are exceptions here.
    """
    place = "high.column1 * 16 + low.column1"
    character = f"substr({expression}, {place} + 1, 1)"
    return (
        f"({expression} GLOB '*[^ -~]*' AND EXISTS ("
        f"SELECT 1 FROM (VALUES {_SIXTEEN}) AS high, (VALUES {_SIXTEEN}) AS low "
        f"WHERE high.column1 * 16 < length({expression}) AND {place} < length({expression}) "
        f"AND {character} <> char(unicode({character})) AND {character} NOT IN (char(65534), char(65535))))"
    )
