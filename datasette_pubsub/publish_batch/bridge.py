"""Who runs a piece of SQL: the bridge from SQL threads back to permissions and the batcher.

The law of this module: publish_batch asks here, from whatever thread it runs
in. Code of Datasette or of a plugin that runs SQL without a request is trusted;
everything that runs for a request is checked as that request's actor.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from datasette.utils.asgi import Request

from ..access.permissions import require_publish
from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.attachment import attached
from ..core.errors import FailedPrecondition, PermissionDenied, PubsubError, TooManyRequests, Unavailable
from ..core.values import Item
from .aggregate import Run
from .gc_pause import gc_paused

if TYPE_CHECKING:
    from datasette.app import Datasette

#: How long a SQL thread waits for its messages to become durable, in seconds:
#: far above SQLite's own wait for a lock (5 s), so only a dead server reaches it.
WAIT_SECONDS = 60

T = TypeVar("T")


class RequestContext:
    """The request that is being served; known from the moment Datasette asks for its actor."""

    def __init__(self, request: Request | None = None, run: Run | None = None) -> None:
        self.request = request
        #: The run that somebody has asked for by a button, which is to be noted here.
        self.asked_for = run
        #: What the request's statements have published, in their order.
        self.runs: list[Run] = []
        #: Whether Datasette makes the page of a table or view, for which it runs the same SQL several times.
        self.table_page = False
        #: Why publish_batch has not published for this request.
        self.refused: PubsubError | None = None


#: ``None`` where no request is being served.
current: ContextVar[RequestContext | None] = ContextVar("datasette_pubsub_caller", default=None)


class Bridge:
    """Publishing from SQL threads for one Datasette."""

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        threads = int(datasette.setting("num_sql_threads"))
        #: A waiting call keeps its SQL thread, and checking its permission needs another one.
        self._limit = threads - 1
        self._slots = threading.BoundedSemaphore(self._limit) if self._limit > 0 else None

    def publish(self, broker: Broker, chunk: Sequence[Item], blocks: bool) -> None:
        """Check the caller and publish one chunk through the batcher; returns when it is durable.

        ``blocks`` says that the file is not in WAL mode yet, so that nothing
        can be written while the caller's SELECT is reading.
        """
        if self._slots is None:
            raise FailedPrecondition(
                "publish_batch in a SELECT waits in a SQL thread: set num_sql_threads to 2 or more"
            )
        if not self._slots.acquire(blocking=False):
            raise TooManyRequests(f"{self._limit} publish_batch queries are running; the limit is num_sql_threads - 1")
        try:
            self._wait(self._publish(broker, current.get(), chunk, blocks))
        finally:
            self._slots.release()

    async def _publish(
        self, broker: Broker, caller: RequestContext | None, chunk: Sequence[Item], blocks: bool
    ) -> None:
        await self._check(broker, caller, chunk)
        broker.store.check_writable()
        if blocks:
            # What stood in the way of the last attempt, if there was one, may be gone for the next.
            conflict = broker.store.conflict
            await broker.store.prepare_later()
            raise conflict or Unavailable(
                f"database {broker.name} had no log yet and is being prepared for publishing; run the query again"
            )
        await registry(self._datasette).of(broker.name).publish(chunk)

    def permit(self, broker: Broker, chunk: Sequence[Item]) -> None:
        """Check the caller of a publish_batch that runs on the write connection."""
        caller = current.get()
        if caller is not None:
            self._wait(self._check(broker, caller, chunk))

    async def _check(self, broker: Broker, caller: RequestContext | None, chunk: Sequence[Item]) -> None:
        if caller is None:
            return
        request = caller.request
        if request is None:
            raise PermissionDenied("permission denied: the request has no actor yet")
        if caller.asked_for is None:
            check_same_origin(request)
        await require_publish(self._datasette, request.actor, broker.name, {item.channel for item in chunk})

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        loop = registry(self._datasette).loop
        if loop is None or loop is _running_loop():
            work.close()
            raise FailedPrecondition("publish_batch needs a running server with SQL threads (num_sql_threads)")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(gc_paused())
            except Unavailable:
                work.close()
                raise
            future = asyncio.run_coroutine_threadsafe(work, loop)
            try:
                return future.result(WAIT_SECONDS)
            except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
                future.cancel()
                raise Unavailable("the server is shutting down; whether this was published is not known") from None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def check_same_origin(request: Request) -> None:
    """Refuse to publish for a page of another site that makes a browser open a link.

    Datasette checks POST; a SELECT may come as GET. A browser says where a
    request comes from (``Sec-Fetch-Site``, https://www.w3.org/TR/fetch-metadata/);
    one that does not, but sends cookies, must name this host as its referrer.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        allowed = site == "same-origin"
    elif "cookie" in request.headers and request.method == "GET":
        source = request.headers.get("origin") or request.headers.get("referer") or ""
        allowed = urlsplit(source).netloc == request.headers.get("host")
    else:
        allowed = True
    if not allowed:
        raise PermissionDenied(
            "permission denied: publish_batch was started by a link from elsewhere; run it from Datasette's SQL page"
        )


def bridge(datasette: Datasette) -> Bridge:
    """The bridge of this Datasette; lives and ends with it."""
    return attached(datasette, Bridge, lambda: Bridge(datasette))
