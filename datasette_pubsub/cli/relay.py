"""``relay``, ``follow``, ``import`` and ``promote``: a log beyond one machine.

The room :mod:`.relay` is imported when a command runs, since it needs the extra ``datasette-pubsub[nats]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import re
import signal
import sqlite3
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..storage import log, schema
from ..storage.transaction import transaction
from .common import Progress, counted, plainly, require_log, settings_of

if TYPE_CHECKING:
    from ..relay.session import Servers

Open = Callable[..., AbstractContextManager[sqlite3.Connection]]
Command = TypeVar("Command", bound=Callable[..., None])

#: The exit code that tells a supervisor to try again (``EX_TEMPFAIL`` of sysexits.h).
TRY_AGAIN = 75

#: How long ``follow`` waits for another program's write before it looks for signals, in seconds.
PREPARE_SECONDS = 0.5

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(value: str) -> float:
    """A duration like ``7d``, ``12h``, ``30m`` or ``90s``, in seconds."""
    try:
        seconds = float(value[:-1]) * _UNITS[value[-1]]
    except (KeyError, ValueError, IndexError):
        raise click.BadParameter(f"{value} is no duration: write 7d, 12h, 30m or 90s") from None
    if not 1 <= seconds <= 100 * 365 * 86400:
        raise click.BadParameter(f"{value} is not between 1s and 100 years")
    return seconds


def _connects(command: Command) -> Command:
    """The options that say how to log in."""
    path = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--tls-key", type=path, help="The key of --tls-cert."),
        click.option("--tls-cert", type=path, help="A certificate to log in with."),
        click.option("--tls-ca", type=path, help="The authority of the server's certificate."),
        click.option("--creds", type=path, help="A NATS credentials file."),
    ):
        command = option(command)
    return command


def _servers(
    urls: tuple[str, ...], creds: Path | None, ca: Path | None, cert: Path | None, key: Path | None
) -> Servers:
    from ..relay.addresses import check
    from ..relay.session import Servers

    if (cert is None) != (key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    for url in urls:
        try:
            check(url)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    return Servers(urls, creds, ca, cert, key)


def _needs_nats() -> None:
    for name in ("apsw", "nats"):
        if importlib.util.find_spec(name) is None:
            raise click.ClickException(
                f"this command needs {name}; install it with: datasette install 'datasette-pubsub[nats]'"
            )


def _check_name(stream: str) -> str:
    from ..relay.stream import STREAM_NAME

    if not STREAM_NAME.fullmatch(stream):
        raise click.UsageError(
            f"{stream!r} cannot be the name of a stream, which has no spaces, dots, slashes, *, > and %: give one "
            "with --stream"
        )
    return stream


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run until it ends or is told to end; ends the process with the exit code that says how."""
    from ..relay.outcomes import Refused, TryAgain
    from ..relay.session import end

    # Python 3.11 warns at the end of each connection with TLS, which means nothing to an operator.
    logging.getLogger("asyncio").setLevel(logging.ERROR)

    async def main() -> None:
        task = asyncio.ensure_future(work)
        told = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        waiting = asyncio.ensure_future(told.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if told.is_set():
            await end(task)
        await end(waiting)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    try:
        asyncio.run(main())
    except Refused as error:
        raise click.ClickException(str(error)) from None
    except TryAgain as error:
        click.echo(f"Error: {error}; try again", err=True)
        sys.exit(TRY_AGAIN)


def _say(text: str) -> None:
    click.echo(text[0].upper() + text[1:], err=True)


class _Shown:
    """The progress of catching up, on a terminal; a line of the log takes its place."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._progress = Progress()

    def at(self, position: int, newest: int) -> None:
        if position < newest:
            self._progress.show(f"{self._verb} {position} of {newest} ({100 * position // max(newest, 1)} %)")

    def say(self, text: str) -> None:
        self._progress.clear()
        _say(text)


def add(pubsub: click.Group, open_file: Open) -> None:
    """Add the commands to ``datasette pubsub``."""

    @pubsub.command()
    @click.argument("file")
    @click.option(
        "--to", "urls", multiple=True, required=True, metavar="URL", help="A server, nats:// or tls://; repeats."
    )
    @click.option("--stream", metavar="NAME", help="The stream; the file's name without its end by default.")
    @click.option("--create", is_flag=True, help="Make the stream if there is none, and the one for cursors.")
    @click.option(
        "--replicas",
        type=click.IntRange(1, 5),
        default=1,
        show_default=True,
        help="With --create: how many servers keep it, 1 to 5.",
    )
    @click.option(
        "--max-age",
        type=_duration,
        metavar="DURATION",
        help="With --create: how long it keeps messages, like 7d, 12h, 30m or 90s; for ever by default.",
    )
    @click.option("--publish-at", metavar="URL", help="With --create: where followers send publishers.")
    @click.option("--once", is_flag=True, help="End when all is relayed.")
    @click.option("--check", is_flag=True, help="Relay nothing; compare the stream with the log.")
    @_connects
    @plainly
    def relay(
        file: str,
        urls: tuple[str, ...],
        stream: str | None,
        create: bool,
        replicas: int,
        max_age: float | None,
        publish_at: str | None,
        once: bool,
        check: bool,
        creds: Path | None,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
    ) -> None:
        """Copy the log of FILE into a stream of NATS JetStream, in which each message has its id as sequence.

        Runs until it is told to end. Two relays of one file are a hot standby.
        Exit codes: 0 done, 1 refused with the reason, 75 try again.
        """
        _needs_nats()
        name = _check_name(stream or Path(file).stem)
        servers = _servers(urls, creds, tls_ca, tls_cert, tls_key)
        if publish_at is not None and not re.fullmatch(r"\S{1,1000}", publish_at):
            raise click.UsageError("--publish-at is an address, without spaces")
        if not create and (max_age is not None or publish_at is not None or replicas != 1):
            raise click.UsageError("--replicas, --max-age and --publish-at belong to --create")
        with open_file(file, writes=True) as conn:
            require_log(conn, file)
            settings = settings_of(conn)
            schema.set_durability(conn, settings)
        if check:
            _run(_compare(Path(file), name, servers, 1, 2**62))
        else:
            from ..relay.relay import NewStream, RelayOptions

            new = NewStream(replicas, max_age or 0.0) if create else None
            _run(_relay(Path(file), servers, RelayOptions(name, settings.max_payload_bytes, new, publish_at, once)))

    @pubsub.command()
    @click.argument("url", nargs=-1, required=True, metavar="URL… FILE")
    @click.option("--stream", metavar="NAME", required=True, help="The stream that a relay has made.")
    @click.option("--verify", is_flag=True, help="Follow nothing; compare FILE with the stream.")
    @click.option(
        "--from", "first", type=click.IntRange(min=1), default=1, help="With --verify: the first message to compare."
    )
    @click.option(
        "--to", "last", type=click.IntRange(min=1), default=2**62, help="With --verify: the last message to compare."
    )
    @_connects
    @plainly
    def follow(
        url: tuple[str, ...],
        stream: str,
        verify: bool,
        first: int,
        last: int,
        creds: Path | None,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
    ) -> None:
        """Write a stream into FILE, which becomes a copy of the log under the same ids; Datasette serves it.

        Runs until it is told to end. Exit codes: 0 done, 1 refused with the reason, 75 try again.
        """
        _needs_nats()
        *urls, file = url
        if not urls:
            raise click.UsageError("give the address of a NATS server and a file: nats://host:4222 FILE")
        servers = _servers(tuple(urls), creds, tls_ca, tls_cert, tls_key)
        name = _check_name(stream)
        if verify:
            with open_file(file) as conn:
                require_log(conn, file)
            _run(_compare(Path(file), name, servers, first, last))
            return
        _run(_follow(open_file, file, name, servers))

    @pubsub.command(name="import")
    @click.argument("url", nargs=-1, required=True, metavar="URL… FILE")
    @click.option("--stream", metavar="NAME", required=True, help="The stream to take messages from.")
    @click.option(
        "--channel", required=True, help="The channel; {subject} in it is the message's subject with slashes for dots."
    )
    @click.option("--once", is_flag=True, help="End when all is taken.")
    @_connects
    @plainly
    def import_stream(
        url: tuple[str, ...],
        stream: str,
        channel: str,
        once: bool,
        creds: Path | None,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
    ) -> None:
        """Take the messages of any stream into the log of FILE, each exactly once, under ids of the log.

        Exit codes: 0 done, 1 refused with the reason, 75 try again.
        """
        _needs_nats()
        *urls, file = url
        if not urls:
            raise click.UsageError("give the address of a NATS server and a file: nats://host:4222 FILE")
        servers = _servers(tuple(urls), creds, tls_ca, tls_cert, tls_key)
        with open_file(file, writes=True) as conn:
            require_log(conn, file)
            schema.set_durability(conn, settings_of(conn))
        _run(_import(Path(file), stream, channel, servers, once))

    @pubsub.command()
    @click.argument("file")
    @plainly
    def promote(file: str) -> None:
        """Make FILE, which follows a stream, an ordinary log that takes the place of the one that it copied.

        End its follow first. A relay of FILE then goes on with the same stream.
        """
        with open_file(file, writes=True) as conn:
            require_log(conn, file)
            with transaction(conn):
                schema.promote(conn, settings_of(conn))
                head = log.head(conn)
        click.echo(f"{file} is an ordinary log now; the next message gets the id {head + 1}")


async def _relay(path: Path, servers: Servers, options: Any) -> None:
    from ..relay.logfile import LogFile
    from ..relay.relay import Relay
    from ..relay.session import Reporter, sessions

    shown = _Shown("Relayed")
    reporter = Reporter(shown.say)
    async with LogFile.open(path, writes=True) as file:
        relay = Relay(file, options, reporter, shown.at)
        try:
            await sessions(
                servers, f"datasette-pubsub relay {options.stream}", relay.run, reporter, patient=not options.once
            )
        finally:
            reporter.say(f"relayed {counted(relay.published)}")


async def _follow(open_file: Open, file: str, name: str, servers: Servers) -> None:
    from ..relay.follow import Follow, existing
    from ..relay.logfile import LogFile
    from ..relay.outcomes import TryAgain
    from ..relay.session import Reporter, sessions
    from ..relay.stream import Stream

    shown = _Shown("Has")
    reporter = Reporter(shown.say)

    async def prepare(client: Any) -> None:
        """Make the file a copy of this stream. Python's SQLite does it, so before APSW opens the file."""
        found = await existing(Stream(client, name))
        with open_file(file, writes=True, create=True) as conn:
            # It blocks the loop, and a signal comes only afterwards.
            conn.execute(f"PRAGMA busy_timeout = {PREPARE_SECONDS * 1000:.0f}")
            try:
                settings = settings_of(conn)
                schema.set_durability(conn, settings)
                with transaction(conn):
                    schema.follow(conn, settings, name, found.instance_id, found.publish_at)
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL):
                    raise
                raise TryAgain(f"{file} is locked by another program, or the disk is full") from error

    await sessions(servers, f"datasette-pubsub follow {name}", prepare, reporter)
    async with LogFile.open(Path(file), writes=True) as opened:
        follow = Follow(opened, name, reporter, shown.at)
        await sessions(servers, f"datasette-pubsub follow {name}", follow.run, reporter)


async def _import(path: Path, name: str, channel: str, servers: Servers, once: bool) -> None:
    from ..relay.importer import Import
    from ..relay.logfile import LogFile
    from ..relay.session import Reporter, sessions

    shown = _Shown("Has")
    reporter = Reporter(shown.say)
    async with LogFile.open(path, writes=True) as file:
        work = Import(file, name, channel, reporter, once, shown.at)
        await sessions(servers, f"datasette-pubsub import {name}", work.run, reporter, patient=not once)


async def _compare(path: Path, name: str, servers: Servers, first: int, last: int) -> None:
    from ..relay.check import Comparison
    from ..relay.logfile import LogFile
    from ..relay.outcomes import Refused
    from ..relay.session import Reporter, sessions

    async with LogFile.open(path, writes=False) as file:
        comparison = Comparison(file, name, _say, first, last)
        await sessions(servers, f"datasette-pubsub compare {name}", comparison.run, Reporter(_say), patient=False)
    compared = f"compared {counted(comparison.compared)}"
    if comparison.differences:
        raise Refused(f"{compared}: {comparison.differences} differ")
    click.echo(f"{compared.capitalize()}: all the same")
