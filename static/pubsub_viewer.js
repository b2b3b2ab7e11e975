/**
 * The live channel viewer: `<pubsub-viewer>` around the table that the server rendered.
 *
 * The law of this module: texts reach the page as text, never as markup; what
 * it keeps is bounded, however long it runs. The connection is pubsub.js's
 * business. Newest messages are at the top.
 *
 * Attributes: `base` (the address of the database's channels), `follow` (JSON:
 * channels and patterns; none: the rows stay as they are), `last-id` (after
 * which to begin), `rows` (most that are shown), `row-base` (the log table's
 * address, where the visitor may see it), `color` (the database's).
 */

import { connect } from "./pubsub.js";
import { element, localise, tildeEncode, timeElement } from "./pubsub_dom.js";
import { present, visible } from "./pubsub_text.js";

/** Shortest time between two changes of the page, in ms: it stays usable at hundreds of messages a second. */
const TICK_MS = 100;

/** Most rows that are marked when they arrive together, in rows: each marking is painted anew for every frame. */
const MARKED_ROWS = 10;

/** Most channels that are listed. As in pages.py. */
const LISTED_CHANNELS = 100;

class PubsubViewer extends HTMLElement {
  /** @type {AbortController | null} Ends all listeners and the connection; set while connected. */ #life = null;
  #limit = 200;
  #body;
  #status;
  #pause;
  #fresh;
  #filter;
  #paused = false;
  #state = "connecting";
  #reason = "";
  #gap = "";
  /** What is to be shown: newest last, never more than `#limit`. Emptied by `#show`. */ #waiting = [];
  /** How many arrived since rows were last shown. Cleared by `#show`. */ #arrived = 0;
  #timer = 0;
  /** When the page may next change. */ #due = 0;
  /** By encoded name: a listed channel's row, count and newest id. */ #channels = new Map();
  /** Listed channels that changed since the last tick. */ #moved = new Map();

  connectedCallback() {
    this.#life = new AbortController();
    this.#limit = Number(this.getAttribute("rows")) || this.#limit;
    this.#body = this.querySelector(".pubsub-messages tbody");
    this.#status = this.querySelector(".pubsub-status");
    for (const time of this.querySelectorAll("time")) localise(time);
    const header = this.querySelector(".page-header");
    if (header && this.hasAttribute("color")) header.style.borderColor = this.getAttribute("color");
    this.#tools();
    if (this.hasAttribute("follow")) this.#follow();
  }

  disconnectedCallback() {
    this.#life.abort();
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.querySelector(".pubsub-tools")?.remove();
  }

