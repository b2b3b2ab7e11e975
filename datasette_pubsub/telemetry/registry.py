"""Every metric, span and attribute that the plugin emits, in the form of Datasette's registry for plugins.

An entry is the string that OpenTelemetry wants. docs/monitoring.md shows the tables, and tests compare them with what
is emitted. Where OpenTelemetry's conventions for messaging have a name, it is used
(https://opentelemetry.io/docs/specs/semconv/messaging/). A channel is never an attribute: channels have no bound, and
may be private.
"""

from __future__ import annotations

from datasette.telemetry_registry import (
    COUNTER,
    DB_NAMESPACE,
    DURATION_BUCKETS,
    GAUGE,
    HISTOGRAM,
    Attribute,
    MetricName,
    SpanName,
)
from opentelemetry.trace import SpanKind

#: The name of the tracer and of the meter.
SCOPE = "datasette_pubsub"

#: The version of the conventions whose names these are: ``send`` is the type of a publish since 1.28.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.29.0"

SYSTEM = Attribute("messaging.system", "Always `datasette_pubsub`.", values={"datasette_pubsub"})
OPERATION = Attribute(
    "messaging.operation.name",
    "What is done: `publish`, `commit`, `subscribe` or `end`.",
    values={"publish", "commit", "subscribe", "end"},
)
OPERATION_TYPE = Attribute(
    "messaging.operation.type",
    "`send` for a publish, `receive` for a subscriber.",
    values={"send", "receive"},
)
BATCH = Attribute("messaging.batch.message_count", "How many messages the publish or the commit has.")
PUBLISHES = Attribute("datasette_pubsub.commit.publishes", "How many publishes share the commit.")
DELIVERED = Attribute(
    "datasette_pubsub.stream.delivered", "How many messages were sent to the subscriber. Only for subscribers."
)
ERROR_TYPE = Attribute(
    "error.type",
    "The class of the error, such as `PermissionDenied` or `Unavailable`. Only for what has failed.",
    optional=True,
)
KIND = Attribute(
    "datasette_pubsub.stream.kind",
    "`subscriber`, `publisher` (a publish stream) or `live_query`.",
    values={"subscriber", "publisher", "live_query"},
)
REASON = Attribute(
    "datasette_pubsub.stream.end",
    "Why the stream ended: `closed` by the client, or by the server as `superseded`, `revoked` (permissions), "
    "`changed` (its channels, by SQL) or `bye` (shutdown, or the file was replaced).",
    values={"closed", "superseded", "revoked", "changed", "bye"},
)
DURABLE = Attribute("datasette_pubsub.subscription.named", "Whether the subscriber has a named subscription.")

_OF_DATABASE = (SYSTEM, DB_NAMESPACE)

