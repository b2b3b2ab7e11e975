"""Request coalescing: many requests with the same question share one answer.

:class:`SingleFlight` stores no answers: each answer is computed after the question was asked. A question that arrives
while the same one is being answered waits for the next run, which begins when the present one ends.
:class:`TtlCache` stores a bounded number of answers, each with the time of its question; the caller says how old an
answer may be. Both run on the event loop only and need no locks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs each question once for all that ask it together. A key names everything that the answer depends on."""

    def __init__(self) -> None:
        #: For each question that is being answered: the futures that the next run will answer.
        self._waiting: dict[Hashable, list[asyncio.Future[T]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, key: Hashable, answer: Callable[[], Awaitable[T]]) -> T:
        """The result of a call of ``answer`` that begins after this call. Raises what ``answer`` raises.

        ``answer`` runs in a new context, so that it cannot use the context variables of one of the callers.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(future)
        else:
            self._waiting[key] = [future]
            task = asyncio.get_running_loop().create_task(
                self._answer(key, answer), name="pubsub single flight", context=Context()
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _answer(self, key: Hashable, answer: Callable[[], Awaitable[T]]) -> None:
        try:
            while askers := self._waiting[key]:
                self._waiting[key] = []
                await self._round(askers, answer)
        finally:
            for future in self._waiting.pop(key):
                future.cancel()

    async def _round(self, askers: list[asyncio.Future[T]], answer: Callable[[], Awaitable[T]]) -> None:
        try:
            found = await answer()
        except Exception as error:
            for future in askers:
                if not future.done():
                    future.set_exception(error)
        except BaseException:
            for future in askers:
                future.cancel()
            raise
        else:
            for future in askers:
                if not future.done():
                    future.set_result(found)


#: The most answers that a cache holds; when it is full, it is cleared.
MAX_ANSWERS = 1_000


class TtlCache:
    """Stores answers for a short time. A key names everything that the answer depends on."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[float, Any]] = {}

    def get(self, key: Hashable, seconds: float) -> Any:
        """The answer, if its question was asked at most this many seconds ago, else ``None``."""
        found = self._answers.get(key)
        return found[1] if found is not None and time.monotonic() - found[0] < seconds else None

    def put(self, key: Hashable, asked: float, answer: Any) -> None:
        """Store an answer. ``asked`` is the time of its question, on :func:`time.monotonic`'s clock."""
        if len(self._answers) >= MAX_ANSWERS:
            self._answers.clear()
        self._answers[key] = (asked, answer)
