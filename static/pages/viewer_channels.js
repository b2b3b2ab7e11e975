/**
 * The list of channels on the live page: counts, rates and newest times, updated as messages arrive.
 *
 * The list counts each message once: either the server has counted it for the page, or
 * it has arrived since. The list is bounded.
 *
 * @module pages/viewer_channels
 */

import { element, tildeEncode, timeElement } from "../ui/dom.js";
import { Rate, sparklineElement } from "../ui/sparkline.js";
import { visible } from "../ui/text.js";

/** Most channels in the list. pages/viewer.py has the same constant. */
const LISTED_CHANNELS = 100;

export class ChannelList {
  #root;
  #body;
  #base;
  #clock;
  /** By encoded name: a listed channel's row, count, newest id and rate. */ #channels = new Map();
  /** The channels that have changed since the list was last drawn. */ #changed = new Map();
  /** The span for which the rates were last drawn. */ #drawn = 0;

  /**
   * @param {Element} root around the table that the server rendered
   * @param {string} base the address of the database's channels
   * @param {import("../ui/sparkline.js").Clock} clock
   * @param {number} span the newest span that the server has counted
   */
  constructor(root, base, clock, span) {
    this.#root = root;
    this.#body = root.querySelector("tbody");
    this.#base = base;
    this.#clock = clock;
    this.#drawn = span;
    for (const row of this.#body.rows) {
      const { channel, count, newestId } = row.dataset;
      const rate = new Rate(span, row.querySelector(".pubsub-plot").dataset.counts);
      this.#channels.set(channel, { row, count: Number(count), newestId: BigInt(newestId), rate });
    }
  }

  /** Count one message of a channel, unless the server has counted it for the page. */
  count(id, channel, createdAt) {
    const key = tildeEncode(channel);
    const known = this.#channels.get(key) ?? this.#changed.get(key)?.entry;
    if (known && id <= known.newestId) return;
    const entry = known ?? { row: null, count: 0, newestId: 0n, rate: new Rate(this.#clock.span) };
    entry.count += 1;
    entry.newestId = id;
    entry.rate.add(this.#clock.spanOf(createdAt));
    this.#changed.set(key, { entry, channel, createdAt });
    if (this.#changed.size > LISTED_CHANNELS) this.#changed.delete(this.#changed.keys().next().value);
  }

  /** Show what has changed. */
  draw() {
    for (const [key, { entry, channel, createdAt }] of this.#changed) {
      entry.row ??= this.#add(key, channel, entry);
      entry.row.querySelector(".col-count").textContent = entry.count.toLocaleString("en");
      entry.row.querySelector(".col-created").replaceChildren(timeElement(createdAt));
    }
    const span = this.#clock.span;
    // In a new span every sparkline moves.
    const entries = span === this.#drawn ? [...this.#changed.values()].map(({ entry }) => entry) : this.#channels.values();
    for (const { row, rate } of entries) {
      rate.advance(span);
      if (rate.draw(row.querySelector(".pubsub-plot"))) {
        row.querySelector(".col-rate").textContent = rate.perMinute.toLocaleString("en");
      }
    }
    this.#drawn = span;
    this.#changed.clear();
  }

  /** Add a new channel in the order of names; beyond the limit, remove the channel with the oldest newest message. */
  #add(key, channel, entry) {
    const row = element("tr", { dataset: { channel: key } });
    const name = visible(channel);
    const link = element("a", { href: `${this.#base}/${key}`, textContent: name });
    row.append(
      element("td", { className: "col-channel" }, link),
      element("td", { className: "col-count type-int" }),
      element("td", { className: "col-rate type-int" }),
      element("td", { className: "col-plot" }, sparklineElement()),
      element("td", { className: "col-created" }),
    );
    const next = [...this.#body.rows].find((other) => other.cells[0].textContent > name);
    this.#body.insertBefore(row, next ?? null);
    this.#channels.set(key, entry);
    if (this.#channels.size > LISTED_CHANNELS) {
      let quietest = key;
      for (const [other, { newestId }] of this.#channels) {
        if (newestId < this.#channels.get(quietest).newestId) quietest = other;
      }
      this.#channels.get(quietest).row.remove();
      this.#channels.delete(quietest);
    }
    this.#root.hidden = false;
    return row;
  }
}