  #tools() {
    const { signal } = this.#life;
    const live = this.hasAttribute("follow");
    this.#pause = element("button", { type: "button", className: "core pubsub-pause", textContent: "Pause" });
    this.#fresh = element("button", { type: "button", className: "core pubsub-new", hidden: true });
    this.#filter = element("input", { type: "search", className: "core pubsub-filter", placeholder: "Filter rows" });
    this.#filter.setAttribute("aria-label", "Show only rows that contain this text");
    const tools = element("div", { className: "pubsub-tools" });
    if (live) tools.append(this.#pause, this.#fresh);
    tools.append(this.#filter);
    this.querySelector(".pubsub-bar").append(tools);
    this.#pause.addEventListener("click", () => this.#setPaused(!this.#paused), { signal });
    this.#fresh.addEventListener("click", () => this.#catchUp(), { signal });
    this.#filter.addEventListener("input", () => this.#filterRows(this.#body.rows), { signal });
  }

  #follow() {
    const { signal } = this.#life;
    for (const row of this.querySelectorAll(".pubsub-channels tbody tr")) {
      const { channel, count, newestId } = row.dataset;
      this.#channels.set(channel, { row, count: Number(count), newestId: BigInt(newestId) });
    }
    addEventListener("scroll", () => this.#arrived && this.#schedule(), { signal, passive: true });
    document.addEventListener("visibilitychange", () => this.#schedule(), { signal });
    connect({
      base: this.getAttribute("base"),
      ...JSON.parse(this.getAttribute("follow")),
      after: this.getAttribute("last-id"),
      share: true,
      signal,
      onmessage: (message) => this.#take(message),
      ongap: (gap) => this.#missed(gap),
      onstatus: (status, detail) => {
        this.#state = status;
        this.#reason = detail.reason ?? "";
        this.#say();
      },
    });
  }

  #say() {
    const states = {
      connecting: "Connecting",
      "catching up": "Catching up",
      live: "Live",
      reconnecting: `Reconnecting: ${visible(this.#reason)}`,
      superseded: "Superseded by a newer connection",
      closed: "Closed",
    };
    const text = [states[this.#state], this.#paused ? "paused" : "", this.#gap].filter(Boolean).join(", ");
    if (this.#status.textContent !== text) this.#status.textContent = text;
    this.dataset.status = this.#state;
  }

  #setPaused(paused) {
    this.#paused = paused;
    this.#pause.textContent = paused ? "Resume" : "Pause";
    this.#say();
    this.#tick();
  }

  /** To the newest row, and on from there. */
  #catchUp() {
    this.#show();
    this.querySelector(".pubsub-messages").scrollIntoView({ block: "start" });
    if (this.#paused) this.#setPaused(false);
    else this.#tick();
    this.#pause.focus({ preventScroll: true });
  }

  /** Whether the reader is further down, so that rows added above would move what is being read. */
  get #reading() {
    return this.querySelector(".pubsub-messages").getBoundingClientRect().top < 0;
  }

  #take({ messageId, channel, payload, blob, createdAt }) {
    const id = BigInt(messageId);
    this.#count(id, channel, createdAt);
    // Cut down here, so that what waits is as bounded as what is shown.
    const shown = payload === undefined ? { bytes: atob(blob).length } : present(payload);
    this.#wait({ id, channel, createdAt, shown });
    this.#arrived += 1;
  }

  #missed({ missed, resumedAt }) {
    const count = missed === null ? "an unknown number of" : missed.toLocaleString("en");
    this.#gap = `gap of ${count} message${missed === 1 ? "" : "s"}`;
    this.#wait({ id: BigInt(resumedAt), gap: this.#gap });
    this.#say();
  }

  #wait(entry) {
    this.#waiting.push(entry);
    if (this.#waiting.length > this.#limit) this.#waiting.shift();
    this.#schedule();
  }

