"""The figures of a run: read from its results, each with its spread over the repeats and the project's target."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """The median over the repeats, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    def show(self, form: str) -> str:
        """The median, and the range if there are several repeats."""
        number, brace, unit = form.partition("}")
        median, low, high = ((number + brace).format(value) for value in self)
        return f"{median}{f' ({low} to {high})' if low != high else ''}{unit}"


class Row(NamedTuple):
    """One line of the page; ``target`` and ``met`` are for the developers, on the terminal."""

    measure: str
    figure: str
    baseline: str = ""
    target: str = ""
    met: bool | None = None


def spread(values: list[float] | None) -> Spread | None:
    """The spread of one value for each repeat; ``None`` for no values."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


class Results:
    """The results of a run, by part. A part that was not measured has no values."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    def values(self, part: str, name: str) -> list[float] | None:
        """The value of one measure for each repeat, of a part in measures.py."""
        found = self.parts.get(part)
        return found["measured"].get(name) if found else None

    def ratio(self, part: str, name: str, other: str) -> Spread | None:
        """The ratios of one measure to another within each repeat."""
        values, others = self.values(part, name), self.values(part, other)
        return spread([a / b for a, b in zip(values, others, strict=True)]) if values and others else None

    def peer_ratio(self, part: str, table: str, name: str, other: str) -> Spread | None:
        """The ratios of two rows in a table of the comparison with the peers, within each repeat."""
        row, of = self.peer_row(part, table, name), self.peer_row(part, table, other)
        if row is None or of is None:
            return None
        return spread([row["values"][r] / of["values"][r] for r in row["values"] if of["values"].get(r)])

    def peer_values(self, part: str, table: str, name: str) -> Spread | None:
        """The values of one row in a table of the comparison."""
        row = self.peer_row(part, table, name)
        return spread(list(row["values"].values())) if row else None

    def peer_note(self, part: str, table: str, name: str, word: str) -> Spread | None:
        """A number of the notes of a row, which follows this word: a percentile in milliseconds, for each repeat."""
        row = self.peer_row(part, table, name)
        notes = [note.split() for note in row["notes"].values()] if row else []
        return spread([float(words[words.index(word) + 1]) for words in notes if word in words])

    def peer_row(self, part: str, table: str, name: str) -> dict[str, Any] | None:
        """One row of a table of the comparison with the peers."""
        for found in self.parts.get(part, {"measured": {"tables": []}})["measured"]["tables"]:
            if found["scenario"] == table:
                row: dict[str, Any] | None = found["rows"].get(name)
                return row
        return None


def figure(measure: str, found: Spread | None, form: str, *, least: float = 0, most: float = 0) -> list[Row]:
    """A row for an absolute figure, with a lower or an upper target if there is one; none if it was not measured."""
    return [] if found is None else [_row(measure, found, form, "", least, most)]


def ratio(measure: str, found: Spread | None, baseline: str, *, least: float = 0, most: float = 0) -> list[Row]:
    """A row for a ratio to a baseline."""
    return [] if found is None else [_row(measure, found, "{:.2f}", baseline, least, most)]


def _row(measure: str, found: Spread, form: str, baseline: str, least: float, most: float) -> Row:
    if not least and not most:
        return Row(measure, found.show(form), baseline)
    target = f"at least {form.format(least)}" if least else f"at most {form.format(most)}"
    return Row(measure, found.show(form), baseline, target, found.median >= least if least else found.median <= most)


def percentile(values: list[float] | None, fraction: float) -> Spread | None:
    """The value that this fraction of the values lies below."""
    if not values:
        return None
    found = sorted(values)[min(len(values) - 1, int(len(values) * fraction))]
    return Spread(found, found, found)
