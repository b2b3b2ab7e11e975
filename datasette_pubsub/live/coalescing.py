"""Request coalescing: one answer for all who ask the same at the same time, or a moment later.

:class:`SingleFlight` keeps nothing: an answer is never older than the question. Who asks while a question is being
answered waits for the next round, which begins after that. :class:`TtlCache` keeps answers, bounded in number, with the
time at which each was asked for; the caller says how old one may be. Event loop only, without locks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Questions that are being answered, by a key that says all that the answer depends on."""

    def __init__(self) -> None:
        #: For each question that is being answered: who waits for its next round.
        self._waiting: dict[Hashable, list[asyncio.Future[T]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, key: Hashable, answer: Callable[[], Awaitable[T]]) -> T:
        """The answer, as ``answer`` gives it, begun after this call. Raises what it raises.

        It runs in a context of its own: what one asker's context holds is not another's.
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


#: How many answers are kept at most; then they are forgotten, and asked for again.
MAX_ANSWERS = 1_000


class TtlCache:
    """Answers by a key that says all that they depend on."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[float, Any]] = {}

    def get(self, key: Hashable, seconds: float) -> Any:
        """The answer, if it was asked for within so many seconds, else ``None``."""
        found = self._answers.get(key)
        return found[1] if found is not None and time.monotonic() - found[0] < seconds else None

    def put(self, key: Hashable, asked: float, answer: Any) -> None:
        """Keep an answer. ``asked`` is when its question was asked, on :func:`time.monotonic`'s clock."""
        if len(self._answers) >= MAX_ANSWERS:
            self._answers.clear()
        self._answers[key] = (asked, answer)
