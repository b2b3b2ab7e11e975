"""What leans on more than a documented interface: of Datasette, asyncio, uvicorn, hypercorn and Linux.

Each function says why it is needed and what it does where the thing is not there.
``tests/server/test_acked_compat.py``, ``tests/unit/test_health_compat.py`` and
``tests/unit/test_compat_permissions.py`` fail when one of them changes.
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

#: Where a request's scope holds the server's own ``receive`` and ``send``; see :func:`with_server`.
_SERVER = "datasette_pubsub.server"

#: Called with the error that ended a connection, or ``None``.
Lost = Callable[[Exception | None], None]

#: ``struct tcp_info`` in linux/tcp.h: where ``tcpi_bytes_acked``, a ``__u64``, begins (Linux 4.1), in bytes.
_TCPI_BYTES_ACKED = 120
_TCP_INFO_BYTES = _TCPI_BYTES_ACKED + 8

#: linux/sockios.h: the bytes of a socket's send queue, of TCP those that are not acknowledged.
_SIOCOUTQ = 0x5411

#: macOS, sys/socket.h: the bytes in a socket's send buffer, of TCP those that are not acknowledged.
_SO_NWRITE = 0x1024

LINUX = sys.platform == "linux"
MACOS = sys.platform == "darwin"


def with_server(scope: Mapping[str, Any], receive: Any, send: Any) -> dict[str, Any]:
    """The scope of a request, from which the functions below find the server. For the outermost wrapper.

    ASGI has no way from a request to its connection. The ``receive`` and ``send`` that a server calls an application
    with are methods of the server's objects; a wrapper's own are not.
    """
    return {**scope, _SERVER: (receive, send)}


def transport_of(scope: Mapping[str, Any]) -> asyncio.Transport | None:
    """asyncio's transport of the connection that a request came with; ``None`` where it cannot be reached.

    Needed because the server's buffers and the socket tell what has arrived, and because nothing in ASGI ends a
    connection whose peer takes nothing. Found under uvicorn (both HTTP implementations) and hypercorn on asyncio or
    uvloop; not under granian, hypercorn on trio, or a wrapper outside of Datasette that has a ``receive`` of its own.
    """
    receive, send = scope.get(_SERVER, (None, None))
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:
        transport = getattr(getattr(_hypercorn_server(send), "writer", None), "transport", None)
    if not all(hasattr(transport, name) for name in ("get_write_buffer_size", "get_protocol", "abort", "is_closing")):
        return None
    return cast(asyncio.Transport, transport)


def server_of(handler: object) -> object:
    """The server whose signal handler this is: uvicorn's is a method of its ``Server``. ``None`` for others.

    Needed to reach all connections of a server that is told to end.
    """
    return getattr(handler, "__self__", None)


def transports_of(server: object) -> list[asyncio.Transport]:
    """The connections of a uvicorn server; none of another's.

    Needed because a server that ends waits for peers that take nothing.
    """
    connections = list(getattr(getattr(server, "server_state", None), "connections", ()))
    found = [getattr(connection, "transport", None) for connection in connections]
    return [transport for transport in found if transport is not None]


def _hypercorn_protocol(send: Any) -> Any:
    """Hypercorn's ``H11Protocol`` or ``H2Protocol``: ``send`` is a method of its stream."""
    return getattr(getattr(getattr(send, "__self__", None), "send", None), "__self__", None)


def _hypercorn_server(send: Any) -> Any:
    """Hypercorn's ``TCPServer``, of one connection."""
    return getattr(getattr(_hypercorn_protocol(send), "send", None), "__self__", None)


def is_multiplexed(scope: Mapping[str, Any]) -> bool:
    """Whether other streams share the connection: HTTP/2."""
    return str(scope.get("http_version", "")).startswith(("2", "3"))


def held_back(scope: Mapping[str, Any]) -> Callable[[], int | None]:
    """How many bytes of a response the server has taken and not given to the transport; ``None`` while unknown.

    Hypercorn keeps what is sent over HTTP/2 in a buffer of each stream, and writes it in a task of its own. Other
    servers keep nothing: they have written when a send returns.
    """
    if not is_multiplexed(scope):
        return lambda: 0
    send = scope.get(_SERVER, (None, None))[1]
    protocol, server = _hypercorn_protocol(send), _hypercorn_server(send)
    number = getattr(getattr(send, "__self__", None), "stream_id", None)

    def held() -> int | None:
        try:
            # While one task writes, another may have taken bytes from the buffer and wait for its turn.
            return None if server.send_lock.locked() else len(protocol.stream_buffers[number].buffer)
        except (AttributeError, KeyError):
            return None

    return held


