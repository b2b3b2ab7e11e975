/**
 * Messages as rows of the live page's table.
 *
 * Payloads become text nodes, never markup, and the content of a row is bounded. The
 * module knows neither the connection nor the times at which the page shows rows.
 *
 * @module pages/viewer_rows
 */

import { element, tildeEncode, timeElement } from "../ui/dom.js";
import { isLong, present, visible } from "../ui/text.js";

/**
 * The part of a message that the page keeps until it shows the row. It is bounded, because messages may be long.
 * @param {import("../pubsub.js").Message} message
 */
export function entryOf({ messageId, channel, payload, blob, createdAt }) {
  const entry = { id: BigInt(messageId), channel, createdAt };
  if (payload === undefined) return { ...entry, shown: { bytes: atob(blob).length } };
  return isLong(payload) ? { ...entry, shown: present(payload) } : { ...entry, payload };
}

/** Whether an entry's payload contains a text in lower case; for a long payload, whether its kept part does. */
export function contains({ payload, shown }, wanted) {
  return wanted === "" || (payload ?? shown?.full ?? "").toLowerCase().includes(wanted);
}

/** Makes the rows of one table. */
export class RowMaker {
  #base;
  #rowBase;
  #columns;

  /**
   * @param {HTMLTableElement} table
   * @param {string} base the address of the database's channels
   * @param {string | null} rowBase the log table's address, where the visitor may see it
   */
  constructor(table, base, rowBase) {
    this.#base = base;
    this.#rowBase = rowBase;
    this.#columns = table.tHead.rows[0].cells.length;
  }

  row({ id, channel, createdAt, payload, shown, gap }) {
    if (gap) {
      const text = `${gap}: trimmed before they could be shown`;
      const cell = element("td", { colSpan: this.#columns, textContent: text });
      return element("tr", { className: "pubsub-gap", dataset: { id } }, cell);
    }
    const number = this.#rowBase ? element("a", { href: `${this.#rowBase}/${id}`, textContent: id }) : String(id);
    const cells = [element("td", { className: "col-id type-pk" }, number)];
    if (this.#columns === 4) cells.push(element("td", { className: "col-channel" }, this.#link(channel)));
    cells.push(element("td", { className: "col-payload" }, ...payloadNodes(shown ?? present(payload))));
    cells.push(element("td", { className: "col-created" }, timeElement(createdAt)));
    return element("tr", { dataset: { id } }, ...cells);
  }

  #link(channel) {
    return element("a", { href: `${this.#base}/${tildeEncode(channel)}`, textContent: visible(channel) });
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
