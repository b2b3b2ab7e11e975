"""Connects to NATS, and again whenever the connection is lost.

Nothing is kept from one connection to the next: what a relay or a follower has to know, it reads from the stream and
from the file. So there is one way to recover from everything, which is to begin again.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.errors import AuthorizationError, Error

from .addresses import login, shown
from .outcomes import NoJetStream, Refused, Replaced, Silent, TryAgain, Unmatched

#: How long to wait before the next connection, in seconds: the first time, and at most.
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0

#: How long a command with an end (``--once``, ``--check``) tries to connect, in seconds.
PATIENCE_SECONDS = 30.0

#: A connection is dead if two pings in a row, this many seconds apart, get no answer.
PING_SECONDS = 5

CONNECT_SECONDS = 5

#: How long closing a connection may take, in seconds: asyncio never finishes it after some failures of TLS.
CLOSE_SECONDS = 1.0

#: How long a task that was cancelled may take before it is cancelled again, in seconds.
CANCEL_SECONDS = 0.2

#: JetStream counts as turned off if it does not answer this often, from the first connection on.
SILENT_TIMES = 5

#: What OpenSSL says of a certificate for another name or address (X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_…).
_WRONG_NAME = (62, 64)

#: Where :mod:`.relay.cursors` publishes.
_OF_CURSORS = re.compile(r'-cursors\.[0-9a-f]{32}"')


@dataclass(frozen=True, slots=True)
class Servers:
    """Where NATS is, and how to log in; ``urls`` are tried one after the other."""

    urls: tuple[str, ...]
    creds: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def context(self) -> ssl.SSLContext | None:
        """The TLS settings; ``None`` if none are given. Raises :class:`Refused` for a file that cannot be read."""
        if self.tls_ca is None and self.tls_cert is None and not any(url.startswith("tls:") for url in self.urls):
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise Refused(f"the certificates cannot be read: {error}") from error
        return context


class Reporter:
    """Prints one line for each change of state."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        #: What was said since it last worked.
        self._said: set[str] = set()

    def say(self, text: str, about: str = "") -> None:
        """Print a line, unless it, or one about the same, was printed since it last worked."""
        if (about or text) not in self._said:
            self._said.add(about or text)
            self._write(text)

    def works(self) -> None:
        """What is said from now on is said again: messages go through."""
        self._said.clear()


async def sessions(
    servers: Servers, name: str, work: Callable[[Client], Awaitable[None]], reporter: Reporter, *, patient: bool = True
) -> None:
    """Connect and run ``work`` with the connection until it returns; begin again when it is lost.

    Raises :class:`Refused`, :class:`Replaced`, and :class:`TryAgain` if not
    ``patient`` and nothing succeeds for ``PATIENCE_SECONDS``.
    """
    context = servers.context()
    wait = FIRST_WAIT_SECONDS
    turn = silent = 0
    answered = False
    began = time.monotonic()
    while True:
        url = servers.urls[turn % len(servers.urls)]
        turn += 1
        connected = time.monotonic()
        try:
            await _session(servers, url, context, name, work, reporter)
            return
        except NoJetStream as error:
            reason = str(error)
            silent += 1
            if silent >= SILENT_TIMES and not answered:
                raise Refused(reason) from error
        except Replaced:
            raise
        except TryAgain as error:
            reason = str(error)
            answered = True
        except Unmatched:
            reason = "the stream was changed meanwhile"
        except TimeoutError:
            reason = f"{shown(url)} does not answer"
        except (Error, OSError) as error:
            reason = f"{shown(url)}: {error}"
        if time.monotonic() - connected > LONGEST_WAIT_SECONDS:
            wait, began = FIRST_WAIT_SECONDS, time.monotonic()
        if not patient and time.monotonic() - began > PATIENCE_SECONDS:
            raise TryAgain(reason)
        reporter.say(f"waiting: {reason}")
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


async def _session(
    servers: Servers,
    url: str,
    context: ssl.SSLContext | None,
    name: str,
    work: Callable[[Client], Awaitable[None]],
    reporter: Reporter,
) -> None:
    lost = asyncio.Event()

    async def gone() -> None:
        lost.set()

    begun = False
    client = _Client(url, context is not None, servers.tls_cert is not None)
    try:
        await _connect(client, servers, url, context, name, gone)
        begun = True
        reporter.say(f"connected to {shown(url)}, NATS {version(client)}")
        task = asyncio.ensure_future(work(client))
        ended = asyncio.ensure_future(lost.wait())
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise TryAgain(f"the connection to {shown(url)} is lost")
            await task
        finally:
            await end(task, ended)
    except (Silent, TimeoutError) as error:
        if client.denied is not None:
            raise Refused(f"{shown(url)} does not permit it: {client.denied}") from error
        raise
    except AuthorizationError as error:
        raise Refused(f"{shown(url)} refuses these credentials") from error
    except ssl.SSLError as error:
        raise _explained(url, error) from error
    except Error as error:
        if not begun and client.greeted and type(error) is Error:
            # What the server itself, or nats-py, says against a new connection; subclasses are for its loss. Who says
            # nothing at all is no server yet, or not any more: something in between has taken the connection.
            raise Refused(f"{shown(url)} refuses the connection: {error}") from error
        raise
    finally:
        await _close(client)