def beneath_tls(transport: asyncio.Transport) -> asyncio.Transport | None:
    """The transport that asyncio's TLS writes to; ``None`` for another TLS.

    Needed because what has been encrypted waits there, and because it is told of the connection's end before the
    socket is closed, where the one above is told later.
    """
    found = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return found if isinstance(found, asyncio.Transport) else None


class _WhenLost:
    """Stands in for a protocol's ``connection_lost``, and tells others first."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self.watchers: dict[object, Lost] = {}
        self._protocol = protocol

    def __call__(self, error: Exception | None) -> None:
        del self._protocol.__dict__["connection_lost"]
        self.tell(error)
        self._protocol.connection_lost(error)

    def tell(self, error: Exception | None) -> None:
        watchers, self.watchers = self.watchers, {}
        for tell in watchers.values():
            tell(error)


def when_lost(transport: asyncio.BaseTransport, tell: Lost) -> Callable[[], None]:
    """Have a function called when the connection has ended and its socket is still open; returns what undoes that.

    asyncio and uvloop close the socket as soon as the protocol's ``connection_lost`` returns, long before the
    application hears of it; only until then the kernel says what has arrived. A descriptor of our own for each
    stream (``dup``) would need twice as many. Raises ``TypeError`` for a protocol that takes no attribute.
    """
    protocol = transport.get_protocol()
    if not hasattr(protocol, "__dict__"):
        raise TypeError(f"{type(protocol).__name__} takes no attributes")
    hook = protocol.__dict__.get("connection_lost")
    if not isinstance(hook, _WhenLost):
        hook = protocol.__dict__["connection_lost"] = _WhenLost(protocol)
    key = object()
    hook.watchers[key] = tell

    def undo() -> None:
        hook.watchers.pop(key, None)
        if not hook.watchers and protocol.__dict__.get("connection_lost") is hook:
            del protocol.__dict__["connection_lost"]

    return undo


def abort(transport: asyncio.Transport) -> None:
    """Close a connection with all that waits in its buffers; who watches it is told first, while they are full.

    The protocol is told of no error then, as when everything was written.
    """
    for each in (beneath_tls(transport), transport):
        hook = getattr(each and each.get_protocol(), "connection_lost", None)
        if isinstance(hook, _WhenLost):
            hook.tell(ConnectionAbortedError())
    transport.abort()


def bytes_acknowledged(sock: socket.socket) -> int:
    """How many bytes the peer's TCP has acknowledged since the connection began. Linux; raises ``OSError``.

    Python has no name for the fields of ``TCP_INFO``. Still right after a reset, as long as the socket is open.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(info) < _TCP_INFO_BYTES:
        raise OSError("this kernel does not count acknowledged bytes")
    return int(struct.unpack_from("=Q", info, _TCPI_BYTES_ACKED)[0])


def bytes_outstanding(sock: socket.socket) -> int:
    """How many bytes the kernel holds that the peer has not acknowledged. Raises ``OSError``.

    On a Unix socket (Linux only) it is the memory of what the peer's process has not read, which is more than the
    bytes; 0 means 0.
    """
    if LINUX:
        import fcntl

        return int(struct.unpack("=i", fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4)))[0])
    if MACOS and sock.family != socket.AF_UNIX:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    raise OSError("this system does not tell what was acknowledged")


def has_hung_up(sock: socket.socket) -> bool:
    """Whether the connection has ended, which the event loop may not know yet. Leaves a pending error in place."""
    poller = select.poll()
    poller.register(sock.fileno(), 0)
    return bool(poller.poll(0))


# -- asyncio ----------------------------------------------------------------------

try:
    from asyncio.tasks import _enter_task, _leave_task
except ImportError:  # pragma: no cover - they have been there since Python 3.7
    #: Whether code can run in a task's name outside of it; see :func:`enter_task`.
    CAN_ENTER_TASKS = False
else:
    CAN_ENTER_TASKS = True


