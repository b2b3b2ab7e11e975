/**
 * Search on the live page: the text that messages must contain, and older messages.
 *
 * The server searches (`messages.json`), because the page has only the newest rows.
 * The page's address contains the search, so that a visitor can bookmark and share it.
 * The module knows no connection.
 *
 * @module pages/viewer_search
 */

/** Shortest time between the last key and the search, in ms. */
const TYPING_MS = 200;

/** Most rows of a page that older messages are added to; beyond, the link opens another page. */
const MAX_ROWS = 2_000;

/** Messages in one response, in rows; `LIMIT` in http/messages.py. */
const PAGE_ROWS = 100;

export class MessageSearch {
  /** The text that payloads must contain, in lower case; empty: any payload matches. */ wanted = "";
  #root;
  #signal;
  #page;
  #input;
  #older;
  #timer = 0;
  /** Whether this change of the text has its own entry in the browser's history: Back undoes a change as a whole. */
  #entered = false;
  /** @type {AbortController | null} Aborts the present search. */ #search = null;

  /**
   * @param {Element} root around the page that the server rendered
   * @param {AbortSignal} signal removes the listeners
   * @param {{before: () => bigint | null, replace: (answer: object) => void, append: (messages: object[]) => void}}
   *   page `before` returns the id before which to search; `replace` and `append` show the messages
   */
  constructor(root, signal, page) {
    this.#root = root;
    this.#signal = signal;
    this.#page = page;
    const form = root.querySelector(".pubsub-filters");
    this.#input = form.elements.q;
    this.#older = root.querySelector(".pubsub-older");
    this.wanted = this.#input.value.toLowerCase();
    const { pattern } = form.elements;
    this.#input.addEventListener("input", () => this.#typed(), { signal });
    this.#input.addEventListener("change", () => {
      this.search();
      this.#entered = false;
    }, { signal });
    addEventListener("popstate", () => this.#goBack(), { signal });
    addEventListener("pageshow", ({ persisted }) => {
      // A page from the back-forward cache still has what was typed before it was left.
      if (persisted && pattern) pattern.value = pattern.defaultValue;
    }, { signal });
    pattern?.addEventListener("change", () => form.requestSubmit(), { signal });
    form.addEventListener("submit", (event) => {
      if (pattern && pattern.value !== pattern.defaultValue) return;
      event.preventDefault();
      this.search();
    }, { signal });
    form.addEventListener("formdata", ({ formData }) => {
      for (const name of ["pattern", "q"]) if (!formData.get(name)) formData.delete(name);
    }, { signal });
    this.#older.addEventListener("click", (event) => this.#more(event), { signal });
  }

  /** Whether a new message matches the search. */
  matches({ payload }) {
    return this.wanted === "" || (payload !== undefined && payload.toLowerCase().includes(this.wanted));
  }

  #typed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.search(), TYPING_MS);
  }

  /** Search for the text in the form, and put it into the page's address and links. */
  async search() {
    clearTimeout(this.#timer);
    const text = this.#input.value;
    this.wanted = text.toLowerCase();
    this.#enter(text);
    this.#link(text);
    this.#search?.abort();
    this.#search = new AbortController();
    try {
      const answer = await this.#ask({ before: this.#page.before() }, this.#search.signal);
      this.#page.replace(answer);
      this.#goOn(answer);
      const [some, none] = [".pubsub-none-with-text", ".pubsub-none-at-all"].map((name) => this.#root.querySelector(name));
      if (some) [some.hidden, none.hidden] = [text === "", text !== ""];
    } catch (error) {
      // Another search has replaced this one.
      if (error.name === "AbortError") return;
      this.#say(`Not searched: ${error.message}`);
    }
  }

  /** Put the text into the page's address: a new entry of the history for the first search of a change. */
  #enter(text) {
    const here = new URL(location.href);
    if ((here.searchParams.get("q") ?? "") === text) return;
    setOrDelete(here, "q", text);
    if (this.#entered) history.replaceState(history.state, "", here);
    else history.pushState(history.state, "", here);
    this.#entered = true;
  }

  /** The visitor went back or forward to another text. */
  #goBack() {
    const text = new URL(location.href).searchParams.get("q") ?? "";
    this.#entered = false;
    if (text === this.#input.value) return;
    this.#input.value = text;
    this.search();
  }

  /** The number of messages after an id in the channels that the page follows; null if the server does not answer. */
  async behind(after) {
    try {
      return (await this.#ask({ after, limit: 1 }, this.#signal)).behind;
    } catch {
      return null;
    }
  }

  /** The last row of the page is this message; `full`: there are older messages before it. */
  endsAt(id, full) {
    if (this.#older.hidden && !full) return;
    this.#before(id);
  }

  /** Add older messages to the rows, up to a limit. */
  async #more(event) {
    const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
    const rows = this.#root.querySelectorAll(".pubsub-messages tbody tr").length;
    if (!plain || rows >= MAX_ROWS) return;
    event.preventDefault();
    if (this.#older.ariaBusy === "true") return;
    this.#older.ariaBusy = "true";
    const { href } = this.#older;
    try {
      const answer = await this.#ask({ before: new URL(href).searchParams.get("before") }, this.#signal);
      this.#page.append(answer.messages);
      this.#goOn(answer);
    } catch (error) {
      if (error.name !== "AbortError") location.assign(href);
    } finally {
      this.#older.ariaBusy = "false";
    }
  }

  async #ask(parameters, signal) {
    const url = new URL(this.#root.querySelector('[data-link="json"]').href);
    for (const [name, value] of Object.entries(parameters)) if (value !== null) url.searchParams.set(name, value);
    const response = await fetch(url, { signal: AbortSignal.any([signal, this.#signal]) });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  }

  /** Point the link at the next older messages, if there are any. */
  #goOn({ older, messages }) {
    const short = older !== null && this.wanted !== "" && messages.length < PAGE_ROWS;
    this.#say(short ? `Searched back to message ${older}` : "");
    this.#older.hidden = older === null;
    if (older !== null) this.#before(older);
  }

  #say(text) {
    const searched = this.#root.querySelector(".pubsub-searched");
    searched.hidden = text === "";
    searched.textContent = text;
  }

  #before(id) {
    const url = new URL(this.#older.href);
    if (url.searchParams.get("before") === String(id)) return;
    url.searchParams.set("before", id);
    setOrDelete(url, "q", this.#input.value);
    this.#older.href = url.href;
    this.#older.hidden = false;
  }

  /** Put the text into the links to the same messages in other formats. */
  #link(text) {
    const names = { json: "q", csv: "q", table: "payload__contains", sql: "text" };
    for (const link of this.#root.querySelectorAll("[data-link]")) {
      const kind = link.dataset.link;
      if (kind === "sql" && text && !new URL(link.href).searchParams.has("text")) link.href = link.dataset.withText;
      const url = new URL(link.href);
      if (kind === "sql" && !text && url.searchParams.has("text")) url.searchParams.set("text", "");
      else setOrDelete(url, names[kind], text);
      link.href = url.href;
    }
  }
}

function setOrDelete(url, name, value) {
  if (value) url.searchParams.set(name, value);
  else url.searchParams.delete(name);
}