async def _close(client: Client) -> None:
    """Close a connection, at most for ``CLOSE_SECONDS``, whatever it does with a cancellation."""
    closing = asyncio.ensure_future(client.close())
    done, _ = await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
    if done:
        # Nobody waits for what it says.
        closing.cancelled() or closing.exception()
    else:
        closing.add_done_callback(lambda task: task.cancelled() or task.exception())
        closing.cancel()


def _explained(url: str, error: ssl.SSLError) -> Exception:
    """What a failure of TLS means for the command."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = "" if error.verify_code in _WRONG_NAME else ": give its authority with --tls-ca"
        return Refused(f"{shown(url)}: {error.verify_message}{advice}")
    if "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")):
        return Refused(f"{shown(url)} refuses the certificate of --tls-cert")
    return error


class _Client(Client):
    """A connection that sends nobody's password in the clear to a server that was to have TLS."""

    def __init__(self, url: str, secure: bool, has_certificate: bool) -> None:
        super().__init__()
        self._url = url
        self._secure = secure
        self._has_certificate = has_certificate
        #: What the server has said that this user may not do, if it has.
        self.denied: str | None = None
        #: Whether the server has said anything.
        self.greeted = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        self.greeted = True
        # nats-py begins TLS only if the server's first line, which anybody on the way may change, says so.
        if initial_connection and self._secure and not info.get("tls_required"):
            raise Refused(f"{shown(self._url)} has no TLS: give an address with nats:// and no --tls options")
        if initial_connection and info.get("tls_verify") and not self._has_certificate:
            raise Refused(f"{shown(self._url)} wants a certificate: give it with --tls-cert and --tls-key")
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        try:
            return super()._connect_command()
        except Exception as error:
            raise Refused("the file of --creds has no credentials of NATS") from error


async def _connect(
    client: _Client,
    servers: Servers,
    url: str,
    context: ssl.SSLContext | None,
    name: str,
    gone: Callable[[], Awaitable[None]],
) -> None:
    """Connect once. (nats-py tries for ever, and tells each error to ``error_cb`` alone.)"""
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def error(found: Exception) -> None:
        if not failed.done():
            failed.set_result(found)
        # The protocol has no code for it, only this text, of which a follower without its cursors takes no notice:
        # https://docs.nats.io/reference/reference-protocols/nats-protocol#okerr
        if "permissions violation" in str(found).lower() and not _OF_CURSORS.search(str(found)):
            client.denied = str(found).removeprefix("nats: ")

    who = login(url)
    connecting = asyncio.ensure_future(
        client.connect(
            [url],
            name=name,
            allow_reconnect=False,
            connect_timeout=CONNECT_SECONDS,
            ping_interval=PING_SECONDS,
            max_outstanding_pings=2,
            flush_timeout=CONNECT_SECONDS,
            user=who.user,
            password=who.password,
            token=who.token,
            user_credentials=str(servers.creds) if servers.creds else None,
            tls=context,
            disconnected_cb=gone,
            closed_cb=gone,
            error_cb=error,
        )
    )
    try:
        either: set[asyncio.Future[Any]] = {connecting, failed}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            raise failed.result()
        await connecting
    finally:
        await end(connecting)


async def beside(work: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` until it ends, and ``other`` meanwhile; an error of either ends both, and is raised."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(other)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        await end(*tasks)


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks until they have ended, whatever they raise, and although this is cancelled meanwhile.

    Once is not enough: nats-py passes over a cancellation while it sends, and ``asyncio.wait_for`` of Python 3.11
    over one that comes with the result (https://github.com/python/cpython/issues/86296).
    """
    told = False
    while pending := {task for task in tasks if not task.done()}:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=CANCEL_SECONDS)
        except asyncio.CancelledError:
            told = True
    await asyncio.gather(*tasks, return_exceptions=True)
    if told:
        raise asyncio.CancelledError


def version(client: Client) -> str:
    """The server's version."""
    found = client.connected_server_version
    return f"{found.major}.{found.minor}.{found.patch}"


def at_least(client: Client, major: int, minor: int) -> bool:
    """Whether the server has this version, or a newer one."""
    found = client.connected_server_version
    return (found.major, found.minor) >= (major, minor)
