/**
 * What a reader follows: exact channels and GLOB patterns; and what several readers follow together.
 *
 * Names in, decisions out, as SQLite's GLOB makes them
 * (https://sqlite.org/lang_expr.html#glob). It knows no connection and no tab.
 *
 * @module client/selection
 */

/**
 * @typedef {object} Reads
 * @property {string[]} channels exact names
 * @property {string[]} patterns
 */

/** One place of a pattern: any run of characters, or one character that passes. */
const ANY_RUN = null;

/** A class that never closes matches nothing. */
const NOTHING = () => false;

/** The places of a pattern. @param {string} pattern */
function places(pattern) {
  const chars = Array.from(pattern);
  const found = [];
  for (let at = 0; at < chars.length; at += 1) {
    const char = chars[at];
    if (char === "*") {
      found.push(ANY_RUN);
    } else if (char === "?") {
      found.push(() => true);
    } else if (char === "[") {
      const [place, end] = characterClass(chars, at + 1);
      found.push(place);
      at = end;
    } else {
      found.push((other) => other === char);
    }
  }
  return found;
}

/** What follows `[`, and where it ends. */
function characterClass(chars, at) {
  const negated = chars[at] === "^";
  if (negated) at += 1;
  /** @type {[number, number][]} */
  const ranges = [];
  const code = (char) => char.codePointAt(0);
  if (chars[at] === "]") {
    ranges.push([code("]"), code("]")]);
    at += 1;
  }
  let previous = null;
  for (; at < chars.length && chars[at] !== "]"; at += 1) {
    const next = chars[at + 1];
    if (chars[at] === "-" && previous !== null && next !== undefined && next !== "]") {
      ranges.push([previous, code(next)]);
      previous = null;
      at += 1;
    } else {
      previous = code(chars[at]);
      ranges.push([previous, previous]);
    }
  }
  if (at >= chars.length) return [NOTHING, at];
  const inside = (char) => ranges.some(([low, high]) => low <= code(char) && code(char) <= high);
  return [(char) => inside(char) !== negated, at];
}

/** Whether a text matches: the last run of any characters takes one more whenever what follows it does not fit. */
function fits(pattern, text) {
  let at = 0;
  let place = 0;
  let run = -1;
  let taken = 0;
  while (at < text.length) {
    if (place < pattern.length && pattern[place] === ANY_RUN) {
      run = place;
      taken = at;
      place += 1;
    } else if (place < pattern.length && pattern[place](text[at])) {
      place += 1;
      at += 1;
    } else if (run >= 0) {
      taken += 1;
      at = taken;
      place = run + 1;
    } else {
      return false;
    }
  }
  return pattern.slice(place).every((rest) => rest === ANY_RUN);
}

/**
 * A function that says whether a channel is followed.
 * @param {Reads} reads
 * @returns {(channel: string) => boolean}
 */
export function matcher({ channels, patterns }) {
  const names = new Set(channels);
  const compiled = patterns.map(places);
  return (channel) => {
    if (names.has(channel)) return true;
    const text = Array.from(channel);
    return compiled.some((pattern) => fits(pattern, text));
  };
}

/** Everything that any of them follows. @param {Reads[]} all @returns {Reads} */
export function together(all) {
  const unique = (name) => [...new Set(all.flatMap((reads) => reads[name]))].sort();
  return { channels: unique("channels"), patterns: unique("patterns") };
}

/** Whether `outer` names everything that `inner` names. @param {Reads} outer @param {Reads} inner */
export function includes(outer, inner) {
  return ["channels", "patterns"].every((name) => inner[name].every((text) => outer[name].includes(text)));
}

/** Whether both name the same. @param {Reads} one @param {Reads} other */
export function same(one, other) {
  return includes(one, other) && includes(other, one);
}