  #schedule() {
    if (this.#timer) return;
    const wait = Math.max(0, this.#due - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#tick();
    }, wait);
  }

  #tick() {
    if (document.hidden) return;
    const began = performance.now();
    this.#moveChannels();
    if (!this.#paused && !this.#reading) this.#show();
    this.#fresh.hidden = this.#arrived === 0;
    if (this.#arrived) this.#fresh.textContent = `${this.#arrived.toLocaleString("en")} new`;
    this.#due = began + TICK_MS;
    // Then laid out and painted: the page takes as long a rest as that took, and another, so that it can be used.
    requestAnimationFrame(() => setTimeout(() => {
      const now = performance.now();
      this.#due = Math.max(this.#due, now + (now - began));
    }));
  }

  #show() {
    this.#arrived = 0;
    if (!this.#waiting.length) return;
    const rows = this.#waiting.reverse().map((entry) => this.#row(entry));
    this.#waiting = [];
    if (rows.length <= MARKED_ROWS) for (const row of rows) row.classList.add("pubsub-fresh");
    this.#filterRows(rows);
    this.#body.prepend(...rows);
    while (this.#body.rows.length > this.#limit) this.#body.lastElementChild.remove();
    this.querySelector(".zero-results")?.remove();
    this.#moveOlder();
  }

  /** The link to older messages begins where the rows end. */
  #moveOlder() {
    const link = this.querySelector(".pubsub-older");
    const url = new URL(link.href);
    const before = this.#body.lastElementChild.dataset.id;
    if (url.searchParams.get("before") === before) return;
    url.searchParams.set("before", before);
    link.href = url.href;
    link.hidden = false;
  }

  #row({ id, channel, createdAt, shown, gap }) {
    const wide = this.#body.parentElement.tHead.rows[0].cells.length;
    if (gap) {
      const cell = element("td", { colSpan: wide, textContent: `${gap}: trimmed before they could be shown` });
      return element("tr", { className: "pubsub-gap", dataset: { id } }, cell);
    }
    const base = this.getAttribute("row-base");
    const number = base ? element("a", { href: `${base}/${id}`, textContent: id }) : String(id);
    const cells = [element("td", { className: "col-id type-pk" }, number)];
    if (wide === 4) cells.push(element("td", { className: "col-channel" }, this.#link(channel)));
    cells.push(element("td", { className: "col-payload" }, ...payloadNodes(shown)));
    cells.push(element("td", { className: "col-created" }, timeElement(createdAt)));
    return element("tr", { dataset: { id } }, ...cells);
  }

  #link(channel) {
    return element("a", { href: `${this.getAttribute("base")}/${tildeEncode(channel)}`, textContent: visible(channel) });
  }

  #filterRows(rows) {
    const wanted = this.#filter.value.toLowerCase();
    for (const row of rows) row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
  }

  /** One more message of a channel, unless the server has counted it before the page was made. */
  #count(id, channel, createdAt) {
    if (!this.querySelector(".pubsub-channels")) return;
    const key = tildeEncode(channel);
    const known = this.#channels.get(key) ?? this.#moved.get(key)?.entry;
    if (known && id <= known.newestId) return;
    const entry = known ?? { row: null, count: 0, newestId: 0n };
    entry.count += 1;
    entry.newestId = id;
    this.#moved.set(key, { entry, channel, createdAt });
    if (this.#moved.size > LISTED_CHANNELS) this.#moved.delete(this.#moved.keys().next().value);
  }

  #moveChannels() {
    for (const [key, { entry, channel, createdAt }] of this.#moved) {
      entry.row ??= this.#listChannel(key, channel, entry);
      entry.row.cells[1].textContent = entry.count.toLocaleString("en");
      entry.row.cells[2].replaceChildren(timeElement(createdAt));
    }
    this.#moved.clear();
  }

  /** A channel that is new, among the others by name; the one that was quiet longest goes when there are too many. */
  #listChannel(key, channel, entry) {
    const body = this.querySelector(".pubsub-channels tbody");
    const row = element("tr", { dataset: { channel: key } });
    row.append(element("td", {}, this.#link(channel)), element("td", { className: "type-int" }), element("td"));
    const name = visible(channel);
    const next = [...body.rows].find((other) => other.cells[0].textContent > name);
    body.insertBefore(row, next ?? null);
    this.#channels.set(key, entry);
    if (this.#channels.size > LISTED_CHANNELS) {
      let quietest = key;
      for (const [other, { newestId }] of this.#channels) {
        if (newestId < this.#channels.get(quietest).newestId) quietest = other;
      }
      this.#channels.get(quietest).row.remove();
      this.#channels.delete(quietest);
    }
    this.querySelector(".pubsub-channel-list").hidden = false;
    return row;
  }
}

function payloadNodes({ bytes, summary, full, note }) {
  if (bytes !== undefined) return [element("em", { textContent: `${bytes.toLocaleString("en")} bytes` })];
  if (summary === undefined) return [element("bdi", { textContent: full })];
  const nodes = [
    element("summary", {}, element("bdi", { textContent: summary })),
    element("pre", { textContent: full, dir: "auto" }),
  ];
  if (note) nodes.push(element("p", {}, element("em", { textContent: note })));
  return [element("details", {}, ...nodes)];
}

customElements.define("pubsub-viewer", PubsubViewer);
