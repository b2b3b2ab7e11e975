/**
 * The panel on a database's page: `<pubsub-panel>` around the table that the server rendered.
 *
 * The panel follows all channels that the visitor may view, and shows and keeps only
 * a few of them, in fixed places. It is connected only while the page is visible.
 *
 * Attributes: `base` (the address of the database's channels), `last-id` (the stream
 * begins after this id), `span` (the newest span that the server has counted),
 * `silence` (a connection without data for this many seconds is dead), `channels`
 * (most channels in the panel).
 */

import { connect } from "../pubsub.js";
import { element, localise, tildeEncode, timeElement } from "../ui/dom.js";
import { Clock, Rate, sparklineNodes } from "../ui/sparkline.js";
import { previewOf, visible } from "../ui/text.js";

/** Shortest time between two updates of the panel, and time between two updates while no messages arrive, in ms. */
const TICK_MS = 250;
const IDLE_MS = 1_000;

/** A channel keeps its place while it has had a message in this time, in ms; shorter would be hard to read. */
const KEPT_MS = 60_000;

/** Shortest time between two requests for the busy channels, in ms. */
const ASK_MS = 5_000;

/** Most messages that the panel keeps during such a request, in messages. */
const MAX_MEANWHILE = 5_000;

/** How long the panel stays connected while the tab is hidden, in ms: visitors change tabs for a moment. */
const HIDDEN_MS = 5_000;

class PubsubPanel extends HTMLElement {
  /** @type {AbortController | null} Ends all listeners and the connection; set while in a page. */ #life = null;
  /** @type {import("../pubsub.js").Connection | null} */ #connection = null;
  #body;
  #limit = 5;
  #clock;
  /** By encoded name: row, newest id, rate, time of the last message, and the message to show next. */
  #channels = new Map();
  /** The server has counted the messages up to this id. */ #floor = 0n;
  #timer = 0;
  #hiding = 0;
  #idle = 0;
  #asking = 0;
  #asked = -ASK_MS;
  /** Messages that arrive during a request, whose response may not contain them; null between requests. */ #meanwhile = null;

