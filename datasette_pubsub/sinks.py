"""Runs what other plugins return from ``pubsub_sinks``, and calls those with the hook ``pubsub_messages``.

Theory of operation. A sink is a named subscription with explicit acks, owned by the plugins. It is *subscribed*: it
takes what has arrived, gives it to its function, and moves the cursor when that returns. If the function raises, it is
*held up*: the same messages are given to it again, after a pause that grows. If the stream ends, it subscribes again.
Another process with the same sink on the same file takes the subscription over. This one then *stands by*: it looks
every :data:`STANDBY_SECONDS` whether nobody holds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from datasette.plugins import pm
from datasette.utils import await_me_maybe

from . import hookspecs
from .api import Messages, Sink, subscribe
from .broker.registry import registry
from .core.errors import InvalidArgument, NotFound, PubsubError
from .core.limits import PLUGIN_OWNER

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_pubsub")

#: The first pause after a failure, and the longest, in seconds.
PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 60.0

#: How often a sink that stands by looks whether nobody holds its subscription, in seconds.
STANDBY_SECONDS = 5.0

#: How many messages a call of ``pubsub_messages`` has at most.
CALL_MESSAGES = 1_000

pm.add_hookspecs(hookspecs)


def start(datasette: Datasette) -> None:
    """Start what the plugins have, as background tasks of Datasette. Raises ``ValueError`` for two with one name."""
    names: set[tuple[str, str]] = set()
    for sink in _sinks(datasette):
        if (sink.database, sink.name) in names:
            raise ValueError(f"two sinks of database {sink.database} are named {sink.name}")
        names.add((sink.database, sink.name))
        datasette.add_background_task(Runner(sink).run, name=f"pubsub sink: {sink.database} {sink.name}")
    if not pm.hook.pubsub_messages.get_hookimpls():
        return
    for name in datasette.databases:
        if registry(datasette).find(name) is not None:
            datasette.add_background_task(Caller(name).run, name=f"pubsub messages: {name}")


def _sinks(datasette: Datasette) -> Iterable[Sink]:
    for found in pm.hook.pubsub_sinks(datasette=datasette):
        yield from found or ()


class _Again:
    """Does something for ever: again at once when it has ended, and after a pause when it has failed."""

    what: str

    def __init__(self) -> None:
        self._pause = PAUSE_SECONDS

    async def run(self, datasette: Datasette) -> None:
        """Do it for ever; ends if the database is not served, or if what is asked for is wrong."""
        while True:
            try:
                await self.once(datasette)
            except (InvalidArgument, NotFound) as error:
                logger.error("%s: %s", self.what, error.message)
                return
            except PubsubError as error:
                logger.warning("%s: %s; trying again", self.what, error.message)
                await self.failed()
            except Exception:
                logger.exception("%s: trying again", self.what)
                await self.failed()

    async def once(self, datasette: Datasette) -> None:
        """Do it once."""
        raise NotImplementedError

    async def failed(self) -> None:
        """Pause: longer each time, until :meth:`succeeded`."""
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)

    def succeeded(self) -> None:
        self._pause = PAUSE_SECONDS


class Runner(_Again):
    """Runs one sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.what = f"database {sink.database}: sink {sink.name}"
        self._sink = sink

    async def once(self, datasette: Datasette) -> None:
        sink = self._sink
        async with subscribe(
            datasette,
            sink.database,
            *sink.channels,
            patterns=sink.patterns,
            filter=sink.filter,
            start=sink.start,
            subscription=sink.name,
        ) as messages:
            while found := await messages.batch(sink.batch):
                last = found[-1]
                await self._give(found)
                await messages.ack(last)
                self._told(messages)
        if messages.superseded:
            await self._stand_by(datasette)

    async def _give(self, found: list[Any]) -> None:
        while True:
            try:
                # A list of its own each time: the function may take messages out of it.
                await self._sink.handle(list(found))
            except Exception as error:
                logger.warning("%s: messages from %s on: %r; trying again", self.what, found[0].id, error)
                await self.failed()
            else:
                self.succeeded()
                return

    def _told(self, messages: Messages) -> None:
        if messages.missed:
            number = "an unknown number of" if messages.missed < 0 else f"{messages.missed:,}"
            logger.warning("%s: %s messages were trimmed before it had them", self.what, number)
            messages.missed = 0

    async def _stand_by(self, datasette: Datasette) -> None:
        logger.info("%s: another process runs it; standing by", self.what)
        while True:
            await asyncio.sleep(STANDBY_SECONDS)
            rows = await registry(datasette).of(self._sink.database).subscriptions(PLUGIN_OWNER)
            if not any(row["subscription"] == self._sink.name and row["connected"] for row in rows):
                return


class Caller(_Again):
    """Calls ``pubsub_messages`` with what is committed to one database."""

    def __init__(self, database: str) -> None:
        super().__init__()
        self.what = f"database {database}: pubsub_messages"
        self._database = database

    async def once(self, datasette: Datasette) -> None:
        async with subscribe(datasette, self._database, patterns=["*"]) as messages:
            while found := await messages.batch(CALL_MESSAGES):
                for implementation in pm.hook.pubsub_messages.get_hookimpls():
                    await self._call(datasette, implementation, found)

    async def _call(self, datasette: Datasette, implementation: Any, found: list[Any]) -> None:
        """One plugin's error keeps no other from its messages."""
        known = {"datasette": datasette, "database": self._database, "messages": found}
        try:
            await await_me_maybe(
                implementation.function(**{name: known[name] for name in implementation.argnames if name in known})
            )
        except Exception:
            logger.exception("%s of the plugin %s", self.what, implementation.plugin_name)
