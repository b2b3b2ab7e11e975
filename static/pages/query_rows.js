/**
 * The rows of a live query as a table: cells as Datasette shows them, and marks on the rows that change.
 *
 * pages/cells.py makes the same cells for the rows that the server renders. Texts become text, never markup. It knows
 * neither the connection nor when rows are shown.
 *
 * @module pages/query_rows
 */

import { difference, identities, same } from "../client/result.js";
import { element, tildeEncode } from "../ui/dom.js";
import { arrange, mark } from "../ui/marks.js";
import { visible } from "../ui/text.js";

/** How long a row that is gone stays at least, until the next change comes, in ms: long enough to be read. */
const GONE_MS = 5_000;

/** What stands in the cell of a NULL or an empty text, so that it has a height. */
const EMPTY = "\u00a0";

/** The rows of one table. */
export class ResultTable {
  /** @type {string[]} */ columns = [];
  /** The rows as they are shown. @type {import("../client/result.js").Row[]} */ #rows = [];
  /** Their elements. @type {HTMLTableRowElement[]} */ #elements = [];
  /** Rows that are shown as gone, by identity: the element, and since when. */ #gone = new Map();
  #table;
  #truncate;
  #links;

  /**
   * @param {HTMLTableElement} table
   * @param {{truncate: number, links: {base: string, key: string[], others: Object<string, string>}}} how after how many
   *   characters texts are cut; and where values lead: the table's address, the columns that lead to a row's own page
   *   below it, and the addresses of the tables that columns refer to
   */
  constructor(table, { truncate, links }) {
    this.#table = table;
    this.#truncate = truncate;
    this.#links = links;
  }

  /** Take what the server has rendered. */
  adopt(columns, rows) {
    const body = this.#table.tBodies[0];
    if (body.rows.length !== rows.length) return;
    this.columns = columns;
    this.#rows = rows;
    this.#elements = [...body.rows];
  }

  /** Begin anew, without marks. */
  rebuild(columns, rows) {
    this.columns = columns;
    this.#gone.clear();
    const heads = columns.map((name) => element("th", { scope: "col", textContent: name, dataset: { column: name } }));
    this.#table.tHead.replaceChildren(element("tr", {}, ...heads));
    this.#rows = rows;
    this.#elements = rows.map((row) => this.#made(row));
    this.#table.tBodies[0].replaceChildren(...this.#elements);
  }

  /** How many rows would be new, changed or gone. @param {string[]} key */
  waiting(rows, key) {
    const { added, changed, gone } = this.#compared(rows, key);
    return added.size + changed.size + gone.length;
  }

