/**
 * One connection at a time, and another when it dies.
 *
 * What it reports continues without a hole, whatever happens to the network and
 * the server. It knows one stream, and no other tabs.
 *
 * Uses fetch and not EventSource, which cannot send a token, does not tell why
 * it was refused, gives up when a proxy answers 502, waits without jitter and
 * never doubts a connection that is only silent.
 *
 * @module client/connection
 */

import { Events } from "./event_stream.js";

/**
 * What a line reports. Every frame with `at` says after which position it is
 * complete (`prev`, null: nobody knows) and up to which (`at`).
 *
 * - `message` (`data`, `channel`), `gap` (`missed`), `ready`, `here` (nothing happened): these have `prev` and `at`
 * - `reset`: the log ends at `at`, before what was read: it is another one
 * - `status`
 * - `dial`: a new connection is being opened; `open`: it is; `refused` (`reason`): it will always be
 *
 * @typedef {object} Frame
 * @property {string} kind
 * @property {bigint | null} [prev]
 * @property {bigint} [at]
 * @property {string} [data]
 * @property {string} [channel]
 * @property {number} [missed]
 * @property {boolean} [told] of a message: the gap before it was reported already
 * @property {import("../pubsub.js").Status} [status]
 * @property {{reason?: string, retryInMs?: number}} [detail]
 * @property {string} [reason]
 */

/** Back-off: the wait before an attempt is drawn from zero to a ceiling that doubles between these, in ms. */
const FIRST_CEILING_MS = 500;
const LAST_CEILING_MS = 30_000;

/** How often silence is looked for, at most, in ms. */
export const CHECK_MS = 5_000;

/** Longest refusal of a server that is handed on as a reason, in characters. */
const MAX_REASON = 300;

/** Answers that come to an end by themselves: the request took too long, there are too many. */
const PASSING = [408, 429];

export class Line {
  /** @type {bigint | null} Where to resume: everything up to here was reported. */ position = null;
  /** How often this line was (re)opened: what concerns an earlier time is out of date. */ epoch = 0;
  /** @type {import("../pubsub.js").Status} */ status = "connecting";
  detail = {};
  /** Whether the present connection has caught up. */ ready = false;
  /** Whether the present connection has been asked for, and not been answered. */ dialling = false;
  #address;
  #silence;
  #request;
  #report;
  /** @type {AbortController | null} Ends the present connection; null between two. */ #reading = null;
  #attempt = 0;
  #due = 0;
  #seen = 0;
  #told = false;
  #timer;
  #watchdog;
  #ended = new AbortController();

