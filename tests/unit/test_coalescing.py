"""One answer for all who ask at the same time, never older than the question; and answers that are kept a moment."""

from __future__ import annotations

import asyncio
import time

import pytest

from datasette_pubsub.live import coalescing
from datasette_pubsub.live.coalescing import SingleFlight


class Question:
    """Answers with what is true when it begins, and takes until it is let go."""

    def __init__(self) -> None:
        self.truth = "old"
        self.begun = 0
        self.go = asyncio.Event()

    async def answer(self) -> str:
        self.begun += 1
        found = self.truth
        await self.go.wait()
        if found == "wrong":
            raise ValueError(found)
        return found


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_who_asks_later_gets_a_later_answer() -> None:
    flight: SingleFlight[str] = SingleFlight()
    question = Question()
    first = [asyncio.create_task(flight.ask("key", question.answer)) for _ in range(3)]
    await turns()
    assert question.begun == 1
    question.truth = "new"
    later = [asyncio.create_task(flight.ask("key", question.answer)) for _ in range(3)]
    other = asyncio.create_task(flight.ask("other", question.answer))
    await turns()
    assert question.begun == 2, "the other question has its own round, the later askers wait for theirs"
    question.go.set()
    assert await asyncio.gather(*first) == ["old"] * 3
    assert await asyncio.gather(*later) == ["new"] * 3
    assert await other == "new"
    assert question.begun == 3
    assert await flight.ask("key", question.answer) == "new", "and nothing is kept"
    assert question.begun == 4


@pytest.mark.asyncio
async def test_an_asker_that_leaves_takes_nobody_along_and_an_error_reaches_all() -> None:
    flight: SingleFlight[str] = SingleFlight()
    question = Question()
    leaves = asyncio.create_task(flight.ask("key", question.answer))
    stays = asyncio.create_task(flight.ask("key", question.answer))
    await turns()
    question.truth = "wrong"
    failing = [asyncio.create_task(flight.ask("key", question.answer)) for _ in range(2)]
    await turns()
    leaves.cancel()
    question.go.set()
    assert await stays == "old"
    assert [type(error) for error in await asyncio.gather(*failing, return_exceptions=True)] == [ValueError] * 2
    with pytest.raises(asyncio.CancelledError):
        await leaves
    question.truth = "right"
    assert await flight.ask("key", question.answer) == "right"


def test_answers_are_kept_by_age_and_not_without_end() -> None:
    answers = coalescing.TtlCache()
    now = time.monotonic()
    answers.put("old", now - 10, "yes")
    assert answers.get("old", 5) is None
    assert answers.get("old", 3600) == "yes"
    answers.put("old", now, "newer")
    assert answers.get("old", 3600) == "newer"
    assert answers.get("never asked", 3600) is None
    for number in range(coalescing.MAX_ANSWERS):
        answers.put(number, now, number)
    kept = [number for number in ("old", *range(coalescing.MAX_ANSWERS)) if answers.get(number, 3600) is not None]
    assert coalescing.MAX_ANSWERS - 1 in kept
    assert len(kept) <= coalescing.MAX_ANSWERS
