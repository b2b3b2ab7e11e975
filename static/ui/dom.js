/**
 * Helpers that the pages' scripts share: elements, times, names in addresses.
 *
 * The module knows no page. Texts become text nodes, never markup.
 *
 * @module ui/dom
 */

/** Datasette's own encoding of names in addresses. */
export function tildeEncode(text) {
  let out = "";
  for (const byte of new TextEncoder().encode(text)) {
    const char = String.fromCharCode(byte);
    if (/[A-Za-z0-9_-]/.test(char)) out += char;
    else out += byte === 0x20 ? "+" : `~${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  }
  return out;
}

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  const { dataset, ...rest } = properties;
  Object.assign(made, rest);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

/** A moment in the visitor's time zone, in the one format that all pages have: `2026-01-31 23:59:59.999`. */
export function localTime(moment) {
  const two = (number, width = 2) => String(number).padStart(width, "0");
  const day = `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
  const clock = `${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
  return `${day} ${clock}.${two(moment.getMilliseconds(), 3)}`;
}

/** Show a time in the visitor's time zone, and UTC in its tooltip. */
export function localise(time) {
  const moment = new Date(time.dateTime);
  if (Number.isNaN(moment.getTime())) return;
  time.textContent = localTime(moment);
  time.title = `${time.dateTime.replace("T", " ").replace("Z", "")} UTC`;
}

export function timeElement(utc) {
  const time = element("time", { dateTime: utc, textContent: utc });
  localise(time);
  return time;
}
