/**
 * A connection to one stream, which reconnects by itself.
 *
 * It keeps one request open at a time. The frames that it reports are contiguous,
 * also after the network or the server has failed. It knows no other tabs.
 *
 * It uses fetch instead of EventSource: EventSource cannot send a token, does not
 * report the reason of a refusal, gives up when a proxy answers 502, reconnects
 * without jitter, and does not notice a dead connection that is only silent.
 *
 * @module client/connection
 */

import { Events } from "./event_stream.js";

/**
 * A report of a connection. A frame with `at` is complete from the position `prev`
 * (null: unknown) to the position `at`.
 *
 * - `message` (`data`, `channel`), `gap` (`missed`), `ready`, `position` (no message up to `at`): these have `prev` and `at`
 * - `reset`: the log was replaced by one that ends at `at`, before the position
 * - `status`
 * - `snapshot`, `change`, `error` (`data`): events of a live query
 * - `connecting`: a request begins; `open`: the server has accepted it; `refused` (`reason`): the server refuses it for good
 *
 * @typedef {object} Frame
 * @property {string} kind
 * @property {bigint | null} [prev]
 * @property {bigint} [at]
 * @property {string} [data]
 * @property {string} [channel]
 * @property {number} [missed]
 * @property {boolean} [gapReported] of a message: the gap before it was reported already
 * @property {import("../pubsub.js").Status} [status]
 * @property {{reason?: string, retryInMs?: number}} [detail]
 * @property {string} [reason]
 */

/** Back-off: the wait before an attempt is random, from zero to a ceiling that doubles between these, in ms. */
const FIRST_CEILING_MS = 500;
const LAST_CEILING_MS = 30_000;

/** Three of the server's heartbeats (15 s each), in seconds: a connection that is silent for longer is dead. */
export const SILENCE_SECONDS = 45;

/** Longest time between two checks for a silent connection, in ms. */
export const CHECK_MS = 5_000;

/** Longest reason that a status reports of a server's refusal, in characters. */
const MAX_REASON = 300;

/** The events of live queries. */
const QUERY_EVENTS = ["snapshot", "change", "error"];

/** Temporary refusals with a status of 4xx: request timeout, too many requests. */
const TEMPORARY = [408, 429];

export class StreamConnection {
  /** @type {bigint | null} Where to resume: everything up to here was reported. */ position = null;
  /** Counts the requests of this connection; frames and complaints of an earlier epoch are out of date. */ epoch = 0;
  /** @type {import("../pubsub.js").Status} */ status = "connecting";
  detail = {};
  /** Whether the present request has caught up. */ ready = false;
  /** Whether the server has not answered the present request yet. */ connecting = false;
  #address;
  #silence;
  #request;
  #report;
  /** @type {AbortController | null} Aborts the present request; null between two. */ #reading = null;
  #attempt = 0;
  /** When the next attempt may begin. */ #due = 0;
  /** When the last bytes arrived. */ #seen = 0;
  /** Whether the gap before the next message was reported. */ #gapReported = false;
  #timer;
  #watchdog;
  #ended = new AbortController();

  /**
   * @param {() => URL} address of the stream, without a position; called before every attempt
   * @param {(frame: Frame) => boolean | void} report receives every frame; returns true when it has handled a refusal
   * @param {{silence: number, credentials: boolean, token?: string}} settings
   */
  constructor(address, report, { silence, credentials, token }) {
    this.#address = address;
    this.#report = report;
    this.#silence = silence;
    const headers = { Accept: "text/event-stream", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    this.#request = {
      headers,
      cache: /** @type {const} */ ("no-store"),
      credentials: /** @type {RequestCredentials} */ (credentials ? "include" : "same-origin"),
    };
  }

