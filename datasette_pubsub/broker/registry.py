"""The brokers of one Datasette: which databases take part, and when they begin and end.

The law of this module: nothing is kept per process. What belongs to a
Datasette lives and ends with it.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from ..core.attachment import attached
from ..core.errors import InvalidArgument, NotFound
from ..core.settings import PLUGIN, Settings, read_settings
from ..live.coalescing import SingleFlight, TtlCache
from .broker import Broker

if TYPE_CHECKING:
    from datasette.app import Datasette

#: How old an answer about rights may be, in seconds, and at most half of ``permission_recheck_seconds``. Asking
#: Datasette takes longer than all the rest of a small publish; and of ten thousand readers each would ask the same, at
#: a fifth of a core.
MOMENT_SECONDS = 1.0


class Registry:
    """The brokers of one Datasette: one for each database that takes part, made when first needed."""

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        self._brokers: dict[str, Broker] = {}
        self._lock = threading.Lock()
        self._closing = False
        #: Questions about permissions that many requests ask at once.
        self.single_flight: SingleFlight[Any] = SingleFlight()
        #: What was answered to such questions a moment ago.
        self.ttl_cache = TtlCache()
        #: The event loop that serves, once there is one; SQL threads hand their work to it.
        self.loop: asyncio.AbstractEventLoop | None = None
        #: Whether the signals that end the server are heard.
        self.listening = False
        #: The server, where it is one that lets its connections be aborted.
        self.server: object = None

    def moment(self, name: str) -> float:
        """How old an answer about the rights in a database may be, in seconds."""
        broker = self.find(name)
        return MOMENT_SECONDS if broker is None else min(MOMENT_SECONDS, broker.settings.permission_recheck_seconds / 2)

    def begin(self) -> None:
        """Remember the event loop; called on it, by Datasette's startup."""
        self.loop = asyncio.get_running_loop()

    def settings(self, name: str) -> Settings:
        """The options of a database. Raises :class:`~.core.settings.ConfigError`."""
        return read_settings(
            self._datasette.plugin_config(PLUGIN),
            self._datasette.plugin_config(PLUGIN, database=name, fallback=False),
        )

    @property
    def instance_settings(self) -> Settings:
        """The options that hold where no database has its own."""
        return read_settings(self._datasette.plugin_config(PLUGIN))

    def find(self, name: str) -> Broker | None:
        """The broker of a database, ``None`` for an unknown one or one that does not take part. Thread-safe."""
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

        Raises :class:`~.core.errors.NotFound` for an unknown database and for one
        that does not take part.
        """
        if not name:
            raise InvalidArgument("db_name is required")
        self.loop = asyncio.get_running_loop()
        broker = self.find(name)
        if broker is None:
            raise NotFound(f"database not found: {name}")
        broker.start()
        if self._closing:
            broker.close_streams()
        return broker

    def close_streams(self) -> None:
        """Tell every stream of every database that the server is going away."""
        self._closing = True
        for broker in list(self._brokers.values()):
            broker.close_streams()

    async def stop(self) -> None:
        """End all streams and write what was accepted."""
        self.close_streams()
        await asyncio.gather(*(broker.stop() for broker in list(self._brokers.values())))


def registry(datasette: Datasette) -> Registry:
    """The brokers of this Datasette; they live and end with it."""
    return attached(datasette, Registry, lambda: Registry(datasette))
