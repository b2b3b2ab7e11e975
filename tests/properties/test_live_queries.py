"""Live queries: snapshot and changes give exactly what the query returns, at every head that they name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from places import SUPPORT

from datasette_pubsub.broker.registry import registry
from datasette_pubsub.core.values import Item
from datasette_pubsub.live_query.subscriber import QuerySubscriberOptions
from datasette_pubsub.protocol.query_frames import SseQueryEncoder
from datasette_pubsub.storage.query import Question

#: The longest wait for what must come, in seconds: the machine is shared.
DEADLINE = 120

SCHEMA = """
CREATE TABLE a (id INTEGER PRIMARY KEY, x, y);
CREATE TABLE b (id INTEGER PRIMARY KEY, a_id INTEGER, z);
CREATE TABLE c (k TEXT, n, PRIMARY KEY (k, n)) WITHOUT ROWID;
CREATE VIEW v AS SELECT a.id AS id, count(b.id) AS many, max(b.z) AS most
FROM a LEFT JOIN b ON b.a_id = a.id GROUP BY a.id;
CREATE VIRTUAL TABLE f USING fts5(words);
"""

value = st.sampled_from(["NULL", "0", "1", "2", "1.0", "2.5", "'a'", "'b'", "'ä'", "x'00ff'", "''"])
number = st.integers(1, 6).map(str)
change = st.one_of(
    st.builds("INSERT OR REPLACE INTO a VALUES ({}, {}, {})".format, number, value, value),
    st.builds("INSERT INTO a (x, y) VALUES ({}, {})".format, value, value),
    st.builds("UPDATE a SET x = {} WHERE id = {}".format, value, number),
    st.builds("UPDATE a SET y = {} WHERE x IS {}".format, value, value),
    st.builds("DELETE FROM a WHERE id = {}".format, number),
    st.builds("DELETE FROM a WHERE x IS {}".format, value),
    st.builds("INSERT OR REPLACE INTO b VALUES ({}, {}, {})".format, number, number, value),
    st.builds("DELETE FROM b WHERE a_id = {}".format, number),
    st.builds("INSERT OR REPLACE INTO c VALUES ('k' || {}, {})".format, number, number),
    st.builds("DELETE FROM c WHERE n = {}".format, number),
    st.builds("INSERT INTO f VALUES ('red ' || {})".format, st.sampled_from(["'fox'", "'box'"])),
    st.just("DELETE FROM f WHERE f MATCH 'fox'"),
    st.just("CREATE INDEX IF NOT EXISTS a_x ON a (x)"),
    st.just("DROP INDEX IF EXISTS a_x"),
)
where = st.one_of(
    st.just(""),
    st.builds("WHERE x IS {}".format, value),
    st.builds("WHERE a.id > {}".format, number),
    st.builds("WHERE typeof(x) = {}".format, st.sampled_from(["'text'", "'integer'", "'blob'"])),
)
order = st.sampled_from(["", "ORDER BY x", "ORDER BY a.id DESC", "ORDER BY y DESC, a.id", "ORDER BY x LIMIT 3"])
query = st.one_of(
    st.builds("SELECT a.* FROM a {} {}".format, where, order),
    st.builds("SELECT x, y FROM a {} {}".format, where, st.sampled_from(["", "ORDER BY x", "ORDER BY y, x"])),
    st.builds("SELECT a.id, x, z FROM a JOIN b ON b.a_id = a.id {} {}".format, where, order),
    st.builds("SELECT x, count(*), sum(a.id) FROM a {} GROUP BY x".format, where),
    st.builds("SELECT DISTINCT typeof(x) FROM a {}".format, where),
    st.builds("SELECT a.id, x, row_number() OVER (ORDER BY y, a.id) FROM a {} {}".format, where, order),
    st.builds("WITH t AS (SELECT x FROM a {} UNION ALL SELECT z FROM b) SELECT * FROM t".format, where),
    st.just("SELECT * FROM v"),
    st.just("SELECT * FROM v WHERE many > 0 ORDER BY most"),
    st.just("SELECT rowid, words FROM f WHERE f MATCH 'red'"),
    st.just("SELECT k, sum(n) FROM c GROUP BY k"),
    st.just("SELECT count(*) FROM vpubsub"),
    st.builds("SELECT * FROM a LIMIT {}".format, number),
    st.just("SELECT a.id, j.value FROM a, json_each('[1, 2]') j ORDER BY j.value, a.id"),
)
#: What commits, and whether the server itself publishes in between.
commits = st.lists(st.tuples(st.lists(change, min_size=1, max_size=4), st.booleans()), min_size=1, max_size=10)


class Writer:
    """The other process."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "query_writer.py"), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def commit(self, script: list[str], queries: list[str]) -> tuple[int, list[Any]]:
        return await asyncio.to_thread(self._commit, script, queries)

    def _commit(self, script: list[str], queries: list[str]) -> tuple[int, list[Any]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"script": script, "queries": [[sql, {}] for sql in queries]}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["head"], answer["rows"]

    def end(self) -> None:
        self._process.communicate(timeout=DEADLINE)


