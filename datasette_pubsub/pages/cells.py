"""Values as the cells of a table, as Datasette shows them; ``pages/query_rows.js`` makes the same in the browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

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


@dataclass(frozen=True, slots=True)
class RowLinks:
    """Where the values of a table's rows lead.

    ``base`` is the table's address, and ``key`` the columns that lead to a row's own page; empty if they do not.
    ``others`` has the address of the table that a column refers to.
    """

    base: str = ""
    key: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)

    def cells(self, columns: Sequence[str], row: Sequence[Any], most: int) -> list[Cell]:
        """The cells of a row; texts are cut after ``most`` characters, 0: never."""
        values = dict(zip(columns, row, strict=True))
        own = [_step(values[name]) for name in self.key]
        path = f"{self.base}/{','.join(own)}" if own and all(own) else None
        cells = []
        for name, value in zip(columns, row, strict=True):
            found = cell(value, most)
            if path and self.key[0] == name:
                found = Cell(found.text, "pk", path)
            elif path and isinstance(value, bytes):
                found = Cell(found.text, found.type, f"{path}.blob?{urlencode({'_blob_column': name})}")
            elif name in self.others and (step := _step(value)):
                found = Cell(found.text, found.type, f"{self.others[name]}/{step}")
            cells.append(found)
        return cells


def _step(value: Any) -> str:
    """A value of a key in an address; empty if it cannot stand there."""
    return "" if value is None or isinstance(value, bytes) else tilde_encode(str(value))


def cell(value: Any, most: int) -> Cell:
    """The cell of a value that leads nowhere else; texts are cut after ``most`` characters, 0: never."""
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
