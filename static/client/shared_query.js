/**
 * One connection for all tabs that follow the same live query; `query({share: true})` uses it.
 *
 * All tabs queue for one Web Lock with the query's name. The tab that holds it is the
 * leader: it holds the connection, numbers the events, and posts them to the other
 * tabs. A tab that has no state yet, or that has missed an event, asks for the state
 * (`ask`), and the leader posts all of it (`state`); the tab then reports the
 * differences only. When the leader closes, the next tab in the queue leads; when it
 * falls silent (a frozen tab), another tab takes the lock.
 *
 * @module client/shared_query
 */

import { CHECK_MS, SILENCE_SECONDS, StreamConnection } from "./connection.js";
import { QuerySubscriber, step } from "./query.js";

/** The events of a live query; all other frames are about the connection. */
const EVENTS = ["snapshot", "change", "error"];

/** @typedef {{silence: number, credentials: boolean, token?: string}} Settings */

/**
 * Follow a query, until `close()`.
 * @param {import("../pubsub.js").QueryOptions} options
 * @param {(value: any) => any} [convert] makes the values that the callbacks receive
 * @returns {import("../pubsub.js").LiveQuery}
 */
export function followQuery(options, convert) {
  const url = address(options);
  const subscriber = new QuerySubscriber(options, convert);
  const settings = {
    silence: (options.silenceSeconds ?? SILENCE_SECONDS) * 1000,
    credentials: Boolean(options.withCredentials),
    token: options.token,
  };
  const share = options.share && navigator.locks && globalThis.BroadcastChannel;
  const connection = new (share ? SharedQueryConnection : OwnQueryConnection)(url, subscriber, settings);
  const close = () => {
    connection.close();
    subscriber.end();
  };
  connection.open();
  if (options.signal?.aborted) close();
  else options.signal?.addEventListener("abort", close, { once: true });
  return {
    close,
    get status() {
      return subscriber.status;
    },
    get result() {
      return subscriber.result;
    },
  };
}

/** The address of the live query. @param {import("../pubsub.js").QueryOptions} options */
function address(options) {
  const url = new URL(options.url ?? `${options.base}/-/live`, document.baseURI);
  for (const [name, value] of new URLSearchParams(options.params ?? {})) url.searchParams.append(name, value);
  for (const name of ["sql", "table", "query"]) if (options[name]) url.searchParams.set(name, options[name]);
  for (const name of options.key ?? []) url.searchParams.append("key", name);
  return url;
}

/** The connection of one tab alone. */
class OwnQueryConnection {
  #connection;
  /** @type {import("./query.js").State | null} */ #state = null;

  /** @param {URL} url @param {QuerySubscriber} subscriber @param {Settings} settings */
  constructor(url, subscriber, settings) {
    this.#connection = new StreamConnection(() => url, ({ kind, data, status, detail }) => {
      if (kind === "status") subscriber.setStatus(status, detail);
      if (!EVENTS.includes(kind)) return;
      const { state, change } = step(this.#state, kind, data);
      this.#state = state;
      if (state) subscriber.take(state, change);
    }, settings);
  }

  open() {
    this.#connection.open(null);
  }

  close() {
    this.#connection.close();
  }
}

/** The connection that a tab shares with other tabs. */
class SharedQueryConnection {
  #url;
  #subscriber;
  #settings;
  #name;
  #me = crypto.randomUUID();
  #ended = new AbortController();
  /** @type {BroadcastChannel} */ #tabs;
  /** @type {StreamConnection | null} Set while this tab leads. */ #connection = null;
  /** Releases the lock. */ #release = () => {};
  /** @type {import("./query.js").State | null} */ #state = null;
  /** The tab whose events have made the state, and the number of the last event. */ #leader = "";
  #number = 0;
  /** When the leader last posted something. */ #heard = 0;
  /** Whether this tab has asked the silent leader. Cleared by `#alive`. */ #asked = false;

  /** @param {URL} url @param {QuerySubscriber} subscriber @param {Settings} settings */
  constructor(url, subscriber, settings) {
    this.#url = url;
    this.#subscriber = subscriber;
    this.#settings = settings;
    const { credentials, token } = settings;
    this.#name = `datasette-pubsub ${credentials ? "+" : "-"}${token ? ` ${token}` : ""} ${url.href}`;
    this.#tabs = new BroadcastChannel(this.#name);
  }

