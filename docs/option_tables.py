"""Prints the table of options for cog, which puts it into docs/configuration.md: ``make docs``."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from datasette_pubsub.core.settings import Settings


def default(option: Field[Any]) -> str:
    """The default as a reader writes it: ``true``, ``1,048,576``, ``0.5``, or ``none`` for an empty value."""
    value = option.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value or "none")


def bounds(option: Field[Any]) -> str:
    """The values that the option may have: ``1 to 10,000``, ``1 or more``, or in words."""
    meta = option.metadata
    if meta["bounds"]:
        return str(meta["bounds"])
    if isinstance(option.default, bool):
        return "true, false"
    end = "or more" if meta["high"] == float("inf") else f"to {meta['high']:,.15g}"
    return f"{meta['low']:,.15g} {end}"


def with_bounds_and_reasons() -> None:
    """Print the table of docs/configuration.md."""
    print("| option | default | unit | bounds | meaning | why |\n|---|---|---|---|---|---|")
    for option in fields(Settings):
        meta = option.metadata
        cells = (f"`{option.name}`", default(option), meta["unit"], bounds(option), meta["doc"], meta["why"])
        print(f"| {' | '.join(cells)} |")
