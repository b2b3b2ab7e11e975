/**
 * One reader: where it is, and what is called back.
 *
 * Each message is delivered once and in order: the subscriber refuses a frame that
 * does not continue its position, and drops a frame that it has had.
 *
 * @module client/subscriber
 */

/** One reader's position and callbacks. */
export class Reader {
  /** @type {bigint | null} The last id that was handed over or passed by; null until one is known. */ position;
  /** @type {import("../pubsub.js").Status} */ status = "connecting";
  /** @type {import("../pubsub.js").Options} */ #options;
  #reason = "";

  /** @param {import("../pubsub.js").Options} options */
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
   * @param {import("./connection.js").Frame} frame
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