class Mirror:
    """What a subscriber knows, from the frames alone, applied as docs/queries.md says."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.head = -1
        #: The rows at each head that was told.
        self.seen: list[tuple[int, list[Any]]] = []

    def take(self, frame: bytes) -> None:
        for event in frame.decode().split("\n\n")[:-1]:
            lines = dict(line.partition(": ")[::2] for line in event.split("\n"))
            name, fields = lines["event"], json.loads(lines["data"])
            if name == "bye":
                continue
            if name == "snapshot":
                self.rows = fields["rows"]
            elif name == "change":
                gone = {placed["at"] for placed in fields["removed"]}
                assert [self.rows[placed["at"]] for placed in fields["removed"]] == [
                    p["row"] for p in fields["removed"]
                ]
                self.rows = [row for at, row in enumerate(self.rows) if at not in gone]
                for placed in fields["inserted"]:
                    self.rows.insert(placed["at"], placed["row"])
                for placed in fields["changed"]:
                    assert exact(self.rows[placed["at"]]) == exact(placed["was"])
                    self.rows[placed["at"]] = placed["row"]
            else:
                assert name == "heartbeat", event
            self.head = int(fields["head"])
            if name != "heartbeat":
                self.seen.append((self.head, list(self.rows)))


def exact(value: Any) -> str:
    """JSON text: 1 and 1.0 differ."""
    return json.dumps(value)


def key_of(sql: str) -> tuple[str, ...]:
    """A column that recognises rows, for half of the queries; in a join it is not unique."""
    if sql.endswith("GROUP BY x"):
        return ("x",)
    return ("id",) if sql.startswith(("SELECT a.*", "SELECT a.id, x", "SELECT * FROM a", "SELECT * FROM v")) else ()


async def follow(broker: Any, sql: str, mirror: Mirror) -> None:
    key = key_of(sql)
    async with broker.queries.subscribe(
        Question(sql=sql, key=key), SseQueryEncoder(), QuerySubscriberOptions()
    ) as subscriber:
        async with contextlib.aclosing(subscriber.frames()) as frames:
            async for frame in frames:
                mirror.take(frame)


async def case(queries: list[str], steps: list[tuple[list[str], bool]], folder: Path) -> None:
    path = folder / "data.db"
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(SCHEMA)
        conn.execute("PRAGMA journal_mode = WAL")
    config = {"plugins": {"datasette-pubsub": {"live_query_interval_seconds": 0.02}}}
    datasette = Datasette([str(path)], config=config)
    writer = None
    try:
        await datasette.start_background_tasks()
        broker = registry(datasette).of("data")
        (first,) = await broker.publish([Item("begin", "")])
        writer = Writer(path)
        mirrors = [Mirror() for _ in queries]
        tasks = [asyncio.create_task(follow(broker, sql, mirror)) for sql, mirror in zip(queries, mirrors, strict=True)]
        expected: dict[int, list[Any]] = {}
        head, rows = await writer.commit(["SELECT 1"], queries)
        assert head == first
        expected[head] = rows
        for script, publishes in steps:
            if publishes:
                (head,) = await broker.publish([Item("between", "")])
                _, expected[head] = await writer.commit(["SELECT 1"], queries)
            head, rows = await writer.commit(
                [*script, "INSERT INTO vpubsub (channel, payload) VALUES ('c', '')"], queries
            )
            expected[head] = rows
            # So that sometimes several commits come together, and sometimes each is seen.
            await asyncio.sleep(0.03 if publishes else 0)

        def settled() -> bool:
            return all(exact(mirror.rows) == exact(rows[number]) for number, mirror in enumerate(mirrors))

        async with asyncio.timeout(DEADLINE):
            while not settled() or any(query.dirty or query.running for query in broker.queries.live.queries):
                for task in tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.005)
        for number, mirror in enumerate(mirrors):
            for seen, found in mirror.seen:
                assert exact(found) == exact(expected[seen][number]), (queries[number], seen)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(broker.queries.live) == 0
    finally:
        if writer is not None:
            writer.end()
        registry(datasette).close_streams()
        await datasette.invoke_shutdown()
        datasette.close()


def run(queries: list[str], steps: list[tuple[list[str], bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(case(queries, steps, Path(folder)))


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@examples(15)
@given(st.lists(query, min_size=2, max_size=5, unique=True), commits)
def test_the_rows_are_those_of_the_query_at_every_head(queries: list[str], steps: list[tuple[list[str], bool]]) -> None:
    run(queries, steps)


@pytest.mark.slow
@examples(2_000)
@given(st.lists(query, min_size=2, max_size=5, unique=True), commits)
def test_the_rows_are_those_of_the_query_at_every_head_2000_times(
    queries: list[str], steps: list[tuple[list[str], bool]]
) -> None:
    run(queries, steps)
