/**
 * Marks on the rows of tables: a row's class shows what has happened to it, and its tooltip says it.
 *
 * @module ui/marks
 */

import { localTime } from "./dom.js";

/** The CSS class of a row for each operation, and the text of its tooltip. */
export const MARKS = { insert: ["pubsub-new", "New"], update: ["pubsub-changed", "Changed"], delete: ["pubsub-gone", "Gone"] };

/** Most deleted rows that stay on the page, in rows. */
export const MAX_GONE = 50;

export function isGone(row) {
  return row.classList.contains("pubsub-gone");
}

/** Mark a row with an operation, so that each change flashes; null removes the mark. */
export function mark(row, operation) {
  const again = row.classList.contains("pubsub-flash-a") ? "pubsub-flash-b" : "pubsub-flash-a";
  row.classList.remove("pubsub-new", "pubsub-changed", "pubsub-gone", "pubsub-flash-a", "pubsub-flash-b");
  row.removeAttribute("title");
  if (operation === null) return;
  const [name, text] = MARKS[operation];
  row.classList.add(name, again);
  row.title = `${text} at ${localTime(new Date())}`;
}

/**
 * Bring the rows of a table's body into an order, and remove all others. Rows that are marked as gone stay, below the
 * row that was above them.
 * @param {HTMLTableSectionElement} body
 * @param {HTMLTableRowElement[]} order
 */
export function arrange(body, order) {
  const kept = new Set(order);
  let count = 0;
  for (const row of [...body.rows].reverse()) {
    // From the bottom up: beyond the limit, the upper rows are removed.
    if (kept.has(row)) continue;
    if (isGone(row)) count += 1;
    if (!isGone(row) || count > MAX_GONE) row.remove();
  }
  /** Deleted rows, by the row above them that still exists. */ const gone = new Map();
  let above = null;
  for (const row of body.rows) {
    if (kept.has(row)) above = row;
    else gone.set(above, [...(gone.get(above) ?? []), row]);
  }
  const all = [...(gone.get(null) ?? []), ...order.flatMap((row) => [row, ...(gone.get(row) ?? [])])];
  let place = body.firstElementChild;
  for (const row of all) {
    if (row === place) place = place.nextElementSibling;
    else body.insertBefore(row, place);
  }
}
