"""The settings table: every option with its default, its unit and its bounds.

Only this module reads options. An unknown or wrong option stops Datasette at startup, with a message that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PLUGIN = "datasette-pubsub"

#: The longest channel name, in bytes of UTF-8: long enough for a path of ids, and short enough that a page of an index
#: holds many. Users of MQTT and NATS stay below 256.
MAX_CHANNEL_BYTES = 255

#: The longest subscription name, in bytes of UTF-8, as for channels.
MAX_SUBSCRIPTION_NAME_BYTES = 255

#: publish_batch gives the broker its rows in chunks of at most this many messages.
CHUNK_MESSAGES = 1000

#: Catch-up reads pages of at most this many messages from the log. A page of ordinary messages has about 100 KB: large
#: enough that handing the read to a thread (about 0.2 ms) costs little beside it.
PAGE_MESSAGES = 1000

#: A request's body must arrive within this many seconds: enough for the largest body over a slow line, and a bound for
#: slow requests (slowloris).
BODY_SECONDS = 60.0

#: The largest value in a snapshot, and the sum of all its values, in bytes. The server holds a snapshot in memory, and
#: a short SQL statement can produce a very large value.
MAX_SNAPSHOT_BYTES = 64 * 1024 * 1024

#: The longest retention, in days: a hundred years.
MAX_DAYS = 36_500

SYNCHRONOUS = {"normal": 1, "full": 2, "extra": 3}


class ConfigError(ValueError):
    """An option is unknown, of the wrong type or out of bounds; the text names it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A retention rule: keep messages younger than ``days``, the newest ``messages``, the newest ``bytes`` of payload.

    0 and ``None`` set no limit; a message is trimmed when it exceeds any limit.
    In a rule for channels, ``days`` of ``None`` applies the log's own ``days``,
    and 0 keeps messages of any age.
    """

    days: float | None = None
    messages: int | None = None
    bytes: int | None = None


def _option(
    default: Any, unit: str, doc: str, low: float = 0, high: float = float("inf"), *, why: str, bounds: str = ""
) -> Any:
    """One option: its meaning (``doc``) and its reason (``why``) go to the docs as they stand here.

    ``bounds`` says in words what ``low`` and ``high`` cannot.
    """
    return field(
        default=default,
        metadata={"unit": unit, "doc": doc, "low": low, "high": high, "why": why, "bounds": bounds},
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of one database: the instance's, overridden by the database's own.

    :func:`read_settings` makes one from the configuration and checks it.

    >>> from datasette_pubsub.core.settings import ConfigError, read_settings
    >>> read_settings({"retention_days": 7}, {"max_streams": 50}).max_streams
    50
    >>> try:
    ...     read_settings({"max_streams": 0})
    ... except ConfigError as error:
    ...     print(error)
    datasette-pubsub: option 'max_streams' must be between 1 and inf streams
    """

    enabled: bool = _option(
        True,
        "true or false",
        "whether the plugin is active for this database",
        why="a database that must stay as it is",
    )
    synchronous: str = _option(
        "full",
        "normal, full or extra",
        "SQLite's synchronous setting on Datasette's write connection; "
        "with normal, an acknowledged message may be lost when the machine loses power",
        bounds="`normal`, `full`, `extra`",
        why="an answer means that the message is on disk; `normal` is faster, and weaker",
    )
    max_payload_bytes: int = _option(
        1024 * 1024,
        "bytes",
        "largest payload of one message",
        1,
        256 * 1024 * 1024,
        why="a message is read and sent whole; for more, publish a link. The file enforces it for every program",
    )
    max_batch_messages: int = _option(
        10_000,
        "messages",
        "most messages in one publish request",
        1,
        1_000_000,
        why="a batch is one transaction, and others wait for it",
    )
    max_body_bytes: int = _option(
        16 * 1024 * 1024,
        "bytes",
        "largest publish request body",
        1024,
        1024 * 1024 * 1024,
        why="over HTTP and over Connect, also unpacked: a body is held in memory until it is stored",
    )
    max_pending_messages: int = _option(
        100_000,
        "messages",
        "most messages waiting for the batcher; further publishes are refused (back-pressure)",
        1,
        why="limits the memory that publishers can fill while the disk is slow; beyond it they get status 429",
    )
    max_pending_bytes: int = _option(
        64 * 1024 * 1024,
        "bytes",
        "most payload bytes waiting for the batcher; further publishes are refused (back-pressure)",
        1024,
        why="as above, in bytes",
    )
    tail_bytes: int = _option(
        16 * 1024 * 1024,
        "bytes",
        "newest messages kept in memory for live subscribers",
        0,
        why="live subscribers are served from memory; those that are further behind, from the log. 0 serves "
        "all from the log",
    )
    max_send_bytes: int = _option(
        256 * 1024,
        "bytes",
        "largest send to a subscriber",
        1024,
        16 * 1024 * 1024,
        why="large enough for many messages at once, small enough for the memory of one slow subscriber",
    )
    max_streams: int = _option(
        10_000,
        "streams",
        "streams open at once on this database",
        1,
        why="each stream is a connection, which the system limits too (`ulimit -n`)",
    )
    max_channels_per_stream: int = _option(
        100,
        "channels and patterns",
        "channels and patterns that one stream may name",
        1,
        10_000,
        why="what one request can make the server match",
    )
    max_filter_bytes: int = _option(
        8192,
        "bytes",
        "longest filter of a stream",
        1,
        64 * 1024,
        why="what one request can make the server evaluate for each message",
    )
    max_last_channels: int = _option(
        10_000,
        "channels",
        "channels whose newest messages a stream with `start=last` begins with",
        1,
        1_000_000,
        why="each is looked up in the index, and sent",
    )
    heartbeat_seconds: float = _option(
        15.0,
        "seconds",
        "send a heartbeat on an SSE stream after this long without a message",
        0.1,
        3600,
        why="below the 30 to 60 seconds after which proxies cut silent connections",
    )
    send_timeout_seconds: float = _option(
        60.0,
        "seconds",
        "disconnect a subscriber that has not accepted data for this long",
        0.1,
        86400,
        why="a frozen subscriber must not keep its connection for ever",
    )
    watch_interval_seconds: float = _option(
        0.004,
        "seconds",
        "how often to poll for commits by other processes while there are subscribers",
        0.001,
        10,
        why="the delay with which messages of other programs arrive; a poll takes microseconds",
    )
    cursor_save_interval_seconds: float = _option(
        1.0,
        "seconds",
        "how often to save the cursors of active subscriptions that were sent something",
        0.05,
        60,
        why="limits what a subscription with automatic acks may receive twice after a crash of the server",
    )
    retention_days: float = _option(
        30.0,
        "days",
        "trim messages older than this; 0 keeps them for ever",
        0,
        MAX_DAYS,
        why="a log without an end fills the disk",
    )
    retention_messages: int = _option(
        0,
        "messages",
        "keep this many of the newest messages in the log; 0 sets no limit",
        0,
        why="for logs whose size is to be known",
    )
    retention_bytes: int = _option(
        0,
        "bytes",
        "keep this many bytes of the newest payloads in the log; 0 sets no limit",
        0,
        why="for disks whose size is known; payload only, without the overhead of some 100 bytes a message",
    )
    channel_retention: tuple[tuple[str, Rule], ...] = _option(
        (),
        "mapping",
        "retention limits for each channel that matches a GLOB pattern: `days`, `messages` and `bytes`; "
        "the first pattern that matches applies; 0 sets no limit",
        bounds="days 0 to 36,500; others 0 or more",
        why="an audit trail and a metric need not live equally long",
    )
    retention_unread_bytes: int = _option(
        0,
        "bytes",
        "keep up to this many payload bytes past the retention limits while a named subscription has not "
        "processed them",
        0,
        why="an absent subscriber must not fill the disk, so there is a limit",
    )
    trim_interval_seconds: float = _option(
        60.0,
        "seconds",
        "how often to trim old messages",
        0.05,
        86400,
        why="a check costs little, and a log that exceeds its limit for a minute does no harm",
    )
    subscription_expiry_days: float = _option(
        0.0,
        "days",
        "delete subscriptions that were not used for this long; 0 keeps them for ever",
        0,
        MAX_DAYS,
        why="a forgotten name costs one row; with `retention_unread_bytes` it also holds messages",
    )
    max_unacked_messages: int = _option(
        10_000,
        "messages",
        "send no more messages to a subscriber with explicit acks while this many are unacknowledged",
        1,
        why="limits what is sent again after a crash",
    )
    max_snapshot_rows: int = _option(
        10_000, "rows", "largest snapshot of a table or query", 1, 1_000_000, why="a snapshot is held in memory"
    )
    channel_permissions: tuple[tuple[str, Any, Any], ...] = _option(
        (),
        "mapping",
        "allow blocks for `view` and `publish`, for the channels that match a GLOB pattern; the first "
        "pattern that matches applies, before the rules for the database",
        bounds="allow blocks",
        why="channels often have different readers",
    )
    allow_anonymous_subscriptions: bool = _option(
        True,
        "true or false",
        "whether visitors who are not logged in may have named subscriptions",
        why="a name is a row, and visitors share theirs",
    )
    permission_recheck_seconds: float = _option(
        60.0,
        "seconds",
        "how often to re-check permissions of an open stream",
        0.1,
        86400,
        why="a stream may stay open for days, while permissions change",
    )
    max_streams_per_actor: int = _option(
        2_000,
        "streams",
        "streams open at once for one actor, or for one address of anonymous visitors",
        1,
        why="one actor must not use up all streams",
    )
    max_subscriptions_per_actor: int = _option(
        1_000,
        "subscriptions",
        "named subscriptions of one actor",
        1,
        why="each is a row, and is read whenever they are listed or the log is trimmed",
    )
    max_anonymous_subscriptions: int = _option(
        100,
        "subscriptions",
        "named subscriptions of all anonymous visitors together",
        1,
        why="a name costs a visitor one request and the owner a row; visitors share theirs, so that a few are enough",
    )
    max_subscription_bytes_per_actor: int = _option(
        1024 * 1024,
        "bytes",
        "channels, patterns and filters in the named subscriptions of one actor, or of all anonymous visitors together",
        1024,
        why="100 channels with long names are 25 KB, which one request could store",
    )
    read_time_limit_seconds: float = _option(
        3.0,
        "seconds",
        "longest time for one read of the log for a request",
        0.01,
        3600,
        why="a read occupies one of Datasette's three SQL threads, which all pages need; a longer one ends "
        "with status 503",
    )
    live_tables: bool = _option(
        True,
        "true or false",
        "whether Datasette's own page of a broadcast table updates its rows",
        why="each open live page requests changed rows",
    )
    direct_send: bool = _option(
        True,
        "true or false",
        "whether the hub sends to waiting subscribers without waking their tasks",
        why="faster with many subscribers; it uses asyncio functions that are meant for event loops, and "
        "turns itself off if they are missing",
    )
    demo_database: str = _option(
        "",
        "file name",
        "demo database to create and serve, beside the configuration file (instance only)",
        bounds="a name without a folder",
        why="used by this repository's own `metadata.yml`",
    )

    @property
    def retention(self) -> Rule:
        """The retention rule for the whole log."""
        return Rule(self.retention_days or None, self.retention_messages or None, self.retention_bytes or None)


