"""The command line: ``datasette pubsub``, in a process of its own.

The law of this module: it opens a file directly, with Python's own SQLite, and
so never runs inside a server (DESIGN.md, decision 1). SQL on the log stands in
``log`` and ``subscriptions``. Nobody sees a traceback or SQL: what can go wrong
is one line that names the file, the line of input or the field.
"""

from __future__ import annotations

import functools
import json
import os
import select
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, ParamSpec

import click

from . import api, demo, log, schema, subscriptions
from .catchup import CatchUp
from .config import CHUNK_MESSAGES, Settings
from .errors import InvalidArgument, PubsubError, TooLarge
from .models import Item, Message, check_item, check_message_id, check_since
from .selector import Selector
from .wire import message_fields, text_of

#: How long to wait for another program's write to end, in seconds: longer than
#: any transaction that a server should hold.
LOCK_SECONDS = 10.0

#: How often ``tail --follow`` asks for new commits, in seconds. Asking takes
#: microseconds, and 20 ms are not felt by a person who watches.
FOLLOW_SECONDS = 0.02

#: Bytes of messages that ``tail`` holds in memory at a time.
PAGE_BYTES = 1024 * 1024

#: Most that is read from standard input at once, in bytes.
READ_BYTES = 1024 * 1024

#: How many bytes of JSON one byte of payload can take (``\\u0000``).
JSON_BYTES = 6

#: Room for the other fields of a line of JSON, in bytes.
JSON_FIELDS_BYTES = 4096

#: How often the progress of ``publish`` is shown, in seconds.
PROGRESS_SECONDS = 0.1

P = ParamSpec("P")

#: What an SQLite error means to the person at the keyboard, by its primary code.
_MEANINGS = {
    sqlite3.SQLITE_BUSY: f"is locked: another program has been writing for more than {LOCK_SECONDS:g} seconds",
    sqlite3.SQLITE_LOCKED: "is locked by another program",
    sqlite3.SQLITE_NOTADB: "is not an SQLite database",
    sqlite3.SQLITE_CORRUPT: "is damaged; SQLite cannot read it",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PERM: "cannot be opened: permission denied",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error",
}


