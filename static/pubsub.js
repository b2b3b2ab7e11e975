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
 * The law of this module: every message once and in order, whatever happens to
 * the network, the server or the tab that holds the connection. It knows no
 * page: what is shown, and how, is the callbacks' business. No build step, no
 * dependencies.
 *
 * @module pubsub
 */

import { Shared } from "./pubsub_share.js";

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
 * @property {string} [subscription] the name of a durable subscription: the server keeps its cursor
 * @property {"auto" | "explicit"} [ack] how the subscription's cursor moves
 * @property {string | number | bigint} [after] begin after this message id; else at the head, or at the cursor
 * @property {"earliest" | "latest"} [start] begin there
 * @property {string} [since] begin with the first message after this ISO 8601 time
 * @property {(message: Message) => void} [onmessage] every message, once, in order
 * @property {(gap: Gap) => void} [ongap] before the first message that follows a gap
 * @property {(status: Status, detail: {reason?: string, retryInMs?: number}) => void} [onstatus] every change,
 *   and every lost attempt with the wait before the next
 * @property {boolean} [share] one connection for all tabs that follow the same: browsers open only six to
 *   a server over HTTP/1.1. Needs Web Locks (https or localhost), and a beginning that is the same for all:
 *   without them, and with `start: "earliest"` or `since`, the tab has a connection of its own
 * @property {boolean} [withCredentials] send cookies to another site
 * @property {AbortSignal} [signal] closes the connection
 * @property {number} [silenceSeconds] reconnect when nothing, not even a heartbeat, came for so long
 */

/** Back-off: the wait before an attempt is drawn from zero to a ceiling that doubles between these, in ms. */
const FIRST_CEILING_MS = 500;
const LAST_CEILING_MS = 30_000;

/** Three of the server's heartbeats (15 s each): a connection as silent as that is dead, in seconds. */
const SILENCE_SECONDS = 45;

/** How often silence is looked for, at most, in ms. */
const CHECK_MS = 5_000;

/** Longest refusal of a server that is handed on as a reason, in characters. */
const MAX_REASON = 300;

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
  };
  const uniform = options.start !== "earliest" && !options.since;
  const share = options.share && uniform && navigator.locks && globalThis.BroadcastChannel;
  const makeLine = (report) => new Line(url, { ...how, report });
  const line = share ? new Shared(url, makeLine, reader, how) : makeLine((frame) => reader.take(frame));
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

/** One reader's position and callbacks. */
class Reader {
  /** @type {bigint | null} The last id that was handed over or passed by; null until one is known. */ position;
  /** @type {Status} */ status = "connecting";
  /** @type {Options} */ #options;
  #reason = "";

  constructor(options) {
    this.#options = options;
    // A named subscription begins at its cursor; `after` is for a new one and goes to the server as it is.
    this.position = options.subscription || options.after === undefined ? null : BigInt(options.after);
    this.#call("onstatus", this.status, {});
  }

  end() {
    if (!this.ended) this.#show("closed", {});
  }

  get ended() {
    return this.status === "closed" || this.status === "superseded";
  }

  /**
   * Take one frame of a line.
   *
   * Every frame says after which position it is complete (`prev`) and up to
   * which (`at`). So a frame that was had before is dropped, and one that does
   * not join on to what was had is refused.
   * @returns {boolean} false for a refused one: messages between are missing
   */
  take(frame) {
    if (this.ended) return true;
    if (frame.kind === "status") {
      this.#show(frame.status, frame.detail);
      return true;
    }
    if (frame.kind === "reset") {
      if (this.position !== null && this.position > frame.at) {
        this.position = frame.at;
        this.#call("ongap", { missed: null, resumedAt: String(frame.at) });
      }
      return true;
    }
    if (frame.at === null) return true;
    if (this.position !== null) {
      if (frame.prev === null || frame.prev > this.position) return false;
      if (frame.at <= this.position) return true;
    }
    this.position = frame.at;
    if (frame.kind === "gap") {
      this.#call("ongap", { missed: frame.missed, resumedAt: String(frame.at) });
    } else if (frame.kind === "message") {
      const { missed, ...message } = JSON.parse(frame.data);
      if (missed && !frame.told) {
        this.#call("ongap", { missed: Number(missed), resumedAt: String(frame.at - 1n) });
      }
      this.#call("onmessage", message);
    }
    return true;
  }

  #show(status, detail) {
    const again = status === this.status && (detail.reason ?? "") === this.#reason;
    if (again && detail.retryInMs === undefined) return;
    this.status = status;
    this.#reason = detail.reason ?? "";
    this.#call("onstatus", status, detail);
  }

  /** A callback that throws must not cost the messages that follow. */
  #call(name, ...values) {
    try {
      this.#options[name]?.(...values);
    } catch (error) {
      reportError(error);
    }
  }
}

/** The stream's address with everything but the position to resume from. */
function streamUrl(options) {
  const url = new URL(options.url ?? `${options.base}/-/stream`, document.baseURI);
  for (const channel of options.channels ?? []) url.searchParams.append("channel", channel);
  for (const pattern of options.patterns ?? []) url.searchParams.append("pattern", pattern);
  for (const name of ["subscription", "ack", "start", "since"]) {
    if (options[name]) url.searchParams.set(name, options[name]);
  }
  if (options.subscription && options.after !== undefined) url.searchParams.set("after", options.after);
  url.searchParams.delete("format");
  return url;
}

/**
 * One EventSource at a time, and another when it dies.
 *
 * Reconnects itself instead of leaving that to the browser, which gives up
 * when a proxy answers 502, waits without jitter and never doubts a connection
 * that is only silent.
 */
