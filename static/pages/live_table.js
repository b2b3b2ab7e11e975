/**
 * Live tables: `<pubsub-table>` on Datasette's page of a broadcast table.
 *
 * The script takes the rows from Datasette's own page, at its address, with its filters,
 * its order and its permissions. The messages only announce that rows have changed, and
 * which rows to mark. The script limits how often it requests the page, for any number
 * of messages.
 *
 * Attributes: `base` (the address of the database's channels), `name` (the table's name
 * in the messages), `follow` (JSON: channels and patterns), `last-id` (the log's head
 * before the server read the rows).
 */

import { connect } from "../pubsub.js";
import { element, localTime, tildeEncode } from "../ui/dom.js";
import { arrange, isGone, mark, MARKS } from "../ui/marks.js";

/** Wait from a change to the request, in ms, so that one request shows several changes; too short to notice. */
const GATHER_MS = 50;

/** Shortest pause between two requests, in ms, and as a multiple of the time that the last one took. */
const REST_MS = 500;
const REST_TIMES = 4;

/** Wait after a request that failed, in ms. */
const RETRY_MS = 5_000;

/** Most changed rows that the script keeps for marking, in rows; beyond, it does not mark the oldest. */
const MAX_KEYS = 1_000;

class PubsubTable extends HTMLElement {
  /** @type {AbortController | null} Ends all listeners; set while in the page. */ #life = null;
  /** @type {AbortController | null} Ends the connection and the request of the page; set while live. */ #live = null;
  #status;
  #button;
  #time;
  /** The operations on rows since the last request, by the rows' addresses. Emptied by `#refresh`. */ #changed = new Map();
  /** Whether rows have changed since the last request. Cleared by `#refresh`. */ #dirty = false;
  #refreshing = false;
  #timer = 0;
  /** When the script may request the page again. */ #due = 0;
  /** The HTML of rows from the server: other scripts may have changed the rows on the page. */ #served = new WeakMap();

  connectedCallback() {
    this.#life = new AbortController();
    const { signal } = this.#life;
    this.#status = this.querySelector(".pubsub-status");
    this.#time = element("span", { className: "pubsub-table-time" });
    this.#button = element("button", { type: "button", className: "core" });
    this.querySelector(".pubsub-table-bar").append(this.#time, this.#button);
    this.#button.addEventListener("click", () => this.#turn(this.#live === null), { signal });
    document.addEventListener("visibilitychange", () => this.#schedule(), { signal });
    if (this.#remembered() === "off") this.#stop();
    else this.#start(this.getAttribute("last-id"));
  }

  disconnectedCallback() {
    this.#stop();
    this.#life.abort();
    this.#time.remove();
    this.#button.remove();
  }

  get #storageKey() {
    return `pubsub-table ${this.getAttribute("base")} ${this.getAttribute("name")}`;
  }

  #remembered() {
    try {
      return localStorage.getItem(this.#storageKey);
    } catch {
      return null;
    }
  }

  #turn(on) {
    try {
      if (on) localStorage.removeItem(this.#storageKey);
      else localStorage.setItem(this.#storageKey, "off");
    } catch {
      // The browser has no storage; the choice is valid for this page only.
    }
    if (on) this.#start(null);
    else this.#stop();
  }

  /** Go live after a position; null: at the head, followed by one refresh of the rows. */
  #start(after) {
    this.#live = new AbortController();
    const { channels, patterns } = JSON.parse(this.getAttribute("follow"));
    this.#dirty = false;
    let behind = after === null;
    this.#button.textContent = "Turn off live rows";
    connect({
      base: this.getAttribute("base"),
      channels,
      patterns,
      ...(after === null ? {} : { after }),
      share: true,
      signal: this.#live.signal,
      onmessage: (message) => this.#take(message),
      ongap: () => this.#touch(),
      onstatus: (status, detail) => {
        if (status === "closed") return;
        this.#say(status, detail.reason);
        // The refresh begins when the connection is live, so that no change is lost between the two.
        if (status === "live" && behind) this.#touch();
        if (status === "live") behind = false;
      },
    });
  }

  #stop() {
    this.#live?.abort();
    this.#live = null;
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#changed.clear();
    this.#button.textContent = "Turn on live rows";
    this.#say("off");
  }

  #say(status, reason) {
    const texts = {
      live: "Live: changes appear as they happen",
      off: "Live rows are off",
      reconnecting: "Reconnecting: the rows may be out of date",
      failed: "The rows may be out of date",
    };
    const text = texts[status] ?? "Connecting";
    this.#status.textContent = reason ? `${text} (${reason})` : text;
    this.dataset.status = status;
  }

  #take({ payload }) {
    const change = parse(payload);
    if (change?.table !== this.getAttribute("name") || !MARKS[change.op]) return;
    const path = rowPath(change.key);
    if (path !== null) {
      this.#changed.delete(path);
      this.#changed.set(path, change.op);
      if (this.#changed.size > MAX_KEYS) this.#changed.delete(this.#changed.keys().next().value);
    }
    this.#touch();
  }

