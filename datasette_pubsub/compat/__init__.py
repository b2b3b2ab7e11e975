"""Every use of undocumented behaviour of Datasette, asyncio, uvicorn, hypercorn and Linux.

Each function says why the plugin needs it, and what it does if the undocumented part is missing.
``tests/server/test_acked_compat.py``, ``tests/unit/test_health_compat.py`` and
``tests/unit/test_compat_permissions.py`` fail when upstream changes one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import select
import socket
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from datasette import database as _database
from datasette import permissions as _permissions
from datasette.utils.permissions import SKIP_PERMISSION_CHECKS as _SKIP_ALL
from datasette.utils.permissions import gather_permission_sql_from_hooks as _gather

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

_skip_checks: ContextVar[bool] | None = getattr(_permissions, "_skip_permission_checks", None)
_answers: ContextVar[dict[Any, Any] | None] | None = getattr(_permissions, "_permission_check_cache", None)

#: The key in a request's scope for the server's own ``receive`` and ``send``; see :func:`with_server`.
_SERVER = "datasette_pubsub.server"

#: Called with the error that ended a connection, or ``None``.
Lost = Callable[[Exception | None], None]

#: The offset of ``tcpi_bytes_acked``, a ``__u64``, in ``struct tcp_info`` of linux/tcp.h (Linux 4.1), in bytes.
_TCPI_BYTES_ACKED = 120
_TCP_INFO_BYTES = _TCPI_BYTES_ACKED + 8

#: linux/sockios.h: the bytes in a socket's send queue; for TCP, the bytes that are not acknowledged.
_SIOCOUTQ = 0x5411

#: macOS, sys/socket.h: the bytes in a socket's send buffer; for TCP, the bytes that are not acknowledged.
_SO_NWRITE = 0x1024

LINUX = sys.platform == "linux"
MACOS = sys.platform == "darwin"


def with_server(scope: Mapping[str, Any], receive: Any, send: Any) -> dict[str, Any]:
    """A copy of a request's scope that holds the server's ``receive`` and ``send``, for the functions below.

    The outermost ASGI wrapper calls this. ASGI does not lead from a request to its connection, but the ``receive``
    and ``send`` that a server passes are methods of the server's objects; those that a wrapper passes on are not.
    """
    return {**scope, _SERVER: (receive, send)}


def transport_of(scope: Mapping[str, Any]) -> asyncio.Transport | None:
    """The asyncio transport of a request's connection; ``None`` if it cannot be reached.

    The plugin needs the server's buffers and the socket to learn what has arrived, and ASGI cannot end a connection
    whose peer accepts no data. The transport is found under uvicorn (both HTTP implementations) and under hypercorn on
    asyncio or uvloop. It is not found under granian, hypercorn on trio, or a wrapper outside Datasette that passes its
    own ``receive``.
    """
    receive, send = scope.get(_SERVER, (None, None))
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:
        transport = getattr(getattr(_hypercorn_server(send), "writer", None), "transport", None)
    if not all(hasattr(transport, name) for name in ("get_write_buffer_size", "get_protocol", "abort", "is_closing")):
        return None
    return cast(asyncio.Transport, transport)


def server_of(handler: object) -> object:
    """The server that a signal handler belongs to: uvicorn's handler is a method of its ``Server``. Else ``None``.

    The plugin needs it to reach all connections of a server that is shutting down.
    """
    return getattr(handler, "__self__", None)


def transports_of(server: object) -> list[asyncio.Transport]:
    """The transports of a uvicorn server's connections; an empty list for other servers.

    The plugin needs them because a server that shuts down waits for peers that accept no data.
    """
    connections = list(getattr(getattr(server, "server_state", None), "connections", ()))
    found = [getattr(connection, "transport", None) for connection in connections]
    return [transport for transport in found if transport is not None]


def _hypercorn_protocol(send: Any) -> Any:
    """Hypercorn's ``H11Protocol`` or ``H2Protocol``: ``send`` is a method of its stream."""
    return getattr(getattr(getattr(send, "__self__", None), "send", None), "__self__", None)


def _hypercorn_server(send: Any) -> Any:
    """Hypercorn's ``TCPServer``, which serves one connection."""
    return getattr(getattr(_hypercorn_protocol(send), "send", None), "__self__", None)


def is_multiplexed(scope: Mapping[str, Any]) -> bool:
    """Whether other streams share the connection: HTTP/2."""
    return str(scope.get("http_version", "")).startswith(("2", "3"))


def held_back(scope: Mapping[str, Any]) -> Callable[[], int | None]:
    """A function that counts the bytes that the server has buffered and not yet passed to the transport.

    It returns ``None`` while the number is unknown. Hypercorn keeps the data of each HTTP/2 stream in a buffer, and
    writes it in another task. Other servers have passed all data on when a send returns.
    """
    if not is_multiplexed(scope):
        return lambda: 0
    send = scope.get(_SERVER, (None, None))[1]
    protocol, server = _hypercorn_protocol(send), _hypercorn_server(send)
    number = getattr(getattr(send, "__self__", None), "stream_id", None)

    def held() -> int | None:
        try:
            # While one task writes, another may have taken bytes from the buffer and may be waiting for the lock.
            return None if server.send_lock.locked() else len(protocol.stream_buffers[number].buffer)
        except (AttributeError, KeyError):
            return None

    return held


