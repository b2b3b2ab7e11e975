/**
 * Read the channels of a database live, from any page.
 *
 *     import { connect } from "/-/static-plugins/datasette_pubsub/pubsub.js";
 *
 *     const connection = connect({
 *       base: "/data/-/pubsub",
 *       channels: ["orders"],
 *       after: 1234,
 *       onmessage: (message) => console.log(message.messageId, message.channel, message.payload),
 *       ongap: (gap) => console.warn(`${gap.missed} messages were trimmed before they were read`),
 *       onstatus: (status, detail) => console.log(status, detail.reason ?? ""),
 *     });
 *     connection.close();
 *
 * Each message is delivered once and in order, whatever happens to the network,
 * the server or the tab that holds the connection. The page's callbacks show the
 * messages. `query` follows the result of a query. No build step, no dependencies.
 *
 * @module pubsub
 */

import { SILENCE_SECONDS, StreamConnection } from "./client/connection.js";
import { Subscriber } from "./client/subscriber.js";
import { SharedConnection } from "./client/shared_connection.js";
import { followQuery } from "./client/shared_query.js";

/**
 * One message, with the field names of `SubscribeResponse`.
 * @typedef {object} Message
 * @property {string} messageId its position in the log: a whole number of up to 64 bits, so a string
 * @property {string} channel
 * @property {string} [payload] texts and numbers, as text
 * @property {string} [blob] bytes, as base64; then there is no payload
 * @property {string} createdAt UTC, like `2026-01-31T12:00:00.000Z`
 */

/**
 * Messages that were trimmed before the subscriber read them.
 * @typedef {object} Gap
 * @property {number | null} missed the number of trimmed messages; `null` (unknown) when the log was replaced
 *   by one that ends earlier, like a restored backup
 * @property {string} resumedAt the message id after which the stream continues
 */

/**
 * - `connecting`: the first attempt is under way
 * - `catching up`: connected, and earlier messages are arriving
 * - `live`: connected, and the subscriber has every message up to the head
 * - `reconnecting`: the connection was lost; the module makes the next attempt by itself
 * - `superseded`: a newer connection has taken over the subscription; this one has ended
 * - `closed`: ended by `close()` or by the signal
 * @typedef {"connecting" | "catching up" | "live" | "reconnecting" | "superseded" | "closed"} Status
 */

/**
 * @typedef {object} Options
 * @property {string} [base] the database's address: `/<database>/-/pubsub`
 * @property {string} [url] instead of `base`: the stream's own address
 * @property {string[]} [channels] exact names
 * @property {string[]} [patterns] GLOB patterns: `orders/*`
 * @property {string} [filter] an SQL expression: only messages for which it is true
 * @property {string} [subscription] the name of a durable subscription: the server keeps its cursor
 * @property {"auto" | "explicit"} [ack] how the subscription's cursor moves
 * @property {string | number | bigint} [after] begin after this message id; else at the head, or at the cursor
 * @property {"earliest" | "latest" | "last"} [start] begin there; `last`: with the newest message of each channel
 * @property {string} [since] begin with the first message after this ISO 8601 time
 * @property {(message: Message) => void} [onmessage] called with every message, once, in order
 * @property {(gap: Gap) => void} [ongap] called before the first message that follows a gap
 * @property {(status: Status, detail: {reason?: string, retryInMs?: number}) => void} [onstatus] called at every change,
 *   and for every failed attempt, with the wait before the next
 * @property {boolean} [share] use one connection for all tabs of this origin and database, also for different channels:
 *   browsers open only six to a server over HTTP/1.1. Needs Web Locks (https or localhost), else each tab connects itself
 * @property {string} [token] an API token of Datasette; every request carries it
 * @property {boolean} [withCredentials] send cookies to another site
 * @property {AbortSignal} [signal] closes the connection
 * @property {number} [silenceSeconds] reconnect after this many seconds without a message or a heartbeat
 */

/**
 * The return value of `connect`.
 * @typedef {object} Connection
 * @property {() => void} close end the connection; the last callback is `onstatus("closed")`
 * @property {Status} status
 * @property {string | null} lastId the last message id that the subscriber received or skipped: pass it as `after` to
 *   a connection that continues from here
 */

/**
 * Follow channels, until `close()`.
 * @param {Options} options
 * @returns {Connection}
 */