  /**
   * @param {() => URL} address of the stream, without a position; asked before every attempt
   * @param {(frame: Frame) => boolean | void} report true: a refusal is taken care of
   * @param {{silence: number, credentials: boolean, token?: string}} how
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

  /** Begin after a position; null: where the server lets the reader begin. @param {bigint | null} position */
  open(position) {
    this.position = position;
    const signal = this.#ended.signal;
    this.#watchdog = setInterval(() => this.#watch(), Math.min(CHECK_MS, this.#silence / 4));
    addEventListener("online", () => this.#reading === null && this.#dial(), { signal });
    this.#dial();
  }

  /** Ask for the address again, and go on; from an earlier position, if one is given. @param {bigint | null} position */
  reopen(position) {
    if (position !== null && (this.position === null || position < this.position)) this.position = position;
    if (this.#reading !== null) this.#dial();
  }

  /** Try now if the time for it is over: a browser lets timers of hidden tabs wait. */
  nudge() {
    if (this.#reading === null && performance.now() >= this.#due) this.#dial();
  }

  close() {
    this.#ended.abort();
    this.#hang();
    clearInterval(this.#watchdog);
  }

  #hang() {
    clearTimeout(this.#timer);
    this.#reading?.abort();
    this.#reading = null;
    this.#told = this.ready = this.dialling = false;
  }

  #dial() {
    if (this.#ended.signal.aborted) return;
    this.#hang();
    this.epoch += 1;
    this.dialling = true;
    this.#seen = performance.now();
    this.#reading = new AbortController();
    const url = new URL(this.#address());
    if (this.position !== null) {
      for (const name of ["after", "start", "since"]) url.searchParams.delete(name);
      url.searchParams.set("last_event_id", String(this.position));
    }
    this.#read(url, this.#reading.signal);
    this.#report({ kind: "dial" });
  }

  /** @param {URL} url @param {AbortSignal} signal aborted when another connection takes the place of this one */
  async #read(url, signal) {
    const response = await fetch(url, { ...this.#request, signal }).catch(() => null);
    if (signal.aborted) return undefined;
    if (response === null) return this.#again("the connection was lost");
    const kind = response.headers.get("content-type") ?? "";
    if (!response.ok || !kind.startsWith("text/event-stream")) return this.#refused(response, signal);
    this.#seen = performance.now();
    this.dialling = false;
    // One that only takes the place of another is nobody's concern.
    if (this.status !== "live") this.#show("catching up");
    this.#report({ kind: "open" });
    const decoder = new TextDecoder();
    const events = new Events();
    const parts = response.body.getReader();
    while (!signal.aborted) {
      const { value, done } = await parts.read().catch(() => ({ value: undefined, done: true }));
      if (signal.aborted) break;
      if (done) return this.#again("the connection was lost");
      this.#seen = performance.now();
      for (const event of events.push(decoder.decode(value, { stream: true }))) {
        if (!signal.aborted) this.#take(event);
      }
    }
    return undefined;
  }

  /** @param {import("./event_stream.js").Event} event */
  #take({ name, data, lastId }) {
    const fields = JSON.parse(data);
    if (name === "message") {
      this.#advance("message", BigInt(lastId), { data, channel: fields.channel, told: this.#told });
      this.#told = false;
    } else if (name === "ready") {
      this.#caughtUp(BigInt(fields.head));
    } else if (name === "heartbeat") {
      // Up to the head that it names there is nothing more for this reader.
      if (this.position !== null) this.#advance("here", BigInt(fields.head));
    } else if (name === "gap" && fields.ahead) {
      // Not the log that was read: the file was replaced, or restored from a backup.
      this.position = BigInt(fields.resumedAt);
      this.#report({ kind: "reset", at: this.position });
    } else if (name === "gap") {
      this.#advance("gap", BigInt(fields.resumedAt), { missed: Number(fields.missed) });
      this.#told = true;
    } else if (name === "superseded") {
      this.close();
      this.#show("superseded", { reason: fields.reason });
    } else if (name === "bye") {
      this.#again(fields.reason);
    }
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
      // Not the server's own answer: a proxy's.
    }
    const { status } = response;
    const always = status >= 400 && status < 500 && !PASSING.includes(status);
    this.dialling = false;
    if (always && this.#report({ kind: "refused", reason })) return;
    this.#again(reason, Number(response.headers.get("retry-after")) * 1000 || 0);
  }

  /** Lost: full jitter, so that the readers of a server that comes back do not all come at once. */
  #again(reason, atLeast = 0) {
    this.#hang();
    const ceiling = Math.min(LAST_CEILING_MS, FIRST_CEILING_MS * 2 ** this.#attempt);
    this.#attempt += 1;
    const retryInMs = Math.round(Math.random() * ceiling + Math.min(atLeast, LAST_CEILING_MS));
    this.#due = performance.now() + retryInMs;
    this.#timer = setTimeout(() => this.#dial(), retryInMs);
    this.#show("reconnecting", { reason, retryInMs });
  }

  #watch() {
    if (this.#reading !== null && performance.now() - this.#seen > this.#silence) {
      this.#again(`nothing was heard for ${Math.round(this.#silence / 1000)} s`);
    }
  }

  /** @param {import("../pubsub.js").Status} status */
  #show(status, detail = {}) {
    this.status = status;
    this.detail = detail;
    this.#report({ kind: "status", status, detail });
  }
}