def beneath_tls(transport: asyncio.Transport) -> asyncio.Transport | None:
    """The transport below asyncio's TLS layer; ``None`` for other implementations of TLS.

    The plugin needs it because encrypted data waits in its buffer, and because it learns of the connection's end
    before the socket is closed; the TLS transport learns of it later.
    """
    found = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return found if isinstance(found, asyncio.Transport) else None


class _WhenLost:
    """Replaces a protocol's ``connection_lost``: it calls the watchers first, then the original."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self.watchers: dict[object, Lost] = {}
        self._protocol = protocol

    def __call__(self, error: Exception | None) -> None:
        del self._protocol.__dict__["connection_lost"]
        self.notify(error)
        self._protocol.connection_lost(error)

    def notify(self, error: Exception | None) -> None:
        watchers, self.watchers = self.watchers, {}
        for notify in watchers.values():
            notify(error)


def when_lost(transport: asyncio.BaseTransport, notify: Lost) -> Callable[[], None]:
    """Call a function when the connection has ended and its socket is still open; returns a function to undo this.

    asyncio and uvloop close the socket as soon as the protocol's ``connection_lost`` returns, long before the
    application learns of it, and the kernel reports what has arrived only while the socket is open. A duplicate
    descriptor (``dup``) for each stream would double their number. Raises ``TypeError`` for a protocol that does not
    allow attributes to be set.
    """
    protocol = transport.get_protocol()
    if not hasattr(protocol, "__dict__"):
        raise TypeError(f"{type(protocol).__name__} takes no attributes")
    hook = protocol.__dict__.get("connection_lost")
    if not isinstance(hook, _WhenLost):
        hook = protocol.__dict__["connection_lost"] = _WhenLost(protocol)
    key = object()
    hook.watchers[key] = notify

    def undo() -> None:
        hook.watchers.pop(key, None)
        if not hook.watchers and protocol.__dict__.get("connection_lost") is hook:
            del protocol.__dict__["connection_lost"]

    return undo


def abort(transport: asyncio.Transport) -> None:
    """Close a connection and drop its buffers; the functions that watch it are called first, while these are full.

    asyncio then reports no error to the protocol, as if all data had been written.
    """
    for each in (beneath_tls(transport), transport):
        hook = getattr(each and each.get_protocol(), "connection_lost", None)
        if isinstance(hook, _WhenLost):
            hook.notify(ConnectionAbortedError())
    transport.abort()


def bytes_acknowledged(sock: socket.socket) -> int:
    """How many bytes the peer's TCP has acknowledged since the connection began. Linux only; raises ``OSError``.

    Python has no names for the fields of ``TCP_INFO``. The number is still right after a reset, while the socket is
    open.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(info) < _TCP_INFO_BYTES:
        raise OSError("this kernel does not count acknowledged bytes")
    return int(struct.unpack_from("=Q", info, _TCPI_BYTES_ACKED)[0])


def bytes_outstanding(sock: socket.socket) -> int:
    """How many bytes the kernel holds that the peer has not acknowledged. Raises ``OSError``.

    On a Unix socket (Linux only) it is the memory that unread data takes, which is more than its bytes; 0 means that
    the peer's process has read everything.
    """
    if LINUX:
        import fcntl

        return int(struct.unpack("=i", fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4)))[0])
    if MACOS and sock.family != socket.AF_UNIX:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    raise OSError("this system does not report acknowledged bytes")


def has_hung_up(sock: socket.socket) -> bool:
    """Whether the connection has ended, even if the event loop does not know it yet. Does not clear a pending error."""
    poller = select.poll()
    poller.register(sock.fileno(), 0)
    return bool(poller.poll(0))


# -- asyncio ----------------------------------------------------------------------

try:
    from asyncio.tasks import _enter_task, _leave_task
except ImportError:  # pragma: no cover - they have existed since Python 3.7
    #: Whether code outside a task can run as that task; see :func:`enter_task`.
    CAN_ENTER_TASKS = False
else:
    CAN_ENTER_TASKS = True