  open() {
    this.#tabs.onmessage = (event) => this.#hear(event.data);
    this.#heard = performance.now();
    const check = setInterval(() => this.#watch(), Math.min(CHECK_MS, this.#settings.silence / 4));
    this.#ended.signal.addEventListener("abort", () => clearInterval(check));
    this.#queue();
    this.#ask();
  }

  close() {
    this.#ended.abort();
    this.#stopLeading();
    this.#tabs.close();
    this.#release();
  }

  #post(word) {
    this.#tabs.postMessage({ ...word, from: this.#me });
  }

  // -- the leader -------------------------------------------------------------

  /** Queue for the lock, or steal it. The tab holds it until it calls `#release`, or until it is closed. */
  #queue(steal = false) {
    const { signal } = this.#ended;
    let mine = false;
    const held = () => {
      mine = true;
      return new Promise((resolve) => {
        this.#release = () => resolve(undefined);
        if (signal.aborted) this.#release();
        else this.#lead();
      });
    };
    navigator.locks.request(this.#name, steal ? { steal } : { signal }, held).catch(() => {
      // This tab has left the queue; or, if it held the lock, another tab has stolen it.
      if (!mine || signal.aborted) return;
      this.#stopLeading();
      this.#heard = performance.now();
      this.#queue();
      this.#ask();
    });
  }

  #lead() {
    this.#leader = this.#me;
    const report = (frame) => this.#connection === connection && this.#report(frame);
    const connection = new StreamConnection(() => this.#url, report, this.#settings);
    this.#connection = connection;
    // Each leader has numbers of its own: all tabs begin with the state and number of this tab.
    this.#postState(this.#state);
    connection.open(null);
  }

  #stopLeading() {
    this.#connection?.close();
    this.#connection = null;
    this.#leader = "";
  }

  /** @param {import("./connection.js").Frame} frame */
  #report({ kind, data, status, detail }) {
    if (kind === "status") {
      this.#post({ kind, status, detail });
      this.#subscriber.setStatus(status, detail);
    } else if (EVENTS.includes(kind)) {
      this.#number += 1;
      this.#post({ kind: "event", number: this.#number, name: kind, data });
      this.#step(kind, data);
    }
    return false;
  }

  #answer({ number, leader }) {
    this.#connection.nudge();
    const upToDate = leader === this.#me && number === this.#number;
    this.#postState(upToDate ? undefined : this.#state);
  }

  #postState(state) {
    const { status, detail } = this.#connection;
    this.#post({ kind: "state", number: this.#number, status, detail, state });
  }

  // -- the other tabs ---------------------------------------------------------

  /** Tell the leader which event this tab has. */
  #ask() {
    this.#post({ kind: "ask", number: this.#number, leader: this.#leader });
  }

  #hear(word) {
    if (word.kind === "ask") {
      if (this.#connection !== null) this.#answer(word);
      return;
    }
    if (this.#connection !== null) return;
    if (word.kind === "state") this.#takeState(word);
    else if (word.from !== this.#leader) this.#ask();
    else if (word.kind === "status") this.#subscriber.setStatus(word.status, word.detail);
    else if (word.number === this.#number + 1) {
      this.#number = word.number;
      this.#step(word.name, word.data);
    } else if (word.number > this.#number) {
      this.#ask();
    }
    if (word.from === this.#leader) this.#alive();
  }

  #takeState({ from, number, status, detail, state }) {
    const same = from === this.#leader && number === this.#number;
    const older = from === this.#leader && number < this.#number;
    if (older || (state === undefined && !same)) return;
    this.#leader = from;
    this.#number = number;
    if (state && !same) {
      this.#state = state;
      this.#subscriber.take(state);
    }
    this.#subscriber.setStatus(status, detail);
  }

  #step(kind, data) {
    const { state, change } = step(this.#state, kind, data);
    this.#state = state;
    if (state) this.#subscriber.take(state, change);
  }

  #alive() {
    this.#heard = performance.now();
    this.#asked = false;
  }

  /** Ask a silent leader, and replace one that does not answer. */
  #watch() {
    if (this.#connection !== null || performance.now() - this.#heard <= this.#settings.silence) return;
    this.#heard = performance.now();
    if (this.#asked) {
      this.#asked = false;
      this.#queue(true);
    } else {
      this.#asked = true;
      this.#ask();
    }
  }
}
