/**
 * The list of channels on the live page: counts, rates and newest times, updated as messages arrive.
 *
 * The list counts each message once: either the server has counted it for the page, or
 * it has arrived since. The channels with the newest messages are above, but a busy channel
 * keeps its place, as in the panel: rows that change places all the time cannot be read.
 * The list is bounded.
 *
 * @module pages/viewer_channels
 */

import { element, tildeEncode, timeElement } from "../ui/dom.js";
import { Slide } from "../ui/slide.js";
import { Rate, sparklineNodes } from "../ui/sparkline.js";
import { visible } from "../ui/text.js";

/** Most channels in the list. pages/viewer.py has the same constant. */
const LISTED_CHANNELS = 100;

/** A channel keeps its place while it has had a message in this time, in ms; pages/panel.js has the same constant. */
const KEPT_MS = 60_000;

export class ChannelList {
  #root;
  #body;
  #base;
  #clock;
  #slide = new Slide();
  #below = new Slide();
  /** By encoded name: a listed channel's row, count, newest id, time of the last message, and rate. */ #channels = new Map();
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
      const moment = Date.parse(row.querySelector("time").dateTime);
      this.#channels.set(channel, { row, count: Number(count), newestId: BigInt(newestId), moment, rate });
    }
  }

  /** Count one message of a channel, unless the server has counted it for the page. */
  count(id, channel, createdAt) {
    const key = tildeEncode(channel);
    const known = this.#channels.get(key) ?? this.#changed.get(key)?.entry;
    if (known && id <= known.newestId) return;
    const entry = known ?? { row: null, count: 0, newestId: 0n, moment: 0, rate: new Rate(this.#clock.span) };
    entry.count += 1;
    entry.newestId = id;
    entry.rate.add(this.#clock.spanOf(createdAt));
    this.#changed.set(key, { entry, channel, createdAt });
    if (this.#changed.size > LISTED_CHANNELS) this.#changed.delete(this.#changed.keys().next().value);
  }

  /** Show what has changed. */
  draw() {
    const now = Date.now();
    const risen = [];
    for (const [key, { entry, channel, createdAt }] of this.#changed) {
      entry.row ??= this.#row(key, channel);
      this.#channels.set(key, entry);
      if (now - entry.moment > KEPT_MS) risen.unshift(entry.row);
      entry.moment = now;
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
    this.#rise(risen);
  }

  /** Put new channels, and those that were quiet, above all others; beyond the limit, remove the quietest. */
  #rise(risen) {
    const lowest = Math.max(-1, ...risen.filter((row) => row.isConnected).map((row) => row.sectionRowIndex));
    const pushed = [...this.#body.rows].slice(0, risen.some((row) => !row.isConnected) ? undefined : lowest + 1);
    const moved = pushed.filter((row) => !risen.includes(row));
    const add = () => this.#body.prepend(...risen);
    const rise = () => (moved.length ? this.#slide.run(moved, moved[0], add) : add());
    // On a narrow screen the messages are below the channels, and a new channel pushes them down.
    const below = this.#root.nextElementSibling;
    if (risen.length) this.#below.run([below], below, rise);
    while (this.#channels.size > LISTED_CHANNELS) {
      const [quietest, { row }] = [...this.#channels].reduce((one, other) => (other[1].newestId < one[1].newestId ? other : one));
      this.#channels.delete(quietest);
      row.remove();
    }
    if (risen.length) this.#root.querySelector(".pubsub-no-channels").hidden = true;
  }

  #row(key, channel) {
    const row = element("tr", { dataset: { channel: key } });
    const name = visible(channel);
    const link = element("a", { href: `${this.#base}/${key}`, textContent: name });
    const cell = (className, ...children) => {
      const made = element("td", { className }, ...children);
      made.setAttribute("role", "cell");
      return made;
    };
    row.setAttribute("role", "row");
    row.append(
      cell("col-channel", link),
      cell("col-count type-int"),
      cell("col-rate type-int"),
      cell("col-plot", ...sparklineNodes()),
      cell("col-created"),
    );
    return row;
  }
}