def _rules(option: str, value: Any) -> tuple[tuple[str, Rule], ...]:
    """Check ``channel_retention``: the retention rules by pattern, in their order."""
    where = f"{PLUGIN}: option {option!r}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of channel patterns")
    found: list[tuple[str, Rule]] = []
    for pattern, limits in value.items():
        if not isinstance(limits, Mapping) or not limits or set(limits) - {"days", "messages", "bytes"}:
            raise ConfigError(f"{where}: {pattern!r} must have days, messages or bytes, and nothing else")
        for name, limit in limits.items():
            high = MAX_DAYS if name == "days" else 2**62
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 <= limit <= high:
                raise ConfigError(f"{where}: {name} of {pattern!r} must be a number between 0 and {high}")
            if name != "days" and limit != int(limit):
                raise ConfigError(f"{where}: {name} of {pattern!r} must be a whole number")
        found.append((str(pattern), Rule(**limits)))
    return tuple(found)


def _access(option: str, value: Any) -> tuple[tuple[str, Any, Any], ...]:
    """Check ``channel_permissions``: each pattern with its allow blocks for viewing and publishing, in their order.

    ``None`` stands for a block that is not set.
    """
    where = f"{PLUGIN}: option {option!r}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of channel patterns")
    for pattern, blocks in value.items():
        if not isinstance(blocks, Mapping) or not blocks or set(blocks) - {"view", "publish"}:
            raise ConfigError(f"{where}: {pattern!r} must have view or publish, and nothing else")
        for name, block in blocks.items():
            if not isinstance(block, (bool, Mapping)):
                raise ConfigError(f"{where}: {name} of {pattern!r} must be true, false or an allow block")
    return tuple((str(pattern), blocks.get("view"), blocks.get("publish")) for pattern, blocks in value.items())


