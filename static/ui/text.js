/**
 * Display of payloads and names as text; core/display.py does the same for the rows that the server renders.
 *
 * Every function takes text and returns text of bounded length. The module knows no page.
 *
 * @module ui/text
 */

/** The page folds payloads that are longer than this, in characters and in lines. */
const PLAIN_CHARACTERS = 500;
const PLAIN_LINES = 10;

/** Length of the summary of a folded payload, in characters. */
const SUMMARY_CHARACTERS = 160;

/** Most characters of one payload that the page keeps; indented JSON may take twice as many. */
const SHOWN_CHARACTERS = 10_000;

/** Deepest indentation of a JSON payload, in levels: without a limit the spaces grow with the square of the depth. */
const MAX_INDENT = 20;

const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** Replace control characters and bidirectional control characters by visible ones. */
export function visible(text) {
  return text.replace(HIDDEN, (char) => {
    const code = char.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** Indent JSON, with a line for each member; numbers and texts keep their form. */
function indented(json) {
  const tokens = json.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g) ?? [];
  let depth = 0;
  let out = "";
  const line = () => `\n${"  ".repeat(Math.min(depth, MAX_INDENT))}`;
  tokens.forEach((token, index) => {
    if (token === "{" || token === "[") {
      depth += 1;
      out += token;
      if (!"}]".includes(tokens[index + 1])) out += line();
    } else if (token === "}" || token === "]") {
      depth -= 1;
      out += "{[".includes(tokens[index - 1]) ? token : line() + token;
    } else if (token === ",") {
      out += token + line();
    } else {
      out += token === ":" ? ": " : token;
    }
  });
  return out;
}

function isJson(text) {
  if (!/^\s*[{[]/.test(text)) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** The first characters, as a copy: a slice would keep the whole string in memory. */
function cut(text, length) {
  return text.length <= length ? text : new TextDecoder().decode(new TextEncoder().encode(text.slice(0, length)));
}

/** Whether a payload is so long that a page shows only its beginning. */
export function isLong(payload) {
  return payload.length > SHOWN_CHARACTERS;
}

/** The text that a page shows for a payload: all of it (`full`), or folded behind a `summary`. */
export function present(payload) {
  if (isLong(payload)) {
    return {
      summary: `${visible(cut(payload, SUMMARY_CHARACTERS))}…`,
      full: visible(cut(payload, SHOWN_CHARACTERS)),
      note: `the first ${SHOWN_CHARACTERS.toLocaleString("en")} of ${payload.length.toLocaleString("en")} characters`,
    };
  }
  const json = isJson(payload);
  if (!json && payload.length <= PLAIN_CHARACTERS && payload.split("\n").length <= PLAIN_LINES) {
    return { full: visible(payload) };
  }
  let full = json ? indented(payload) : payload;
  if (full.length > 2 * SHOWN_CHARACTERS) full = payload;
  const more = payload.length > SUMMARY_CHARACTERS ? "…" : "";
  return {
    summary: visible(cut(payload, SUMMARY_CHARACTERS)) + more,
    full: visible(full),
  };
}

/** The beginning of a payload in one line. */
export function previewOf(payload) {
  const text = cut(payload, SUMMARY_CHARACTERS).trim().split(/\s+/).join(" ");
  return visible(text) + (payload.length > SUMMARY_CHARACTERS ? "…" : "");
}