class Line {
  /** @type {bigint | null} Where to resume: everything up to here was reported. */ position = null;
  /** How often this line was (re)opened: a complaint about an earlier time is out of date. */ epoch = 0;
  /** @type {Status} */ status = "connecting";
  detail = {};
  #url;
  #named;
  #silence;
  #credentials;
  #report;
  /** @type {EventSource | null} */ #source = null;
  #attempt = 0;
  #due = 0;
  #seen = 0;
  #told = false;
  #timer;
  #watchdog;
  #ended = new AbortController();

  constructor(url, { named, silence, credentials, report }) {
    this.#url = url;
    this.#named = named;
    this.#silence = silence;
    this.#credentials = credentials;
    this.#report = report;
  }

  /** Begin after a position; null: where the server lets the reader begin. */
  open(position) {
    this.position = position;
    const signal = this.#ended.signal;
    this.#watchdog = setInterval(() => this.#watch(), Math.min(CHECK_MS, this.#silence / 4));
    addEventListener("online", () => this.#source === null && this.#dial(), { signal });
    this.#dial();
  }

  /** Go back, for a tab that is further behind than this one. */
  rewind(position) {
    this.position = position;
    if (this.#source !== null) this.#dial();
  }

  /** Try now if the time for it is over: a browser lets timers of hidden tabs wait. */
  nudge() {
    if (this.#source === null && performance.now() >= this.#due) this.#dial();
  }

  close() {
    this.#ended.abort();
    this.#hang();
    clearInterval(this.#watchdog);
  }

  #hang() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #dial() {
    if (this.#ended.signal.aborted) return;
    this.#hang();
    this.epoch += 1;
    this.#told = false;
    this.#seen = performance.now();
    const source = new EventSource(this.#address(), { withCredentials: this.#credentials });
    this.#source = source;
    source.onopen = () => {
      this.#seen = performance.now();
      this.#show("catching up");
    };
    source.onerror = () => this.#failed(source);
    source.onmessage = (event) => {
      this.#advance("message", BigInt(event.lastEventId), { data: event.data, told: this.#told });
      this.#told = false;
    };
    const on = (name, listener) =>
      source.addEventListener(name, (event) => {
        this.#seen = performance.now();
        listener(JSON.parse(event.data));
      });
    on("ready", ({ head }) => this.#ready(BigInt(head)));
    // Up to the head that a heartbeat names there is nothing more for this reader.
    on("heartbeat", ({ head }) => this.#advance("here", this.position === null ? null : BigInt(head), {}));
    on("gap", ({ missed, resumedAt, ahead }) => {
      if (ahead) {
        // Not the log that was read: the file was replaced, or restored from a backup.
        this.position = BigInt(resumedAt);
        this.#report({ kind: "reset", at: this.position });
        return;
      }
      this.#advance("gap", BigInt(resumedAt), { missed: Number(missed) });
      this.#told = true;
    });
    on("superseded", ({ reason }) => {
      this.close();
      this.#show("superseded", { reason });
    });
    on("bye", ({ reason }) => this.#again(reason));
  }

  #address() {
    const url = new URL(this.#url);
    if (this.position !== null) {
      for (const name of ["after", "start", "since"]) url.searchParams.delete(name);
      url.searchParams.set("last_event_id", this.position);
    }
    return url.href;
  }

  #advance(kind, at, more) {
    this.#seen = performance.now();
    const prev = this.position;
    this.position = at;
    this.#report({ kind, prev, at, ...more });
  }

  #ready(head) {
    this.#attempt = 0;
    if (this.position !== null && this.position > head) {
      this.position = head;
      this.#report({ kind: "reset", at: head });
    } else {
      this.#advance("ready", head, {});
    }
    this.#show("live");
  }

  #failed(source) {
    // The browser has given up for good when the server has answered, but not with a stream.
    const refused = source.readyState === EventSource.CLOSED;
    this.#again(refused ? "the server refuses the stream" : "the connection was lost");
    if (refused && !this.#named) this.#ask();
  }

  /** Why it was refused: an EventSource does not say. (A named subscription must not be opened to ask.) */
  async #ask() {
    const epoch = this.epoch;
    const enough = new AbortController();
    const signal = AbortSignal.any([this.#ended.signal, enough.signal, AbortSignal.timeout(this.#silence)]);
    try {
      const credentials = this.#credentials ? "include" : "same-origin";
      const response = await fetch(this.#address(), { credentials, signal });
      const text = response.ok ? "" : await response.text();
      if (epoch !== this.epoch || response.ok || this.#source !== null) return;
      let reason = `the server answers ${response.status}`;
      if (text.startsWith("{")) reason = String(JSON.parse(text).error ?? reason).slice(0, MAX_REASON);
      this.#show("reconnecting", { ...this.detail, reason });
    } catch {
      // No answer is no reason.
    } finally {
      enough.abort();
    }
  }

  /** Lost: full jitter, so that the readers of a server that comes back do not all come at once. */
  #again(reason) {
    this.#hang();
    const ceiling = Math.min(LAST_CEILING_MS, FIRST_CEILING_MS * 2 ** this.#attempt);
    this.#attempt += 1;
    const retryInMs = Math.round(Math.random() * ceiling);
    this.#due = performance.now() + retryInMs;
    this.#timer = setTimeout(() => this.#dial(), retryInMs);
    this.#show("reconnecting", { reason, retryInMs });
  }

  #watch() {
    if (this.#source !== null && performance.now() - this.#seen > this.#silence) {
      this.#again(`nothing was heard for ${Math.round(this.#silence / 1000)} s`);
    }
  }

  #show(status, detail = {}) {
    this.status = status;
    this.detail = detail;
    this.#report({ kind: "status", status, detail });
  }
}
