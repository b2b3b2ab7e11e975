/**
 * The live page of a table, view or query: `<pubsub-query>` around the rows that the server rendered.
 *
 * It begins with the differences from these rows. Changes that come while the page is paused or not looked at are kept
 * as the newest result, and are shown together afterwards.
 *
 * Attributes: `base` (the address of the database's channels), `follow` (JSON: what is asked, as `query` takes it),
 * `silence` (after how many seconds of it a connection is dead), `truncate` (after how many characters texts are cut),
 * `links` (JSON: where values lead, as ResultTable takes it).
 */

import { apply, parse } from "../client/result.js";
import { followQuery } from "../client/shared_query.js";
import { element, localTime } from "../ui/dom.js";
import { visible } from "../ui/text.js";
import { ResultTable } from "./query_rows.js";

/** Shortest time between two changes of the page, in ms: it stays usable however often the result changes. */
const TICK_MS = 100;

/** What comes within this time of the last change is not read out, in ms: a screen reader could never follow. */
const CALM_MS = 3_000;

/** How long a tab that is not looked at keeps its connection, in ms; see pages/viewer.js. */
const HIDDEN_MS = 60_000;

class PubsubQuery extends HTMLElement {
  /** @type {AbortController | null} Ends all listeners and the connection; set while in the page. */ #life = null;
  /** @type {import("../pubsub.js").LiveQuery | null} */ #connection = null;
  /** @type {ResultTable} */ #table;
  /** The newest result; null: none has come yet. @type {import("../pubsub.js").Result | null} */ #latest = null;
  #status;
  #said;
  #pause;
  #time;
  #paused = false;
  #state = "connecting";
  #reason = "";
  #timer = 0;
  #hiding = 0;
  /** When the page may next change. */ #due = 0;
  /** When something was last read out. */ #spoken = -CALM_MS;

  connectedCallback() {
    this.#life = new AbortController();
    const { signal } = this.#life;
    this.#status = this.querySelector(".pubsub-status");
    // An error stands in the place of rows.
    if (!this.#status) return;
    this.#said = this.querySelector(".pubsub-said");
    this.#table = new ResultTable(this.querySelector(".pubsub-result"), {
      truncate: Number(this.getAttribute("truncate")),
      links: JSON.parse(this.getAttribute("links")),
    });
    const served = this.querySelector(".pubsub-rows");
    if (served) {
      const { columns, rows } = parse(served.textContent);
      this.#table.adopt(columns, rows);
    }
    this.#time = element("span", { className: "pubsub-time" });
    this.#pause = element("button", { type: "button", className: "core pubsub-pause" });
    const tools = element("div", { className: "pubsub-tools" }, this.#time, this.#pause);
    this.querySelector(".pubsub-bar").append(tools);
    this.#pause.addEventListener("click", () => this.#setPaused(!this.#paused), { signal });
    document.addEventListener("visibilitychange", () => this.#looked(), { signal });
    this.#setPaused(false);
    this.#connect();
  }

  disconnectedCallback() {
    this.#life.abort();
    clearTimeout(this.#timer);
    clearTimeout(this.#hiding);
    this.#timer = 0;
    this.querySelector(".pubsub-tools")?.remove();
  }

  #connect() {
    const options = {
      base: this.getAttribute("base"),
      ...JSON.parse(this.getAttribute("follow")),
      share: true,
      silenceSeconds: Number(this.getAttribute("silence")) || undefined,
      signal: this.#life.signal,
      onsnapshot: (result) => this.#take(result),
      onchange: (change) => {
        const { count, head } = change;
        this.#take({ ...this.#latest, count, head, rows: apply(this.#latest.rows, change) });
      },
      onstatus: (status, detail) => {
        this.#state = status;
        this.#reason = detail.reason ?? "";
        this.#say();
      },
    };
    // Numbers as the server wrote them: 80.0 is shown as such.
    this.#connection = followQuery(options, (value) => value);
  }

  /** The tab is looked at, or no longer. */
  #looked() {
    clearTimeout(this.#hiding);
    if (document.hidden) {
      this.#hiding = setTimeout(() => this.#connection?.close(), HIDDEN_MS);
      return;
    }
    if (this.#connection?.status === "closed") this.#connect();
    this.#schedule();
  }

  #say() {
    const states = {
      connecting: "Connecting",
      live: "Live: changes appear as they happen",
      broken: `Not up to date: ${visible(this.#reason)}`,
      reconnecting: `Reconnecting: ${visible(this.#reason)}`,
      closed: "Not connected while nobody looks",
    };
    const paused = this.#state === "live" ? "Paused: changes wait" : `${states[this.#state]}; paused`;
    const text = this.#paused ? paused : states[this.#state];
    if (this.#status.textContent !== text) this.#status.textContent = text;
    this.dataset.status = this.#state;
    this.toggleAttribute("data-paused", this.#paused);
  }

  #setPaused(paused) {
    this.#paused = paused;
    this.#pause.textContent = paused ? "Resume" : "Pause";
    this.#say();
    this.#tick();
  }

  #take(result) {
    this.#latest = result;
    this.#schedule();
  }

  #schedule() {
    if (this.#timer || document.hidden || this.#latest === null) return;
    const wait = Math.max(0, this.#due - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#tick();
    }, wait);
  }

  #tick() {
    if (document.hidden || this.#latest === null) return;
    const began = performance.now();
    if (this.#paused) this.#countWaiting();
    else this.#show();
    // It takes as long a rest as that took, so that the page can be used.
    this.#due = Math.max(began + TICK_MS, 2 * performance.now() - began);
  }

  #countWaiting() {
    const { columns, rows, key } = this.#latest;
    const count = same(columns, this.#table.columns) ? this.#table.waiting(rows, key) : rows.length;
    this.#pause.textContent = count ? `Resume: ${plural(count, "change")} wait${count === 1 ? "s" : ""}` : "Resume";
  }

  #show() {
    const { columns, rows, key, count } = this.#latest;
    if (same(columns, this.#table.columns)) {
      const { added, changed, gone } = this.#table.show(rows, key);
      if (added + changed + gone) {
        this.#time.textContent = `last change ${localTime(new Date())}`;
        this.#speak(`${added} new, ${changed} changed, ${gone} gone`);
      }
    } else {
      this.#table.rebuild(columns, rows);
    }
    const empty = rows.length === 0;
    this.querySelector(".pubsub-result").hidden = empty && this.#table.goneCount === 0;
    this.querySelector(".zero-results").hidden = !empty;
    const part = count !== undefined && count > rows.length ? `, ${rows.length.toLocaleString("en")} on this page` : "";
    this.querySelector(".pubsub-count").textContent = plural(count ?? rows.length, "row") + part;
  }

  #speak(text) {
    const now = performance.now();
    if (now - this.#spoken > CALM_MS) this.#said.textContent = text;
    this.#spoken = now;
  }
}

function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

function same(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}

customElements.define("pubsub-query", PubsubQuery);
