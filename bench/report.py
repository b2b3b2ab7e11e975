"""Write docs/performance.md from the results of ``run.py``: what a user can expect, comparisons, and limits.

The page says nothing of targets: they are the developers', and :func:`targets` lists them for the terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import Results, Row, figure, percentile, ratio, spread

#: The project's stream formats: the name in the comparison with the peers, and the name on the page.
FORMATS = {"project": "SSE", "project:connect": "Connect JSON", "project:connect-proto": "Connect binary"}

SINGLE = "publish 32 conn x 1"
AT_200 = "latency at 200/s, publish to receive"


def publish_figures(r: Results) -> list[Row]:
    """Messages per second and milliseconds of publishing."""
    ways = {
        "one message per request, 32 connections": (SINGLE, "project"),
        "100 messages per request, 4 connections": ("publish 4 conn x 100", "project"),
        "1,000 messages per request, 4 connections": ("publish 4 conn x 1000", "project"),
        "publish streams, 100 messages per line, 4 connections": ("publish 4 conn x 100", "project:stream"),
        "publish streams, 1,000 messages per line, 4 connections": ("publish 4 conn x 1000", "project:stream"),
    }
    rows = []
    for measure, (table, name) in ways.items():
        rows += figure(measure, r.peer_values("peers_publish", table, name), "{:,.0f} messages/s")
    waits = r.peer_note("peers_publish", SINGLE, "project", "p99")
    rows += figure("one message per request, 32 connections: 99 of 100 answers within", waits, "{:.1f} ms", most=20)
    millions = r.values("sql", "log")
    per_second = [1e6 / seconds for seconds in millions] if millions else None
    return rows + figure("`INSERT INTO vpubsub SELECT`, a million rows", spread(per_second), "{:,.0f} messages/s")


def delivery_figures(r: Results) -> list[Row]:
    """Milliseconds and messages per second of delivery."""
    rows = []
    for name, how in (("p50", "half of the messages"), ("p99", "99 of 100")):
        waits = r.peer_note("peers_latency", AT_200, "project:stream", name)
        rows += figure(f"from publishing to receiving, 200 messages/s, {how} within", waits, "{:.2f} ms")
    latency = r.values("other_process", "latency_ms")
    rows += figure(
        "from another program's commit to receiving, half within", percentile(latency, 0.5), "{:.1f} ms", most=2
    )
    rows += figure("the same, 99 of 100 within", percentile(latency, 0.99), "{:.1f} ms", most=8)
    table = "fan-out to 1000, 4 conn x 100"
    for name, form in FORMATS.items():
        found = r.peer_values("peers_fanout", table, name)
        rows += figure(f"to 1,000 subscribers, publishes of 100, {form}", found, "{:,.0f} deliveries/s")
    for name, form in (("sse", "SSE"), ("connect-json", "Connect JSON"), ("connect-proto", "Connect binary")):
        found = spread(r.values("catch_up", name))
        rows += figure(
            f"one subscriber that catches up with a million messages, {form}", found, "{:,.0f} messages/s", least=3e5
        )
    return rows


def cost_figures(r: Results) -> list[Row]:
    """What the server takes while nothing happens."""
    shares = {name: spread(r.values("other_process", f"cpu_{name}_subscriber")) for name in ("without", "with")}
    return [
        *figure(
            "memory of each of 10,000 idle SSE subscribers", spread(r.values("idle", "kib")), "{:.1f} KiB", most=25
        ),
        *figure("share of a core without a subscriber", shares["without"], "{:.1%}", most=0.003),
        *figure("share of a core with an idle subscriber", shares["with"], "{:.1%}", most=0.025),
    ]


def publish_rows(r: Results) -> list[Row]:
    """Publishing over the network, against an empty route and Redis."""
    redis = "Redis `appendfsync always`"
    empty = r.peer_ratio("peers_publish", SINGLE, "project", "empty route")
    rows = ratio("one message per request, 32 connections", empty, "requests to an empty route", least=0.85)
    for batch, by_request, by_stream in ((100, 0.45, 0.65), (1000, 0.8, 0.8)):
        table = f"publish 4 conn x {batch}"
        for name, form in FORMATS.items():
            found = r.peer_ratio("peers_publish", table, name, "redis")
            least = by_request if name == "project" else 0
            rows += ratio(
                f"{batch:,} messages per request, 4 connections, {form.replace('SSE', 'HTTP')}",
                found,
                redis,
                least=least,
            )
        found = r.peer_ratio("peers_publish", table, "project:stream", "redis")
        rows += ratio(f"publish streams, {batch:,} messages per line, 4 connections", found, redis, least=by_stream)
    for depth in (16, 64, 256):
        found = r.peer_ratio("peers_pipeline", f"publish 1 conn x 1, {depth} in flight", "project:stream", "redis")
        rows += ratio(f"publish stream, one connection, {depth} messages in flight", found, redis, least=0.5)
    return rows


#: Fan-out: the table of the comparison, and for each peer the least ratio, published by requests and over streams.
FANOUT: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "to 100, publishes of 100": (
        "fan-out to 100, 4 conn x 100",
        {"redis-pubsub": (0.95, 1.1), "nats-core": (2.0, 2.0), "nats": (8.0, 8.0), "nchan": (25.0, 25.0)},
    ),
    "to 1,000, publishes of 100": (
        "fan-out to 1000, 4 conn x 100",
        {"redis-pubsub": (2.9, 2.9), "nats-core": (4.0, 4.0), "nats": (20.0, 20.0), "nchan": (25.0, 25.0)},
    ),
    "to 1,000, single publishes": (
        "fan-out to 1000, 32 conn x 1",
        {"redis-pubsub": (0.0, 0.0), "nats-core": (4.0, 4.0), "nchan": (5.0, 5.0)},
    ),
    "to 1, publishes of 1,000": ("fan-out to 1, 2 conn x 1000", {"nats": (1.5, 1.5)}),
}

PEERS = {
    "redis-pubsub": "Redis pub/sub (no disk)",
    "nats-core": "NATS core (no disk)",
    "nats": "JetStream",
    "nchan": "nchan (no disk)",
}


def fanout_rows(r: Results) -> list[Row]:
    """Fan-out against the peers; publishing by requests, and over publish streams."""
    rows = []
    for shape, (table, peers) in FANOUT.items():
        for peer, least in peers.items():
            for name, form in FORMATS.items():
                for how, by, at_least in zip(("", "+streams"), ("requests", "streams"), least, strict=True):
                    found = r.peer_ratio("peers_fanout", table, f"{name}{how}", peer)
                    rows += ratio(f"{shape}, {form}, published by {by}", found, PEERS[peer], least=at_least)
    return rows


def other_rows(r: Results) -> list[Row]:
    """Latency against Redis; large numbers and options against the same server without them."""
    rows = []
    for name, how in (("p50", "half"), ("p99", "99 of 100")):
        own, peer = (r.peer_note("peers_latency", AT_200, each, name) for each in ("project:stream", "redis"))
        found = spread([own.median / peer.median]) if own and peer else None
        rows += ratio(f"time from publishing to receiving, 200/s, {how}", found, "Redis `appendfsync always`", most=3)
    many = r.ratio("idle", "many_ms", "ten_ms")
    channels = r.ratio("channels", "thousands", "tens")
    rows += ratio("time of a message to one of 10,000 idle subscribers", many, "to one of 10", most=1.1)
    rows += ratio(
        "publishing with 100,000 channels and 10,000 connected subscriptions", channels, "with 10 and 10", least=0.9
    )
    for name, action in (("publish", "publishing"), ("read", "catch-up")):
        found = r.ratio("large_log", f"{name}_large", f"{name}_small")
        rows += ratio(f"{action} with a log of 10 million messages", found, "with 10,000", least=0.9)
    direct = r.ratio("direct_send", "direct", "tasks")
    rows += ratio(
        "CPU time of a message to one of 500 subscribers, by the direct send", direct, "`direct_send: false`", most=0.9
    )
    for name, measure in (("pages", "pages of Datasette"), ("single", "one message per request, 32 connections")):
        found = r.ratio("freeze_heap", f"{name}_frozen", f"{name}_ordinary")
        rows += ratio(f"{measure}, with the frozen heap", found, "`freeze_heap: false`")
    return rows


def sql_rows(r: Results) -> list[Row]:
    """Publishing with SQL, against the same without publishing."""
    return [
        *ratio(
            "`INSERT INTO vpubsub SELECT`, a million rows: rate",
            r.ratio("sql", "first", "log"),
            "a log without the index of keys",
            least=1.0,
        ),
        *ratio(
            "`UPDATE` of a table with two indexes, whose trigger publishes each row: time",
            r.ratio("sql", "update_trigger", "update"),
            "without the trigger",
            most=2.0,
        ),
        *ratio(
            "`publish_batch` of a million rows on a write connection: rate",
            r.ratio("sql", "executemany", "publish_batch"),
            "`executemany` into the log",
            least=0.6,
        ),
    ]


def live_rows(r: Results) -> list[Row]:
    """Live queries: 1,000 subscribers of one query and 50 other queries, at 200 commits per second."""
    sides = [r.values("live_queries", f"cpu_{side}") for side in ("with", "without")]
    cpu = spread([a - b for a, b in zip(*sides, strict=True)]) if sides[0] and sides[1] else None
    runs, delay = (spread(r.values("live_queries", name)) for name in ("runs", "delay_ms"))
    publish = r.ratio("live_queries", "publish_with", "publish_without")
    pages = r.ratio("live_queries", "page_ms_with", "page_ms_without")
    return [
        *figure("runs of all 51 queries", runs, "{:.0f}/s"),
        *figure("share of a core for runs and sends", cpu, "{:.0%}", most=0.5),
        *figure("from a commit to its change", delay, "{:.0f} ms", most=1000),
        *ratio("publishing meanwhile: rate", publish, "without live queries", least=0.9),
        *ratio("Datasette's page of the table meanwhile: time", pages, "without live queries", most=1.1),
    ]


def mixed_rows(r: Results) -> list[Row]:
    """Ten minutes of everything at once."""
    names = {
        "receive_ms": "from publishing to receiving",
        "publish_ms": "one message per request",
        "page_ms": "a page of Datasette",
        "late_ms": "how late the event loop runs a timer",
    }
    rows = []
    for name, measure in names.items():
        values = r.values("mixed", name)
        for fraction, how in ((0.5, "half within"), (0.99, "99 of 100 within"), (1.0, "the longest")):
            rows += figure(f"{measure}, {how}", percentile(values, fraction), "{:.1f} ms")
    return rows


def filter_rows(r: Results) -> list[Row]:
    """Filters of the server, against subscribers that filter for themselves."""
    both, cpu, sent = (r.ratio("filtered", f"{name}_filtered", f"{name}_all") for name in ("both", "cpu", "mb"))
    return [
        *ratio("CPU time of server and subscribers together", both, "subscribers filter all in Python", most=0.25),
        *ratio("CPU time of the server alone", cpu, "the server sends all to all of them", most=3.0),
        *ratio("bytes sent", sent, "without filters", most=0.02),
    ]


def relay_rows(r: Results) -> list[Row]:
    """The relay and a follower, with NATS on the same machine."""
    plain = "plain publishing by the same client: no headers, one answer for 1,000 messages"

    def of(name: str, measure: str, form: str) -> list[Row]:
        return figure(measure, spread(r.values("relay", name)), form)

    return [
        *of("relay", "messages through the relay, catching up", "{:,.0f}/s"),
        *ratio("the same", r.ratio("relay", "relay", "plain"), plain),
        *of("follow", "messages into a follower, catching up", "{:,.0f}/s"),
        *of("latency_ms", "from a commit at the origin to a reader at the follower, half within", "{:.1f} ms"),
        *of("latency_p99_ms", "the same, 99 of 100 within", "{:.1f} ms"),
        *of("relay_mb", "memory of the relay, catching up", "{:.0f} MB"),
        *of("follow_mb", "memory of the follower, catching up", "{:.0f} MB"),
    ]


#: The sections of the page: the title, an introduction, and the rows. A section without rows is left out.
SECTIONS: list[tuple[str, str, Callable[[Results], list[Row]]]] = [
    ("## Publishing", "", publish_figures),
    ("## Delivery", "", delivery_figures),
    ("## What it takes", "", cost_figures),
    ("## Compared", "comparison", lambda r: []),
    ("### Publishing over the network", "", publish_rows),
    ("### Publishing with SQL", "", sql_rows),
    ("### Fan-out", "", fanout_rows),
    ("### Latency, large numbers, options", "", other_rows),
    (
        "### Live queries",
        "1,000 subscribers of one live query and 50 other live queries; another process commits 200 times per second.",
        live_rows,
    ),
    (
        "### Everything at once",
        "For ten minutes, per second: 100 requests of one message, 10 of 100, 20 commits of another program, 5 "
        "pages of a table; and 100 subscribers of all messages.",
        mixed_rows,
    ),
    (
        "### Filters",
        "1,000 subscribers with 100 different filters, each of which lets 1 % of 100,000 messages pass.",
        filter_rows,
    ),
    ("### Beyond one machine", "", relay_rows),
]

TEXTS = Path(__file__).with_name("page.md")


def page(parts: dict[str, Any]) -> str:
    """The page as Markdown: the texts of page.md, and between them the tables."""
    results = Results(parts)
    texts = _texts()
    lines = [texts["head"].format(environment=environment_text(parts))]
    for title, introduction, rows in SECTIONS:
        found = rows(results)
        if introduction == "comparison":
            lines += [f"\n{title}\n", texts["comparison"]]
        if not found:
            continue
        lines += [f"\n{title}\n"] + ([introduction + "\n"] if introduction else [])
        against = any(row.baseline for row in found)
        lines += ["| | figure | times |", "|---|---|---|"] if against else ["| | figure |", "|---|---|"]
        for row in found:
            cells = [row.measure, row.figure, *([row.baseline] if against else [])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "\n" + texts["limits"]]) + "\n"


def _texts() -> dict[str, str]:
    """The parts of page.md, by the names in its comments."""
    parts = TEXTS.read_text().split("<!-- ")[1:]
    return {name.strip(): text.strip("\n") for name, _, text in (part.partition(" -->") for part in parts)}


def targets(parts: dict[str, Any]) -> str:
    """Which targets are met, for the terminal."""
    results = Results(parts)
    rows = [row for _, _, rows in SECTIONS for row in rows(results) if row.met is not None]
    lines = []
    for row in rows:
        against = f" x {row.baseline}" if row.baseline else ""
        lines.append(f"{'met   ' if row.met else 'missed'} {row.measure}: {row.figure}; {row.target}{against}")
    return "\n".join(lines)


def environment_text(parts: dict[str, Any]) -> str:
    """The machine, the versions and the days of the measurements, as a sentence."""
    environments = [part["environment"] for part in parts.values()]
    if not environments:
        return "Nothing has been measured yet."
    newest = environments[-1]
    days = sorted({each["date"] for each in environments})
    return (
        f"Measured on {newest['machine']}; {newest['python']}, SQLite {newest['sqlite']}, "
        f"Datasette {newest['datasette']}, uvicorn {newest['uvicorn']}; {newest['durability']}; "
        f"{' and '.join(days)}."
    )
