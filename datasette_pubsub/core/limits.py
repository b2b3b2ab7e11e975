"""Fixed limits, which are no options: docs/configuration.md lists them."""

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

#: Whose the named subscriptions of other plugins are (:mod:`.api`); no actor may have this id.
PLUGIN_OWNER = "datasette-pubsub plugins"

#: The channel of the messages by which a health check measures. Retention keeps them for a day, unless
#: ``channel_retention`` says something else.
HEALTH_CHANNEL = "datasette-pubsub/health"
