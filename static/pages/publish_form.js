/**
 * The form that publishes: `<pubsub-publish>` around the form that the server rendered.
 *
 * The form works without this script. With the script, the page stays when the visitor
 * publishes, errors appear at their fields, and statements below the form publish the
 * same messages as the form.
 *
 * Attributes: `base` (the address of the database's channels), `database` (its
 * name), `row-base` (the log table's address, where the visitor may see it),
 * `token` (publishing needs one).
 */

import { element, tildeEncode } from "../ui/dom.js";
import { curl, sql, typescript } from "./publish_snippets.js";

/** Longest payloads that the statements show, in characters: a command of 128 KiB is too long for Linux. */
const MAX_SHOWN = 50_000;

/** Finds the field that an error is about; pages/publish_form.py has the same expression. */
const FIELD = /^(?:line \d+: )?(channel|payload|key)\b|^permission denied: .* on (channel)\b/;

/** The channel in the statements while the field is empty. */
const SOME_CHANNEL = "channel";

class PubsubPublish extends HTMLElement {
  /** @type {AbortController | null} Ends all listeners; set while connected. */ #life = null;
  #form;
  /** Says which messages the statements publish, once it is not what is in the form. */ #which;
  #error;
  #done;
  /** By language: the function that makes the statement, and the element that shows it. */ #statements = new Map();

  connectedCallback() {
    this.#life = new AbortController();
    const { signal } = this.#life;
    this.#form = this.querySelector("form");
    this.#error = this.querySelector(".pubsub-error");
    this.#done = this.querySelector(".pubsub-done");
    this.append(this.#examples());
    this.#form.addEventListener("input", () => this.#show(), { signal });
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#publish();
    }, { signal });
    this.#form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit();
    }, { signal });
    this.#show();
  }

  disconnectedCallback() {
    this.#life.abort();
    this.querySelector(".pubsub-statements")?.remove();
    this.#statements.clear();
  }

  #examples() {
    const section = element("section", { className: "pubsub-statements" });
    section.append(element("h2", { textContent: "The same from a program" }));
    this.#which = element("p", { className: "pubsub-hint pubsub-which", hidden: true });
    section.append(this.#which);
    const kinds = [["SQL", sql, "In any program that opens the file"], ["curl", curl], ["TypeScript", typescript]];
    for (const [name, statement, hint] of kinds) {
      const code = element("code");
      const pre = element("pre", { tabIndex: 0 }, code);
      pre.setAttribute("aria-label", name);
      pre.setAttribute("role", "region");
      const said = element("span", { className: "pubsub-hint" });
      said.setAttribute("role", "status");
      const copy = element("button", { type: "button", className: "core", textContent: "Copy" });
      copy.setAttribute("aria-label", `Copy ${name}`);
      copy.addEventListener("click", () => this.#copy(code, said), { signal: this.#life.signal });
      const head = element("div", { className: "pubsub-statement" }, element("h3", { textContent: name }), said, copy);
      section.append(head, ...(hint ? [element("p", { className: "pubsub-hint", textContent: hint })] : []), pre);
      this.#statements.set(name, { statement, code, said });
    }
    return section;
  }

  /** The values of the form. A browser ends the lines of a text with LF alone. */
  #typed() {
    const { channel, payload, key, lines } = this.#form.elements;
    const payloads = lines.checked ? payload.value.split("\n").filter((line) => line !== "") : [payload.value];
    return { channel: channel.value, payloads, key: key.value, lines: lines.checked };
  }

  #show() {
    this.#which.hidden = true;
    const { channel, payloads, key } = this.#typed();
    const base = new URL(this.getAttribute("base"), document.baseURI);
    const publish = {
      channel: channel || SOME_CHANNEL,
      payloads: payloads.length ? payloads : [""],
      key: payloads.length > 1 ? "" : key,
      database: this.getAttribute("database"),
      origin: base.origin,
      root: base.pathname.replace(/\/[^/]*\/-\/pubsub$/, ""),
      url: `${base.href}/-/publish`,
      token: this.hasAttribute("token"),
    };
    const size = payloads.reduce((sum, text) => sum + text.length, 0);
    for (const { statement, code, said } of this.#statements.values()) {
      said.textContent = "";
      try {
        code.textContent = size > MAX_SHOWN ? "(too long to paste)" : statement(publish);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        code.textContent = `(${error.message})`;
      }
    }
  }

  async #copy(code, said) {
    const range = document.createRange();
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    try {
      // Without https a page has no clipboard API, only the older command.
      if (navigator.clipboard) await navigator.clipboard.writeText(code.textContent);
      else if (!document.execCommand("copy")) throw new Error("refused");
      said.textContent = "Copied";
    } catch {
      said.textContent = "Selected: copy it with the keyboard";
    }
  }

  async #publish() {
    const { channel, payloads, key, lines } = this.#typed();
    this.#fail("");
    this.#done.textContent = "";
    if (payloads.some((payload) => payload.includes("\0"))) return this.#fail("payload must not contain NUL");
    if (lines && key) return this.#fail("key is for one message: leave it empty, or publish the lines one by one");
    if (!payloads.length) return this.#fail("payload is empty: there is no line to publish");
    const items = payloads.map((payload) => ({ channel, payload, ...(key ? { key } : {}) }));
    const button = this.#form.querySelector("[type=submit]");
    if (button.disabled) return undefined;
    button.disabled = true;
    try {
      const response = await fetch(`${this.getAttribute("base")}/-/publish`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(lines ? { items } : items[0]),
        signal: this.#life.signal,
      });
      const answer = await response.json().catch(() => ({}));
      if (!response.ok) return this.#fail(answer.error ?? `the server answers ${response.status}`);
      this.#published(channel, answer.message_ids);
    } catch {
      this.#fail("no answer from the server: whether it was published is not known");
    } finally {
      button.disabled = false;
    }
    return undefined;
  }

  #published(channel, ids) {
    const { payload, key } = this.#form.elements;
    payload.value = "";
    key.value = "";
    payload.focus();
    // The statements stay as they are until something else is typed: what was just published can be copied.
    this.#which.textContent = ids.length === 1 ? "The message that was just published" : "The messages that were just published";
    this.#which.hidden = false;
    const rows = this.getAttribute("row-base");
    const first = String(ids[0]);
    const number = rows ? element("a", { href: `${rows}/${first}`, textContent: first }) : first;
    const where = element("a", { href: `${this.getAttribute("base")}/${tildeEncode(channel)}`, textContent: channel });
    const what = ids.length === 1 ? ["Published message "] : [`Published ${ids.length.toLocaleString("en")} messages from `];
    this.#done.replaceChildren(...what, number, " to ", element("bdi", {}, where));
  }

  /** Show an error at its field; an empty text clears it. */
  #fail(text) {
    this.#error.textContent = text;
    this.#error.hidden = text === "";
    const match = FIELD.exec(text);
    for (const name of ["channel", "payload", "key"]) {
      const field = this.#form.elements[name];
      if (match && (match[1] ?? match[2]) === name) {
        field.setAttribute("aria-invalid", "true");
        field.focus();
      } else {
        field.removeAttribute("aria-invalid");
      }
    }
  }
}

customElements.define("pubsub-publish", PubsubPublish);
