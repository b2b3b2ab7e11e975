/**
 * The channels that a subscriber follows: exact names and GLOB patterns, and the union of several such selections.
 *
 * It matches names as SQLite's GLOB does (https://sqlite.org/lang_expr.html#glob).
 * It knows no connection and no tab.
 *
 * @module client/selection
 */

/**
 * @typedef {object} Reads
 * @property {string[]} channels exact names
 * @property {string[]} patterns
 */

/** The token of a pattern for `*`; every other token is a test of one character. */
const ANY_RUN = null;

/** A character class without its `]` matches nothing. */
const NOTHING = () => false;

/** The tokens of a pattern. @param {string} pattern */
function tokensOf(pattern) {
  const chars = Array.from(pattern);
  const tokens = [];
  for (let at = 0; at < chars.length; at += 1) {
    const char = chars[at];
    if (char === "*") {
      tokens.push(ANY_RUN);
    } else if (char === "?") {
      tokens.push(() => true);
    } else if (char === "[") {
      const [token, end] = characterClass(chars, at + 1);
      tokens.push(token);
      at = end;
    } else {
      tokens.push((other) => other === char);
    }
  }
  return tokens;
}

/** The token of a character class, and the index of its `]`; `at` is the index after its `[`. */
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

/** Whether a text matches. When a token after the last `*` does not match, that `*` takes one more character. */
function matches(pattern, text) {
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
 * A function that tells whether a selection contains a channel.
 * @param {Reads} reads
 * @returns {(channel: string) => boolean}
 */
export function matcher({ channels, patterns }) {
  const names = new Set(channels);
  const compiled = patterns.map(tokensOf);
  return (channel) => {
    if (names.has(channel)) return true;
    const text = Array.from(channel);
    return compiled.some((pattern) => matches(pattern, text));
  };
}

/** The union of several selections. @param {Reads[]} all @returns {Reads} */
export function unionOf(all) {
  const unique = (name) => [...new Set(all.flatMap((reads) => reads[name]))].sort();
  return { channels: unique("channels"), patterns: unique("patterns") };
}

/** Whether `outer` names everything that `inner` names. @param {Reads} outer @param {Reads} inner */
export function includes(outer, inner) {
  return ["channels", "patterns"].every((name) => inner[name].every((text) => outer[name].includes(text)));
}

/** Whether two selections name the same channels and patterns. @param {Reads} one @param {Reads} other */
export function same(one, other) {
  return includes(one, other) && includes(other, one);
}
