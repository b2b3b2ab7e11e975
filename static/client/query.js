/**
 * One subscriber of a live query: its result, and its callbacks.
 *
 * It receives the states that the events of a connection make, and reports differences only: after a lost connection it
 * compares the whole result with the one that it had.
 *
 * @module client/query
 */

import { apply, difference, isEmpty, parse, plain } from "./result.js";

/**
 * The state of a query. `error`: the reason why the server cannot run it now.
 * @typedef {object} State
 * @property {string[]} columns
 * @property {string[]} key
 * @property {import("./result.js").Row[]} rows
 * @property {number} [count]
 * @property {string} head
 * @property {object | null} error
 */

/**
 * The state after an event of the stream; `change` if the event says what has changed.
 * @param {State | null} state
 * @param {string} kind
 * @param {string} data
 * @returns {{state: State | null, change?: import("./result.js").Change}}
 */
export function step(state, kind, data) {
  const fields = parse(data);
  if (kind === "snapshot") return { state: { ...fields, error: null } };
  if (state === null) return { state };
  if (kind === "error") return { state: { ...state, error: fields } };
  const { head, count } = fields;
  return { state: { ...state, head, count, error: null, rows: apply(state.rows, fields) }, change: fields };
}

/** One subscriber's result and callbacks. */
export class QuerySubscriber {
  /** @type {import("../pubsub.js").QueryStatus} */ status = "connecting";
  /** @type {State | null} */ #state = null;
  /** @type {import("../pubsub.js").QueryOptions} */ #options;
  #convert;
  /** The status of the connection; `broken` is one of the query. */ #connection = { status: "connecting", detail: {} };
  #shown = "";

  /**
   * @param {import("../pubsub.js").QueryOptions} options
   * @param {(value: any) => any} convert makes the values that the callbacks receive
   */
  constructor(options, convert = plain) {
    this.#options = options;
    this.#convert = convert;
    this.#updateStatus();
  }

  get ended() {
    return this.status === "closed";
  }

  get result() {
    return this.#state && this.#resultFor(this.#state);
  }

  end() {
    if (!this.ended) this.#show("closed", {});
  }

  /** Take the connection's status. */
  setStatus(status, detail) {
    // A query does not catch up; and a tab with a result stays live while another tab takes over the connection.
    if (this.ended || status === "catching up" || status === "connecting") return;
    this.#connection = { status, detail };
    this.#updateStatus();
  }

  /**
   * Take the state of the query.
   * @param {State} state
   * @param {import("./result.js").Change} [change] the change from the last state, if it is known
   */
  take(state, change) {
    if (this.ended) return;
    const before = this.#state;
    this.#state = state;
    if (state.error) {
      if (before?.error?.message !== state.error.message) this.#call("onerror", state.error);
    } else if (before === null || !sameNames(before, state)) {
      this.#call("onsnapshot", this.#resultFor(state));
      this.#callOnRows(state);
    } else {
      const places = state.key.map((name) => state.columns.indexOf(name));
      const made = change ?? difference(before.rows, state.rows, places);
      if (!isEmpty(made) || before.count !== state.count) {
        this.#call("onchange", this.#changeFor(made, state));
        this.#callOnRows(state);
      }
    }
    this.#updateStatus();
  }

  #updateStatus() {
    const { status, detail } = this.#connection;
    const error = this.#state?.error;
    if (status === "live" && error) this.#show("broken", { reason: error.message });
    else this.#show(status, detail);
  }

  #show(status, detail) {
    const shown = `${status} ${detail.reason ?? ""}`;
    if (shown === this.#shown && detail.retryInMs === undefined) return;
    this.#shown = shown;
    this.status = status;
    this.#call("onstatus", status, detail);
  }

  #row(row) {
    return row.map(this.#convert);
  }

  /** @param {State} state */
  #resultFor({ columns, key, rows, count, head }) {
    return { columns, key, rows: rows.map((row) => this.#row(row)), count, head };
  }

  /** @param {import("./result.js").Change} change @param {State} state */
  #changeFor({ removed, inserted, changed }, { count, head }) {
    /** @param {import("./result.js").Placed} entry */
    const placed = ({ at, row, was }) => ({ at, row: this.#row(row), ...(was ? { was: this.#row(was) } : {}) });
    return { removed: removed.map(placed), inserted: inserted.map(placed), changed: changed.map(placed), count, head };
  }

  /** @param {State} state */
  #callOnRows({ columns, rows, count, head }) {
    if (!this.#options.onrows) return;
    const objects = rows.map((row) => Object.fromEntries(columns.map((name, at) => [name, this.#convert(row[at])])));
    this.#call("onrows", objects, { columns, count, head });
  }

  /** Call a callback; if it throws, the changes after this one are still delivered. */
  #call(name, ...values) {
    try {
      this.#options[name]?.(...values);
    } catch (error) {
      reportError(error);
    }
  }
}

/** Whether two states have the same columns and key, so that their rows can be compared. */
function sameNames(one, other) {
  return JSON.stringify([one.columns, one.key]) === JSON.stringify([other.columns, other.key]);
}
