"""The commands of ``datasette pubsub``.

They open the file directly, with Python's own SQLite, so they must never run inside a server's process
(docs/architecture.md). The SQL is in the room :mod:`.storage`.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import click

from ..broadcast import tables
from ..core.selector import Selector
from ..core.settings import Settings
from ..core.validation import check_item, check_message_id, check_since
from ..core.values import Item
from ..demo import weather
from ..storage import lag, last, log, schema, subscriptions
from ..storage.catchup import CatchUp
from ..storage.filters import Filters
from ..storage.names import Name, shown
from ..storage.transaction import transaction
from . import broadcast, live, relay, watch
from .common import LOCK_SECONDS, counted, plainly, print_table, require_log, settings_of
from .publish import Publisher
from .tail import before_newest, follow_log, json_line, plain_line, print_last, print_up_to
from .trim import Trimmer, limits

#: The most bytes of messages that ``tail`` holds in memory.
PAGE_BYTES = 1024 * 1024


def _open(file: str, writes: bool = False, create: bool = False) -> closing[sqlite3.Connection]:
    """Open a connection for one command. Without ``writes`` and ``create``, the file is never modified."""
    path = Path(file)
    if not path.exists() and not create:
        raise click.ClickException(f"{file}: there is no such file")
    if path.is_dir():
        raise click.ClickException(f"{file} is a directory, not a database")
    mode = "rwc" if create else "rw" if writes else "ro"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    conn = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
    # Any program may have stored text that is not UTF-8: show its invalid bytes as replacement characters.
    conn.text_factory = lambda data: data.decode(errors="replace")
    return closing(conn)


def _install(conn: sqlite3.Connection) -> tuple[str, ...]:
    settings = settings_of(conn)
    schema.set_durability(conn, settings)
    return schema.install(conn, settings, repair=True, migrated=tables.renew)


@click.group()
def pubsub() -> None:
    """Publish to a database file and read its log, also while Datasette serves it."""


@pubsub.command()
@click.argument("file")
@click.option("--create", is_flag=True, help="Create the file if it does not exist.")
@plainly
def install(file: str, create: bool) -> None:
    """Install the log in FILE, bring it up to date, or repair it.

    From then on every program can publish: INSERT INTO vpubsub (channel, payload) VALUES (…).
    """
    with _open(file, writes=True, create=create) as conn:
        for name in _install(conn):
            click.echo(f"Repaired {name}, which was not as datasette-pubsub makes it")
    click.echo(f"{file} is ready: programs can publish to it and subscribe to it")


@pubsub.command()
@click.argument("file")
@click.argument("channel", required=False)
@click.argument("payload", required=False)
@click.option("--key", help="Publish PAYLOAD only if the channel has no message with this key yet.")
@click.option(
    "--json-lines",
    is_flag=True,
    help="Each line is a JSON object with the fields of a message; CHANNEL is for lines that name none. "
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
        require_log(conn, file)
        settings = settings_of(conn)
        schema.set_durability(conn, settings)
        publisher = Publisher(conn, settings)
        if payload is not None and channel is not None:
            item = Item(channel, payload, key)
            check_item(item, settings)
            publisher.publish([item])
        else:
            publisher.publish_lines(sys.stdin.buffer, channel, json_lines)
    click.echo(publisher.summary())


@pubsub.command()
@click.argument("file")
@click.argument("channel", nargs=-1)
@click.option("--pattern", multiple=True, metavar="GLOB", help="Channels by GLOB pattern, like 'orders/*'; repeats.")
@click.option("--after", metavar="ID", help="Begin after this message id.")
@click.option("--since", metavar="TIME", help="Begin with the first message since an ISO 8601 time.")
@click.option(
    "--start",
    type=click.Choice(["earliest", "latest", "last"]),
    help="earliest: begin with the oldest message; latest: with the next one; last: with the newest of each channel.",
)
@click.option("--filter", "expression", metavar="SQL", help="Only messages for which this SQL expression is true.")
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=0),
    metavar="COUNT",
    help="Begin with this many of the newest messages; 10 by default.",
)
@click.option("--follow", "-f", is_flag=True, help="Continue with new messages as they are committed; Ctrl+C ends.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as subscribers receive it.")
@plainly
def tail(
    file: str,
    channel: tuple[str, ...],
    pattern: tuple[str, ...],
    after: str | None,
    since: str | None,
    start: str | None,
    expression: str | None,
    count: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the newest messages of FILE, of all channels or of those named.

    A line has id, time, channel and payload, separated by tabs, with control
    characters made visible. --json prints payloads unchanged. If messages after
    --after were trimmed, their number is printed on standard error, and as
    "missed" in JSON.
    """
    if sum((after is not None, since is not None, start is not None, count is not None)) > 1:
        raise click.UsageError("--after, --since, --start and -n exclude each other: each says where to begin")
    after_id = check_message_id(after, "--after") if after is not None else None
    since_time = check_since(since, "--since") if since is not None else None
    filters = Filters()
    checked = filters.check(expression) if expression is not None else ""
    selector = Selector.of(channel, pattern, filter=checked) or Selector(patterns=("*",), filter=checked)
    with _open(file) as conn:
        require_log(conn, file)
        newest: list[int] = []
        with transaction(conn, "BEGIN"):
            end = log.head(conn)
            if start == "last":
                newest = last.ids(conn, selector, end, filters, Settings().max_last_channels)
                position = end
            elif after_id is not None:
                position = after_id
            elif since_time is not None:
                position = log.before_time(conn, since_time)
            elif start is not None:
                position = 0 if start == "earliest" else end
            else:
                position = before_newest(conn, selector, 10 if count is None else count, filters)
        reader = CatchUp(selector, PAGE_BYTES, filters)
        if after_id is None:
            reader.forgive(conn, position)
        if position > end:
            click.echo(f"Gap: the log ends at {end}, so it is not the one that was read up to {position}", err=True)
        line = json_line if as_json else plain_line
        print_last(conn, last.Last(newest, end), PAGE_BYTES, line)
        if not follow:
            print_up_to(conn, reader, position, end, line)
            return
        try:
            follow_log(conn, reader, min(position, end), line)
        except KeyboardInterrupt:
            return


