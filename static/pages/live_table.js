/**
 * Live tables: `<pubsub-table>` on Datasette's page of a broadcast table.
 *
 * The rows are those of Datasette's own page, at its address, with its filters and
 * order, and under its permissions. The messages only say that there is something
 * new, and which rows to mark. However many arrive, the script asks for the page at
 * a pace that the server and the visitor can bear.
 *
 * Attributes: `base` (the address of the database's channels), `name` (what
 * the messages call the table), `follow` (JSON: channels and patterns), `last-id` (the log's head
 * before the rows were read).
 */

import { connect } from "../pubsub.js";
import { element, tildeEncode } from "../ui/dom.js";

/** Changes that come together are shown together, in ms; short enough to seem at once. */
const GATHER_MS = 50;

/** Shortest rest between two looks at the page, in ms, and as a multiple of what the last one took. */
const REST_MS = 500;
const REST_TIMES = 4;

/** Wait after the page could not be read, in ms. */
const RETRY_MS = 5_000;

/** Most changed rows that are remembered for marking, in rows; beyond, the oldest go unmarked. */
const MAX_KEYS = 1_000;

/** Most rows that stay, marked as gone, in rows. */
const MAX_GONE = 50;

/** What marks rows, and what a reader is told of them. */
const MARKS = { insert: ["pubsub-new", "New"], update: ["pubsub-changed", "Changed"], delete: ["pubsub-gone", "Gone"] };

class PubsubTable extends HTMLElement {
  /** @type {AbortController | null} Ends all listeners; set while in the page. */ #life = null;
  /** @type {AbortController | null} Ends the connection and what it is waiting for; set while live. */ #live = null;
  #status;
  #button;
  #time;
  /** Since the last look at the page: what happened to rows, by their address. Emptied by `#look`. */ #changed = new Map();
  /** Whether something happened since the last look. Cleared by `#look`. */ #dirty = false;
  #looking = false;
  #timer = 0;
  /** When the page may next be asked for. */ #due = 0;
  /** The HTML of rows as the server gave it: other scripts may have changed what stands in the page. */ #served = new WeakMap();

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
      // A browser that keeps nothing: it holds for this page.
    }
    if (on) this.#start(null);
    else this.#stop();
  }

  /** Go live after a position; null: from now on, once the page has been looked at. */
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
        // Listening first, then looking: nothing falls in between.
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
    if (this.#timer || this.#looking || !this.#dirty || !this.#live || document.hidden) return;
    const wait = Math.max(GATHER_MS, this.#due - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#look();
    }, wait);
  }

  /** Ask Datasette for the page as it is now, and bring the rows to that. */
  async #look() {
    const changed = this.#changed;
    this.#changed = new Map();
    this.#dirty = false;
    this.#looking = true;
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
      // What was to be marked still is.
      this.#changed = new Map([...changed, ...this.#changed]);
      this.#dirty = true;
      rest = RETRY_MS;
    } finally {
      this.#looking = false;
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
    this.#time.textContent = `last change ${new Date().toLocaleTimeString()}`;
  }

  /** Bring a table's body to what the server shows: rows that are the same stay the same elements. */
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
      // A row that comes back, or that was replaced, is new or changed whatever was said last.
      if (changed.has(path)) mark(made, stays && !isGone(stays) ? "update" : "insert");
      else if (isGone(made)) mark(made, null);
      return made;
    });
    const kept = new Set(next);
    /** Gone rows, by the row above them that is still there. */ const gone = new Map();
    let above = null;
    let count = 0;
    for (const row of [...body.rows].reverse()) {
      // From below, so that the newest of too many stay.
      if (kept.has(row)) continue;
      if (changed.has(row.dataset.row)) mark(row, "delete");
      if (isGone(row)) count += 1;
      if (!isGone(row) || count > MAX_GONE) row.remove();
    }
    for (const row of body.rows) {
      if (kept.has(row)) above = row;
      else gone.set(above, [...(gone.get(above) ?? []), row]);
    }
    const all = [...(gone.get(null) ?? []), ...next.flatMap((row) => [row, ...(gone.get(row) ?? [])])];
    let place = body.firstElementChild;
    for (const row of all) {
      if (row === place) place = place.nextElementSibling;
      else body.insertBefore(row, place);
    }
  }
}

function parse(payload) {
  try {
    // Whole numbers beyond 2^53 as they are written, where the browser tells.
    return JSON.parse(payload, (_name, value, context) =>
      typeof value === "number" && !Number.isSafeInteger(value) && context?.source ? context.source : value,
    );
  } catch {
    return null;
  }
}

/** A row's address as Datasette writes it; null where that is not known. */
function rowPath(key) {
  if (!key) return null;
  const parts = Object.values(key);
  if (parts.some((part) => part === null || typeof part === "object")) return null;
  return parts.map((part) => tildeEncode(String(part))).join(",");
}

/** This page's own address; without what it only suggests, which takes the longest. */
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

function isGone(row) {
  return row.classList.contains("pubsub-gone");
}

/** Mark a row with what happened to it, so that each change is seen; null: with nothing. */
function mark(row, operation) {
  const again = row.classList.contains("pubsub-flash-a") ? "pubsub-flash-b" : "pubsub-flash-a";
  row.classList.remove("pubsub-new", "pubsub-changed", "pubsub-gone", "pubsub-flash-a", "pubsub-flash-b");
  row.removeAttribute("title");
  if (operation === null) return;
  const [name, text] = MARKS[operation];
  row.classList.add(name, again);
  row.title = `${text} at ${new Date().toLocaleTimeString()}`;
}

/** Bring one part of the page to what the server shows, unless the reader is in it. */
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

/** Addresses as the reader's own page has them. */
function tidy(part) {
  for (const link of part.querySelectorAll("a[href*='_nosuggest=1']")) {
    const [path, query] = link.getAttribute("href").split("?");
    const kept = query.split("&").filter((each) => each !== "_nosuggest=1");
    link.setAttribute("href", kept.length ? `${path}?${kept.join("&")}` : path);
  }
}

/** The link to the next page begins where the rows end. */
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
