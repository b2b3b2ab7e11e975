#!/usr/bin/env python3
"""Measure datasette-pubsub and its peers in one run, as ratios. See README.md.

Every scenario interleaves all systems within each repeat. The bench calibrates the
number of requests of a run once per system, so that it measures slow and fast
systems for about the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import platform
import resource
import select
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from targets import (
    CONNECTION_NUMBER,
    PAYLOAD,
    PEERS,
    STAMP_FORMAT,
    EmptyRoute,
    Project,
    ProjectConnect,
    ProjectStream,
    Publish,
    Target,
    open_peer,
    stamped_payload,
)

HERE = Path(__file__).resolve().parent
DEFAULT_PEERS_DIR = Path(tempfile.gettempdir()) / "pubsub-bench-peers"

# (connections, messages per request)
PUBLISH_SHAPES = ((1, 1), (32, 1), (1, 100), (4, 100), (1, 1000), (4, 1000))
PIPELINE_DEPTHS = (16, 64, 256)  # messages in flight on one connection
FANOUT_SHAPES = ((32, 1), (4, 100), (2, 1000))
FANOUT_SUBSCRIBERS = (1, 100, 1000)
RUN_SECONDS = 0.25  # one measured run, after calibration
RUN_TIMEOUT = 20.0  # seconds; a run that takes longer counts as failed
MAX_DELIVERIES = 20_000_000  # per run, so that no server must buffer gigabytes
READY_TIMEOUT = 8.0  # seconds in which all subscribers must receive something
SLOW_SECONDS = 2.0  # a system that needs longer for the smallest run ...
SLOW_REPEATS = 2  # ... is measured only that often
SETTLE_SECONDS = 0.2  # pause after the last subscriber has received something

LATENCY_RATES = (200, 1000)  # messages per second
LATENCY_SECONDS = 5.0  # per system and rate, spread over the repeats
LATENCY_PUBLISHERS = 8  # connections; a request waits for a free one
LATENCY_GRACE = 2.0  # seconds to wait for the last messages
LATENCY_WARMUP = 10  # messages not counted, per repeat

FSYNC_COUNT = 200
SQLITE_BATCHES = ((1, 400), (100, 200), (1000, 100))  # rows per commit, commits
SQLITE_BULK_ROWS = 1_000_000
SQLITE_PAGE_ROWS = 1000
CHANNELS = 10


# --- results ----------------------------------------------------------------


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


# --- processes --------------------------------------------------------------


def process_tree(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    tree = {pid}
    while grown := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    return tree


def cpu_of_tree(pid: int | None) -> float:
    """CPU seconds of a process, its live descendants, and the children it has reaped."""
    if pid is None:
        return 0.0
    seconds, tick = 0.0, 1 / os.sysconf("SC_CLK_TCK")
    for member in process_tree(pid):
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            user, system, reaped_user, reaped_system = (int(value) for value in fields[11:15])
            own, threads = (user + system) * tick, int(fields[17])
            if threads == 1:  # finer than ticks: a thousand backends use less than one each
                with contextlib.suppress(OSError):
                    own = int(Path(f"/proc/{member}/schedstat").read_text().split()[0]) / 1e9
            seconds += own + (reaped_user + reaped_system) * tick
    return seconds


class RunFailed(Exception):
    """A run failed; the message has the reason."""


# These errors end one run, and not the whole bench.
PROBLEMS = (RunFailed, RuntimeError, OSError, subprocess.SubprocessError)


def escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def load(
    target: Target, publish: Publish, connections: int, requests: int, folder: Path, depth: int = 1
) -> dict[str, Any]:
    """Run load.c with ``depth`` requests in flight on each connection; returns its report."""
    request_file, preamble_file = folder / "request", folder / "preamble"
    request_file.write_bytes(publish.request)
    command: list[str] = [str(HERE / "load"), "--port", str(target.port)]
    command += ["--conns", str(connections), "--requests", str(requests)]
    command += ["--request", str(request_file), "--timeout", str(RUN_TIMEOUT)]
    command += ["--depth", str(depth)]
    command += ["--token", escaped(publish.token), "--tokens", str(publish.tokens)]
    if publish.preamble:
        preamble_file.write_bytes(publish.preamble)
        command += ["--preamble", str(preamble_file)]
    for token in publish.abort:
        command += ["--abort", escaped(token)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT + 20)
    if done.returncode:
        raise RunFailed(f"load: {done.stderr.strip()}")
    report = json.loads(done.stdout)
    if not report["complete"]:
        reason = " ".join(done.stderr.split())[:160] or f"{report['closed']} connections closed"
        raise RunFailed(f"only {report['requests']} of {requests} requests succeeded: {reason}")
    return report


class Sink:
    """A running sink.c, whose connections are open."""

    def __init__(self, port: int, subscribers: int, request: bytes, folder: Path) -> None:
        request_file = folder / "subscribe"
        request_file.write_bytes(request)
        self.process = subprocess.Popen(
            [
                str(HERE / "sink"),
                "--port",
                str(port),
                "--conns",
                str(subscribers),
                "--request",
                str(request_file),
                "--ready-timeout",
                str(READY_TIMEOUT),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Sink:
        try:
            ready = self._read()
        except RunFailed:
            self.__exit__()
            raise
        if ready["ready"] < ready["conns"]:
            print(f"  only {ready['ready']} of {ready['conns']} subscribers have received anything yet")
        time.sleep(SETTLE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RunFailed("the subscribers could not connect")
        return json.loads(line)

    def expect(self, messages: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{messages} {RUN_TIMEOUT}\n")
        self.process.stdin.flush()
        self._read()

    def result(self) -> dict[str, Any]:
        return self._read()


def calibrate(run: Callable[[int], float], start: int, most: int) -> int:
    """The number of requests that take about RUN_SECONDS; `run` returns the seconds of that many requests."""
    requests = min(start, most)
    cold = run(requests)  # warms up the system; its time counts only if the system is slow
    if cold > SLOW_SECONDS:
        return max(1, int(requests * SLOW_SECONDS / cold))
    while True:
        seconds = max(run(requests), 1e-4)
        if RUN_SECONDS / 3 <= seconds < SLOW_SECONDS:  # a second run tells a slow system from a disturbance
            seconds = min(seconds, max(run(requests), 1e-4))
        if seconds >= RUN_SECONDS / 3 or requests >= most:
            return max(1, min(most, round(requests * RUN_SECONDS / seconds)))
        requests = min(most, round(requests * min(10, RUN_SECONDS / seconds)) + 1)


# --- the bench --------------------------------------------------------------


@dataclass
class Bench:
    targets: list[Target]
    repeats: int
    folder: Path
    tables: list[Table] = field(default_factory=list)
    requests: dict[tuple[Any, ...], int] = field(default_factory=dict)  # calibrated counts
    slow: set[tuple[Any, ...]] = field(default_factory=set)  # calibrated runs above SLOW_SECONDS

    def table(self, scenario: str, unit: str) -> Table:
        self.tables.append(Table(scenario, unit))
        return self.tables[-1]

    def interleaved(self, scenario: str) -> Iterator[tuple[int, Target]]:
        """Every system once per repeat; each repeat starts with another system."""
        targets = [target for target in self.targets if scenario in target.scenarios]
        for repeat in range(self.repeats):
            turn = repeat % len(targets) if targets else 0
            for target in targets[turn:] + targets[:turn]:
                yield repeat, target

    def rows_in_order(self, table: Table, scenario: str) -> None:
        for target in self.targets:
            if scenario in target.scenarios:
                table.row(target.name)

    # publish

    def publish(self) -> None:
        tables = {shape: self.table(f"publish {shape[0]} conn x {shape[1]}", "messages/s") for shape in PUBLISH_SHAPES}
        for table in tables.values():
            self.rows_in_order(table, "publish")
        for repeat, target in self.interleaved("publish"):
            target.prepare(0)
            for shape, table in tables.items():
                row = table.row(target.name)
                try:
                    self._publish_once(target, shape, row, repeat)
                except PROBLEMS as problem:
                    row.problems.append(str(problem))
        for table in tables.values():
            print_table(table)

    def _publish_once(self, target: Target, shape: tuple[int, int], row: Row, repeat: int, depth: int = 1) -> None:
        connections, batch = shape
        publish = target.publish("quiet", [PAYLOAD] * batch, push=False)

        def run(requests: int) -> dict[str, Any]:
            return load(target, publish, connections, requests, self.folder, depth)

        key = ("publish", target.name, shape, depth)
        if key not in self.requests:
            most = max(connections, target.max_messages // batch)
            self.requests[key] = calibrate(lambda n: run(n)["seconds"], connections * depth * 4, most)
        cpu = cpu_of_tree(target.pid)
        report = run(self.requests[key])
        row.work[repeat] = report["requests"] * batch
        row.values[repeat] = row.work[repeat] / report["seconds"]
        row.notes[repeat] = f"p50 {report['p50_us'] / 1000:.2f} ms, p99 {report['p99_us'] / 1000:.2f} ms"
        if target.pid:
            row.cpu[repeat] = cpu_of_tree(target.pid) - cpu

    # pipeline

    def pipeline(self) -> None:
        """Single messages on one connection, with several in flight."""
        for depth in PIPELINE_DEPTHS:
            table = self.table(f"publish 1 conn x 1, {depth} in flight", "messages/s")
            self.rows_in_order(table, "pipeline")
            for repeat, target in self.interleaved("pipeline"):
                target.prepare(0)
                row = table.row(target.name)
                try:
                    self._publish_once(target, (1, 1), row, repeat, depth)
                except PROBLEMS as problem:
                    row.problems.append(str(problem))
            print_table(table)

    # fanout

    def fanout(self) -> None:
        for subscribers in FANOUT_SUBSCRIBERS:
            tables = {
                shape: self.table(f"fan-out to {subscribers}, {shape[0]} conn x {shape[1]}", "deliveries/s")
                for shape in FANOUT_SHAPES
            }
            for table in tables.values():
                self.rows_in_order(table, "fanout")
            for repeat, target in self.interleaved("fanout"):
                rows = {shape: table.row(target.name) for shape, table in tables.items()}
                try:
                    target.prepare(subscribers)
                    request = target.subscribe("live")
                    with Sink(target.port, subscribers, request, self.folder) as sink:
                        for shape, row in rows.items():
                            self._fanout_once(target, sink, subscribers, shape, row, repeat)
                except PROBLEMS as problem:
                    for row in rows.values():
                        if repeat not in row.values:
                            row.problems.append(str(problem))
            for table in tables.values():
                print_table(table)

    def _fanout_once(
        self,
        target: Target,
        sink: Sink,
        subscribers: int,
        shape: tuple[int, int],
        row: Row,
        repeat: int,
    ) -> None:
        connections, batch = shape
        publish = target.publish("live", [PAYLOAD] * batch, push=True)

        def run(requests: int) -> tuple[float, dict[str, Any]]:
            """Seconds from the first request to the last delivery, and the sink's report."""
            target.before_fanout(requests * batch)
            sink.expect(requests * batch)
            start = load(target, publish, connections, requests, self.folder)["start"]
            report = sink.result()
            if report["exact"] != subscribers:  # a rate with lost messages means nothing
                raise RunFailed(
                    f"{report['exact']} of {subscribers} subscribers got exactly"
                    f" {requests * batch} messages ({report['closed']} closed)"
                )
            return report["last"] - start, report

        key = ("fanout", target.name, subscribers, shape)
        if key not in self.requests:
            start = connections if batch == 1 else 1
            most = max(1, min(MAX_DELIVERIES // subscribers, target.max_messages) // batch)
            self.requests[key] = calibrate(lambda n: run(n)[0], start, most)
        if repeat >= SLOW_REPEATS and key in self.slow:
            return
        requests = self.requests[key]
        cpu = cpu_of_tree(target.pid)
        seconds, report = run(requests)
        if seconds > SLOW_SECONDS:
            self.slow.add(key)
        row.work[repeat] = report["messages"]
        row.values[repeat] = report["messages"] / seconds
        row.notes[repeat] = f"{requests * batch} messages, all to all"
        if target.pid:
            row.cpu[repeat] = cpu_of_tree(target.pid) - cpu

    # latency

    def latency(self) -> None:
        seconds = max(1.0, LATENCY_SECONDS / self.repeats)
        for rate in LATENCY_RATES:
            name = f"latency at {rate}/s"
            tables = {
                "receive": self.table(f"{name}, publish to receive", "p50 ms"),
                "ack": self.table(f"{name}, publish to ack", "p50 ms"),
            }
            samples: dict[tuple[str, str], list[float]] = {}
            for table in tables.values():
                self.rows_in_order(table, "latency")
            for repeat, target in self.interleaved("latency"):
                cpu = cpu_of_tree(target.pid)
                measured: dict[str, list[float]] = {}
                problem = None
                try:
                    target.prepare(1)
                    measured["receive"], measured["ack"], lost = measure_latency(target, rate, seconds)
                    if lost:
                        problem = f"the subscriber did not receive {lost} messages"
                except PROBLEMS as failure:
                    problem = str(failure)
                for what, table in tables.items():
                    row = table.row(target.name)
                    if problem:
                        row.problems.append(problem)
                    if not measured.get(what):
                        continue
                    samples.setdefault((what, target.name), []).extend(measured[what])
                    row.values[repeat] = statistics.median(measured[what])
                    row.work[repeat] = len(measured[what])
                    if target.pid:
                        row.cpu[repeat] = cpu_of_tree(target.pid) - cpu
            for what, table in tables.items():
                for row in table.rows.values():
                    pooled = sorted(samples.get((what, row.name), []))
                    if pooled:
                        row.notes = dict.fromkeys(row.values, describe_percentiles(pooled))
                print_table(table)

    # limits

    def limits(self) -> None:
        measures: list[tuple[str, str, Callable[[], float]]] = [
            ("fdatasync of 4 KiB", "ms", self._fsync_milliseconds),
        ]
        for batch, commits in SQLITE_BATCHES:
            measures.append(
                (
                    f"SQLite insert, {batch} rows per commit",
                    "rows/s",
                    functools.partial(self._sqlite_insert, batch, commits),
                )
            )
        measures += [
            (f"SQLite INSERT..SELECT, {SQLITE_BULK_ROWS:,} rows", "rows/s", self._sqlite_bulk),
            ("SQLite catch-up SELECT, 1 of 10 channels", "rows/s", self._sqlite_catch_up),
        ]
        for subscribers in FANOUT_SUBSCRIBERS:
            for batch in (1, 100, 1000):
                measures.append(
                    (
                        f"C server, fan-out to {subscribers} x {batch}",
                        "deliveries/s",
                        functools.partial(self._ceiling, subscribers, batch),
                    )
                )
        tables = {unit: self.table(f"limits, {unit}", unit) for _, unit, _ in measures}
        for repeat in range(self.repeats):
            for name, unit, measure in measures:
                row = tables[unit].row(name)
                try:
                    row.values[repeat] = measure()
                except PROBLEMS as problem:
                    row.problems.append(str(problem))
        for table in tables.values():
            print_table(table)

    def _fsync_milliseconds(self) -> float:
        block, times = b"x" * 4096, []
        with open(self.folder / "fsync", "wb", buffering=0) as file:
            for _ in range(FSYNC_COUNT):
                start = time.perf_counter()
                file.write(block)
                os.fdatasync(file.fileno())
                times.append(time.perf_counter() - start)
        return statistics.median(times) * 1000

    @contextlib.contextmanager
    def _database(self, name: str) -> Iterator[sqlite3.Connection]:
        """A database with the plugin's settings: WAL, and every commit is on disk."""
        path = self.folder / name
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute(
                "create table if not exists vpubsub (id integer primary key,"
                " channel text not null, payload, created_at text)"
            )
            connection.execute("create index if not exists vpubsub_channel on vpubsub (channel, id)")
            yield connection
        finally:
            connection.close()

    def _sqlite_insert(self, batch: int, commits: int) -> float:
        rows = [(f"chan-{i % CHANNELS}", PAYLOAD, "2030-01-01T00:00:00.000Z") for i in range(batch)]
        sql = "insert into vpubsub (channel, payload, created_at) values (?, ?, ?)"
        with self._database("insert.db") as connection:
            start = time.perf_counter()
            for _ in range(commits):
                connection.execute("begin immediate")
                connection.executemany(sql, rows)
                connection.execute("commit")
            seconds = time.perf_counter() - start
        self._remove_database("insert.db")
        return batch * commits / seconds

    def _sqlite_bulk(self) -> float:
        """Rows per second of one INSERT..SELECT. Its database stays for the catch-up of this repeat."""
        self._remove_database("bulk.db")
        with self._database("bulk.db") as connection:
            start = time.perf_counter()
            connection.execute(
                "with recursive n (i) as (select 1 union all select i + 1 from n where i < ?)"
                " insert into vpubsub (channel, payload, created_at)"
                " select 'chan-' || (i % ?), ?, '2030-01-01T00:00:00.000Z' from n",
                (SQLITE_BULK_ROWS, CHANNELS, PAYLOAD),
            )
            return SQLITE_BULK_ROWS / (time.perf_counter() - start)

    def _sqlite_catch_up(self) -> float:
        count, last = 0, 0
        with self._database("bulk.db") as connection:
            start = time.perf_counter()
            while rows := connection.execute(
                "select id, payload from vpubsub where channel = ? and id > ? order by id limit ?",
                ("chan-3", last, SQLITE_PAGE_ROWS),
            ).fetchall():
                count, last = count + len(rows), rows[-1][0]
            seconds = time.perf_counter() - start
        self._remove_database("bulk.db")
        return count / seconds

    def _remove_database(self, name: str) -> None:
        for suffix in ("", "-wal", "-shm"):
            (self.folder / f"{name}{suffix}").unlink(missing_ok=True)

    def _ceiling(self, subscribers: int, batch: int) -> float:
        """Deliveries per second of ceiling.c."""
        server = subprocess.Popen(
            [str(HERE / "ceiling"), str(subscribers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin
        assert server.stdout
        try:
            port = json.loads(server.stdout.readline())["port"]
            request = b"GET / HTTP/1.1\r\n\r\n"
            with Sink(port, subscribers, request, self.folder) as sink:

                def run(requests: int) -> float:
                    sink.expect(requests * batch)
                    server.stdin.write(f"{requests * batch} {batch}\n")
                    server.stdin.flush()
                    start = json.loads(server.stdout.readline())["start"]
                    report = sink.result()
                    if report["exact"] != subscribers:
                        raise RunFailed("the C server lost messages")
                    return report["last"] - start

                key = ("ceiling", subscribers, batch)
                if key not in self.requests:
                    most = max(1, 2 * MAX_DELIVERIES // subscribers // batch)
                    self.requests[key] = calibrate(run, 4, most)
                seconds = run(self.requests[key])
                return self.requests[key] * batch * subscribers / seconds
        finally:
            server.kill()
            server.communicate()


# --- latency ----------------------------------------------------------------


@dataclass
class Publisher:
    connection: socket.socket
    number: int
    answer: bytes = b""
    stamp: int | None = None  # the time at which its outstanding request was due; None while it has none


def describe_percentiles(ordered: list[float]) -> str:
    def at(fraction: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]

    return f"pooled p50 {at(0.5):.2f}  p90 {at(0.9):.2f}  p99 {at(0.99):.2f}  max {ordered[-1]:.2f}  n {len(ordered)}"


def measure_latency(target: Target, rate: int, seconds: float) -> tuple[list[float], list[float], int]:
    """Milliseconds from publish to receive and from publish to ack, and the number of lost messages.

    One thread sends, receives and reads the clock, for every system alike. The time of
    a message that had to wait for a free connection begins when the message was due.
    """
    total = int(rate * seconds)
    with contextlib.ExitStack() as stack:

        def connect(preamble: bytes) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", target.port), 5)
            stack.enter_context(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(preamble)
            return connection

        subscriber = connect(target.subscribe("live").replace(CONNECTION_NUMBER.encode(), b"0000"))
        subscriber.recv(1 << 16)  # the server has answered
        sample = target.publish("live", [PAYLOAD], push=True)

        def numbered(request: bytes, number: int) -> bytes:
            return request.replace(CONNECTION_NUMBER.encode(), b"%04d" % number)

        publishers = []
        for number in range(LATENCY_PUBLISHERS):
            connection = connect(numbered(sample.preamble, number))
            publishers.append(Publisher(connection, number))
        time.sleep(SETTLE_SECONDS)
        for connection in (subscriber, *(p.connection for p in publishers)):
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.recv(1 << 16)
            connection.setblocking(True)

        by_socket = {p.connection: p for p in publishers}
        free, overdue = deque(publishers), deque[int]()
        received: list[float] = []
        acked: list[float] = []
        pending = b""
        stamp_length = len(STAMP_FORMAT % 0)

        def send(publisher: Publisher, stamp: int) -> None:
            publisher.stamp = stamp
            request = target.publish("live", [stamped_payload(stamp)], push=True).request
            publisher.connection.sendall(numbered(request, publisher.number))

        begin = time.perf_counter_ns() + 50_000_000
        interval = 1_000_000_000 // rate
        sent = 0
        deadline = begin + int((seconds + LATENCY_GRACE) * 1e9)
        sockets = [subscriber, *by_socket]
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
        while (len(received) < total or len(acked) < total) and (clock := time.perf_counter_ns()) < deadline:
            due = begin + sent * interval
            if sent < total and clock >= due:
                sent += 1
                if free:
                    send(free.popleft(), time.perf_counter_ns())
                else:
                    overdue.append(due)
                continue
            wait = (due - clock) / 1e9 if sent < total else 0.1
            readable, _, _ = select.select(sockets, [], [], max(0.0, wait))
            for connection in readable:
                data = connection.recv(1 << 16)
                clock = time.perf_counter_ns()
                if not data:
                    raise RunFailed("the server closed a connection")
                if connection is subscriber:
                    pending += data
                    # A stamp is T, 20 digits, E; no other T starts one.
                    at = pending.find(b"T0")
                    while at >= 0 and len(pending) >= at + stamp_length:
                        stamp = pending[at + 1 : at + stamp_length - 1]
                        if stamp.isdigit():
                            received.append((clock - int(stamp)) / 1e6)
                        at = pending.find(b"T0", at + stamp_length)
                    pending = pending[at:] if at >= 0 else pending[-1:]
                    continue
                publisher = by_socket[connection]
                publisher.answer += data
                if publisher.stamp is None or sample.token not in publisher.answer:
                    continue
                acked.append((clock - publisher.stamp) / 1e6)
                publisher.answer, publisher.stamp = b"", None
                if overdue:
                    send(publisher, overdue.popleft())
                else:
                    free.append(publisher)
    return received[LATENCY_WARMUP:], acked[LATENCY_WARMUP:], total - len(received)


# --- the project ------------------------------------------------------------


def check_project(project: Project) -> str | None:
    """Publish one message to a subscriber of this format; returns the reason if it does not arrive."""
    try:
        with (
            socket.create_connection(("127.0.0.1", project.port), 5) as subscriber,
            socket.create_connection(("127.0.0.1", project.port), 5) as publisher,
        ):
            subscriber.settimeout(3)
            publisher.settimeout(5)
            subscriber.sendall(project.subscribe("check"))
            time.sleep(SETTLE_SECONDS)
            publish = project.publish("check", [PAYLOAD], push=True)
            publisher.sendall(publish.request)
            answer = b""
            while publish.token not in answer:
                data = publisher.recv(1 << 16)
                answer += data
                if not data or any(token in answer for token in publish.abort):
                    return f"the server refused the publish: {answer[:300]!r}"
            stream = b""
            while stream.count(b'"~') < 1:
                data = subscriber.recv(1 << 16)
                stream += data
                if not data:
                    return f"the stream ended: {stream[:300]!r}"
    except OSError as problem:
        return f"{problem or 'no message arrived'}"
    return None


def open_project(options: argparse.Namespace) -> list[Target]:
    targets: list[Target] = []
    for name in options.formats.split(","):
        try:
            project = Project(options.project, options.db, options.token, options.pid, name)
        except ValueError as problem:
            sys.exit(str(problem))
        reason = check_project(project)
        if reason is None:
            targets.append(project)
        elif name == "raw":
            sys.exit(f"the project does not deliver a message: {reason}")
        else:
            print(f"skipped {project.name}: {reason}")
    first = targets[0]
    assert isinstance(first, Project)
    targets += [ProjectStream(each, fanout=True) for each in targets if isinstance(each, Project)]
    targets += [ProjectStream(first), ProjectConnect(first, binary=False), ProjectConnect(first, binary=True)]
    if options.empty_route:
        targets.append(EmptyRoute(first, options.empty_route))
    return targets


# --- command line -----------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=["publish", "pipeline", "fanout", "latency", "limits", "all"])
    parser.add_argument("--project", metavar="URL_BASE", help="address of the running Datasette; http, loopback")
    parser.add_argument("--db", default="data", help="database name in the project's URLs")
    parser.add_argument("--token", help="token for the header Authorization: Bearer")
    parser.add_argument("--empty-route", metavar="PATH", help="a route of the project's server that does nothing")
    parser.add_argument("--pid", type=int, help="process id of the project's server, to measure its CPU time")
    parser.add_argument(
        "--formats",
        default="raw,envelope,connect",
        help=f"stream formats of the project, raw first; any of {', '.join(Project.FORMATS)}",
    )
    parser.add_argument("--peers", default=",".join(PEERS), help=f"any of {', '.join(PEERS)}; empty: none")
    parser.add_argument("--peers-dir", type=Path, help="BENCH_PEERS_DIR of peers.sh")
    parser.add_argument("--repeats", type=int, default=5, help="how often to measure each system (5)")
    parser.add_argument("--dir", help="folder that limits writes to; use the disk of the project's database")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every value to this file")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.project and options.formats.split(",")[0] != "raw":
        parser.error("--formats must start with raw; the ratios are against it")
    for name in options.formats.split(","):
        if name not in Project.FORMATS:
            parser.error(f"unknown format {name}; there are {', '.join(Project.FORMATS)}")
    for name in filter(None, options.peers.split(",")):
        if name not in PEERS:
            parser.error(f"unknown peer {name}; there are {', '.join(PEERS)}")
    return options


def open_targets(options: argparse.Namespace) -> list[Target]:
    targets = open_project(options) if options.project else []
    folder = options.peers_dir or Path(os.environ.get("BENCH_PEERS_DIR", DEFAULT_PEERS_DIR))
    for name in filter(None, options.peers.split(",")):
        try:
            targets.append(open_peer(name, folder))
        except (OSError, ValueError) as problem:
            sys.exit(f"{name} is not running ({problem}); run ./peers.sh up, or remove it from --peers")
    return targets


def main() -> None:
    options = parse_options()
    for program in ("load", "sink", "ceiling"):
        if not (HERE / program).exists():
            sys.exit("run make first")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    targets = [] if options.scenario == "limits" else open_targets(options)
    started = time.time()
    environment = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "repeats": options.repeats,
        "durability": {target.name: target.durability for target in targets},
    }
    print(
        f"{environment['cores']} cores, kernel {environment['kernel']}, Python"
        f" {environment['python']}, SQLite {environment['sqlite']}, {options.repeats} repeats"
    )
    for target in targets:
        print(f"  {target.name:20} {target.durability}")
    print()
    with tempfile.TemporaryDirectory(prefix="pubsub-bench-", dir=options.dir) as folder:
        bench = Bench(targets, options.repeats, Path(folder))
        chosen = ["publish", "pipeline", "fanout", "latency", "limits"]
        for scenario in chosen if options.scenario == "all" else [options.scenario]:
            getattr(bench, scenario)()
    print(f"{time.time() - started:.0f} s")
    if options.json:
        result = {"environment": environment, "tables": [asdict(table) for table in bench.tables]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