@pubsub.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plainly
def channels(file: str, as_json: bool) -> None:
    """List the channels of FILE: how many messages, and the newest."""
    with _open(file) as conn:
        require_log(conn, file)
        found = log.channels(conn)
    if as_json:
        click.echo(json.dumps([channel.as_json() for channel in found], ensure_ascii=False, indent=2))
        return
    rows = [(channel.name, str(channel.count), str(channel.newest_id), channel.newest_at) for channel in found]
    print_table(("channel", "messages", "newest id", "newest time"), rows)


@pubsub.command(name="subscriptions")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plainly
def list_subscriptions(file: str, as_json: bool) -> None:
    """List the subscriptions of FILE: owner, name, what it reads, cursor, lag in messages, last seen."""
    filters = Filters()
    with _open(file) as conn:
        require_log(conn, file)
        with transaction(conn, "BEGIN"):
            found = [(row, lag.exact(conn, row.selector, row.cursor, filters)) for row in subscriptions.everyone(conn)]
    if as_json:
        values = [
            {
                "owner": row.owner,
                "subscription": row.name,
                "relay_to": row.relay_to,
                "channels": sorted(row.selector.channels),
                "patterns": list(row.selector.patterns),
                "filter": row.selector.filter,
                "cursor": row.cursor,
                "lag": behind,
                "created_at": row.created_at,
                "last_seen_at": row.last_seen_at,
            }
            for row, behind in found
        ]
        click.echo(json.dumps(values, ensure_ascii=False, indent=2))
        return
    rows = [
        (
            row.owner or "(anonymous)" if row.relay_to is None else "(relay)",
            row.name if row.relay_to is None else f"relay to the stream {row.relay_to}",
            ", ".join([*sorted(row.selector.channels), *row.selector.patterns])
            + (f" where {row.selector.filter}" if row.selector.filter else ""),
            str(row.cursor),
            str(behind),
            row.last_seen_at,
        )
        for row, behind in found
    ]
    print_table(("owner", "name", "reads", "cursor", "lag", "last seen"), rows)