  /** Begin after a position; null: the server decides where to begin. @param {bigint | null} position */
  open(position) {
    this.position = position;
    const signal = this.#ended.signal;
    this.#watchdog = setInterval(() => this.#watch(), Math.min(CHECK_MS, this.#silence / 4));
    addEventListener("online", () => this.#reading === null && this.#connect(), { signal });
    this.#connect();
  }

  /** Send a new request with the present address, from an earlier position if one is given. @param {bigint | null} position */
  reopen(position) {
    if (position !== null && (this.position === null || position < this.position)) this.position = position;
    if (this.#reading !== null) this.#connect();
  }

  /** Connect now if the next attempt is overdue: browsers delay the timers of hidden tabs. */
  nudge() {
    if (this.#reading === null && performance.now() >= this.#due) this.#connect();
  }

  close() {
    this.#ended.abort();
    this.#disconnect();
    clearInterval(this.#watchdog);
  }

  #disconnect() {
    clearTimeout(this.#timer);
    this.#reading?.abort();
    this.#reading = null;
    this.#gapReported = this.ready = this.connecting = false;
  }

  #connect() {
    if (this.#ended.signal.aborted) return;
    this.#disconnect();
    this.epoch += 1;
    this.connecting = true;
    this.#seen = performance.now();
    this.#reading = new AbortController();
    const url = new URL(this.#address());
    if (this.position !== null) {
      for (const name of ["after", "start", "since"]) url.searchParams.delete(name);
      url.searchParams.set("last_event_id", String(this.position));
    }
    this.#read(url, this.#reading.signal);
    this.#report({ kind: "connecting" });
  }

  /** @param {URL} url @param {AbortSignal} signal aborted when another request replaces this one */
  async #read(url, signal) {
    const response = await fetch(url, { ...this.#request, signal }).catch(() => null);
    if (signal.aborted) return undefined;
    if (response === null) return this.#reconnect("the connection was lost");
    const kind = response.headers.get("content-type") ?? "";
    if (!response.ok || !kind.startsWith("text/event-stream")) return this.#refused(response, signal);
    this.#seen = performance.now();
    this.connecting = false;
    // A request that replaces another one does not change the status of a live connection.
    if (this.status !== "live") this.#show("catching up");
    this.#report({ kind: "open" });
    const decoder = new TextDecoder();
    const events = new Events();
    const parts = response.body.getReader();
    while (!signal.aborted) {
      const { value, done } = await parts.read().catch(() => ({ value: undefined, done: true }));
      if (signal.aborted) break;
      if (done) return this.#reconnect("the connection was lost");
      this.#seen = performance.now();
      for (const event of events.push(decoder.decode(value, { stream: true }))) {
        if (!signal.aborted) this.#take(event);
      }
    }
    return undefined;
  }

  /** @param {import("./event_stream.js").Event} event */
  #take({ name, data, lastId }) {
    if (QUERY_EVENTS.includes(name)) {
      this.#ofQuery(name, data);
      return;
    }
    const fields = JSON.parse(data);
    if (name === "message") {
      this.#advance("message", BigInt(lastId), { data, channel: fields.channel, gapReported: this.#gapReported });
      this.#gapReported = false;
    } else if (name === "ready") {
      this.#caughtUp(BigInt(fields.head));
    } else if (name === "heartbeat") {
      // The stream has sent every message up to the heartbeat's head.
      if (this.position !== null) this.#advance("position", BigInt(fields.head));
    } else if (name === "gap" && fields.ahead) {
      // The log is another one: the file was replaced, or restored from a backup.
      this.position = BigInt(fields.resumedAt);
      this.#report({ kind: "reset", at: this.position });
    } else if (name === "gap") {
      this.#advance("gap", BigInt(fields.resumedAt), { missed: Number(fields.missed) });
      this.#gapReported = true;
    } else if (name === "superseded") {
      this.close();
      this.#show("superseded", { reason: fields.reason });
    } else if (name === "bye") {
      this.#reconnect(fields.reason);
    }
  }

  /** An event of a live query, which has no positions: it begins with all of its result. */
  #ofQuery(kind, data) {
    this.#attempt = 0;
    this.ready = true;
    this.#report({ kind, data });
    if (this.ready && this.status !== "live") this.#show("live");
  }

  #advance(kind, at, more = {}) {
    const prev = this.position;
    this.position = at;
    this.#report({ kind, prev, at, ...more });
  }

  #caughtUp(head) {
    this.#attempt = 0;
    this.ready = true;
    if (this.position !== null && this.position > head) {
      this.position = head;
      this.#report({ kind: "reset", at: head });
    } else {
      this.#advance("ready", head);
    }
    if (this.ready) this.#show("live");
  }

  /** @param {Response} response @param {AbortSignal} signal */
  async #refused(response, signal) {
    let reason = response.ok ? "the answer is not a stream" : `the server answers ${response.status}`;
    const text = response.ok ? "" : await response.text().catch(() => "");
    if (signal.aborted) return;
    try {
      reason = String(JSON.parse(text).error ?? reason).slice(0, MAX_REASON);
    } catch {
      // A proxy has answered, not Datasette.
    }
    const { status } = response;
    const permanent = status >= 400 && status < 500 && !TEMPORARY.includes(status);
    this.connecting = false;
    if (permanent && this.#report({ kind: "refused", reason })) return;
    this.#reconnect(reason, Number(response.headers.get("retry-after")) * 1000 || 0);
  }

  /** Connect again after a wait with full jitter, so that the subscribers of a restarted server spread their requests. */
  #reconnect(reason, atLeast = 0) {
    this.#disconnect();
    const ceiling = Math.min(LAST_CEILING_MS, FIRST_CEILING_MS * 2 ** this.#attempt);
    this.#attempt += 1;
    const retryInMs = Math.round(Math.random() * ceiling + Math.min(atLeast, LAST_CEILING_MS));
    this.#due = performance.now() + retryInMs;
    this.#timer = setTimeout(() => this.#connect(), retryInMs);
    this.#show("reconnecting", { reason, retryInMs });
  }

  #watch() {
    if (this.#reading !== null && performance.now() - this.#seen > this.#silence) {
      this.#reconnect(`nothing was heard for ${Math.round(this.#silence / 1000)} s`);
    }
  }

  /** @param {import("../pubsub.js").Status} status */
  #show(status, detail = {}) {
    this.status = status;
    this.detail = detail;
    this.#report({ kind: "status", status, detail });
  }
}
