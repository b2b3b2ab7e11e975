"""The tasks of a relay end when they are told to."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from datasette_pubsub.relay.outcomes import Refused
from datasette_pubsub.relay.session import beside, end


async def deaf(times: int) -> None:
    """Pass over so many cancellations, as nats-py does while it sends."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not times:
                raise
            times -= 1


async def fail() -> NoReturn:
    raise Refused("no")


@pytest.mark.asyncio
async def test_a_task_that_passes_over_cancellations_ends() -> None:
    tasks = [asyncio.ensure_future(deaf(times)) for times in (0, 1, 3)]
    failed = asyncio.ensure_future(fail())
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await end(*tasks, failed)
    assert all(task.cancelled() for task in tasks)
    assert failed.done()


@pytest.mark.asyncio
async def test_so_does_what_runs_beside_it() -> None:
    """When it is cancelled, and when the other one fails."""
    both = asyncio.ensure_future(beside(deaf(2), deaf(1)))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await end(both)
        with pytest.raises(Refused):
            await beside(fail(), deaf(2))
    assert both.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
