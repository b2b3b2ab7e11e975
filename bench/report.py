"""docs/performance.md out of the results: each target with what was measured beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from measures import median_ratio

HERE = Path(__file__).resolve().parent

#: Written by hand: why a target is missed, and other findings; below the table.
FINDINGS = HERE / "findings.md"

#: How the project's stream formats are called in the comparison with the peers.
FORMATS = {"project": "SSE", "project:connect": "Connect JSON", "project:connect-proto": "Connect binary"}


class Row(NamedTuple):
    """One line of the page: what it is about, the target, what was measured, and whether that is enough."""

    what: str
    target: str
    measured: str
    verdict: str


def verdict(met: bool | None) -> str:
    """Whether a target is met, as the page says it; nothing where it was not measured."""
    return {True: "met", False: "**missed**", None: ""}[met]


class Results:
    """The numbers of a run by part; parts that were not measured have none."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    def values(self, part: str, name: str) -> list[float] | None:
        """One of the project's own measures: its value for each repeat."""
        found = self.parts.get(part)
        return found["measured"].get(name) if found else None

    def ratio(self, part: str, name: str, other: str) -> float | None:
        """The median over the repeats of one measure divided by another."""
        values, others = self.values(part, name), self.values(part, other)
        return median_ratio(values, others) if values and others else None

    def peers(self, part: str, table: str, name: str, other: str) -> float | None:
        """The same for two rows of a table of the comparison with the peers."""
        row, of = self.peer_row(part, table, name), self.peer_row(part, table, other)
        if row is None or of is None:
            return None
        common = [repeat for repeat in row["values"] if of["values"].get(repeat)]
        return statistics.median(row["values"][r] / of["values"][r] for r in common) if common else None

    def peer_row(self, part: str, table: str, name: str) -> dict[str, Any] | None:
        """A row of such a table."""
        for found in self.parts.get(part, {"measured": {"tables": []}})["measured"]["tables"]:
            if found["scenario"] == table:
                row: dict[str, Any] | None = found["rows"].get(name)
                return row
        return None


def at_least(what: str, target: float, measured: float | None, of: str) -> Row:
    """A ratio that must not be smaller."""
    shown = "not measured" if measured is None else f"{measured:.2f}"
    return Row(what, f"≥ {target:g} × {of}", shown, verdict(None if measured is None else measured >= target))


def at_most(what: str, target: float, measured: float | None, of: str) -> Row:
    """A ratio that must not be larger."""
    shown = "not measured" if measured is None else f"{measured:.2f}"
    return Row(what, f"≤ {target:g} × {of}", shown, verdict(None if measured is None else measured <= target))


def limit(what: str, target: str, value: float | None, met: Callable[[float], bool], show: str) -> Row:
    """An absolute number."""
    shown = "not measured" if value is None else show.format(value)
    return Row(what, target, shown, verdict(None if value is None else met(value)))


def beside(requests: Row, streams: Row) -> Row:
    """The same target, published to by requests and over publish streams."""
    met, missed = verdict(True), verdict(False)
    found = {"by requests": requests.verdict, "by streams": streams.verdict}
    by = [how for how, each in found.items() if each == met]
    together = met if len(by) == 2 else f"met {by[0]}" if by else missed if missed in found.values() else ""
    return requests._replace(measured=f"{requests.measured}, {streams.measured}", verdict=together)


