"""The request context and the thread bridge, by which publish_batch in a SQL thread checks permissions and publishes.

SQL that runs for a request is checked with that request's actor. SQL that Datasette or a plugin runs without a request
is trusted.

A thread of SQL that reads runs each call in a copy of the request's context. The write thread runs all calls in its
own, which is empty or, where threads inherit (``sys.flags.thread_inherit_context``, which is on in a free-threaded
Python 3.14), that of the request, task or startup that happened to start it. So nothing there may be believed: the
write thread begins with :func:`forget_request`, ``write_wrapper`` sets the request of each write, and permissions are
checked in an empty context.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
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

#: How long a SQL thread waits for its messages to become durable, in seconds: far more than SQLite waits for a lock
#: (5 s), so only a stopped server reaches it.
WAIT_SECONDS = 60

T = TypeVar("T")


class RequestContext:
    """The context of the present request. Its ``request`` is set when Datasette asks for the actor."""

    def __init__(self, request: Request | None = None, run: Run | None = None) -> None:
        self.request = request
        #: The run that a visitor has asked for with a button; it records what is published.
        self.asked_for = run
        #: What the request's statements have published, in their order.
        self.runs: list[Run] = []
        #: Whether the request is for the page of a table or view, for which Datasette runs the same SQL several times.
        self.table_page = False
        #: Why publish_batch has not published for this request.
        self.refused: PubsubError | None = None
        #: Held while it is decided which statement of the request publishes: they may run in several threads.
        self.deciding = threading.Lock()


#: The context of the present request; ``None`` outside a request.
current: ContextVar[RequestContext | None] = ContextVar("datasette_pubsub_caller", default=None)


def forget_request() -> None:
    """A write thread begins: it runs for no request until a write says so. On the event loop this does nothing."""
    if _running_loop() is None:
        current.set(None)


class Bridge:
    """Publishes from the SQL threads of one Datasette."""

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        threads = int(datasette.setting("num_sql_threads"))
        #: A waiting call occupies its SQL thread, and checking its permission needs another one.
        self._limit = threads - 1
        self._slots = threading.BoundedSemaphore(self._limit) if self._limit > 0 else None

    def publish(self, broker: Broker, chunk: Sequence[Item], blocks: bool) -> None:
        """Check permissions and publish one chunk through the batcher; returns when it is durable.

        ``blocks`` says that the file is not in WAL mode yet, so that nothing
        can be written while the SELECT reads it.
        """
        if self._slots is None:
            raise FailedPrecondition(
                "publish_batch in a SELECT waits in a SQL thread: set num_sql_threads to 2 or more"
            )
        if not self._slots.acquire(blocking=False):
            raise TooManyRequests(f"{self._limit} publish_batch queries are running; the limit is num_sql_threads - 1")
        try:
            self._wait(self._publish(broker, current.get(), chunk, blocks), copy_context())
        finally:
            self._slots.release()

    async def _publish(
        self, broker: Broker, caller: RequestContext | None, chunk: Sequence[Item], blocks: bool
    ) -> None:
        await self._check(broker, caller, chunk)
        broker.store.check_writable()
        if blocks:
            # The reason why the last attempt failed, if there was one, may be gone at the next.
            conflict = broker.store.conflict
            await broker.store.prepare_later()
            raise conflict or Unavailable(
                f"database {broker.name} had no log yet and is being prepared for publishing; run the query again"
            )
        await registry(self._datasette).of(broker.name).publish(chunk)

    def permit(self, broker: Broker, chunk: Sequence[Item]) -> None:
        """Check permissions for a publish_batch on the write connection."""
        caller = current.get()
        if caller is not None:
            self._wait(self._check(broker, caller, chunk), Context())

    async def _check(self, broker: Broker, caller: RequestContext | None, chunk: Sequence[Item]) -> None:
        if caller is None:
            return
        request = caller.request
        if request is None:
            raise PermissionDenied("permission denied: the request has no actor yet")
        if caller.asked_for is None:
            check_same_origin(request)
        await require_publish(self._datasette, request.actor, broker.name, {item.channel for item in chunk})

    def _wait(self, work: Coroutine[Any, Any, T], context: Context) -> T:
        """Run a coroutine on the event loop, in a copy of this context, and wait for it."""
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
            future = context.run(asyncio.run_coroutine_threadsafe, work, loop)
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
    """Refuse to publish for a request that a page of another site made the browser send.

    Datasette checks POST, but a SELECT may come as GET. A browser says where a
    request comes from (``Sec-Fetch-Site``, https://www.w3.org/TR/fetch-metadata/).
    If it does not, and sends cookies, its referrer must be this host.
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
    """The bridge of this Datasette; it lives and ends with it."""
    return attached(datasette, Bridge, lambda: Bridge(datasette))
