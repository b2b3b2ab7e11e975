/**
 * The page of subscriptions: `<pubsub-subscriptions>` around the table that the server rendered.
 *
 * The script requests the subscriptions every few seconds while the page is visible,
 * and updates only the cells that have changed, so that focus and selection stay.
 *
 * Attributes: `path` (the page's address; its JSON is at the same address with `.json`),
 * `everyones` (all owners are listed).
 */

import { element, localise, timeElement } from "../ui/dom.js";
import { visible } from "../ui/text.js";

/** Time between two requests, in ms: the server saves cursors once a second, and reads the log to count a lag. */
const POLL_MS = 3_000;

/** A key of a subscription: owner and name together are unique. */
function keyOf({ owner, subscription }) {
  return JSON.stringify([owner, subscription]);
}

class PubsubSubscriptions extends HTMLElement {
  /** @type {AbortController | null} Ends all listeners and requests; set while connected. */ #life = null;
  #timer = 0;
  #body;
  #state;
  /** The text of the status line while requests succeed. */ #said = "";

  connectedCallback() {
    this.#life = new AbortController();
    this.#body = this.querySelector(".pubsub-subscriptions tbody");
    if (!this.#body) return;
    this.#state = this.querySelector(".pubsub-state");
    this.#said = this.#state.textContent;
    for (const time of this.querySelectorAll("time")) localise(time);
    document.addEventListener("visibilitychange", () => this.#again(0), { signal: this.#life.signal });
    this.#again(POLL_MS);
  }

  disconnectedCallback() {
    this.#life.abort();
    clearTimeout(this.#timer);
  }

  #again(wait) {
    clearTimeout(this.#timer);
    if (!document.hidden && !this.#life.signal.aborted) this.#timer = setTimeout(() => this.#ask(), wait);
  }

  async #ask() {
    let said = this.#said;
    try {
      const url = `${this.getAttribute("path")}.json${this.hasAttribute("everyones") ? "?owner=*" : ""}`;
      const response = await fetch(url, { signal: this.#life.signal });
      const answer = await response.json();
      if (response.ok) {
        this.#show(answer.subscriptions);
        this.#sayFollows(answer.follows);
      }
      else said = `Not up to date: ${answer.error}`;
    } catch {
      said = "Not up to date: no answer from the server";
    }
    if (this.#state.textContent !== said) this.#state.textContent = said;
    this.#again(POLL_MS);
  }

  /** Update what a follower's page says; another log has another page. */
  #sayFollows(follows) {
    const line = this.querySelector(".pubsub-follows");
    if (!line || !follows) return;
    const { behind, heard_at: heard } = follows;
    const text = behind ? `${behind.toLocaleString("en")} behind` : "up to date";
    const place = line.querySelector(".pubsub-behind");
    if (place.textContent !== text) place.textContent = text;
    const time = line.querySelector("time");
    if (time.dateTime !== heard) {
      time.dateTime = heard;
      localise(time);
    }
  }

  #show(subscriptions) {
    const rows = new Map(Array.from(this.#body.rows, (row) => [keyOf(row.dataset), row]));
    subscriptions.forEach((subscription, index) => {
      const key = keyOf(subscription);
      const row = rows.get(key) ?? this.#row(subscription);
      rows.delete(key);
      this.#fill(row, subscription);
      if (this.#body.rows[index] !== row) this.#body.insertBefore(row, this.#body.rows[index] ?? null);
    });
    for (const gone of rows.values()) gone.remove();
    this.#body.parentElement.hidden = subscriptions.length === 0;
    this.querySelector(".zero-results").hidden = subscriptions.length > 0;
  }

  #row({ owner, subscription, relay_to: relay }) {
    const name = visible(subscription);
    const query = new URLSearchParams({ delete: subscription, owner });
    const remove = element("a", { href: `${this.getAttribute("path")}?${query}`, textContent: "Delete…" });
    remove.setAttribute("aria-label", `Delete ${name}`);
    const whose = relay ? element("em", { textContent: "relay" }) : owner ? element("bdi", { textContent: visible(owner) }) : element("em", { textContent: "anonymous" });
    const cell = (kind, ...children) => element("td", { className: `col-${kind}` }, ...children);
    const cells = [cell("subscription", relay ? "relay to the stream " : "", element("bdi", { textContent: name }))];
    if (this.hasAttribute("everyones")) cells.push(cell("owner", whose));
    cells.push(cell("reads"), cell("cursor type-int"), cell("lag type-int"), cell("connected"));
    cells.push(cell("seen", timeElement("")), cell("action", remove));
    return element("tr", { dataset: { owner, subscription } }, ...cells);
  }

  #fill(row, { channels, patterns, filter, cursor, lag, lag_is_more: more, connected, last_seen_at: seen, relay_to: relay }) {
    const put = (kind, text) => {
      const cell = row.querySelector(`.col-${kind}`);
      if (cell.textContent !== text) cell.textContent = text;
    };
    put("cursor", String(cursor));
    // The server counts a lag up to 10,000, and for patterns reads a limited number of messages.
    put("lag", (more ? (lag >= 10000 ? "more than " : "at least ") : "") + lag.toLocaleString("en"));
    put("connected", relay ? "own process" : connected ? "yes" : "no");
    const time = row.querySelector("time");
    if (time.dateTime !== seen) {
      time.dateTime = seen;
      localise(time);
    }
    const code = (text) => element("code", { textContent: visible(text) });
    const nodes = [...channels, ...patterns].flatMap((text, index) => [index ? ", " : "", code(text)]);
    if (filter) nodes.push(" where ", code(filter));
    const cell = row.querySelector(".col-reads");
    if (cell.textContent !== nodes.map((node) => node.textContent ?? node).join("")) cell.replaceChildren(...nodes);
  }
}

customElements.define("pubsub-subscriptions", PubsubSubscriptions);