def percentile(values: list[float] | None, fraction: float) -> float | None:
    """The value below which that fraction of them lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * fraction))] if values else None


def median(values: list[float] | None) -> float | None:
    """The median, ``None`` for no values."""
    return statistics.median(values) if values else None


def sql_rows(r: Results) -> list[Row]:
    """Publishing with SQL."""
    return [
        at_least(
            "`INSERT INTO vpubsub SELECT`, 1M rows",
            1.0,
            r.ratio("sql", "first", "log"),
            "the same into the log table of the first version",
        ),
        at_most(
            "`UPDATE` of a business table with two indexes, whose trigger publishes each row",
            2.0,
            r.ratio("sql", "update_trigger", "update"),
            "the time without the trigger",
        ),
        at_least(
            "`publish_batch` of 1M rows on a write connection",
            0.6,
            r.ratio("sql", "executemany", "publish_batch"),
            "`executemany` into the log table",
        ),
    ]


def publish_rows(r: Results) -> list[Row]:
    """Publishing over the network."""
    single = "publish 32 conn x 1"
    rows = [
        at_least(
            "publish, 1 message per request, 32 connections",
            0.8,
            r.peers("peers_publish", single, "project", "empty route"),
            "requests to an empty route",
        )
    ]
    for batch, target in ((100, 0.8), (1000, 1.0)):
        for name, form in FORMATS.items():
            rows.append(
                at_least(
                    f"publish, {batch:,} messages per request, 4 connections, {form.replace('SSE', 'HTTP')}",
                    target,
                    r.peers("peers_publish", f"publish 4 conn x {batch}", name, "redis"),
                    "Redis `always`",
                )
            )
        rows.append(
            at_least(
                f"publish streams, {batch:,} messages per line, 4 connections",
                target,
                r.peers("peers_publish", f"publish 4 conn x {batch}", "project:stream", "redis"),
                "Redis `always`",
            )
        )
    for depth in (16, 64, 256):
        table = f"publish 1 conn x 1, {depth} in flight"
        rows.append(
            at_least(
                f"publish stream, one connection, {depth} in flight",
                1.0,
                r.peers("peers_pipeline", table, "project:stream", "redis"),
                "Redis `always`",
            )
        )
    return rows


def fanout_rows(r: Results) -> list[Row]:
    """Delivery to many."""

    def rows_for(what: str, table: str, peer: str, target: float, shown: str) -> list[Row]:
        """A target in each format."""
        found = []
        for name, form in FORMATS.items():
            by_requests, by_streams = (r.peers("peers_fanout", table, f"{name}{how}", peer) for how in ("", "+streams"))
            full = f"{what}, {form}"
            found.append(beside(at_least(full, target, by_requests, shown), at_least(full, target, by_streams, shown)))
        return found

    rows = []
    targets = {
        ("redis-pubsub", "Redis pub/sub (no disk)"): {100: 1.0, 1000: 2.0},
        ("nats-core", "NATS core (no disk)"): {100: 2.0, 1000: 4.0},
        ("nats", "JetStream"): {100: 8.0, 1000: 20.0},
        ("nchan", "nchan (no disk)"): {100: 25.0, 1000: 25.0},
    }
    for subscribers in (100, 1000):
        for (peer, shown), least in targets.items():
            what, table = f"to {subscribers:,}, publishes of 100", f"fan-out to {subscribers}, 4 conn x 100"
            rows += rows_for(what, table, peer, least[subscribers], shown)
    for peer, shown, target in (("nchan", "nchan (no disk)", 5.0), ("nats-core", "NATS core (no disk)", 2.0)):
        rows += rows_for("to 1,000, single publishes", "fan-out to 1000, 32 conn x 1", peer, target, shown)
    return rows + rows_for("to 1, publishes of 1,000", "fan-out to 1, 2 conn x 1000", "nats", 1.5, "JetStream")


def latency_rows(r: Results) -> list[Row]:
    """From publish to receive."""
    own, peer = (
        r.peer_row("peers_latency", "latency at 200/s, publish to receive", name)
        for name in ("project:stream", "redis")
    )
    rows = []
    for name, target in (("p50", 1.5), ("p99", 2.0)):
        found = pooled(own, name) / pooled(peer, name) if own and peer and own["notes"] and peer["notes"] else None
        rows.append(at_most(f"publish to receive, 200/s, publish stream, {name}", target, found, "Redis `always`"))
    latency = r.values("other_process", "latency_ms")
    nobody, somebody = (median(r.values("other_process", f"cpu_{who}")) for who in ("nobody", "somebody"))
    rows += [
        limit(
            "commit by another process to receive, p50",
            "≤ 3 ms",
            percentile(latency, 0.5),
            lambda v: v <= 3,
            "{:.2f} ms",
        ),
        limit(
            "commit by another process to receive, p99",
            "≤ 8 ms",
            percentile(latency, 0.99),
            lambda v: v <= 8,
            "{:.2f} ms",
        ),
        limit("share of a core while nobody is subscribed", "< 0.5 %", nobody, lambda v: v < 0.005, "{:.2%}"),
        limit("share of a core while somebody is subscribed", "< 3 %", somebody, lambda v: v < 0.03, "{:.2%}"),
    ]
    return rows


def pooled(row: dict[str, Any], name: str) -> float:
    """A percentile out of the note of a latency row, in milliseconds."""
    words = next(iter(row["notes"].values())).split()
    return float(words[words.index(name) + 1])


def size_rows(r: Results) -> list[Row]:
    """Catch-up, many subscribers, many channels, large logs."""
    rows = []
    for name, form in (("sse", "SSE"), ("connect-json", "Connect JSON"), ("connect-proto", "Connect binary")):
        value = median(r.values("catch_up", name))
        rows.append(
            limit(
                f"catch-up of one subscriber over 1M messages, {form}",
                "≥ 300,000/s",
                value,
                lambda v: v >= 3e5,
                "{:,.0f}/s",
            )
        )
    kib = median(r.values("idle", "kib"))
    rows.append(limit("10,000 idle SSE subscribers, memory of each", "≤ 25 KiB", kib, lambda v: v <= 25, "{:.1f} KiB"))
    rows.append(
        at_most(
            "a message to one of 10,000 idle subscribers",
            1.1,
            r.ratio("idle", "many_ms", "ten_ms"),
            "the time to one of 10",
        )
    )
    rows.append(
        at_least(
            "publishing with 100,000 channels and 10,000 connected subscriptions",
            0.9,
            r.ratio("channels", "thousands", "tens"),
            "the rate with 10 and 10",
        )
    )
    rows.append(
        at_most(
            "CPU time of a message to one of 500 waiting subscribers, by the direct send",
            0.9,
            r.ratio("direct_send", "direct", "tasks"),
            "the same by the subscribers' tasks (`direct_send: false`)",
        )
    )
    for name, what in (("publish", "publishing"), ("read", "catch-up")):
        found = r.ratio("large_log", f"{name}_large", f"{name}_small")
        rows.append(at_least(f"{what} with a log of 10 million messages", 0.9, found, "the rate with 10,000"))
    return rows


def filter_rows(r: Results) -> list[Row]:
    """Filters of the server, against subscribers that filter for themselves."""
    what = "1,000 subscribers, 100,000 messages, 100 different filters, each lets 1% pass"
    return [
        at_most(
            f"CPU time of server and subscribers together: {what}",
            0.25,
            r.ratio("filtered", "both_filtered", "both_all"),
            "the time when the subscribers receive all and filter for themselves, in Python",
        ),
        at_most(
            "CPU time of the server alone",
            3.0,
            r.ratio("filtered", "cpu_filtered", "cpu_all"),
            "the time when it sends all to all of them",
        ),
        at_most("bytes sent", 0.02, r.ratio("filtered", "mb_filtered", "mb_all"), "the bytes without filters"),
    ]


#: The parts of the page: title, how its measured column is called, and its lines.
SECTIONS: list[tuple[str, str, Callable[[Results], list[Row]]]] = [
    ("Publishing with SQL", "measured", sql_rows),
    ("Publishing over the network", "measured", publish_rows),
    ("Fan-out", "published by requests, over publish streams", fanout_rows),
    ("Latency", "measured", latency_rows),
    ("Catch-up, and large numbers", "measured", size_rows),
    ("Filters", "measured", filter_rows),
]

HEAD = """# Performance

