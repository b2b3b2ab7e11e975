"""Values as the cells of a table, as Datasette shows them; ``pages/query_rows.js`` makes the same in the browser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from datasette.utils import is_url, tilde_encode, truncate_url

from ..core.display import visible

_encode = msgspec.json.Encoder().encode

#: What stands in a cell for NULL and for an empty text, so that the cell has a height.
EMPTY = "\u00a0"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, where the text links to, and the type of its value for style sheets."""

    text: str
    type: str
    href: str | None = None


def cell(value: Any, most: int, row_base: str | None = None) -> Cell:
    """The cell of a value; texts are cut after ``most`` characters, 0: never.

    ``row_base``: the address of the table whose rows this value leads to.
    """
    if row_base is not None and value not in (None, "") and not isinstance(value, bytes):
        return Cell(cell(value, most).text, "pk", f"{row_base}/{tilde_encode(str(value))}")
    kind = "none" if value is None else type(value).__name__
    if value is None or value == "":
        return Cell(EMPTY, kind)
    if isinstance(value, bytes):
        return Cell(f"<Binary:\u00a0{len(value):,}\u00a0byte{'' if len(value) == 1 else 's'}>", kind)
    if not isinstance(value, str):
        # As in the stream, so that the browser shows the same.
        return Cell(_encode(value).decode() if isinstance(value, int) else _real(value), kind)
    if is_url(value.strip()):
        return Cell(visible(truncate_url(value.strip(), most)), kind, value.strip())
    return Cell(visible(value[:most] + "…" if most and len(value) > most else value), kind)


def _real(value: float) -> str:
    infinite = {float("inf"): "Infinity", float("-inf"): "-Infinity"}
    return infinite.get(value) or _encode(value).decode()
