"""One option of the settings table, with what the documentation says of it."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any, unit: str, doc: str, low: float = 0, high: float = float("inf"), *, why: str, bounds: str = ""
) -> Any:
    """One option: its meaning (``doc``) and its reason (``why``) go to the docs as they stand here.

    ``bounds`` says in words what ``low`` and ``high`` cannot.
    """
    return field(
        default=default,
        metadata={"unit": unit, "doc": doc, "low": low, "high": high, "why": why, "bounds": bounds},
    )