This page is written by `python bench/run.py`, which measures all of it; see
[bench/README.md](../bench/README.md). Every measure goes through a real `datasette serve` with the default
configuration: a message is on disk (`synchronous=FULL`) before it is acknowledged or delivered.

Only ratios within one run count. Absolute numbers move with the disk, the cores and what else the machine
does. Each ratio is the median over the repeats of what was measured in turns in the same repeat. Where a
peer stores nothing, or does not wait for the disk, it is said so: it does less.

"""


def page(parts: dict[str, Any]) -> str:
    """The page as Markdown."""
    results = Results(parts)
    lines = [HEAD + environment_text(parts)]
    for title, column, rows in SECTIONS:
        lines += [f"\n## {title}\n", f"| what | target | {column} | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows(results)]
    text = "\n".join(lines) + "\n"
    return text + ("\n" + FINDINGS.read_text() if FINDINGS.exists() else "")


def environment_text(parts: dict[str, Any]) -> str:
    """On what it was measured."""
    found = [part["environment"] for part in parts.values()]
    if not found:
        return "Nothing has been measured yet.\n"
    first = found[-1]
    days = sorted({one["date"] for one in found})
    return (
        f"Measured on {first['machine']}; Python {first['python']}, SQLite {first['sqlite']}, "
        f"Datasette {first['datasette']}, uvicorn {first['uvicorn']}; {first['durability']}; "
        f"{' and '.join(days)}.\n"
    )
