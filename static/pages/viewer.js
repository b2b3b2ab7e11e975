/**
 * The live channel viewer: `<pubsub-viewer>` around the table that the server rendered.
 *
 * Payloads reach the page as text, never as markup. The memory of the script is
 * bounded, for any running time. pubsub.js has the connection. The newest messages
 * are at the top.
 *
 * Attributes: `base` (the address of the database's channels), `follow` (JSON:
 * channels and patterns; without it the page is not live), `last-id` (the stream
 * begins after this id), `span` (the newest span that the server has counted),
 * `silence` (a connection without data for this many seconds is dead), `rows` (most
 * rows while messages arrive), `row-base` (the log table's address, if the visitor
 * may view it), `color` (the database's).
 */

import { connect } from "../pubsub.js";
import { ChannelList } from "./viewer_channels.js";
import { element, localise } from "../ui/dom.js";
import { MessageSearch } from "./viewer_search.js";
import { Slide } from "../ui/slide.js";
import { Clock, Rate } from "../ui/sparkline.js";
import { contains, entryOf, RowMaker } from "./viewer_rows.js";
import { visible } from "../ui/text.js";

/** Shortest time between two updates, in ms: the page stays usable at hundreds of messages per second. */
const TICK_MS = 100;

/** Time between two updates of the sparklines while no messages arrive, in ms. */
const IDLE_MS = 1_000;

/** Most rows of one update that are marked and read out, in rows: the browser paints every mark. */
const MARKED_ROWS = 10;

/** From this width on the channels stand beside the messages, open; pubsub.css has the same width. */
const WIDE = "(min-width: 1100px)";

/**
 * If an update brings more than `TORRENT_ROWS` rows within `TORRENT_MS` of the last one, a visitor cannot read them,
 * and the page keeps only `TORRENT_LIMIT` rows, because their layout takes the most time. The link to older messages
 * leads to the other rows.
 */
const TORRENT_ROWS = 20;
const TORRENT_LIMIT = 40;
const TORRENT_MS = 500;

/** Rows that arrive within this time of other rows are not read out, in ms: a screen reader could not keep up. */
const CALM_MS = 1_000;

/** How long a catch-up takes before the page shows how many messages it is behind, and between two updates, in ms. */
const BEHIND_MS = 500;

/**
 * How long a hidden tab keeps its connection, in ms. Browsers open six connections to a server over HTTP/1.1, for all
 * tabs together. When the tab is shown again, the page catches up.
 */
const HIDDEN_MS = 60_000;

class PubsubViewer extends HTMLElement {
  /** @type {AbortController | null} Ends all listeners and the connection; set while in a page. */ #life = null;
  /** @type {import("../pubsub.js").Connection | null} Set while the page is live. */ #connection = null;
  #limit = 200;
  #body;
  #log;
  #status;
  #pause;
  #fresh;
  /** @type {RowMaker} */ #rows;
  /** @type {MessageSearch} */ #search;
  /** @type {ChannelList | null} On the page of all channels. */ #channels = null;
  /** @type {Rate | null} On the page of one channel. */ #rate = null;
  #clock;
  #slide = new Slide();
  #paused = false;
  #state = "connecting";
  #reason = "";
  #gap = "";
  /** The messages that are not yet rows: newest last, at most `#limit`. Emptied by `#show`. */ #waiting = [];
  /** The number of messages since rows were last shown. Cleared by `#show`. */ #arrived = 0;
  /** The last search has returned the messages up to this id. */ #floor = 0n;
  /** The newest id that had arrived when rows were last shown. */ #shownTo = 0n;
  /** The newest id that has arrived. */ #last = 0n;
  /** The number of messages between the page and the log's head; null: unknown. */ #behind = null;
  /** Whether the rows belong to an earlier search. */ #stale = false;
  #timer = 0;
  #hiding = 0;
  #counting = 0;
  #idle = 0;
  /** When the page may be updated again. */ #due = 0;
  /** When rows were last added. */ #added = -CALM_MS;