  /**
   * Show these rows, and mark what has happened to each.
   * @param {import("../client/result.js").Row[]} rows
   * @param {string[]} key the columns that recognise a row
   * @returns {{added: number, changed: number, gone: number}}
   */
  show(rows, key) {
    const { added, changed, gone, moved, names, old } = this.#compared(rows, key);
    const now = performance.now();
    for (const [identity, { row, since }] of this.#gone) {
      // One that has come back is the new one, or has waited long enough.
      if (now - since < GONE_MS && !names.includes(identity)) continue;
      row.remove();
      this.#gone.delete(identity);
    }
    for (const identity of gone) {
      const row = this.#elements[old.get(identity)];
      mark(row, "delete");
      this.#gone.set(identity, { row, since: now });
    }
    const elements = rows.map((row, at) => {
      if (added.has(at)) {
        const made = this.#made(row);
        mark(made, "insert");
        return made;
      }
      const before = old.get(names[at]);
      const found = this.#elements[before];
      if (moved.has(at)) found.remove();
      if (changed.has(at)) {
        row.forEach((value, place) => {
          if (!same(value, this.#rows[before][place])) this.#fill(found.cells[place], place, row);
        });
        mark(found, "update");
      }
      return found;
    });
    this.#rows = rows;
    this.#elements = elements;
    arrange(this.#table.tBodies[0], elements);
    return { added: added.size, changed: changed.size, gone: gone.length };
  }

  get goneCount() {
    return this.#gone.size;
  }

  /** What these rows are to those that are shown; places in the new list, but for `gone`, which has identities. */
  #compared(rows, key) {
    const places = this.#places(rows, key);
    // A result of one row, as of `SELECT count(*)`, is the same row with other values.
    const single = places.length === 0 && rows.length === 1 && this.#rows.length === 1;
    const named = (list) => (single ? ["only"] : identities(list, places));
    const old = new Map(named(this.#rows).map((identity, at) => [identity, at]));
    const names = named(rows);
    const there = new Set(names);
    const added = new Set();
    const changed = new Set();
    names.forEach((identity, at) => {
      if (!old.has(identity)) added.add(at);
      else if (!same(rows[at], this.#rows[old.get(identity)])) changed.add(at);
    });
    const gone = [...old.keys()].filter((identity) => !there.has(identity));
    const inserted = single ? [] : difference(this.#rows, rows, places).inserted;
    const moved = new Set(inserted.map(({ at }) => at).filter((at) => !added.has(at)));
    return { added, changed, gone, moved, names, old };
  }

  /** The places of the key; without one, the first column's, if it tells all rows apart. */
  #places(rows, key) {
    if (key.length) return key.map((name) => this.columns.indexOf(name));
    const apart = (list) => new Set(list.map((row) => JSON.stringify(row[0]))).size === list.length;
    return this.columns.length > 1 && apart(rows) && apart(this.#rows) ? [0] : [];
  }

  #made(row) {
    const made = document.createElement("tr");
    row.forEach((_, place) => {
      const cell = element("td", { dataset: { column: this.columns[place] } });
      this.#fill(cell, place, row);
      made.append(cell);
    });
    return made;
  }

  #fill(cell, place, row) {
    const value = row[place];
    const column = this.columns[place];
    const { base, key, others } = this.#links;
    const steps = key.map((name) => step(row[this.columns.indexOf(name)]));
    const path = steps.length && steps.every(Boolean) ? `${base}/${steps.join(",")}` : null;
    let kind = typeOf(value);
    let { text, href } = shown(value, this.#truncate);
    if (path && column === key[0]) {
      href = path;
      kind = "pk";
    } else if (path && kind === "bytes") {
      href = `${path}.blob?${new URLSearchParams({ _blob_column: column })}`;
    } else if (Object.hasOwn(others, column) && step(value)) {
      href = `${others[column]}/${step(value)}`;
    }
    cell.className = `type-${kind}`;
    cell.replaceChildren(href === undefined ? text : element("a", { href, textContent: text }));
  }
}

/** The type of a value by the name that Python has for it, as in Datasette's tables. */
function typeOf(value) {
  if (value === null) return "none";
  if (typeof value === "string") return "str";
  if (value.$base64) return "bytes";
  return /^-?\d+$/.test(value.number ?? String(value)) ? "int" : "float";
}

/** A value of a key in an address; empty if it cannot stand there. */
function step(value) {
  return value === null || value === undefined || value.$base64 ? "" : tildeEncode(value.number ?? String(value));
}

/** How a value is shown: its text, and the address it leads to. */
function shown(value, truncate) {
  if (value === null || value === "") return { text: EMPTY };
  if (value.$base64) return { text: binary(value.encoded) };
  if (typeof value !== "string") return { text: value.number ?? String(value) };
  const href = value.trim();
  if (/^https?:\/\/\S*$/.test(href)) return { text: visible(cutAddress(href, truncate)), href };
  const characters = truncate && value.length > truncate ? Array.from(value) : [];
  return { text: visible(characters.length > truncate ? `${characters.slice(0, truncate).join("")}…` : value) };
}

function binary(encoded) {
  const bytes = (encoded.length / 4) * 3 - (encoded.match(/=*$/)?.[0].length ?? 0);
  return `<Binary:\u00a0${bytes.toLocaleString("en")}\u00a0byte${bytes === 1 ? "" : "s"}>`;
}

/** An address that is too long: its extension stays. */
function cutAddress(address, length) {
  const characters = Array.from(address);
  if (!length || characters.length <= length) return address;
  const extension = /\.([^./]{1,4})$/.exec(address)?.[1];
  if (extension === undefined) return `${characters.slice(0, length - 1).join("")}…`;
  return `${characters.slice(0, length - 1 - Array.from(extension).length).join("")}….${extension}`;
}
