"""Metrics of a real server under load, by the configuration that docs/monitoring.md shows; and by a real Prometheus."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import call
from doc_pages import DOCS
from metric_tables import prometheus
from places import ROOT
from prometheus_client.parser import text_string_to_metric_families
from servers import DEADLINE, OPEN, Server, Sse, free_port, wait_for

from datasette_pubsub.telemetry import registry as names

PROMETHEUS = shutil.which("prometheus", path="/usr/bin:/usr/local/bin")

BOARD = json.loads((ROOT / "examples/grafana.json").read_text())


def from_docs(name: str, port: int) -> str:
    """A file that docs/monitoring.md shows, with another port."""
    (text,) = re.findall(rf"<!-- monitoring: file {name} -->\n```\w+\n(.*?)```", DOCS["monitoring"], re.DOTALL)
    assert "9464" in text
    return str(text.replace("9464", str(port)))


@dataclass
class Monitored:
    """A server whose metrics are collected."""

    server: Server
    port: int

    def values(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """What the server tells now: for each name, attributes and value."""
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics").text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def value(self, name: str, **labels: str) -> float:
        """The one value with these attributes."""
        values = [value for found, value in self.values().get(name, []) if labels.items() <= found.items()]
        assert len(values) == 1, (name, labels, values)
        return values[0]


@pytest.fixture
def monitored(serve: Callable[..., Server], tmp_path: Path) -> Monitored:
    port = free_port()
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "prometheus.py").write_text(from_docs("plugins/prometheus.py", port))
    plugin = {"datasette-pubsub": {"cursor_save_interval_seconds": 0.1}}
    server = serve(config={**OPEN, "plugins": plugin}, options=["--plugins-dir", str(plugins)])
    call("install", server.path)
    return Monitored(server, port)


@dataclass
class Load:
    """What was done, counted by those who did it."""

    published: int = 0
    by_sql: int = 0
    delivered: int = 0
    publishes: int = 0


@contextlib.contextmanager
def load(server: Server, *, subscribers: int, publishers: int, each: int) -> Iterator[Load]:
    """Publishers over HTTP, a program with SQL, and subscribers that stay connected in the block."""
    done = Load()
    stream = f"{server.pubsub}/-/stream"
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Sse(stream, channel="c")) for _ in range(subscribers)]
        for reader in readers:
            reader.until("ready")

        def publish(number: int) -> None:
            for _ in range(each):
                server.publish({"channel": "c", "payload": str(number)}, {"channel": "other", "payload": "x"})

        def insert() -> None:
            with contextlib.closing(sqlite3.connect(server.path, isolation_level=None, timeout=60)) as conn:
                for _ in range(each):
                    conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('c', 'by SQL')")

        with concurrent.futures.ThreadPoolExecutor(publishers + 1) as pool:
            work = [pool.submit(insert), *(pool.submit(publish, number) for number in range(publishers))]
            for one in work:
                one.result()
        done.publishes = publishers * each
        done.published, done.by_sql = 2 * done.publishes, each
        for reader in readers:
            done.delivered += len(reader.messages(done.publishes + each))
        yield done


def test_a_loaded_server_counts_right(monitored: Monitored) -> None:
    server = monitored.server
    with load(server, subscribers=5, publishers=4, each=25) as done:
        assert monitored.value("datasette_pubsub_streams", datasette_pubsub_stream_kind="subscriber") == 5
        assert monitored.value("messaging_client_sent_messages_total") == done.published == 200
        assert monitored.value("messaging_client_consumed_messages_total") == done.delivered == 5 * 125
        assert monitored.value("datasette_pubsub_log_head") == done.published + done.by_sql == 225
        commits = monitored.value("datasette_pubsub_commit_messages_count")
        assert 0 < commits <= done.publishes
        assert monitored.value("datasette_pubsub_commit_messages_sum") == done.published
        assert monitored.value("datasette_pubsub_publish_duration_seconds_count") == commits
        assert monitored.value("datasette_pubsub_publish_pending") == 0
    ended = {"datasette_pubsub_stream_kind": "subscriber", "datasette_pubsub_stream_end": "closed"}
    wait_for(lambda: monitored.value("datasette_pubsub_streams", datasette_pubsub_stream_kind="subscriber") == 0)
    assert monitored.value("datasette_pubsub_streams_ended_total", **ended) == 5


def test_the_names_are_those_of_the_docs(monitored: Monitored) -> None:
    server = monitored.server
    with Sse(f"{server.pubsub}/-/stream", channel="c", subscription="s") as reader:
        server.publish(channel="c", payload="x")
        reader.messages(1)
    wait_for(lambda: "datasette_pubsub_subscriptions" in monitored.values(), "the file was read", deadline=60)
    found = monitored.values()
    # These need a relay, or a follower.
    for metric in set(names.METRICS) - {names.RELAY_LAG, names.FOLLOW_LAG}:
        name = prometheus(metric)
        assert {name, f"{name}_count"} & set(found), name
        assert f"`{name}`" in DOCS["monitoring"]
    assert monitored.value("datasette_pubsub_subscriptions") == 1


def expressions() -> list[str]:
    return [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def test_the_board_asks_for_what_there_is() -> None:
    known = {prometheus(metric) for metric in names.METRICS}
    asked = set(
        re.findall(r"\b((?:datasette_pubsub|messaging)_\w+?)(?:_bucket|_sum|_count)?\{", " ".join(expressions()))
    )
    assert asked <= known
    assert known - asked == set(), "each metric is on the board"


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="needs Debian's prometheus")
def test_a_real_prometheus_has_the_truth(monitored: Monitored, tmp_path: Path) -> None:
    assert PROMETHEUS is not None
    port = free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(from_docs("prometheus.yml", monitored.port).replace("15s", "1s"))
    address = f"127.0.0.1:{port}"
    command = [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with (tmp_path / "prometheus.log").open("wb") as output:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=output, stderr=output)
    try:

        def ask(expression: str) -> list[Any]:
            answer = httpx.get(f"http://{address}/api/v1/query", params={"query": expression})
            assert answer.status_code == 200, answer.text
            return list(answer.json()["data"]["result"])

        def value(expression: str) -> float:
            (found,) = ask(expression)
            return float(found["value"][1])

        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError, AssertionError):
                return bool(ask("up == 1"))
            return False

        wait_for(ready, "Prometheus collects", deadline=60)
        with load(monitored.server, subscribers=20, publishers=8, each=250) as done:
            wait_for(lambda: value("datasette_pubsub_log_head") == done.published + done.by_sql, deadline=60)
            time.sleep(15)  # its newest values, and those that the file is read for
            assert value("messaging_client_sent_messages_total") == done.published
            assert value("messaging_client_consumed_messages_total") == done.delivered
            assert value("datasette_pubsub_commit_messages_sum") == done.published
            assert value('datasette_pubsub_streams{datasette_pubsub_stream_kind="subscriber"}') == 20
            for expression in expressions():
                filled = expression.replace("$__rate_interval", "5m").replace("$database", ".*")
                found = ask(filled)
                needs_more = "relay" in filled or "follow" in filled or "ended" in filled
                assert found or needs_more, filled
        print({"published": done.published, "by SQL": done.by_sql, "delivered": done.delivered})
    finally:
        process.terminate()
        process.wait(DEADLINE)