def enter_task(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Make a suspended task the one that ``asyncio.current_task()`` returns, until :func:`leave_task`.

    The direct send needs this: what a server awaits while it sends (a timeout, a lock) belongs to the stream's task.
    The functions are documented for authors of event loops, with an underscore, and may change
    (https://docs.python.org/3/library/asyncio-extending.html#task-lifetime-support). If they are missing,
    :data:`CAN_ENTER_TASKS` is false, and each stream's own task sends.
    """
    _enter_task(loop, task)


def leave_task(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Undo :func:`enter_task`."""
    _leave_task(loop, task)


# -- Datasette --------------------------------------------------------------------


def write_thread_died(db: Database) -> bool:
    """Whether Datasette's write thread has died; ``False`` if that cannot be known.

    Datasette prints the errors of writes to standard error. If printing fails (a closed pipe, a full disk), the thread
    dies, and no later write gets an answer.
    """
    thread = getattr(db, "_write_thread", None)
    return thread is not None and not thread.is_alive() and not getattr(db, "_closed", False)


def forget_write_thread(db: Database) -> None:
    """Make the next write start a new write thread, which continues with the queue of the dead one.

    Datasette starts a thread only if it knows of none. If the attribute is missing, :func:`write_thread_died` is
    ``False``.
    """
    # The dead thread has left its connections open, perhaps inside a transaction.
    for conn in list(getattr(db, "_all_connections", [])):
        try:
            writes = conn.isolation_level == "IMMEDIATE"
        except sqlite3.ProgrammingError:
            # It is closed: a thread that is told to end closes its connection.
            writes = True
        if writes:
            db._all_connections.remove(conn)
            conn.close()
    db._write_thread = None


def can_reopen(db: Database) -> bool:
    """Whether the connections of a database can be reopened: whether the next two functions find what they need."""
    needed = ("_write_thread", "_write_queue", "_all_connections", "_pending_execute_futures", "_thread_local_id")
    return hasattr(_database, "_SHUTDOWN") and all(hasattr(db, name) for name in needed)


def end_write_thread(db: Database) -> None:
    """Ask the write thread to finish its queue, close its connection and end. Does not wait for it.

    The thread keeps one connection for ever, even if it could not open it, or if the file was replaced.
    ``Database.close()`` ends the thread as well, but a closed database cannot be used again.
    """
    if db._write_thread is not None and db._write_thread.is_alive():
        db._write_queue.put(_database._SHUTDOWN)


def leave_connections(db: Database) -> tuple[list[sqlite3.Connection], list[object]]:
    """Make every thread open a new connection; returns the old connections, and the reads that may still use them.

    Datasette keeps one read connection for each thread, under the database's name. Call this when no write thread is
    alive.
    """
    pending = list(db._pending_execute_futures)
    old, db._all_connections = db._all_connections, []
    db._thread_local_id = f"{db._thread_local_id}x"
    # Without SQL threads (num_sql_threads).
    db._read_connection = db._write_connection = None
    db._write_thread = None
    return old, pending


def checks_are_off() -> bool:
    """Whether Datasette skips permission checks (``with datasette.permissions.SkipPermissions()``).

    The plugin must then skip its own checks as well, and Datasette has no public way to ask. If the variable is
    missing, the checks are on.
    """
    return bool(_skip_checks is not None and _skip_checks.get())


def permission_cache() -> dict[Any, Any] | None:
    """Datasette's cache of permission checks in this request: the same object while it is valid, else ``None``.

    The plugin keeps its own verdicts exactly as long: Datasette makes a new cache when it wants to check again.
    """
    return None if _answers is None else _answers.get()


@contextlib.contextmanager
def without_permission_cache() -> Iterator[None]:
    """Within this block, Datasette checks permissions again instead of using the request's cache.

    A stream needs this to re-check permissions: its request may be days old.
    """
    if _answers is None:
        yield
        return
    token = _answers.set({})
    try:
        yield
    finally:
        _answers.reset(token)


async def permission_rules(datasette: Datasette, actor: dict[str, Any] | None, action: str) -> list[Any] | None:
    """The permission rules (``PermissionSQL``) of Datasette and all plugins; ``None`` while checks are skipped.

    The plugin needs them to decide for all databases with one query; ``datasette.allowed()`` checks one at a time.
    """
    found = await _gather(datasette=datasette, actor=actor, action=action)
    return None if found is _SKIP_ALL else list(found)


def write_thread_lives(db: Database) -> bool:
    """Whether the write thread is alive."""
    thread = getattr(db, "_write_thread", None)
    return thread is not None and thread.is_alive()


def prepare_isolated(db: Database, prepare: Callable[[sqlite3.Connection], None]) -> None:
    """Prepare, from now on, the connections on which Datasette analyses SQL. A second call does nothing.

    Datasette compiles stored queries and the SQL of its write page in ``execute_isolated_fn``, on connections that the
    hook ``prepare_connection`` never sees: the plugin's SQL function would not exist there.
    """
    isolated = db.execute_isolated_fn
    if getattr(isolated, "pubsub", False):
        return

    async def execute_isolated_fn(fn: Callable[[sqlite3.Connection], Any]) -> Any:
        @functools.wraps(fn)
        def prepared(conn: sqlite3.Connection) -> Any:
            prepare(conn)
            return fn(conn)

        return await isolated(prepared)

    execute_isolated_fn.pubsub = True  # type: ignore[attr-defined]
    db.execute_isolated_fn = execute_isolated_fn
