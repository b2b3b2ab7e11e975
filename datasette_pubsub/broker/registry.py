"""The registry of one Datasette: finds, starts and stops the broker of each database.

It is attached to the Datasette instance, not to the process: it lives and ends with that instance.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from ..core.attachment import attached
from ..core.configuration import read_settings
from ..core.errors import InvalidArgument, NotFound
from ..core.settings import PLUGIN, Settings
from ..live.coalescing import SingleFlight, TtlCache
from .broker import Broker

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The TTL of a permission verdict, in seconds, and at most half of ``permission_recheck_seconds``. A permission check
#: takes longer than all the rest of a small publish; and ten thousand subscribers with the same question would take a
#: fifth of a core.
MOMENT_SECONDS = 1.0


class Registry:
    """The brokers of one Datasette: one for each enabled database, made when first needed."""

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        self._brokers: dict[str, Broker] = {}
        self._lock = threading.Lock()
        self._closing = False
        #: Coalesces permission checks that many requests need at the same time.
        self.single_flight: SingleFlight[Any] = SingleFlight()
        #: Recent permission verdicts.
        self.ttl_cache = TtlCache()
        #: The event loop of the server, when it is known; SQL threads call into it.
        self.loop: asyncio.AbstractEventLoop | None = None
        #: Whether the handlers for the signals that end the server are installed.
        self.listening = False
        #: The server, if its connections can be aborted.
        self.server: object = None

    def moment(self, name: str) -> float:
        """The TTL of a permission verdict for a database, in seconds."""
        broker = self.find(name)
        return MOMENT_SECONDS if broker is None else min(MOMENT_SECONDS, broker.settings.permission_recheck_seconds / 2)

    def begin(self) -> None:
        """Remember the event loop; called on it by the startup hook, which may run on another loop than requests."""
        self.loop = asyncio.get_running_loop()

    def settings(self, name: str) -> Settings:
        """The options of a database. Raises :class:`~.core.settings.ConfigError`."""
        return read_settings(
            self._datasette.plugin_config(PLUGIN),
            self._datasette.plugin_config(PLUGIN, database=name, fallback=False),
        )

    @property
    def instance_settings(self) -> Settings:
        """The options of the instance, which apply unless a database overrides them."""
        return read_settings(self._datasette.plugin_config(PLUGIN))

    def find(self, name: str) -> Broker | None:
        """The broker of a database; ``None`` if the database is unknown or not enabled. Thread-safe."""
        db = self._datasette.databases.get(name)
        if db is None:
            return None
        with self._lock:
            broker = self._brokers.get(name)
            if broker is None or not broker.serves(db):
                settings = self.settings(name)
                if not settings.enabled:
                    return None
                broker = self._brokers[name] = Broker(self._datasette, db, settings)
            return broker

    def of(self, name: str) -> Broker:
        """The broker of a database, started. Call it on the event loop.

        Raises :class:`~.core.errors.NotFound` if the database is unknown or not
        enabled.
        """
        if not name:
            raise InvalidArgument("db_name is required")
        if self.loop is None or not self.loop.is_running():
            # Not at each request: asking for the loop is a system call on Python 3.11.
            self.begin()
        broker = self.find(name)
        if broker is None:
            raise NotFound(f"database not found: {name}")
        broker.start()
        if self._closing:
            broker.close_streams()
        return broker

    def close_streams(self) -> None:
        """End every stream of every database because the server shuts down."""
        self._closing = True
        for broker in list(self._brokers.values()):
            broker.close_streams()

    async def stop(self) -> None:
        """End all streams and write all accepted publishes."""
        self.close_streams()
        await asyncio.gather(*(broker.stop() for broker in list(self._brokers.values())))


def registry(datasette: Datasette) -> Registry:
    """The registry of this Datasette; it lives and ends with it.

    Example::

        from datasette_pubsub.broker.registry import registry

        broker = registry(datasette).of("data")
        assert broker.name == "data"
        assert registry(datasette).find("no-such-database") is None
    """
    return attached(datasette, Registry, lambda: Registry(datasette))
