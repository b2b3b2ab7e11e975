"""The tables of one run: a row for each system, with a value for each repeat."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass
class Row:
    """One system in one scenario. A failed run is absent from `values`."""

    name: str
    values: dict[int, float] = field(default_factory=dict)  # repeat -> value
    cpu: dict[int, float] = field(default_factory=dict)  # repeat -> server CPU seconds
    work: dict[int, int] = field(default_factory=dict)  # repeat -> messages or deliveries
    notes: dict[int, str] = field(default_factory=dict)  # repeat -> percentiles and counts, as text
    problems: list[str] = field(default_factory=list)

    def median(self) -> float:
        return statistics.median(self.values.values())


@dataclass
class Table:
    scenario: str
    unit: str
    rows: dict[str, Row] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row(name))


def ratio(project: Row, other: Row) -> float | None:
    """Median of the per-repeat ratios project / other."""
    common = [r for r in project.values if other.values.get(r)]
    if not common:
        return None
    return statistics.median(project.values[r] / other.values[r] for r in common)


def show_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def print_table(table: Table) -> None:
    rows = list(table.rows.values())
    project = table.rows.get("project")
    head = [table.scenario, table.unit, "min .. max", "project/it", "cpu s", "us each", ""]
    lines = [head]
    for row in rows:
        if not row.values:
            lines.append([row.name, "failed", "", "", "", "", "; ".join(sorted(set(row.problems)))])
            continue
        low, high = min(row.values.values()), max(row.values.values())
        shown = ratio(project, row) if project and project is not row else None
        per_message = [row.cpu[r] / row.work[r] * 1e6 for r in row.cpu if row.work.get(r)]
        middle = sorted(row.values, key=row.values.__getitem__)[len(row.values) // 2]
        note = row.notes.get(middle, "")
        if row.problems:
            note += f" !! {len(row.problems)} runs: {row.problems[-1]}"
        lines.append(
            [
                row.name,
                show_number(row.median()),
                f"{show_number(low)} .. {show_number(high)}",
                f"{shown:.2f}" if shown is not None else "",
                f"{statistics.median(row.cpu.values()):.2f}" if row.cpu else "",
                f"{statistics.median(per_message):.2f}" if per_message else "",
                note,
            ]
        )
    used = [i for i in range(6) if any(line[i] for line in lines[1:])]
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    for line in lines:
        cells = [line[i].rjust(widths[i]) if i else line[i].ljust(widths[i]) for i in used]
        print("  ".join([*cells, line[6]]).rstrip())
    print(flush=True)