def plainly(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors are one line, and that a closed pipe ends in silence."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        # What a terminal cannot show must not end the command.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has left. What is still buffered goes nowhere, also at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except PubsubError as error:
            raise click.ClickException(error.message) from None
        except sqlite3.Error as error:
            file = str(kwargs.get("file", "the database"))
            meaning = _MEANINGS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            raise click.ClickException(f"{file} {meaning}" if meaning else f"{file}: {error}") from None

    return wrapper


def _open(file: str, writes: bool = False, create: bool = False) -> closing[sqlite3.Connection]:
    """A connection for one command. A file that is only read is never modified."""
    path = Path(file)
    if not path.exists() and not create:
        raise click.ClickException(f"{file}: there is no such file")
    if path.is_dir():
        raise click.ClickException(f"{file} is a directory, not a database")
    mode = "rwc" if create else "rw" if writes else "ro"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    conn = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
    # Text that is not UTF-8, which any program may have stored, is shown as far as it goes.
    conn.text_factory = lambda data: data.decode(errors="replace")
    return closing(conn)


def _require_log(conn: sqlite3.Connection, file: str) -> None:
    """Raise :class:`click.ClickException` unless the file holds a log that this program knows."""
    if schema.check(conn):
        return
    what = "the log is of an older version" if schema.installed(conn) else "no log is installed"
    raise click.ClickException(f"{file}: {what}; run: datasette pubsub install {file}")


def _settings(conn: sqlite3.Connection) -> Settings:
    """The defaults, and the payload limit that the file holds: a server may have been given another."""
    limit = log.max_payload_bytes(conn)
    return Settings() if limit is None else Settings(max_payload_bytes=limit)


@contextmanager
def _transaction(conn: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    conn.execute(begin)
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _install(conn: sqlite3.Connection) -> None:
    settings = _settings(conn)
    schema.set_durability(conn, settings)
    schema.install(conn, settings)


def _visible(text: str) -> str:
    """Text on one line, with nothing in it that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _count(number: int, noun: str = "message") -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@click.group()
def pubsub() -> None:
    """Publish to a database file and read its log, also while Datasette serves it."""


@pubsub.command()
@click.argument("file")
@click.option("--create", is_flag=True, help="Make the file if there is none.")
@plainly
def install(file: str, create: bool) -> None:
    """Install the log in FILE, or bring it up to date.

    From then on every program can publish: INSERT INTO vpubsub (channel, payload) VALUES (…).
    """
    with _open(file, writes=True, create=create) as conn:
        _install(conn)
    click.echo(f"The log is installed in {file}")


@pubsub.command()
@click.argument("file")
@click.argument("channel", required=False)
@click.argument("payload", required=False)
@click.option("--key", help="Publish PAYLOAD only if the channel has no message with this key yet.")
@click.option(
    "--json-lines",
    is_flag=True,
    help='Each line is {"channel": …, "payload": …}, with "key" if wanted; CHANNEL is for lines that name none. '
    "Reads what tail --json writes.",
)
@plainly
def publish(file: str, channel: str | None, payload: str | None, key: str | None, json_lines: bool) -> None:
    """Publish PAYLOAD, or every line of standard input, to CHANNEL of FILE.

    Lines are published as they come, in transactions of at most 1,000 messages.
    """
    if json_lines and (payload is not None or key is not None):
        raise click.UsageError("--json-lines takes payloads and keys from standard input")
    if channel is None and not json_lines:
        raise click.UsageError("CHANNEL is required")
    if key is not None and payload is None:
        raise click.UsageError("--key belongs to one PAYLOAD; keys of many messages need --json-lines")
    with _open(file, writes=True) as conn:
        _require_log(conn, file)
        settings = _settings(conn)
        schema.set_durability(conn, settings)
        publisher = _Publisher(conn, settings)
        if payload is not None and channel is not None:
            item = Item(channel, payload, key)
            check_item(item, settings)
            publisher.publish([item])
        else:
            publisher.publish_lines(sys.stdin.buffer, channel, json_lines)
    click.echo(publisher.summary())


class _Publisher:
    """Publishes in transactions and keeps count: what it has counted is committed."""

    def __init__(self, conn: sqlite3.Connection, settings: Settings) -> None:
        self._conn = conn
        self._settings = settings
        self._new = 0
        self._known = 0
        self._last_id = 0
        self._shown_at = 0.0

    def publish(self, items: Sequence[Item]) -> None:
        """Append messages in one transaction."""
        with _transaction(self._conn):
            ids, new = log.append(self._conn, items, log.now())
        self._new += len(new)
        self._known += len(ids) - len(new)
        self._last_id = ids[-1]

    def publish_lines(self, stream: BinaryIO, channel: str | None, json_lines: bool) -> None:
        """Publish every line up to the end, or to the first that is wrong. Raises :class:`click.ClickException`."""
        typed = stream.isatty()
        if typed:
            click.echo("One message a line; Ctrl+D ends.", err=True)
        shows = sys.stderr.isatty() and not typed
        limit = self._settings.max_payload_bytes
        items: list[Item] = []
        try:
            for lines in _lines(stream, JSON_BYTES * limit + JSON_FIELDS_BYTES if json_lines else limit):
                for number, line in lines:
                    item = self._item(number, line, channel, json_lines)
                    if item is not None:
                        items.append(item)
                    if len(items) == CHUNK_MESSAGES:
                        items = self._flush(items)
                items = self._flush(items)
                if shows:
                    self._show()
        except PubsubError as error:
            self._flush(items)
            raise click.ClickException(f"{error.message}. {self.summary()}") from None
        except (sqlite3.Error, KeyboardInterrupt):
            click.echo(self.summary(), err=True)
            raise
        finally:
            if shows:
                click.echo("\r\x1b[K", nl=False, err=True)

    def _item(self, number: int, line: bytes, channel: str | None, json_lines: bool) -> Item | None:
        """The message of one line; ``None`` for an empty line among lines of JSON."""
        try:
            text = line.decode()
            if json_lines and not text.strip():
                return None
            item = _item_of_json(text, channel) if json_lines else Item(channel or "", text)
            check_item(item, self._settings)
        except UnicodeDecodeError:
            raise InvalidArgument(f"line {number}: not UTF-8") from None
        except PubsubError as error:
            raise InvalidArgument(f"line {number}: {error.message}") from None
        return item

    def _flush(self, items: list[Item]) -> list[Item]:
        if items:
            self.publish(items)
        return []

    def _show(self) -> None:
        if time.monotonic() - self._shown_at >= PROGRESS_SECONDS:
            self._shown_at = time.monotonic()
            click.echo(f"\rPublished {_count(self._new)}", nl=False, err=True)

    def summary(self) -> str:
        """What was published, in one line."""
        text = f"Published {_count(self._new)}"
        if self._last_id:
            text += f", last id {self._last_id}"
        if self._known:
            text += f"; {self._known} already there under the same key"
        return text


def _lines(stream: BinaryIO, longest: int) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines without their ends, in lists of what is there: a slow writer's line is not held back.

    Raises :class:`TooLarge` for a line of more than ``longest`` bytes.
    """
    number = 0
    parts: list[bytes] = []
    size = 0
    while chunk := stream.read1(READ_BYTES):  # type: ignore[attr-defined]
        *ended, rest = chunk.split(b"\n")
        if ended:
            ended[0] = b"".join([*parts, ended[0]])
            yield [(n, line.removesuffix(b"\r")) for n, line in enumerate(ended, number + 1)]
            number += len(ended)
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > longest + 1:
            raise TooLarge(f"line {number + 1}: longer than {longest} bytes, so over the limit of its payload")
    if size:
        yield [(number + 1, b"".join(parts))]


def _item_of_json(text: str, channel: str | None) -> Item:
    """A message from a line of JSON. Raises :class:`InvalidArgument`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument("not valid JSON") from None
    if not isinstance(data, dict):
        raise InvalidArgument("must be an object with channel and payload")
    if channel is not None:
        data.setdefault("channel", channel)
    # Given by the log, and there when the line comes from `tail --json`.
    for field in ("messageId", "createdAt"):
        data.pop(field, None)
    return api._item(data, "")


@pubsub.command()
@click.argument("file")
@click.argument("channel", nargs=-1)
@click.option("--pattern", multiple=True, metavar="GLOB", help="Channels by pattern, like 'orders/*'; repeats.")
@click.option("--after", metavar="ID", help="Begin after this message id.")
@click.option("--since", metavar="TIME", help="Begin with the first message since an ISO 8601 time.")
@click.option("--earliest", is_flag=True, help="Begin with the oldest message of the log.")
@click.option(
    "-n", "count", type=click.IntRange(min=0), metavar="COUNT", help="Begin with the newest COUNT messages; default 10."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with new messages as they are committed; Ctrl+C ends.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as subscribers get it.")
@plainly
def tail(
    file: str,
    channel: tuple[str, ...],
    pattern: tuple[str, ...],
    after: str | None,
    since: str | None,
    earliest: bool,
    count: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the newest messages of FILE, of all channels or of those named.

    A line holds id, time, channel and payload, divided by tabs, with control
    characters made visible. --json shows payloads as they are. Messages after
    --after that were trimmed are told: on standard error, and as "missed" in JSON.
    """
    if sum((after is not None, since is not None, earliest, count is not None)) > 1:
        raise click.UsageError("--after, --since, --earliest and -n exclude each other: each says where to begin")
    after_id = check_message_id(after, "--after") if after is not None else None
    since_time = check_since(since, "--since") if since is not None else None
    selector = Selector.of(channel, pattern) or Selector(patterns=("*",))
    with _open(file) as conn:
        _require_log(conn, file)
        with _transaction(conn, "BEGIN"):
            end = log.head(conn)
            if after_id is not None:
                position = after_id
            elif since_time is not None:
                position = log.before_time(conn, since_time)
            elif earliest:
                position = 0
            else:
                position = log.before_newest(conn, selector, 10 if count is None else count)
        reader = CatchUp(selector, PAGE_BYTES)
        if after_id is None:
            reader.forgive(conn, position)
        line = _json_line if as_json else _plain_line
        if not follow:
            _print_up_to(conn, reader, position, end, line)
            return
        try:
            _follow(conn, reader, min(position, end), line)
        except KeyboardInterrupt:
            return


Line = Callable[[Message, int], str]


def _json_line(message: Message, missed: int) -> str:
    return json.dumps(message_fields(message, missed), ensure_ascii=False, separators=(",", ":"))


def _plain_line(message: Message, missed: int) -> str:
    payload = message.payload
    text = f"({_count(len(payload), 'byte')})" if isinstance(payload, bytes) else _visible(text_of(payload))
    return f"{message.id}\t{message.created_at}\t{_visible(message.channel)}\t{text}"


def _print_up_to(conn: sqlite3.Connection, reader: CatchUp, position: int, end: int, line: Line) -> int:
    """Print in pages, so that neither memory nor a read transaction grows; the position reached."""
    while position < end:
        page = reader.page(conn, position)
        missed = page.missed
        if missed:
            click.echo(f"Gap: {_count(missed)} trimmed before this could read them", err=True)
        lines = []
        for message in page.messages:
            if message.id <= end:
                lines.append(line(message, missed) + "\n")
                missed = 0
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
        position = page.position
    return position


def _follow(conn: sqlite3.Connection, reader: CatchUp, position: int, line: Line) -> None:
    """Print for ever. Raises ``BrokenPipeError`` when nobody reads any more."""
    wait = _waiter()
    seen: int | None = None
    while True:
        # Asked before the log is read: what commits after this answer changes the next one.
        version = conn.execute("PRAGMA data_version").fetchone()[0]
        if version != seen:
            seen = version
            position = _print_up_to(conn, reader, position, log.head(conn), line)
        wait()


def _waiter() -> Callable[[], None]:
    """Waits a moment, and notices when the reader of standard output leaves while there is nothing to print."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: time.sleep(FOLLOW_SECONDS)
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)

    def wait() -> None:
        if poll.poll(FOLLOW_SECONDS * 1000):
            raise BrokenPipeError

    return wait


@pubsub.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plainly
def channels(file: str, as_json: bool) -> None:
    """List the channels of FILE: how many messages, and the newest."""
    with _open(file) as conn:
        _require_log(conn, file)
        found = log.channels(conn)
    if as_json:
        click.echo(json.dumps([channel.as_json() for channel in found], ensure_ascii=False, indent=2))
        return
    rows = [(channel.name, str(channel.count), str(channel.newest_id), channel.newest_at) for channel in found]
    _print_table(("channel", "messages", "newest id", "newest time"), rows)


@pubsub.command(name="subscriptions")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plainly
def list_subscriptions(file: str, as_json: bool) -> None:
    """List the subscriptions of FILE: owner, name, what it reads, cursor, lag in messages, last seen."""
    with _open(file) as conn:
        _require_log(conn, file)
        with _transaction(conn, "BEGIN"):
            found = [(row, log.count_after(conn, row.selector, row.cursor)) for row in subscriptions.everyone(conn)]
    if as_json:
        values = [
            {
                "owner": row.owner,
                "subscription": row.name,
                "channels": sorted(row.selector.channels),
                "patterns": list(row.selector.patterns),
                "cursor": row.cursor,
                "lag": lag,
                "created_at": row.created_at,
                "last_seen_at": row.last_seen_at,
            }
            for row, lag in found
        ]
        click.echo(json.dumps(values, ensure_ascii=False, indent=2))
        return
    rows = [
        (
            row.owner or "(anonymous)",
            row.name,
            ", ".join([*sorted(row.selector.channels), *row.selector.patterns]),
            str(row.cursor),
            str(lag),
            row.last_seen_at,
        )
        for row, lag in found
    ]
    _print_table(("owner", "name", "reads", "cursor", "lag", "last seen"), rows)


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = [[_visible(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[n]) for row in shown) for n in range(len(heads))]
    for row in shown:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@pubsub.command(name="demo")
@click.option("--file", default="weather.db", show_default=True, help="The demo database; made if there is none.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0.01, max=10_000),
    default=4.0,
    show_default=True,
    metavar="DAYS",
    help="Days per second.",
)
@click.option("--once/--loop", default=True, show_default=True, help="End after the last day, or begin again.")
@plainly
def replay(file: str, speed: float, once: bool) -> None:
    """Replay four years of Seattle's weather into a demo database, one transaction a day.

    Goes on after the newest observation, and begins again when all are there.
    The file's own triggers publish: to observations, alerts/storm, alerts/frost and alerts/snow.
    """
    days = 0
    with _open(file, writes=True, create=True) as conn:
        try:
            demo.check(conn)
            _install(conn)
            with _transaction(conn):
                demo.prepare(conn)
            click.echo(f"Watch it at /{Path(file).stem}/-/pubsub of a Datasette that serves {file}", err=True)
            while True:
                with _transaction(conn):
                    done = demo.begin(conn)
                total = len(demo.observations())
                with click.progressbar(
                    _days(conn, speed),
                    length=total,
                    label="Replaying",
                    show_pos=True,
                    show_eta=False,
                    item_show_func=lambda day: f"{day.date} {day.weather}" if day else None,
                    file=sys.stderr,
                ) as bar:
                    bar.update(done)
                    for _ in bar:
                        days += 1
                if once:
                    break
        except KeyboardInterrupt:
            pass
        click.echo(f"Replayed {_count(days, 'day')}, last id {log.head(conn)}")


def _days(conn: sqlite3.Connection, speed: float) -> Iterator[demo.Observation]:
    """Insert day after day up to the end of the record, at a speed in days per second."""
    due = time.monotonic()
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        due += 1 / speed
        with _transaction(conn):
            day = demo.advance(conn)
        if day is None:
            return
        yield day