@pubsub.command()
@click.argument("file")
@click.option(
    "--days",
    type=click.FloatRange(min=0, max=36500, min_open=True),
    help="Keep the messages of this many days; 30 if no limit is given.",
)
@click.option("--messages", type=click.IntRange(min=1), help="Keep this many of the newest messages.")
@click.option("--bytes", "size", type=click.IntRange(min=1), help="Keep this many bytes of the newest payloads.")
@click.option(
    "--pattern",
    multiple=True,
    metavar="GLOB",
    help="Only channels that match a GLOB pattern; the limits then apply to each channel by itself. Repeats.",
)
@click.option("--vacuum", is_flag=True, help="Then return the space to the file system, which rewrites the whole file.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@plainly
def trim(
    file: str,
    days: float | None,
    messages: int | None,
    size: int | None,
    pattern: tuple[str, ...],
    vacuum: bool,
    dry_run: bool,
) -> None:
    """Remove old messages from the log of FILE, in small transactions.

    A message is removed when it exceeds any limit. Subscribers that have not read
    it learn how many they missed. The options of a server do not apply here.
    """
    if vacuum and dry_run:
        raise click.UsageError("--vacuum and --dry-run exclude each other")
    settings = limits(days, messages, size, pattern)
    with _open(file, writes=not dry_run) as conn:
        require_log(conn, file)
        trimmer = Trimmer(conn, settings)
        if dry_run:
            _print_counts("would go", trimmer.wanted)
            click.echo(f"Would trim {counted(sum(trimmer.wanted.values()))}")
            return
        schema.set_durability(conn, settings_of(conn))
        try:
            trimmer.run()
        finally:
            _print_counts("trimmed", trimmer.done)
            click.echo(f"Trimmed {counted(sum(trimmer.done.values()))}")
        if vacuum:
            _vacuum(conn, Path(file))


def _print_counts(head: str, counts: Mapping[Name, int]) -> None:
    rows = sorted((shown(channel), str(number)) for channel, number in counts.items() if number)
    if rows:
        print_table(("channel", head), rows)


def _vacuum(conn: sqlite3.Connection, path: Path) -> None:
    before = path.stat().st_size
    conn.execute("VACUUM")
    # The vacuumed content is in the write-ahead log until a checkpoint writes it to the file.
    waits = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if waits:
        click.echo("Vacuumed; the file shrinks when those who are reading it now have finished")
    else:
        click.echo(f"Vacuumed: the file had {counted(before, 'byte')} and has {path.stat().st_size}")


pubsub.add_command(broadcast.command(_open))
pubsub.add_command(live.command(_open))
pubsub.add_command(watch.command(_open))
relay.add(pubsub, _open)


@pubsub.command(name="demo")
@click.option(
    "--file", default="weather.db", show_default=True, help="The demo database; created if it does not exist."
)
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

    Continues after the newest observation, and begins again when all are there.
    The file's own triggers publish to observations, alerts/storm, alerts/frost and alerts/snow.
    """
    days = 0
    # demo/run and systemd end a background process with SIGTERM; as after Ctrl+C, the command prints its result.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _open(file, writes=True, create=True) as conn:
        try:
            weather.check(conn)
            _install(conn)
            with transaction(conn):
                weather.prepare(conn)
            click.echo(f"Watch it at /{Path(file).stem}/-/pubsub of a Datasette that serves {file}", err=True)
            while True:
                with transaction(conn):
                    done = weather.begin(conn)
                total = len(weather.observations())
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
        finally:
            signal.signal(signal.SIGTERM, previous)
        click.echo(f"Replayed {counted(days, 'day')}, last id {log.head(conn)}")


def _days(conn: sqlite3.Connection, speed: float) -> Iterator[weather.Observation]:
    """Insert day after day up to the end of the record, at a speed in days per second."""
    due = time.monotonic()
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        due += 1 / speed
        with transaction(conn):
            day = weather.advance(conn)
        if day is None:
            return
        yield day
