"""Text that is not UTF-8, told apart by SQL: SQLite stores any bytes as text and checks none of them.

This module writes SQL text and runs nothing. The SQL calls nothing but SQLite's
own functions and needs no WITH, so that it works inside triggers.
"""

from __future__ import annotations

#: Most characters of a text that are looked at: as many as a channel or a key may have bytes.
CHARACTERS = 256

_SIXTEEN = ", ".join(f"({number})" for number in range(16))


def invalid_utf8(expression: str) -> str:
    """An SQL condition that is true where a text is not valid UTF-8, and false elsewhere, also for NULL.

    ``expression`` is evaluated several times and must be text or NULL; its first
    ``CHARACTERS`` characters are looked at, up to a NUL. Text that is printable
    ASCII costs one GLOB.

    A character is valid where its bytes are those that SQLite writes for the code
    point that it reads from them: SQLite reads overlong forms, surrogates and
    broken sequences as U+FFFD or as the code point of another form. It reads
    U+FFFE and U+FFFF so, too, which are valid.
    """
    place = "high.column1 * 16 + low.column1"
    character = f"substr({expression}, {place} + 1, 1)"
    return (
        f"({expression} GLOB '*[^ -~]*' AND EXISTS ("
        f"SELECT 1 FROM (VALUES {_SIXTEEN}) AS high, (VALUES {_SIXTEEN}) AS low "
        f"WHERE high.column1 * 16 < length({expression}) AND {place} < length({expression}) "
        f"AND {character} <> char(unicode({character})) AND {character} NOT IN (char(65534), char(65535))))"
    )