  connectedCallback() {
    this.#life = new AbortController();
    const { signal } = this.#life;
    this.#body = this.querySelector("tbody");
    this.#limit = Number(this.getAttribute("channels")) || this.#limit;
    const span = Number(this.getAttribute("span"));
    this.#clock = new Clock(span);
    for (const time of this.querySelectorAll("time")) localise(time);
    for (const row of this.#body.rows) {
      const rate = new Rate(span, row.querySelector(".pubsub-plot").dataset.counts);
      const moment = Date.parse(row.querySelector("time").dateTime);
      const entry = { row, newestId: BigInt(row.dataset.newestId), rate, moment, next: null };
      this.#channels.set(row.dataset.channel, entry);
    }
    document.addEventListener("visibilitychange", () => this.#onVisibility(), { signal });
    this.#idle = setInterval(() => this.#schedule(), IDLE_MS);
    if (document.hidden) this.#onVisibility();
    else this.#connect(this.getAttribute("last-id"));
  }

  disconnectedCallback() {
    this.#life.abort();
    clearTimeout(this.#timer);
    clearTimeout(this.#hiding);
    clearTimeout(this.#asking);
    clearInterval(this.#idle);
    this.#timer = 0;
    this.#connection = null;
  }

  #connect(after) {
    this.#floor = BigInt(after);
    this.#connection = connect({
      base: this.getAttribute("base"),
      patterns: ["*"],
      after,
      share: true,
      silenceSeconds: Number(this.getAttribute("silence")) || undefined,
      signal: this.#life.signal,
      onmessage: (message) => this.#take(message),
      onstatus: (status) => this.#say(status),
    });
  }

  #say(status) {
    const words = { "catching up": "Catching up", live: "Live", reconnecting: "Reconnecting" };
    this.dataset.status = status;
    this.querySelector(".pubsub-status").textContent = words[status] ?? "";
  }

  /** The tab was shown or hidden. */
  #onVisibility() {
    clearTimeout(this.#hiding);
    if (document.hidden) {
      this.#hiding = setTimeout(() => this.#connection?.close(), HIDDEN_MS);
    } else if (!this.#connection || this.#connection.status === "closed") {
      this.#begin();
    } else {
      this.#schedule();
    }
  }

  /** Begin at the log's head, without the messages that were published meanwhile. */
  async #begin() {
    const head = await this.#ask();
    if (head !== null && !document.hidden && !this.#life.signal.aborted) this.#connect(head);
  }

  #take({ messageId, channel, payload, blob, createdAt }) {
    const preview = payload === undefined ? `${atob(blob).length.toLocaleString("en")} bytes` : previewOf(payload);
    const news = { id: BigInt(messageId), key: tildeEncode(channel), preview, createdAt };
    this.#count(news);
    if (!this.#meanwhile) return;
    this.#meanwhile.push(news);
    if (this.#meanwhile.length > MAX_MEANWHILE) this.#meanwhile.shift();
  }

  #count({ id, key, preview, createdAt }) {
    const entry = this.#channels.get(key);
    if (id <= this.#floor) return;
    if (!entry) {
      this.#newcomer();
      return;
    }
    if (id <= entry.newestId) return;
    entry.newestId = id;
    entry.moment = Date.now();
    entry.rate.add(this.#clock.spanOf(createdAt));
    entry.next = { preview, createdAt };
    this.#schedule();
  }

  /** A channel outside of the panel has a message: request the busy channels if there is a place for it. */
  #newcomer() {
    const now = Date.now();
    const full = this.#channels.size >= this.#limit;
    const quiet = [...this.#channels.values()].some(({ moment }) => now - moment > KEPT_MS);
    if (full && !quiet) {
      this.querySelector(".pubsub-more").hidden = false;
      return;
    }
    if (this.#asking || this.#meanwhile) return;
    const wait = Math.max(0, this.#asked + ASK_MS - performance.now());
    this.#asking = setTimeout(() => {
      this.#asking = 0;
      if (!document.hidden) this.#ask();
    }, wait);
  }

  /** Request the busy channels and show them; returns the log's head, or null without a response. */
  async #ask() {
    this.#asked = performance.now();
    this.#meanwhile = [];
    try {
      const { signal } = this.#life;
      const response = await fetch(`${this.getAttribute("base")}/-/activity.json`, { signal });
      if (!response.ok) return null;
      const { head, span, channels } = await response.json();
      this.#show(channels, span);
      this.#floor = BigInt(head);
      const newer = this.#meanwhile;
      this.#meanwhile = null;
      for (const news of newer) this.#count(news);
      return head;
    } catch {
      return null;
    } finally {
      this.#meanwhile = null;
    }
  }

  /** Busy channels keep their places; the channels with the newest messages get the free places. */
  #show(channels, span) {
    const all = channels.map((channel) => [tildeEncode(channel.channel), channel]);
    const now = Date.now();
    const kept = all.filter(([key]) => now - (this.#channels.get(key)?.moment ?? -Infinity) < KEPT_MS);
    const busy = new Map([...new Map([...kept, ...all])].slice(0, this.#limit));
    const free = [...this.#channels.keys()].filter((key) => !busy.has(key));
    for (const [key, channel] of busy) {
      const known = this.#channels.get(key);
      const row = known?.row ?? this.#row(key, channel.channel);
      const out = known ? null : free.pop();
      if (out) {
        this.#channels.get(out).row.replaceWith(row);
        this.#channels.delete(out);
      } else if (!known) {
        this.#body.append(row);
      }
      const createdAt = channel.newest_created_at;
      this.#channels.set(key, {
        row,
        newestId: BigInt(channel.newest_id),
        rate: new Rate(span, channel.counts.join()),
        moment: Date.parse(createdAt),
        next: { preview: channel.preview, createdAt },
      });
    }
    for (const key of free) {
      this.#channels.get(key).row.remove();
      this.#channels.delete(key);
    }
    this.querySelector(".table-wrapper").hidden = this.#channels.size === 0;
    this.querySelector(".pubsub-quiet").hidden = this.#channels.size > 0;
    this.querySelector(".pubsub-more").hidden = channels.length <= this.#limit;
    this.#draw();
  }

  #row(key, channel) {
    const href = `${this.getAttribute("base")}/${key}`;
    return element(
      "tr",
      { dataset: { channel: key } },
      element("td", { className: "col-channel" }, element("a", { href, textContent: visible(channel) })),
      element("td", { className: "col-payload" }),
      element("td", { className: "col-rate type-int" }),
      element("td", { className: "col-plot" }, ...sparklineNodes()),
      element("td", { className: "col-created" }),
    );
  }

  #schedule() {
    if (this.#timer || document.hidden) return;
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#draw();
    }, TICK_MS);
  }

  #draw() {
    for (const entry of this.#channels.values()) {
      const cell = (name) => entry.row.querySelector(name);
      if (entry.next) {
        cell(".col-payload").replaceChildren(element("bdi", { textContent: entry.next.preview }));
        cell(".col-created").replaceChildren(timeElement(entry.next.createdAt));
        entry.next = null;
      }
      entry.rate.advance(this.#clock.span);
      if (entry.rate.draw(cell(".pubsub-plot"))) {
        cell(".col-rate").textContent = entry.rate.perMinute.toLocaleString("en");
      }
    }
  }
}

customElements.define("pubsub-panel", PubsubPanel);
