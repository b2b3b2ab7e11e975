"""One answer for all who ask at the same time, and never one that is older than the question."""

from __future__ import annotations

import asyncio

import pytest

from datasette_pubsub.rounds import Rounds


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
    rounds: Rounds[str] = Rounds()
    question = Question()
    first = [asyncio.create_task(rounds.ask("key", question.answer)) for _ in range(3)]
    await turns()
    assert question.begun == 1
    question.truth = "new"
    later = [asyncio.create_task(rounds.ask("key", question.answer)) for _ in range(3)]
    other = asyncio.create_task(rounds.ask("other", question.answer))
    await turns()
    assert question.begun == 2, "the other question has its own round, the later askers wait for theirs"
    question.go.set()
    assert await asyncio.gather(*first) == ["old"] * 3
    assert await asyncio.gather(*later) == ["new"] * 3
    assert await other == "new"
    assert question.begun == 3
    assert await rounds.ask("key", question.answer) == "new", "and nothing is kept"
    assert question.begun == 4


@pytest.mark.asyncio
async def test_an_asker_that_leaves_takes_nobody_along_and_an_error_reaches_all() -> None:
    rounds: Rounds[str] = Rounds()
    question = Question()
    leaves = asyncio.create_task(rounds.ask("key", question.answer))
    stays = asyncio.create_task(rounds.ask("key", question.answer))
    await turns()
    question.truth = "wrong"
    failing = [asyncio.create_task(rounds.ask("key", question.answer)) for _ in range(2)]
    await turns()
    leaves.cancel()
    question.go.set()
    assert await stays == "old"
    assert [type(error) for error in await asyncio.gather(*failing, return_exceptions=True)] == [ValueError] * 2
    with pytest.raises(asyncio.CancelledError):
        await leaves
    question.truth = "right"
    assert await rounds.ask("key", question.answer) == "right"