export function connect(options) {
  const url = streamUrl(options);
  const subscriber = new Subscriber(options);
  const settings = {
    named: url.searchParams.has("subscription"),
    silence: (options.silenceSeconds ?? SILENCE_SECONDS) * 1000,
    credentials: Boolean(options.withCredentials),
    token: options.token,
  };
  const share = options.share && navigator.locks && globalThis.BroadcastChannel;
  const connection = share
    ? new SharedConnection(url, subscriber, settings)
    : new StreamConnection(() => url, (frame) => void subscriber.take(frame), settings);
  connection.open(subscriber.position);
  const close = () => {
    connection.close();
    subscriber.end();
  };
  if (options.signal?.aborted) close();
  else options.signal?.addEventListener("abort", close, { once: true });
  return {
    close,
    get status() {
      return subscriber.status;
    },
    get lastId() {
      return subscriber.position === null ? null : String(subscriber.position);
    },
  };
}

/** The stream's address, without the position to resume from. @param {Options} options */
function streamUrl(options) {
  const url = new URL(options.url ?? `${options.base}/-/stream`, document.baseURI);
  for (const channel of options.channels ?? []) url.searchParams.append("channel", channel);
  for (const pattern of options.patterns ?? []) url.searchParams.append("pattern", pattern);
  for (const name of ["filter", "subscription", "ack", "start", "since"]) {
    if (options[name]) url.searchParams.set(name, options[name]);
  }
  if (options.subscription && options.after !== undefined) url.searchParams.set("after", String(options.after));
  url.searchParams.delete("format");
  return url;
}

/**
 * - `connecting`: the first attempt is under way
 * - `live`: connected; the result is up to date
 * - `broken`: connected, but the server cannot run the query: a table was dropped, or the result has grown over a limit
 * - `reconnecting`: the connection was lost or refused; the next attempt follows automatically
 * - `closed`: ended by `close()` or by the signal
 * @typedef {"connecting" | "live" | "broken" | "reconnecting" | "closed"} QueryStatus
 */

/**
 * A result: rows in the order of the query, each an array with a value for each of `columns`.
 * @typedef {object} Result
 * @property {string[]} columns
 * @property {string[]} key the columns that recognise a row; none: all of them do
 * @property {any[][]} rows
 * @property {number} [count] of a table: the number of all rows, if `rows` is a page of them
 * @property {string} head the log's newest message id at that moment
 */

/**
 * The change of a result, in this order: `removed` (places in the old list), `inserted` and `changed` (places in the new one);
 * each entry is `{at, row}`, in `changed` also with `was`, the row before.
 * @typedef {object} ResultChange
 * @property {import("./client/result.js").Placed[]} removed
 * @property {import("./client/result.js").Placed[]} inserted
 * @property {import("./client/result.js").Placed[]} changed
 * @property {number} [count]
 * @property {string} head
 */

/**
 * @typedef {object} QueryOptions
 * @property {string} [base] the database's address: `/<database>/-/pubsub`
 * @property {string} [url] instead of `base`: the live query's own address
 * @property {string} [sql] a SELECT
 * @property {string} [table] instead of `sql`: a table or view; `params` are the filters and options of its page
 * @property {string} [query] instead of `sql`: a stored query
 * @property {Record<string, string> | [string, string][]} [params] the query's parameters, by name
 * @property {string[]} [key] columns that recognise a row; of a table, its primary key by default
 * @property {(result: Result) => void} [onsnapshot] called with the first result, and again when its columns have changed
 * @property {(change: ResultChange) => void} [onchange] called with every change; after a lost connection, with what differs from before
 * @property {(rows: Record<string, any>[], about: {columns: string[], count?: number, head: string}) => void} [onrows]
 *   called after both with all rows, as objects by column name
 * @property {(error: {code: string, message: string, field?: string, limit?: string}) => void} [onerror] called
 *   when the server cannot run the query
 * @property {(status: QueryStatus, detail: {reason?: string, retryInMs?: number}) => void} [onstatus] called with every
 *   change of the status, and after every lost attempt
 * @property {boolean} [share] one connection for all tabs of this origin that follow the same query. Needs Web Locks
 *   (https or localhost); without them the tab has its own
 * @property {string} [token] an API token of Datasette; every request carries it
 * @property {boolean} [withCredentials] send cookies to another site
 * @property {AbortSignal} [signal] closes the connection
 * @property {number} [silenceSeconds] reconnect after this many seconds without an event or a heartbeat
 */

/**
 * The return value of `query`.
 * @typedef {object} LiveQuery
 * @property {() => void} close end the connection; the last callback is `onstatus("closed")`
 * @property {QueryStatus} status
 * @property {Result | null} result the newest result
 */

/**
 * Follow the result of a query, until `close()`.
 * @param {QueryOptions} options
 * @returns {LiveQuery}
 */
export function query(options) {
  return followQuery(options);
}