  connectedCallback() {
    this.#life = new AbortController();
    this.#limit = Number(this.getAttribute("rows")) || this.#limit;
    const table = this.querySelector(".pubsub-messages");
    this.#body = table.tBodies[0];
    this.#log = this.querySelector(".pubsub-log");
    this.#status = this.querySelector(".pubsub-status");
    this.#rows = new RowMaker(table, this.getAttribute("base"), this.getAttribute("row-base"));
    for (const time of this.querySelectorAll("time")) localise(time);
    const header = this.querySelector(".page-header");
    if (header && this.hasAttribute("color")) header.style.borderColor = this.getAttribute("color");
    this.#search = new MessageSearch(this, this.#life.signal, {
      before: () => (this.#paused ? this.#shownTo + 1n : null),
      replace: (answer) => this.#replace(answer),
      append: (messages) => this.#body.append(...messages.map((message) => this.#rows.row(entryOf(message)))),
    });
    if (this.hasAttribute("follow")) this.#follow();
  }

  disconnectedCallback() {
    this.#life.abort();
    for (const timer of [this.#timer, this.#hiding, this.#counting]) clearTimeout(timer);
    clearInterval(this.#idle);
    this.#timer = 0;
    this.#connection = null;
    this.querySelector(".pubsub-tools")?.remove();
  }

  #tools() {
    const { signal } = this.#life;
    this.#pause = element("button", { type: "button", className: "core pubsub-pause", textContent: "Pause" });
    this.#fresh = element("button", { type: "button", className: "core pubsub-new", hidden: true });
    const tools = element("div", { className: "pubsub-tools" }, this.#fresh, this.#pause);
    this.querySelector(".pubsub-bar").append(tools);
    this.#pause.addEventListener("click", () => this.#setPaused(!this.#paused), { signal });
    this.#fresh.addEventListener("click", () => this.#showNewest(), { signal });
  }

  #follow() {
    const { signal } = this.#life;
    const span = Number(this.getAttribute("span"));
    this.#clock = new Clock(span);
    const list = this.querySelector(".pubsub-channel-list");
    if (list) {
      const wide = matchMedia(WIDE);
      list.open = wide.matches;
      wide.addEventListener("change", () => (list.open = wide.matches), { signal });
    }
    if (list) this.#channels = new ChannelList(list, this.getAttribute("base"), this.#clock, span);
    const plot = this.querySelector(".pubsub-rate .pubsub-plot");
    if (plot) this.#rate = new Rate(span, plot.dataset.counts);
    this.#last = this.#shownTo = BigInt(this.getAttribute("last-id"));
    this.#tools();
    addEventListener("scroll", () => this.#arrived && this.#schedule(), { signal, passive: true });
    document.addEventListener("visibilitychange", () => this.#onVisibility(), { signal });
    this.#idle = setInterval(() => this.#schedule(), IDLE_MS);
    this.#connect(this.getAttribute("last-id"));
  }

  #connect(after) {
    this.#connection = connect({
      base: this.getAttribute("base"),
      ...JSON.parse(this.getAttribute("follow")),
      after,
      share: true,
      silenceSeconds: Number(this.getAttribute("silence")) || undefined,
      signal: this.#life.signal,
      onmessage: (message) => this.#take(message),
      ongap: (gap) => this.#missed(gap),
      onstatus: (status, detail) => this.#turned(status, detail.reason ?? ""),
    });
  }

  /** The tab was shown or hidden. */
  #onVisibility() {
    clearTimeout(this.#hiding);
    if (document.hidden) {
      this.#hiding = setTimeout(() => this.#connection?.close(), HIDDEN_MS);
      return;
    }
    if (this.#connection?.status === "closed") this.#connect(this.#connection.lastId);
    this.#schedule();
  }

  #turned(status, reason) {
    this.#state = status;
    this.#reason = reason;
    this.#behind = null;
    clearTimeout(this.#counting);
    if (status === "catching up") this.#counting = setTimeout(() => this.#countBehind(), BEHIND_MS);
    this.#say();
  }

  /** Count the messages between the page and the log's head, until the page has caught up. */
  async #countBehind() {
    const asked = this.#last;
    let taken = 0;
    this.#behind = { count: null, take: () => (taken += 1) };
    const behind = this.#behind;
    const count = await this.#search.behind(asked);
    if (this.#behind !== behind || count === null) return;
    behind.count = Math.max(0, count - taken);
    behind.take = () => (behind.count = Math.max(0, behind.count - 1));
    this.#sayBehind();
  }

  #sayBehind() {
    this.#say();
    this.#counting = setTimeout(() => this.#behind?.count !== null && this.#behind && this.#sayBehind(), BEHIND_MS);
  }

  #say() {
    const behind = this.#behind?.count ? ` (${this.#behind.count.toLocaleString("en")} behind)` : "";
    const states = {
      connecting: "Connecting",
      "catching up": `Catching up${behind}`,
      live: "Live",
      reconnecting: `Reconnecting: ${visible(this.#reason)}`,
      superseded: "Superseded by a newer connection",
      closed: "Not connected while the tab is hidden",
    };
    const paused = this.#state === "live" ? ["Paused"] : [states[this.#state], "paused"];
    const text = [...(this.#paused ? paused : [states[this.#state]]), this.#gap].filter(Boolean).join(", ");
    if (this.#status.textContent !== text) this.#status.textContent = text;
    this.dataset.status = this.#state;
    this.toggleAttribute("data-paused", this.#paused);
  }

  #setPaused(paused) {
    this.#paused = paused;
    this.#pause.textContent = paused ? "Resume" : "Pause";
    this.#say();
    if (!paused && this.#stale) this.#search.search();
    // Show all rows that were held back, also if they are many.
    this.#added = -CALM_MS;
    this.#tick();
  }

  /** Scroll to the newest row, and show new rows again. */
  #showNewest() {
    this.#show();
    this.querySelector(".pubsub-messages").scrollIntoView({ block: "start" });
    if (this.#paused) this.#setPaused(false);
    else this.#tick();
    this.#pause.focus({ preventScroll: true });
  }

  /** Whether the visitor has scrolled down: rows added above would move the rows on the screen. */
  get #reading() {
    return this.querySelector(".pubsub-messages").getBoundingClientRect().top < 0;
  }

  #take(message) {
    const entry = entryOf(message);
    this.#last = entry.id;
    this.#behind?.take();
    this.#channels?.count(entry.id, entry.channel, entry.createdAt);
    this.#rate?.add(this.#clock.spanOf(entry.createdAt));
    if (entry.id <= this.#floor || !this.#search.matches(message)) {
      this.#schedule();
      return;
    }
    this.#arrived += 1;
    this.#wait(entry);
  }

  #wanted(entry) {
    return entry.id > this.#floor && (entry.gap || contains(entry, this.#search.wanted));
  }

  #missed({ missed, resumedAt }) {
    const count = missed === null ? "an unknown number of" : missed.toLocaleString("en");
    this.#gap = `gap of ${count} message${missed === 1 ? "" : "s"}`;
    // In a log that was replaced, ids begin again.
    if (missed === null) this.#floor = this.#last = BigInt(resumedAt);
    this.#wait({ id: BigInt(resumedAt), gap: this.#gap });
    this.#say();
  }

  #wait(entry) {
    this.#waiting.push(entry);
    if (this.#waiting.length > this.#limit) this.#waiting.shift();
    this.#schedule();
  }

  #schedule() {
    if (this.#timer || document.hidden) return;
    const wait = Math.max(0, this.#due - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#tick();
    }, wait);
  }

  #tick() {
    if (document.hidden) return;
    const began = performance.now();
    // Read the layout before any change, so that the browser computes it once.
    const held = this.#paused || this.#reading;
    this.#channels?.draw();
    this.#drawRate();
    if (!held) this.#show();
    this.#fresh.hidden = this.#arrived === 0;
    if (this.#arrived) this.#fresh.textContent = `${this.#arrived.toLocaleString("en")} new`;
    this.#due = began + TICK_MS;
    // The browser now lays out and paints. The next update waits for as long again, so that the page responds to clicks.
    requestAnimationFrame(() => setTimeout(() => {
      const now = performance.now();
      this.#due = Math.max(this.#due, now + (now - began));
    }));
  }

  #drawRate() {
    if (!this.#rate) return;
    this.#rate.advance(this.#clock.span);
    if (!this.#rate.draw(this.querySelector(".pubsub-rate .pubsub-plot"))) return;
    this.querySelector(".pubsub-peak").textContent = this.#rate.peak.toLocaleString("en");
    this.querySelector(".pubsub-rate figcaption").textContent = this.#rate.words;
  }

  #show() {
    this.#arrived = 0;
    this.#shownTo = this.#last;
    if (!this.#waiting.length) return;
    const now = performance.now();
    const torrent = this.#waiting.length > TORRENT_ROWS && now - this.#added < TORRENT_MS;
    const limit = torrent ? TORRENT_LIMIT : this.#limit;
    const rows = this.#waiting.slice(-limit).reverse().map((entry) => this.#rows.row(entry));
    this.#waiting = [];
    const few = rows.length <= MARKED_ROWS;
    if (few) for (const row of rows) row.classList.add("pubsub-fresh");
    this.#log.setAttribute("aria-live", few && now - this.#added > CALM_MS ? "polite" : "off");
    this.#added = now;
    const old = [...this.#body.rows];
    const kept = old.slice(0, limit - rows.length);
    const full = kept.length < old.length;
    const add = () => {
      if (full) for (const row of old.slice(kept.length)) row.remove();
      this.#body.prepend(...rows);
    };
    if (!torrent && kept.length) this.#slide.run([this.#body], kept[0], add);
    else add();
    this.querySelector(".zero-results").hidden = true;
    this.#search.endsAt(this.#body.lastElementChild.dataset.id, full);
  }

  /** Show the rows of another search; newer messages follow over the connection. */
  #replace({ messages, head }) {
    this.#log.setAttribute("aria-live", "off");
    this.#body.replaceChildren(...messages.map((message) => this.#rows.row(entryOf(message))));
    this.querySelector(".zero-results").hidden = messages.length > 0;
    this.#stale = this.#paused;
    if (!this.hasAttribute("follow")) return;
    if (!this.#paused) this.#floor = BigInt(head);
    this.#waiting = this.#waiting.filter((entry) => this.#wanted(entry));
    this.#arrived = this.#paused ? this.#arrived : this.#waiting.length;
    this.#schedule();
  }
}

customElements.define("pubsub-viewer", PubsubViewer);