def enter_task(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Let ``asyncio.current_task()`` be a task that waits at this moment, until :func:`leave_task`.

    Needed by the direct send: what a server awaits while it sends (a timeout, a lock) belongs to the task of the
    stream. The functions are documented for other event loops, with an underscore, and may change
    (https://docs.python.org/3/library/asyncio-extending.html#task-lifetime-support). Where they are missing,
    :data:`CAN_ENTER_TASKS` is false, and each stream's own task sends.
    """
    _enter_task(loop, task)


def leave_task(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """The end of what :func:`enter_task` began."""
    _leave_task(loop, task)


# -- Datasette --------------------------------------------------------------------


def write_thread_died(db: Database) -> bool:
    """Whether the thread that writes has ended though nobody ended it; ``False`` where that cannot be known.

    Datasette prints the errors of writes to standard error. Where that fails (a pipe whose reader has gone, a full
    disk), the thread ends, and no write is ever answered again.
    """
    thread = getattr(db, "_write_thread", None)
    return thread is not None and not thread.is_alive() and not getattr(db, "_closed", False)


def forget_write_thread(db: Database) -> None:
    """Let the next write start a new thread, which goes on with the queue of one that has ended.

    Datasette starts one only where there was none. Without this attribute, :func:`write_thread_died` is ``False``.
    """
    # A thread that died has left its connection open, maybe inside a transaction.
    for conn in [conn for conn in getattr(db, "_all_connections", []) if conn.isolation_level == "IMMEDIATE"]:
        db._all_connections.remove(conn)
        conn.close()
    db._write_thread = None


def can_reopen(db: Database) -> bool:
    """Whether the connections of a database can be closed and opened anew: all that the two below need is there."""
    needed = ("_write_thread", "_write_queue", "_all_connections", "_pending_execute_futures", "_thread_local_id")
    return hasattr(_database, "_SHUTDOWN") and all(hasattr(db, name) for name in needed)


def end_write_thread(db: Database) -> None:
    """Have the write thread close its connection and end, after what is in its queue. Does not wait for it.

    Needed since the thread keeps one connection for ever, also one that could not be opened, or whose file was
    replaced. ``Database.close()`` does it, too, but a closed database cannot be used any more.
    """
    if db._write_thread is not None and db._write_thread.is_alive():
        db._write_queue.put(_database._SHUTDOWN)


def leave_connections(db: Database) -> tuple[list[sqlite3.Connection], list[object]]:
    """Let every thread open a connection of its own anew; the old ones, and the reads that may still use them.

    Datasette keeps read connections by thread, under a name that is the database's. Call it when no write thread
    lives.
    """
    pending = list(db._pending_execute_futures)
    old, db._all_connections = db._all_connections, []
    db._thread_local_id = f"{db._thread_local_id}x"
    # Without SQL threads (num_sql_threads).
    db._read_connection = db._write_connection = None
    db._write_thread = None
    return old, pending


def checks_are_off() -> bool:
    """Whether Datasette has been told to check no permission (``with datasette.permissions.SkipPermissions()``).

    Needed since the plugin's own questions must then be answered with yes, too, and nothing public says so. Where the
    variable is missing, checks are on.
    """
    return bool(_skip_checks is not None and _skip_checks.get())


def permission_cache() -> dict[Any, Any] | None:
    """What Datasette has answered in this request: the same object for as long as its answers count, else ``None``.

    Needed to keep answers of our own exactly as long: Datasette has a new one where it wants to ask anew.
    """
    return None if _answers is None else _answers.get()


@contextlib.contextmanager
def without_permission_cache() -> Iterator[None]:
    """Within it, Datasette asks its plugins anew instead of repeating what it answered in this request.

    Needed to look at rights again for a stream, whose request may be days old.
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
    """The rules (``PermissionSQL``) of Datasette and of all plugins; ``None`` where nothing is checked.

    Needed to answer for all databases with one query, where ``datasette.allowed()`` asks about one after the other.
    """
    found = await _gather(datasette=datasette, actor=actor, action=action)
    return None if found is _SKIP_ALL else list(found)


def write_thread_lives(db: Database) -> bool:
    """Whether there is a thread that writes."""
    thread = getattr(db, "_write_thread", None)
    return thread is not None and thread.is_alive()


def prepare_isolated(db: Database, prepare: Callable[[sqlite3.Connection], None]) -> None:
    """Have the connections prepared that Datasette analyses SQL on; once, from then on.

    Needed since Datasette compiles stored queries and its write page's SQL in ``execute_isolated_fn``, on connections
    that the hook ``prepare_connection`` never sees: our SQL function would not exist there.
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