  #touch() {
    this.#dirty = true;
    this.#schedule();
  }

  #schedule() {
    if (this.#timer || this.#refreshing || !this.#dirty || !this.#live || document.hidden) return;
    const wait = Math.max(GATHER_MS, this.#due - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#refresh();
    }, wait);
  }

  /** Request the page from Datasette, and update the rows. */
  async #refresh() {
    const changed = this.#changed;
    this.#changed = new Map();
    this.#dirty = false;
    this.#refreshing = true;
    const began = performance.now();
    const { signal } = this.#live;
    let rest = REST_MS;
    try {
      const response = await fetch(pageUrl(), { cache: "no-store", headers: { Accept: "text/html" }, signal });
      if (!response.ok) throw new Error(`the server answers ${response.status}`);
      const there = new DOMParser().parseFromString(await response.text(), "text/html");
      this.#show(there, changed);
      if (this.dataset.status === "failed") this.#say("live");
    } catch (error) {
      if (signal.aborted) return;
      this.#say("failed", error.message);
      // The next request marks these rows.
      this.#changed = new Map([...changed, ...this.#changed]);
      this.#dirty = true;
      rest = RETRY_MS;
    } finally {
      this.#refreshing = false;
      const now = performance.now();
      this.#due = now + Math.max(rest, REST_TIMES * (now - began));
      this.#schedule();
    }
  }

  #show(there, changed) {
    const mine = rowsTable(document);
    const theirs = rowsTable(there);
    if (!mine || !theirs || heads(mine) !== heads(theirs)) {
      throw new Error("the page has changed: reload it");
    }
    this.#place(mine.tBodies[0], theirs.tBodies[0], changed);
    replace("h3.table-summary", there, (made) => document.querySelector("form.filters")?.before(made));
    replace("p.zero-results", there, (made) => mine.closest(".table-wrapper")?.after(made));
    replace(".facet-results", there);
    moveNext(mine, theirs);
    document.title = there.title;
    this.#time.textContent = `last change ${localTime(new Date())}`;
  }

  /** Update a table's body to the server's rows; a row that exists already keeps its element. */
  #place(body, wanted, changed) {
    const old = new Map([...body.rows].map((row) => [row.dataset.row, row]));
    const next = [...wanted.rows].map((row) => {
      const path = row.dataset.row;
      const html = row.innerHTML;
      const stays = path === undefined ? undefined : old.get(path);
      const made = stays ?? document.adoptNode(row);
      if (stays && (this.#served.get(stays) ?? stays.innerHTML) !== html) {
        stays.replaceChildren(...[...row.childNodes].map((node) => document.adoptNode(node)));
      }
      this.#served.set(made, html);
      // A row that the server shows is new or changed, even if the last message about it was a delete.
      if (changed.has(path)) mark(made, stays && !isGone(stays) ? "update" : "insert");
      else if (isGone(made)) mark(made, null);
      return made;
    });
    const kept = new Set(next);
    for (const row of body.rows) if (!kept.has(row) && changed.has(row.dataset.row)) mark(row, "delete");
    arrange(body, next);
  }
}

function parse(payload) {
  try {
    // Integers beyond 2^53 keep their digits, in browsers that pass the source text.
    return JSON.parse(payload, (_name, value, context) =>
      typeof value === "number" && !Number.isSafeInteger(value) && context?.source ? context.source : value,
    );
  } catch {
    return null;
  }
}

/** A row's address in Datasette's form; null if it is unknown. */
function rowPath(key) {
  if (!key) return null;
  const parts = Object.values(key);
  if (parts.some((part) => part === null || typeof part === "object")) return null;
  return parts.map((part) => tildeEncode(String(part))).join(",");
}

/** This page's address, without facet suggestions, which take the longest. */
function pageUrl() {
  const url = new URL(location.href);
  url.hash = "";
  url.searchParams.set("_nosuggest", "1");
  return url.href;
}

/** The table that holds the rows. */
function rowsTable(page) {
  return [...page.querySelectorAll("table.rows-and-columns")].find((table) => table.querySelector("th[data-column]"));
}

function heads(table) {
  return JSON.stringify([...table.querySelectorAll("th[data-column]")].map((head) => head.dataset.column));
}

/** Update one part of the page to the server's, unless it has the focus. */
function replace(selector, there, insert) {
  const mine = document.querySelector(selector);
  const theirs = there.querySelector(selector);
  if (theirs) tidy(theirs);
  if (!theirs) {
    if (insert) mine?.remove();
  } else if (!mine) {
    insert?.(document.adoptNode(theirs));
  } else if (mine.innerHTML !== theirs.innerHTML && !mine.contains(document.activeElement)) {
    mine.replaceWith(document.adoptNode(theirs));
  }
}

/** Remove `_nosuggest` from addresses, as the visitor's page has none. */
function tidy(part) {
  for (const link of part.querySelectorAll("a[href*='_nosuggest=1']")) {
    const [path, query] = link.getAttribute("href").split("?");
    const kept = query.split("&").filter((each) => each !== "_nosuggest=1");
    link.setAttribute("href", kept.length ? `${path}?${kept.join("&")}` : path);
  }
}

/** Update the link to the next page, which begins after the last row. */
function moveNext(mine, theirs) {
  const find = (table) => {
    const wrapper = table.closest(".table-wrapper") ?? table;
    for (let each = wrapper.nextElementSibling; each && each.id !== "export"; each = each.nextElementSibling) {
      if (each.tagName === "P" && each.querySelector("a[href*='_next=']")) return each;
    }
    return null;
  };
  const now = find(mine);
  const then = find(theirs);
  if (then) tidy(then);
  if (!then) now?.remove();
  else if (now) now.replaceWith(document.adoptNode(then));
  else (mine.closest(".table-wrapper") ?? mine).after(document.adoptNode(then));
}

customElements.define("pubsub-table", PubsubTable);
