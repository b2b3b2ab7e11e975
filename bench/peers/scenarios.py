"""The scenarios: every system once in each repeat, each repeat beginning with another one."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latency import describe_percentiles, measure_latency
from loading import (
    HERE,
    PROBLEMS,
    SLOW_SECONDS,
    RunFailed,
    Sink,
    calibrate,
    cpu_of_tree,
    load,
)
from tables import Row, Table, print_table
from targets import PAYLOAD, Target

# (connections, messages per request)
PUBLISH_SHAPES = ((1, 1), (32, 1), (1, 100), (4, 100), (1, 1000), (4, 1000))
PIPELINE_DEPTHS = (16, 64, 256)  # messages in flight on one connection
FANOUT_SHAPES = ((32, 1), (4, 100), (2, 1000))
FANOUT_SUBSCRIBERS = (1, 100, 1000)
MAX_DELIVERIES = 20_000_000  # per run, so that no server must buffer gigabytes
SLOW_REPEATS = 2  # a slow system is measured only that often

LATENCY_RATES = (200, 1000)  # messages per second
LATENCY_SECONDS = 5.0  # per system and rate, spread over the repeats

FSYNC_COUNT = 200
SQLITE_BATCHES = ((1, 400), (100, 200), (1000, 100))  # rows per commit, commits
SQLITE_BULK_ROWS = 1_000_000
SQLITE_PAGE_ROWS = 1000
CHANNELS = 10


@dataclass(frozen=True)
class Shapes:
    """What the scenarios measure: connections and messages per request, subscribers, and rates."""

    publish: tuple[tuple[int, int], ...] = PUBLISH_SHAPES
    fanout: tuple[tuple[int, int], ...] = FANOUT_SHAPES
    subscribers: tuple[int, ...] = FANOUT_SUBSCRIBERS
    rates: tuple[int, ...] = LATENCY_RATES


#: Those that say most.
SHORT = Shapes(((32, 1), (4, 100), (4, 1000)), ((4, 100),), (100, 1000), (200,))


@dataclass
class Bench:
    targets: list[Target]
    repeats: int
    folder: Path
    shapes: Shapes = Shapes()
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
        tables = {
            shape: self.table(f"publish {shape[0]} conn x {shape[1]}", "messages/s") for shape in self.shapes.publish
        }
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
        for subscribers in self.shapes.subscribers:
            tables = {
                shape: self.table(f"fan-out to {subscribers}, {shape[0]} conn x {shape[1]}", "deliveries/s")
                for shape in self.shapes.fanout
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
        for rate in self.shapes.rates:
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
