/**
 * A parser of Server-Sent Events.
 *
 * It follows the rules of
 * https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 * and knows neither the network nor the meaning of an event.
 *
 * @module client/event_stream
 */

/**
 * @typedef {object} Event
 * @property {string} name `message` if the stream names no event
 * @property {string} data
 * @property {string} lastId the id of this event, or of the last event before it with an id
 */

/** One stream's parser. */
export class Events {
  /** The text after the last line end. */ #rest = "";
  #name = "";
  #data = [];
  #lastId = "";
  #began = false;

  /**
   * Add the next part of the stream; the events that it completes.
   * @param {string} text
   * @returns {Event[]}
   */
  push(text) {
    if (!this.#began && text !== "") {
      this.#began = true;
      text = text.replace(/^\ufeff/, "");
    }
    const whole = this.#rest + text;
    // A CR at the end of the text may be the first half of a line end.
    const end = Math.max(whole.lastIndexOf("\n"), whole.slice(0, -1).lastIndexOf("\r"));
    this.#rest = whole.slice(end + 1);
    if (end < 0) return [];
    const found = [];
    for (const line of whole.slice(0, end).split(/\r\n|\n|\r/)) {
      if (line !== "") this.#field(line);
      else if (this.#data.length) found.push({ name: this.#name || "message", data: this.#data.join("\n"), lastId: this.#lastId });
      if (line !== "") continue;
      this.#name = "";
      this.#data = [];
    }
    return found;
  }

  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") this.#name = value;
    else if (name === "data") this.#data.push(value);
    else if (name === "id" && !value.includes("\0")) this.#lastId = value;
  }
}