SENT = MetricName(
    "messaging.client.sent.messages",
    COUNTER,
    "{message}",
    "Messages that this server has committed for publishers: over HTTP, Connect RPC, publish streams and plugins. "
    "What other programs insert is in `datasette_pubsub.log.head` alone.",
    (*_OF_DATABASE, OPERATION),
)
CONSUMED = MetricName(
    "messaging.client.consumed.messages",
    COUNTER,
    "{message}",
    "Messages that were sent to subscribers, one for each subscriber; what comes again counts again.",
    (*_OF_DATABASE, OPERATION),
)
PUBLISH_DURATION = MetricName(
    "datasette_pubsub.publish.duration",
    HISTOGRAM,
    "s",
    "From the moment that a publish is queued to its answer: one value for each commit, of the publish that waited "
    "longest.",
    _OF_DATABASE,
    buckets=DURATION_BUCKETS,
)
COMMIT_DURATION = MetricName(
    "datasette_pubsub.commit.duration",
    HISTOGRAM,
    "s",
    "Duration of one transaction, from BEGIN to the end of its COMMIT, which waits for the disk.",
    _OF_DATABASE,
    buckets=DURATION_BUCKETS,
)
COMMIT_MESSAGES = MetricName(
    "datasette_pubsub.commit.messages",
    HISTOGRAM,
    "{message}",
    "How many messages share one commit.",
    _OF_DATABASE,
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000),
)
PENDING = MetricName(
    "datasette_pubsub.publish.pending",
    GAUGE,
    "{message}",
    "Messages that wait to be written. At `max_pending_messages`, publishes are refused.",
    _OF_DATABASE,
)
STREAMS = MetricName(
    "datasette_pubsub.streams", GAUGE, "{stream}", "Open streams, by their kind.", (*_OF_DATABASE, KIND)
)
ENDED = MetricName(
    "datasette_pubsub.streams.ended",
    COUNTER,
    "{stream}",
    "Streams that have ended, by their kind and reason.",
    (*_OF_DATABASE, KIND, REASON),
)
CUT_OFF = MetricName(
    "datasette_pubsub.streams.cut_off",
    COUNTER,
    "{stream}",
    "Streams whose client accepted no data for `send_timeout_seconds`. They are among the ended ones, too.",
    _OF_DATABASE,
)
HEAD = MetricName(
    "datasette_pubsub.log.head",
    GAUGE,
    "{message}",
    "The log's newest id. Ids have no holes, so its rate is that of all messages, whoever published them.",
    _OF_DATABASE,
)
TRIMMED = MetricName(
    "datasette_pubsub.messages.trimmed",
    COUNTER,
    "{message}",
    "Messages that retention has removed.",
    _OF_DATABASE,
)
SUBSCRIPTIONS = MetricName(
    "datasette_pubsub.subscriptions",
    GAUGE,
    "{subscription}",
    "Named subscriptions, connected or not.",
    _OF_DATABASE,
)
LAG = MetricName(
    "datasette_pubsub.subscriptions.lag",
    GAUGE,
    "{message}",
    "How many messages the named subscription that is furthest behind has not read; counted to 10,000.",
    _OF_DATABASE,
)
RELAY_LAG = MetricName(
    "datasette_pubsub.relay.lag",
    GAUGE,
    "{message}",
    "How many messages the relay that is furthest behind has not relayed. Not reported without a relay.",
    _OF_DATABASE,
)
FOLLOW_LAG = MetricName(
    "datasette_pubsub.follow.lag",
    GAUGE,
    "{message}",
    "How many messages this copy is behind the stream that it follows, as far as it has heard. Not reported for an "
    "ordinary log.",
    _OF_DATABASE,
)
LIVE_QUERIES = MetricName(
    "datasette_pubsub.live_queries",
    GAUGE,
    "{query}",
    "Queries that are kept up to date, standing ones included.",
    _OF_DATABASE,
)
LIVE_QUERY_RUNS = MetricName(
    "datasette_pubsub.live_queries.runs",
    COUNTER,
    "{run}",
    "How many times they were run.",
    _OF_DATABASE,
)

METRICS = (
    SENT,
    CONSUMED,
    PUBLISH_DURATION,
    COMMIT_DURATION,
    COMMIT_MESSAGES,
    PENDING,
    STREAMS,
    ENDED,
    CUT_OFF,
    HEAD,
    TRIMMED,
    SUBSCRIPTIONS,
    LAG,
    RELAY_LAG,
    FOLLOW_LAG,
    LIVE_QUERIES,
    LIVE_QUERY_RUNS,
)

PUBLISH = SpanName(
    "publish",
    "One publish by a request that is traced, from its check to its answer. Publishes in a publish stream have none.",
    (*_OF_DATABASE, OPERATION, OPERATION_TYPE, BATCH, ERROR_TYPE),
    kind=SpanKind.PRODUCER,
)
COMMIT = SpanName(
    "commit",
    "One transaction of the batcher, in a trace of its own, with a link to each traced publish that it holds.",
    (*_OF_DATABASE, OPERATION, BATCH, PUBLISHES, ERROR_TYPE),
)
SUBSCRIBE = SpanName(
    "subscribe",
    "The opening of a stream: until the subscriber, the publish stream or the live query is ready. The request's own "
    "span ends with the stream, perhaps after hours; this one is exported at once.",
    (*_OF_DATABASE, OPERATION, KIND, DURABLE, ERROR_TYPE),
)
END = SpanName(
    "end",
    "The end of a stream, in a trace of its own, with a link to its opening.",
    (*_OF_DATABASE, OPERATION, KIND, REASON, DELIVERED),
)

SPANS = (PUBLISH, COMMIT, SUBSCRIBE, END)
