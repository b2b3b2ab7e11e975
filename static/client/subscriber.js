/**
 * One subscriber: its position and its callbacks.
 *
 * Each message is delivered once and in order: the subscriber refuses a frame that
 * does not continue its position, and drops a frame that it has received before.
 *
 * @module client/subscriber
 */

/** The position and the callbacks of one `connect()`. */
export class Subscriber {
  /** @type {bigint | null} The last id that was delivered or skipped; null until one is known. */ position;
  /** @type {import("../pubsub.js").Status} */ status = "connecting";
  /** @type {import("../pubsub.js").Options} */ #options;
  #reason = "";

  /** @param {import("../pubsub.js").Options} options */
  constructor(options) {
    this.#options = options;
    // A named subscription begins at its cursor; `after` applies only to a new one, and the server reads it.
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
   * Take one frame of a connection.
   *
   * Every frame is complete from one position (`prev`) to another (`at`). The
   * subscriber drops a frame that it has received before, and refuses a frame
   * that does not continue its position.
   * @param {import("./connection.js").Frame} frame
   * @returns {boolean} false for a refused frame: messages before it are missing
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
    if (frame.at === null || frame.at === undefined) return true;
    if (this.position !== null) {
      if (frame.prev === null || frame.prev > this.position) return false;
      if (frame.at <= this.position) return true;
    }
    this.position = frame.at;
    if (frame.kind === "gap") {
      this.#call("ongap", { missed: frame.missed, resumedAt: String(frame.at) });
    } else if (frame.kind === "message") {
      const { missed, ...message } = JSON.parse(frame.data);
      if (missed && !frame.gapReported) {
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

  /** Call a callback; the next messages are delivered even if it throws. */
  #call(name, ...values) {
    try {
      this.#options[name]?.(...values);
    } catch (error) {
      reportError(error);
    }
  }
}
