"""The figures of a run: read from its results, and put beside their targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from measures import median_ratio


class Row(NamedTuple):
    """One line of the page: the measure, its figure, the target, and whether the figure meets the target."""

    measure: str
    figure: str
    target: str
    verdict: str


def verdict(met: bool | None) -> str:
    """The page's word for whether a target is met; an empty text if there is no figure."""
    return {True: "met", False: "**missed**", None: ""}[met]


class Results:
    """The results of a run, by part. A part that was not measured has no values."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    def values(self, part: str, name: str) -> list[float] | None:
        """The value of one measure for each repeat, of a part in measures.py."""
        found = self.parts.get(part)
        return found["measured"].get(name) if found else None

    def ratio(self, part: str, name: str, other: str) -> float | None:
        """The median over the repeats of the ratio of one measure to another."""
        values, others = self.values(part, name), self.values(part, other)
        return median_ratio(values, others) if values and others else None

    def peer_ratio(self, part: str, table: str, name: str, other: str) -> float | None:
        """The median ratio of two rows in a table of the comparison with the peers."""
        row, of = self.peer_row(part, table, name), self.peer_row(part, table, other)
        if row is None or of is None:
            return None
        common = [repeat for repeat in row["values"] if of["values"].get(repeat)]
        return statistics.median(row["values"][r] / of["values"][r] for r in common) if common else None

    def peer_row(self, part: str, table: str, name: str) -> dict[str, Any] | None:
        """One row of a table of the comparison with the peers."""
        for found in self.parts.get(part, {"measured": {"tables": []}})["measured"]["tables"]:
            if found["scenario"] == table:
                row: dict[str, Any] | None = found["rows"].get(name)
                return row
        return None


def at_least(measure: str, target: float, ratio: float | None, baseline: str) -> Row:
    """A row for a ratio to a baseline, with a lower limit."""
    figure = "not measured" if ratio is None else f"{ratio:.2f}"
    return Row(measure, figure, f"≥ {target:g} × {baseline}", verdict(None if ratio is None else ratio >= target))


def at_most(measure: str, target: float, ratio: float | None, baseline: str) -> Row:
    """A row for a ratio to a baseline, with an upper limit."""
    figure = "not measured" if ratio is None else f"{ratio:.2f}"
    return Row(measure, figure, f"≤ {target:g} × {baseline}", verdict(None if ratio is None else ratio <= target))


def absolute(measure: str, target: str, value: float | None, met: Callable[[float], bool], show: str) -> Row:
    """A row for an absolute value."""
    figure = "not measured" if value is None else show.format(value)
    return Row(measure, figure, target, verdict(None if value is None else met(value)))


def figure(measure: str, value: float | None, show: str) -> Row:
    """A row without a target."""
    return Row(measure, "not measured" if value is None else show.format(value), "", "")


def combine(requests: Row, streams: Row) -> Row:
    """One row from two with the same target: publishing by requests, and over publish streams."""
    met, missed = verdict(True), verdict(False)
    verdicts = {"by requests": requests.verdict, "by streams": streams.verdict}
    by = [how for how, each in verdicts.items() if each == met]
    both = met if len(by) == 2 else f"met {by[0]}" if by else missed if missed in verdicts.values() else ""
    return requests._replace(figure=f"{requests.figure}, {streams.figure}", verdict=both)


def percentile(values: list[float] | None, fraction: float) -> float | None:
    """The value that this fraction of the values lies below; ``None`` for no values."""
    return sorted(values)[min(len(values) - 1, int(len(values) * fraction))] if values else None


def median(values: list[float] | None) -> float | None:
    """The median, ``None`` for no values."""
    return statistics.median(values) if values else None