def _check(option: str, kind: type, value: Any, meta: Mapping[str, Any]) -> Any:
    where = f"{PLUGIN}: option {option!r}"
    if kind is tuple:
        return _access(option, value) if option == "channel_permissions" else _rules(option, value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false")
    elif kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{where} must be text: {meta['unit']}")
    else:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise ConfigError(f"{where} must be a number of {meta['unit']}")
        if kind is int and value != int(value):
            raise ConfigError(f"{where} must be a whole number of {meta['unit']}")
        if not meta["low"] <= value <= meta["high"]:
            raise ConfigError(f"{where} must be between {meta['low']:g} and {meta['high']:g} {meta['unit']}")
        value = kind(value)
    return value


def read_settings(instance: Any, database: Any = None) -> Settings:
    """Check the plugin's configuration and return the settings of one database.

    ``instance`` is the block under ``plugins: datasette-pubsub:`` at the top of
    the configuration, ``database`` the one of the database. Raises
    :class:`ConfigError`, whose text names the option and its bounds.
    """
    kinds = {f.name: (type(f.default), f.metadata) for f in fields(Settings)}
    values: dict[str, Any] = {}
    for level, block in (("instance", instance), ("database", database)):
        if block is None:
            continue
        if not isinstance(block, Mapping):
            raise ConfigError(f"{PLUGIN}: the plugin's configuration must be a mapping of options")
        for name, value in block.items():
            if name not in kinds:
                raise ConfigError(f"{PLUGIN}: unknown option {name!r}; known: {', '.join(sorted(kinds))}")
            if name == "demo_database" and level == "database":
                raise ConfigError(f"{PLUGIN}: option 'demo_database' belongs to the instance, not to a database")
            values[name] = _check(name, *(kinds[name][0], value, kinds[name][1]))
    settings = Settings(**values)
    if settings.synchronous not in SYNCHRONOUS:
        raise ConfigError(f"{PLUGIN}: option 'synchronous' must be one of {', '.join(SYNCHRONOUS)}")
    return settings
