"""The settings table: every option with its default, its unit and its bounds.

:mod:`.core.configuration` reads and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .option import option
from .retention_rule import Rule

if TYPE_CHECKING:
    from .standing import StandingQuery

PLUGIN = "datasette-pubsub"

#: The longest channel name, in bytes of UTF-8: long enough for a path of ids, and short enough that a page of an index
#: holds many. Users of MQTT and NATS stay below 256.
MAX_CHANNEL_BYTES = 255

#: The longest subscription name, in bytes of UTF-8, as for channels.
MAX_SUBSCRIPTION_NAME_BYTES = 255

#: The longest retention, in days: a hundred years.
MAX_DAYS = 36_500

#: The owner of the subscriptions that show how far a relay is; no actor may have this id.
RELAY_OWNER = "datasette-pubsub relay"

SYNCHRONOUS = {"normal": 1, "full": 2, "extra": 3}


class ConfigError(ValueError):
    """An option is unknown, of the wrong type or out of bounds; the text names it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of one database: the instance's, overridden by the database's own.

    :func:`.core.configuration.read_settings` makes one from the configuration and checks it.

    >>> from datasette_pubsub.core.configuration import read_settings
    >>> from datasette_pubsub.core.settings import ConfigError
    >>> read_settings({"retention_days": 7}, {"max_streams": 50}).max_streams
    50
    >>> try:
    ...     read_settings({"max_streams": 0})
    ... except ConfigError as error:
    ...     print(error)
    datasette-pubsub: option 'max_streams' must be between 1 and inf streams
    """

    enabled: bool = option(
        True,
        "true or false",
        "whether the plugin is active for this database",
        why="a database that must stay as it is",
    )
    synchronous: str = option(
        "full",
        "normal, full or extra",
        "SQLite's synchronous setting on Datasette's write connection; "
        "with normal, an acknowledged message may be lost when the machine loses power",
        bounds="`normal`, `full`, `extra`",
        why="an answer means that the message is on disk; `normal` is faster, and weaker",
    )
    max_payload_bytes: int = option(
        1024 * 1024,
        "bytes",
        "largest payload of one message",
        1,
        256 * 1024 * 1024,
        why="a message is read and sent whole; for more, publish a link. The file enforces it for every program",
    )
    max_batch_messages: int = option(
        10_000,
        "messages",
        "most messages in one publish request",
        1,
        1_000_000,
        why="a batch is one transaction, and others wait for it",
    )
    max_body_bytes: int = option(
        16 * 1024 * 1024,
        "bytes",
        "largest publish request body",
        1024,
        1024 * 1024 * 1024,
        why="over HTTP and over Connect, also unpacked: a body is held in memory until it is stored",
    )
    max_pending_messages: int = option(
        100_000,
        "messages",
        "most messages waiting for the batcher; further publishes are refused (back-pressure)",
        1,
        why="limits the memory that publishers can fill while the disk is slow; beyond it they get status 429",
    )
    max_pending_bytes: int = option(
        64 * 1024 * 1024,
        "bytes",
        "most payload bytes waiting for the batcher; further publishes are refused (back-pressure)",
        1024,
        why="as above, in bytes",
    )
    tail_bytes: int = option(
        16 * 1024 * 1024,
        "bytes",
        "newest messages kept in memory for live subscribers",
        0,
        why="live subscribers are served from memory; those that are further behind, from the log. 0 serves "
        "all from the log",
    )
    max_send_bytes: int = option(
        256 * 1024,
        "bytes",
        "largest send to a subscriber",
        1024,
        16 * 1024 * 1024,
        why="large enough for many messages at once, small enough for the memory of one slow subscriber",
    )
    max_streams: int = option(
        10_000,
        "streams",
        "streams open at once on this database",
        1,
        why="each stream is a connection, which the system limits too (`ulimit -n`)",
    )
    max_channels_per_stream: int = option(
        100,
        "channels and patterns",
        "channels and patterns that one stream may name",
        1,
        10_000,
        why="what one request can make the server match",
    )
    max_filter_bytes: int = option(
        8192,
        "bytes",
        "longest filter of a stream",
        1,
        64 * 1024,
        why="what one request can make the server evaluate for each message",
    )
    max_last_channels: int = option(
        10_000,
        "channels",
        "channels whose newest messages a stream with `start=last` begins with",
        1,
        1_000_000,
        why="each is looked up in the index, and sent",
    )
    heartbeat_seconds: float = option(
        15.0,
        "seconds",
        "send a heartbeat on an SSE stream after this long without a message",
        0.1,
        3600,
        why="below the 30 to 60 seconds after which proxies cut silent connections",
    )
    send_timeout_seconds: float = option(
        60.0,
        "seconds",
        "disconnect a subscriber that has not accepted data for this long",
        0.1,
        86400,
        why="a frozen subscriber must not keep its connection for ever",
    )
    follow_wait_seconds: float = option(
        60.0,
        "seconds",
        "how long a subscriber of a follower waits that is ahead of it, before it is told a gap; 0 tells it at once",
        0,
        86400,
        why="a follower lags by milliseconds, or by the time for which its process or NATS was down",
    )
    watch_interval_seconds: float = option(
        0.004,
        "seconds",
        "how often to poll for commits by other processes while there are subscribers, where no inotify tells of them",
        0.001,
        10,
        why="the delay of messages of other programs; on Linux the kernel tells of writes to the write-ahead log",
    )
    cursor_save_interval_seconds: float = option(
        1.0,
        "seconds",
        "how often to save the cursors of active subscriptions that were sent something",
        0.05,
        60,
        why="limits what a subscription with automatic acks may receive twice after a crash of the server",
    )
    retention_days: float = option(
        30.0,
        "days",
        "trim messages older than this; 0 keeps them for ever",
        0,
        MAX_DAYS,
        why="a log without an end fills the disk",
    )
    retention_messages: int = option(
        0,
        "messages",
        "keep this many of the newest messages in the log; 0 sets no limit",
        0,
        why="for logs whose size is to be known",
    )
    retention_bytes: int = option(
        0,
        "bytes",
        "keep this many bytes of the newest payloads in the log; 0 sets no limit",
        0,
        why="for disks whose size is known; payload only, without the overhead of some 100 bytes a message",
    )
    channel_retention: tuple[tuple[str, Rule], ...] = option(
        (),
        "mapping",
        "retention limits for each channel that matches a GLOB pattern: `days`, `messages` and `bytes`; "
        "the first pattern that matches applies; 0 sets no limit",
        bounds="days 0 to 36,500; others 0 or more",
        why="an audit trail and a metric need not live equally long",
    )
    retention_unread_bytes: int = option(
        0,
        "bytes",
        "keep up to this many payload bytes past the retention limits while a named subscription has not "
        "processed them",
        0,
        why="an absent subscriber must not fill the disk, so there is a limit",
    )
    trim_interval_seconds: float = option(
        60.0,
        "seconds",
        "how often to trim old messages",
        0.05,
        86400,
        why="a check costs little, and a log that exceeds its limit for a minute does no harm",
    )
    subscription_expiry_days: float = option(
        0.0,
        "days",
        "delete subscriptions that were not used for this long; 0 keeps them for ever",
        0,
        MAX_DAYS,
        why="a forgotten name costs one row; with `retention_unread_bytes` it also holds messages",
    )
    max_unacked_messages: int = option(
        10_000,
        "messages",
        "send no more messages to a subscriber with explicit acks while this many are unacknowledged",
        1,
        why="limits what is sent again after a crash",
    )
    max_snapshot_rows: int = option(
        10_000, "rows", "largest snapshot of a table or query", 1, 1_000_000, why="a snapshot is held in memory"
    )
    live_query_interval_seconds: float = option(
        0.5,
        "seconds",
        "run a live query at most this often",
        0.02,
        3600,
        why="people read no faster; many commits in a row cost one run. All runs of a database take at most a quarter "
        "of one thread, so that slow queries run less often",
    )
    max_live_queries: int = option(
        200,
        "queries",
        "different live queries open at once on this database",
        1,
        why="each is kept in memory with its result, and runs again after commits",
    )
    max_live_queries_per_actor: int = option(
        50,
        "queries",
        "different live queries open at once for one actor, or for one address of anonymous visitors",
        1,
        why="one actor must not use up all live queries",
    )
    max_live_query_bytes: int = option(
        4 * 1024 * 1024,
        "bytes",
        "largest result of a live query, as JSON",
        1024,
        256 * 1024 * 1024,
        why="each result is held in memory, and so are as many bytes of its changes for slow subscribers",
    )
    standing_queries: tuple[StandingQuery, ...] = option(
        (),
        "mapping",
        "standing queries by name: `sql`, `channel` and, if wanted, `key`, `operations`, `params` and `initial` "
        "(database only)",
        bounds="a SELECT each",
        why="a program can then wait for a row instead of polling: [Standing queries](queries.md#standing-queries)",
    )
    channel_permissions: tuple[tuple[str, Any, Any], ...] = option(
        (),
        "mapping",
        "allow blocks for `view` and `publish`, for the channels that match a GLOB pattern; the first "
        "pattern that matches applies, before the rules for the database",
        bounds="allow blocks",
        why="channels often have different readers",
    )
    allow_anonymous_subscriptions: bool = option(
        True,
        "true or false",
        "whether visitors who are not logged in may have named subscriptions",
        why="a name is a row, and visitors share theirs",
    )
    permission_recheck_seconds: float = option(
        60.0,
        "seconds",
        "how often to re-check permissions of an open stream",
        0.1,
        86400,
        why="a stream may stay open for days, while permissions change",
    )
    max_streams_per_actor: int = option(
        2_000,
        "streams",
        "streams open at once for one actor, or for one address of anonymous visitors",
        1,
        why="one actor must not use up all streams",
    )
    max_subscriptions_per_actor: int = option(
        1_000,
        "subscriptions",
        "named subscriptions of one actor",
        1,
        why="each is a row, and is read whenever they are listed or the log is trimmed",
    )
    max_anonymous_subscriptions: int = option(
        100,
        "subscriptions",
        "named subscriptions of all anonymous visitors together",
        1,
        why="a name costs a visitor one request and the owner a row; visitors share theirs, so that a few are enough",
    )
    max_subscription_bytes_per_actor: int = option(
        1024 * 1024,
        "bytes",
        "channels, patterns and filters in the named subscriptions of one actor, or of all anonymous visitors together",
        1024,
        why="100 channels with long names are 25 KB, which one request could store",
    )
    read_time_limit_seconds: float = option(
        3.0,
        "seconds",
        "longest time for one read of the log for a request",
        0.01,
        3600,
        why="a read occupies one of Datasette's three SQL threads, which all pages need; a longer one ends "
        "with status 503",
    )
    live_tables: bool = option(
        True,
        "true or false",
        "whether there are live rows: on the page of a broadcast table, and on `.live` pages of tables and queries",
        why="each open live page requests changed rows, or follows a live query",
    )
    events_channel: str = option(
        "",
        "channel",
        "publish Datasette's own events to this channel: logins, and changes of this database's rows and tables",
        bounds="a channel, or empty for none",
        why="who did what stands in the file; other programs' writes cause no event, and a broadcast table tells all",
    )
    dark_scheme: bool = option(
        False,
        "true or false",
        "whether the plugin's pages are dark for visitors whose system prefers dark",
        why="Datasette's own pages are light: without this, the plugin's pages follow them",
    )
    direct_send: bool = option(
        True,
        "true or false",
        "whether the hub sends to waiting subscribers without waking their tasks",
        why="faster with many subscribers; it uses asyncio functions that are meant for event loops, and "
        "turns itself off if they are missing",
    )
    freeze_heap: bool = option(
        True,
        "true or false",
        "whether Python's garbage collector passes over what is there when the server has started (instance only)",
        why="it would look at modules and functions again and again; Datasette's own pages are faster, too",
    )
    demo_database: str = option(
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
