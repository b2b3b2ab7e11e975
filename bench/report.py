"""Write docs/performance.md from the results of ``run.py``: each measured figure, with its target beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from figures import Results, Row, absolute, at_least, at_most, combine, figure, median, percentile

#: The project's stream formats: the name in the comparison with the peers, and the name on the page.
FORMATS = {"project": "SSE", "project:connect": "Connect JSON", "project:connect-proto": "Connect binary"}


def sql_rows(r: Results) -> list[Row]:
    """The rows about publishing with SQL."""
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
    """The rows about publishing over the network."""
    single = "publish 32 conn x 1"
    rows = [
        at_least(
            "publish, 1 message per request, 32 connections",
            0.8,
            r.peer_ratio("peers_publish", single, "project", "empty route"),
            "requests to an empty route",
        )
    ]
    for batch, target in ((100, 0.8), (1000, 1.0)):
        for name, form in FORMATS.items():
            rows.append(
                at_least(
                    f"publish, {batch:,} messages per request, 4 connections, {form.replace('SSE', 'HTTP')}",
                    target,
                    r.peer_ratio("peers_publish", f"publish 4 conn x {batch}", name, "redis"),
                    "Redis `always`",
                )
            )
        rows.append(
            at_least(
                f"publish streams, {batch:,} messages per line, 4 connections",
                target,
                r.peer_ratio("peers_publish", f"publish 4 conn x {batch}", "project:stream", "redis"),
                "Redis `always`",
            )
        )
    for depth in (16, 64, 256):
        table = f"publish 1 conn x 1, {depth} in flight"
        rows.append(
            at_least(
                f"publish stream, one connection, {depth} in flight",
                1.0,
                r.peer_ratio("peers_pipeline", table, "project:stream", "redis"),
                "Redis `always`",
            )
        )
    return rows


def fanout_rows(r: Results) -> list[Row]:
    """The rows about fan-out."""

    def rows_for(fan_out: str, table: str, peer: str, target: float, baseline: str) -> list[Row]:
        """One row for each format."""
        rows = []
        for name, form in FORMATS.items():
            ratios = [r.peer_ratio("peers_fanout", table, f"{name}{how}", peer) for how in ("", "+streams")]
            requests, streams = (at_least(f"{fan_out}, {form}", target, ratio, baseline) for ratio in ratios)
            rows.append(combine(requests, streams))
        return rows

    rows = []
    targets = {
        ("redis-pubsub", "Redis pub/sub (no disk)"): {100: 1.0, 1000: 2.0},
        ("nats-core", "NATS core (no disk)"): {100: 2.0, 1000: 4.0},
        ("nats", "JetStream"): {100: 8.0, 1000: 20.0},
        ("nchan", "nchan (no disk)"): {100: 25.0, 1000: 25.0},
    }
    for subscribers in (100, 1000):
        for (peer, baseline), least in targets.items():
            fan_out, table = f"to {subscribers:,}, publishes of 100", f"fan-out to {subscribers}, 4 conn x 100"
            rows += rows_for(fan_out, table, peer, least[subscribers], baseline)
    for peer, baseline, target in (("nchan", "nchan (no disk)", 5.0), ("nats-core", "NATS core (no disk)", 2.0)):
        rows += rows_for("to 1,000, single publishes", "fan-out to 1000, 32 conn x 1", peer, target, baseline)
    return rows + rows_for("to 1, publishes of 1,000", "fan-out to 1, 2 conn x 1000", "nats", 1.5, "JetStream")


def latency_rows(r: Results) -> list[Row]:
    """The rows about the time from publish to receive."""
    own, peer = (
        r.peer_row("peers_latency", "latency at 200/s, publish to receive", name)
        for name in ("project:stream", "redis")
    )
    rows = []
    for name, target in (("p50", 1.5), ("p99", 2.0)):
        ratio = None
        if own and peer and own["notes"] and peer["notes"]:
            ratio = pooled_percentile(own, name) / pooled_percentile(peer, name)
        rows.append(at_most(f"publish to receive, 200/s, publish stream, {name}", target, ratio, "Redis `always`"))
    latency = r.values("other_process", "latency_ms")
    unsubscribed, subscribed = (
        median(r.values("other_process", name)) for name in ("cpu_without_subscriber", "cpu_with_subscriber")
    )
    rows += [
        absolute(
            "commit by another process to receive, p50",
            "≤ 3 ms",
            percentile(latency, 0.5),
            lambda v: v <= 3,
            "{:.2f} ms",
        ),
        absolute(
            "commit by another process to receive, p99",
            "≤ 8 ms",
            percentile(latency, 0.99),
            lambda v: v <= 8,
            "{:.2f} ms",
        ),
        absolute("share of a core, no subscriber", "< 0.5 %", unsubscribed, lambda v: v < 0.005, "{:.2%}"),
        absolute("share of a core, one idle subscriber", "< 3 %", subscribed, lambda v: v < 0.03, "{:.2%}"),
    ]
    return rows


def pooled_percentile(row: dict[str, Any], name: str) -> float:
    """A percentile over all repeats, in milliseconds, from the note of a latency row."""
    words = next(iter(row["notes"].values())).split()
    return float(words[words.index(name) + 1])


def size_rows(r: Results) -> list[Row]:
    """The rows about catch-up, many subscribers, many channels and large logs."""
    rows = []
    for name, form in (("sse", "SSE"), ("connect-json", "Connect JSON"), ("connect-proto", "Connect binary")):
        value = median(r.values("catch_up", name))
        rows.append(
            absolute(
                f"catch-up of one subscriber over 1M messages, {form}",
                "≥ 300,000/s",
                value,
                lambda v: v >= 3e5,
                "{:,.0f}/s",
            )
        )
    kib = median(r.values("idle", "kib"))
    rows.append(
        absolute("10,000 idle SSE subscribers, memory of each", "≤ 25 KiB", kib, lambda v: v <= 25, "{:.1f} KiB")
    )
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
    for name, action in (("publish", "publishing"), ("read", "catch-up")):
        ratio = r.ratio("large_log", f"{name}_large", f"{name}_small")
        rows.append(at_least(f"{action} with a log of 10 million messages", 0.9, ratio, "the rate with 10,000"))
    return rows


def live_rows(r: Results) -> list[Row]:
    """The rows about live queries: 1,000 subscribers of one query and 50 other queries, at 200 commits per second."""
    with_them, without = (median(r.values("live_queries", f"cpu_{side}")) for side in ("with", "without"))
    cpu = None if with_them is None or without is None else with_them - without
    runs, delay = (median(r.values("live_queries", name)) for name in ("runs", "delay_ms"))
    publish = r.ratio("live_queries", "publish_with", "publish_without")
    pages = r.ratio("live_queries", "page_ms_with", "page_ms_without")
    return [
        absolute("runs of all 51 queries", "≤ 102/s", runs, lambda v: v <= 102, "{:.0f}/s"),
        absolute("share of a core for runs and sends", "≤ 50 %", cpu, lambda v: v <= 0.5, "{:.0%}"),
        absolute("from a commit to its change, median", "≤ 1 s", delay, lambda v: v <= 1000, "{:.0f} ms"),
        at_least("publishing meanwhile", 0.9, publish, "the rate without live queries"),
        at_most("Datasette's page of the table meanwhile", 1.1, pages, "the time without live queries"),
    ]


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


def relay_rows(r: Results) -> list[Row]:
    """The relay and a follower, with NATS on the same machine."""
    plain = "× plain publishing by the same client: no headers, one answer for 1,000 messages"

    def median_of(name: str) -> float | None:
        return median(r.values("relay", name))

    return [
        figure("messages through the relay, catching up", r.ratio("relay", "relay", "plain"), "{:.2f} " + plain),
        figure("the same", median_of("relay"), "{:,.0f}/s"),
        figure("messages into a follower, catching up", median_of("follow"), "{:,.0f}/s"),
        figure("commit at the origin to a reader at the follower, median", median_of("latency_ms"), "{:.1f} ms"),
        figure("the same, 99 of 100", median_of("latency_p99_ms"), "{:.1f} ms"),
        figure("memory of the relay, catching up", median_of("relay_mb"), "{:.0f} MB"),
        figure("memory of the follower, catching up", median_of("follow_mb"), "{:.0f} MB"),
    ]


def heap_rows(r: Results) -> list[Row]:
    """The host's own pages, and single publishes, with the frozen heap and without."""
    pages, single = (r.ratio("freeze_heap", f"{name}_frozen", f"{name}_ordinary") for name in ("pages", "single"))
    return [
        figure("pages of Datasette with the frozen heap", pages, "{:.2f} × the rate without"),
        figure("one message per request, 32 connections, with it", single, "{:.2f} × the rate without"),
    ]


