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
 * the server or the tab that holds the connection. The callbacks decide what is
 * shown, and how. No build step, no dependencies.
 *
 * @module pubsub
 */

import { Line } from "./client/connection.js";
import { Reader } from "./client/subscriber.js";
import { Shared } from "./client/shared_connection.js";

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
 * Messages that are gone.
 * @typedef {object} Gap
 * @property {number | null} missed how many were trimmed before they were read; `null` when the log was
 *   replaced by one that ends earlier (a restored backup), so that nobody knows
 * @property {string} resumedAt the message id after which it goes on
 */

/**
 * - `connecting`: the first attempt is under way
 * - `catching up`: connected, and messages from before are arriving
 * - `live`: connected, nothing is outstanding
 * - `reconnecting`: the connection was lost; the next attempt comes by itself
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
 * @property {(message: Message) => void} [onmessage] every message, once, in order
 * @property {(gap: Gap) => void} [ongap] before the first message that follows a gap
 * @property {(status: Status, detail: {reason?: string, retryInMs?: number}) => void} [onstatus] every change,
 *   and every lost attempt with the wait before the next
 * @property {boolean} [share] one connection for all tabs of this origin and database, whatever each follows: browsers
 *   open only six to a server over HTTP/1.1. Needs Web Locks (https or localhost); without them the tab has its own
 * @property {string} [token] an API token of Datasette, sent with every request
 * @property {boolean} [withCredentials] send cookies to another site
 * @property {AbortSignal} [signal] closes the connection
 * @property {number} [silenceSeconds] reconnect when nothing, not even a heartbeat, came for so long
 */

/** Three of the server's heartbeats (15 s each): a connection as silent as that is dead, in seconds. */
const SILENCE_SECONDS = 45;

/**
 * What `connect` returns.
 * @typedef {object} Connection
 * @property {() => void} close end it; nothing is called back afterwards but a last `onstatus("closed")`
 * @property {Status} status
 * @property {string | null} lastId the last message id that was handed over or passed by: `after` for a
 *   connection that is to go on from here
 */

/**
 * Follow channels, until `close()`.
 * @param {Options} options
 * @returns {Connection}
 */
export function connect(options) {
  const url = streamUrl(options);
  const reader = new Reader(options);
  const how = {
    named: url.searchParams.has("subscription"),
    silence: (options.silenceSeconds ?? SILENCE_SECONDS) * 1000,
    credentials: Boolean(options.withCredentials),
    token: options.token,
  };
  const share = options.share && navigator.locks && globalThis.BroadcastChannel;
  const line = share ? new Shared(url, reader, how) : new Line(() => url, (frame) => void reader.take(frame), how);
  line.open(reader.position);
  const close = () => {
    line.close();
    reader.end();
  };
  if (options.signal?.aborted) close();
  else options.signal?.addEventListener("abort", close, { once: true });
  return {
    close,
    get status() {
      return reader.status;
    },
    get lastId() {
      return reader.position === null ? null : String(reader.position);
    },
  };
}

/** The stream's address with everything but the position to resume from. @param {Options} options */
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
