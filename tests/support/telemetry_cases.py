"""Cases of telemetry, for a process of their own: a provider is installed once per process, and records for ever.

`tests/unit/test_telemetry.py` runs them with pytest.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from commands import call
from datasette.app import Datasette
from datasette.telemetry_testing import (
    MetricsCollector,
    assert_metrics_conform,
    assert_metrics_covered,
    assert_no_forbidden_values,
    assert_spans_conform,
    assert_spans_covered,
    otel_meter_provider,
    otel_metrics,
    otel_provider,
    otel_reset,
    otel_spans,
)
from opentelemetry import trace
from servers import OPEN

from datasette_pubsub.broker import measuring
from datasette_pubsub.broker.broker import Broker
from datasette_pubsub.broker.registry import registry
from datasette_pubsub.broker.subscribing import SubscribeOptions
from datasette_pubsub.core.errors import InvalidArgument, PubsubError
from datasette_pubsub.core.events import Revoked
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import RELAY_OWNER, Settings
from datasette_pubsub.core.values import Item, Where
from datasette_pubsub.core.verdicts import ALL, Rights
from datasette_pubsub.live_query.subscriber import QuerySubscriberOptions
from datasette_pubsub.protocol.frames import SseEncoder
from datasette_pubsub.protocol.query_frames import SseQueryEncoder
from datasette_pubsub.storage import schema
from datasette_pubsub.storage.query import Question
from datasette_pubsub.telemetry import registry as names

__all__ = ["otel_meter_provider", "otel_metrics", "otel_provider", "otel_reset", "otel_spans"]

pytestmark = pytest.mark.asyncio

SCOPE = names.SCOPE

#: What a visitor sends, and what no span and no metric may tell.
SECRET = "hush-hush"

DATA = {"db.namespace": "data"}

EARLIEST = Where(start="earliest")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data.db"
    path.touch()
    call("install", path)
    return path


@pytest_asyncio.fixture
async def datasette(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Datasette]:
    monkeypatch.setattr(measuring, "SAMPLE_SECONDS", 0.0)
    copy = tmp_path / "copy.db"
    with sqlite3.connect(copy) as conn:
        schema.follow(conn, Settings(), "a-stream", "an-instance", None)
        conn.execute("UPDATE _pubsub_sources SET newest = 7")
    conn.close()
    config = {
        **OPEN,
        "plugins": {"datasette-pubsub": {"trim_interval_seconds": 0.1, "cursor_save_interval_seconds": 0.1}},
    }
    datasette = Datasette([str(path), str(copy)], config=config)
    await datasette.invoke_startup()
    await datasette.start_background_tasks()
    yield datasette
    for name in list(datasette.databases):
        registry(datasette).of(name).measuring.stop()
    await datasette.invoke_shutdown()


async def publish(datasette: Datasette, *payloads: str, channel: str = "news") -> list[int]:
    response = await datasette.client.post(
        "/data/-/pubsub/-/publish", json={"items": [{"channel": channel, "payload": each} for each in payloads]}
    )
    assert response.status_code == 200, response.text
    return list(response.json()["message_ids"])


async def read(broker: Broker, number: int, **options: Any) -> None:
    """Read so many messages, as a request that is traced would."""
    asked = SubscribeOptions(selector=Selector.of(["news"]), where=EARLIEST, **options)
    with trace.get_tracer("test").start_as_current_span("a request"):
        async with broker.subscribe(asked, SseEncoder()) as subscriber, aclosing(subscriber.frames()) as frames:
            while subscriber.delivered < number:
                await anext(frames)


async def everything(datasette: Datasette) -> Broker:
    """Do everything that is measured."""
    broker = registry(datasette).of("data")
    registry(datasette).of("copy")
    await publish(datasette, "one", "two", channel="news")
    await read(broker, 2)
    await read(broker, 1, name=SECRET, owner="someone")
    with pytest.raises(PubsubError):
        await read(broker, 1, name="")

    async def rights() -> Rights | None:
        return Rights(ALL, ALL)

    with trace.get_tracer("test").start_as_current_span("a request"):
        async with broker.publishing("me", rights) as stream:
            await stream.put([1], [[Item("news", "three")]])
            async with aclosing(stream.answers(asyncio.sleep(0))) as answers:
                async for _ in answers:
                    pass
        question = Question(sql="SELECT count(*) FROM vpubsub")
        async with (
            broker.queries.subscribe(question, SseQueryEncoder(), QuerySubscriberOptions()) as live,
            aclosing(live.frames()) as frames,
        ):
            await anext(frames)
            live.stop(Revoked())
    await broker.change(
        lambda conn: conn.execute(
            "INSERT INTO pubsub_subscriptions (owner, name, reads, cursor) VALUES (?, 'a-stream', ?, 1)",
            [RELAY_OWNER, '{"channels": [], "patterns": ["*"]}'],
        )
    )
    return broker


async def collected(otel_metrics: MetricsCollector) -> None:
    """Collect, and once more when the file was read after the first time."""
    otel_metrics.collect()
    await asyncio.sleep(0.5)
    kept = list(otel_metrics.collected)
    otel_metrics.collect()
    # Histograms are drained by the first time.
    seen = {metric.name for _, metric in otel_metrics.collected}
    otel_metrics.collected += [(scope, metric) for scope, metric in kept if metric.name not in seen]


async def test_metrics_are_those_of_the_registry(datasette: Datasette, otel_metrics: MetricsCollector) -> None:
    await everything(datasette)
    await collected(otel_metrics)
    assert_metrics_conform(names.METRICS, otel_metrics, SCOPE)
    assert_metrics_covered(names.METRICS, otel_metrics, SCOPE)


async def test_spans_are_those_of_the_registry(datasette: Datasette, otel_spans: Any) -> None:
    await everything(datasette)
    found = otel_spans.get_finished_spans()
    assert_spans_conform(names.SPANS, found, SCOPE)
    assert_spans_covered(names.SPANS, found, SCOPE)


async def test_the_values_are_right(datasette: Datasette, otel_metrics: MetricsCollector) -> None:
    broker = await everything(datasette)
    await broker.change(lambda conn: conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('news', 'by SQL')"))
    await broker.refresh()
    await collected(otel_metrics)

    def value(metric: str, **attributes: str) -> Any:
        return otel_metrics.point(metric, {**DATA, **attributes}).value

    assert value(names.SENT) == 3, "not the one by SQL"
    assert value(names.HEAD) == 4
    assert value(names.CONSUMED) == 3
    assert value(names.SUBSCRIPTIONS) == 1
    assert value(names.LAG) == 3
    assert value(names.RELAY_LAG) == 3
    assert otel_metrics.point(names.FOLLOW_LAG).value == 7
    assert otel_metrics.point(names.FOLLOW_LAG).attributes["db.namespace"] == "copy"
    assert value(names.LIVE_QUERY_RUNS) == 1
    assert value(names.LIVE_QUERIES) == 0
    assert value(names.PENDING) == 0
    for kind in ("subscriber", "publisher", "live_query"):
        assert value(names.STREAMS, **{names.KIND: kind}) == 0
    assert value(names.ENDED, **{names.KIND: "subscriber", names.REASON: "closed"}) == 2
    assert value(names.ENDED, **{names.KIND: "live_query", names.REASON: "revoked"}) == 1
    assert value(names.CUT_OFF) == 0


async def test_open_streams_are_counted(datasette: Datasette, otel_metrics: MetricsCollector) -> None:
    broker = registry(datasette).of("data")
    asked = SubscribeOptions(selector=Selector.of(["news"]))
    async with broker.subscribe(asked, SseEncoder()), broker.subscribe(asked, SseEncoder()):
        otel_metrics.collect()
        assert otel_metrics.point(names.STREAMS, {**DATA, names.KIND: "subscriber"}).value == 2


async def test_trimmed_messages_are_counted(path: Path, otel_metrics: MetricsCollector) -> None:
    config = {
        **OPEN,
        "plugins": {"datasette-pubsub": {"trim_interval_seconds": 0.1, "retention_messages": 2}},
    }
    datasette = Datasette([str(path)], config=config)
    await datasette.invoke_startup()
    await datasette.start_background_tasks()
    try:
        await publish(datasette, *map(str, range(10)))
        for _ in range(100):
            otel_metrics.collect()
            if otel_metrics.point(names.TRIMMED, DATA).value:
                break
            await asyncio.sleep(0.1)
        assert otel_metrics.point(names.TRIMMED, DATA).value == 8
    finally:
        registry(datasette).of("data").measuring.stop()
        await datasette.invoke_shutdown()


async def test_a_commit_is_recorded_once(datasette: Datasette, otel_metrics: MetricsCollector) -> None:
    broker = registry(datasette).of("data")
    await broker.publish([Item("news", "one"), Item("news", "two", key="k"), Item("news", "again", key="k")])
    otel_metrics.collect()
    point = otel_metrics.point(names.COMMIT_MESSAGES)
    assert (point.count, point.sum) == (1, 2), "a key that is there already adds nothing"
    duration, waited = otel_metrics.point(names.COMMIT_DURATION), otel_metrics.point(names.PUBLISH_DURATION)
    assert 0 < duration.sum <= waited.sum < 60


async def test_a_commit_links_the_publishes_that_it_holds(datasette: Datasette, otel_spans: Any) -> None:
    await asyncio.gather(*(publish(datasette, str(number)) for number in range(5)))
    found = otel_spans.get_finished_spans()
    publishes = {span.context.span_id for span in found if span.name == "publish"}
    commits = [span for span in found if span.name == "commit"]
    linked = [link.context.span_id for commit in commits for link in commit.links]
    assert len(publishes) == 5
    assert sorted(linked) == sorted(publishes)
    assert sum(commit.attributes[names.PUBLISHES] for commit in commits) == 5
    assert all(commit.parent is None and commit.start_time < commit.end_time for commit in commits)


async def test_a_refused_publish_tells_the_class_of_the_error(datasette: Datasette, otel_spans: Any) -> None:
    broker = registry(datasette).of("data")
    with trace.get_tracer("test").start_as_current_span("a request"), pytest.raises(InvalidArgument):
        await broker.publish([Item("", SECRET)])
    (span,) = [span for span in otel_spans.get_finished_spans() if span.name == "publish"]
    assert span.attributes["error.type"] == "InvalidArgument"
    assert not span.status.is_ok
    assert not span.events, "the text of the error may hold what the caller sent"


async def test_without_a_traced_request_there_are_no_spans(datasette: Datasette, otel_spans: Any) -> None:
    broker = registry(datasette).of("data")
    await broker.publish([Item("news", "one")])
    async with broker.subscribe(SubscribeOptions(selector=Selector.of(["news"])), SseEncoder()):
        pass
    assert [span.name for span in otel_spans.get_finished_spans() if span.instrumentation_scope.name == SCOPE] == []


async def test_the_end_of_a_stream_links_its_opening(datasette: Datasette, otel_spans: Any) -> None:
    await publish(datasette, "one", "two")
    await read(registry(datasette).of("data"), 2)
    found = {span.name: span for span in otel_spans.get_finished_spans()}
    opening, end = found["subscribe"], found["end"]
    assert [link.context.span_id for link in end.links] == [opening.context.span_id]
    assert (end.parent, end.attributes[names.DELIVERED]) == (None, 2)
    assert opening.parent.span_id == found["a request"].context.span_id
    assert end.attributes[names.REASON] == "closed"


async def test_nothing_that_a_visitor_sent_is_told(
    datasette: Datasette, otel_spans: Any, otel_metrics: MetricsCollector
) -> None:
    await publish(datasette, SECRET, channel=f"about/{SECRET}")
    await everything(datasette)
    await collected(otel_metrics)
    found = otel_spans.get_finished_spans()
    assert_no_forbidden_values({SECRET}, finished_spans=found, collector=otel_metrics, scope_name=SCOPE)


async def test_a_database_that_is_removed_is_not_reported(datasette: Datasette, otel_metrics: MetricsCollector) -> None:
    registry(datasette).of("data")
    otel_metrics.collect()
    assert otel_metrics.points(names.HEAD, DATA)
    datasette.remove_database("data")
    await asyncio.sleep(0.5)
    otel_metrics.collect()
    assert not otel_metrics.points(names.HEAD, DATA)