#: The sections of the page: the title, the heading of the column of figures, and the rows.
SECTIONS: list[tuple[str, str, Callable[[Results], list[Row]]]] = [
    ("Publishing with SQL", "measured", sql_rows),
    ("Publishing over the network", "measured", publish_rows),
    ("Fan-out", "published by requests, over publish streams", fanout_rows),
    ("Latency", "measured", latency_rows),
    ("Catch-up, and large numbers", "measured", size_rows),
    ("Live queries", "measured", live_rows),
    ("Filters", "measured", filter_rows),
    ("The frozen heap", "measured", heap_rows),
    ("Beyond one machine", "measured", relay_rows),
]

HEAD = """# Performance

To repeat these measurements, run `python bench/run.py`, which also writes this page; see
[bench/README.md](../bench/README.md). Every measurement uses a real `datasette serve` with the default
configuration: a message is on disk (`synchronous=FULL`) before the server acknowledges or delivers it.

A figure without a unit is a ratio: the project's figure divided by that of the system or the condition named in the
target. Compare only ratios: absolute figures vary with the disk, the cores and other load on the machine. Each ratio
is the median over the repeats, and each repeat measures both sides in alternation. "No disk" marks a peer that stores
nothing, and JetStream does not wait for the disk: these peers do less work.
[Findings of profiles](../bench/findings.md) say what takes the time.

"""


def page(parts: dict[str, Any]) -> str:
    """The page as Markdown."""
    results = Results(parts)
    lines = [HEAD + environment_text(parts)]
    for title, column, rows in SECTIONS:
        lines += [f"\n## {title}\n", f"| measurement | {column} | target | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows(results)]
    return "\n".join(lines) + "\n"


def environment_text(parts: dict[str, Any]) -> str:
    """The machine, the versions and the days of the measurements, as a sentence."""
    environments = [part["environment"] for part in parts.values()]
    if not environments:
        return "Nothing has been measured yet.\n"
    newest = environments[-1]
    days = sorted({each["date"] for each in environments})
    return (
        f"Measured on {newest['machine']}; Python {newest['python']}, SQLite {newest['sqlite']}, "
        f"Datasette {newest['datasette']}, uvicorn {newest['uvicorn']}; {newest['durability']}; "
        f"{' and '.join(days)}.\n"
    )
