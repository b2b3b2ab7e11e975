"""A health check that finds no delivery says so, whatever the reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from datasette.app import Datasette

from datasette_pubsub.broker import probe
from datasette_pubsub.broker.broker import Broker
from datasette_pubsub.broker.registry import registry
from datasette_pubsub.core.values import Item

pytestmark = pytest.mark.asyncio

LATE = "a message was not delivered within 0.3 s after its commit"


@pytest_asyncio.fixture
async def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Broker]:
    monkeypatch.setattr(probe, "DELIVER_SECONDS", 0.3)
    (tmp_path / "data.db").touch()
    datasette = Datasette([str(tmp_path / "data.db")])
    await datasette.start_background_tasks()
    yield registry(datasette).of("data")
    await datasette.invoke_shutdown()


async def test_a_hub_that_tells_nobody_is_noticed(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await probe.Probe(broker).report()).ok
    monkeypatch.setattr(broker.hub, "committed", lambda *_: True)
    report = await probe.Probe(broker).report()
    assert (report.ok, report.error, report.message_id, report.deliver_seconds) == (False, LATE, 2, None)


async def test_a_stream_that_ends_is_no_delivery(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = broker.publish

    async def end_and_publish(items: Sequence[Item]) -> Any:
        broker.end_streams()
        return await publish(items)

    monkeypatch.setattr(broker, "publish", end_and_publish)
    report = await probe.Probe(broker).report()
    assert (report.ok, report.error, report.message_id, report.deliver_seconds) == (False, LATE, 1, None)
