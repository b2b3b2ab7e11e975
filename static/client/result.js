/**
 * The result of a live query: a list of rows, and what changes in it.
 *
 * core/result.py does the same on the server. The module knows no connection and no page.
 *
 * The identity of a row recognises it in another list: the values of its key or, without a key, all of its values;
 * and its number among rows with the same ones. So a duplicate is a row of its own.
 *
 * @module client/result
 */

/**
 * A row: a value for each column. Bytes are `{$base64: true, encoded}`; a number that JavaScript
 * would write in another way than the server (80.0, whole numbers beyond 2^53) is `{number}`, its text.
 * @typedef {any[]} Row
 */

/**
 * A row and its place, counted from 0; `was` is the row before, if it has changed.
 * @typedef {object} Placed
 * @property {number} at
 * @property {Row} row
 * @property {Row} [was]
 */

/**
 * The change from one list to the next: remove (places in the old list), then insert and replace (places in the new one).
 * @typedef {object} Change
 * @property {Placed[]} removed
 * @property {Placed[]} inserted
 * @property {Placed[]} changed
 */

/** Parse JSON, and keep the text of numbers, in browsers that pass it. @param {string} text */
export function parse(text) {
  return JSON.parse(text, (_name, value, context) => {
    const source = typeof value === "number" ? context?.source : undefined;
    return source === undefined || source === String(value) ? value : { number: source };
  });
}

/** The value for a program: a number, or the text of a whole number beyond 2^53. */
export function plain(value) {
  if (value?.number === undefined) return value;
  const number = Number(value.number);
  return Number.isInteger(number) && !Number.isSafeInteger(number) && /^-?\d+$/.test(value.number) ? value.number : number;
}

/** The next list. @param {Row[]} rows @param {Change} change @returns {Row[]} */
export function apply(rows, { removed, inserted, changed }) {
  const gone = new Set(removed.map(({ at }) => at));
  const kept = rows.filter((_row, at) => !gone.has(at));
  const found = [];
  let next = 0;
  for (const { at, row } of inserted) {
    while (found.length < at) found.push(kept[next++]);
    found.push(row);
  }
  while (next < kept.length) found.push(kept[next++]);
  for (const { at, row } of changed) found[at] = row;
  return found;
}

/** Whether two values, or two rows, are the same. */
export function same(one, other) {
  return one === other || JSON.stringify(one) === JSON.stringify(other);
}

/** The identity of each row; no two are equal. @param {Row[]} rows @param {number[]} places of the key's columns */
export function identities(rows, places) {
  const seen = new Map();
  return rows.map((row) => {
    const key = JSON.stringify(places.length ? places.map((place) => row[place]) : row);
    const number = seen.get(key) ?? 0;
    seen.set(key, number + 1);
    return `${number} ${key}`;
  });
}

/**
 * The change from one list to another. A row that has moved is removed and inserted.
 * @param {Row[]} before
 * @param {Row[]} after
 * @param {number[]} places of the key's columns
 * @returns {Change}
 */
export function difference(before, after, places) {
  const at = new Map(identities(before, places).map((identity, place) => [identity, place]));
  /** The places of the rows that are in both lists. @type {[number, number][]} */
  const both = [];
  identities(after, places).forEach((identity, place) => {
    if (at.has(identity)) both.push([at.get(identity), place]);
  });
  const stay = longestIncreasing(both);
  const stayBefore = new Set(stay.map(([place]) => place));
  const stayAfter = new Set(stay.map(([, place]) => place));
  const placed = (rows, kept) => rows.map((row, place) => ({ at: place, row })).filter(({ at: place }) => !kept.has(place));
  return {
    removed: placed(before, stayBefore),
    inserted: placed(after, stayAfter),
    changed: stay
      .filter(([old, now]) => !same(before[old], after[now]))
      .map(([old, now]) => ({ at: now, row: after[now], was: before[old] })),
  };
}

/** Whether a change changes nothing. @param {Change} change */
export function isEmpty({ removed, inserted, changed }) {
  return !removed.length && !inserted.length && !changed.length;
}

/** The most pairs whose first numbers increase, by patience sorting. @param {[number, number][]} pairs */
function longestIncreasing(pairs) {
  const tops = [];
  const atTop = [];
  const previous = [];
  pairs.forEach(([value], number) => {
    let low = 0;
    let high = tops.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (tops[middle] < value) low = middle + 1;
      else high = middle;
    }
    previous.push(low ? atTop[low - 1] : -1);
    tops[low] = value;
    atTop[low] = number;
  });
  const found = [];
  for (let number = atTop.at(-1) ?? -1; number >= 0; number = previous[number]) found.push(pairs[number]);
  return found.reverse();
}
