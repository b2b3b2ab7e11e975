/**
 * Rates as small pictures: bars in SVG, and the same in words; pages/sparkline.py draws what the page begins with.
 *
 * Counts of messages in, a picture and the same in words out. It keeps sixty numbers
 * for each channel, however many messages arrive.
 *
 * @module ui/sparkline
 */

/** How far back, in spans, and how long a span is, in seconds. As in activity.py. */
const SPANS = 60;
const SPAN_SECONDS = 10;

/** The picture's height in its own units; each bar is one wide. As in plot.py. */
const HEIGHT = 20;

/** Spans that make a minute. */
const MINUTE = 60 / SPAN_SECONDS;

/** A page that is older than this by the reader's clock was kept by the browser, or the clocks differ, in spans. */
const MAX_AGE = 6;

/** Which span it is, by the server's clock, since that is the clock of the messages. */
export class Clock {
  /** Added to the reader's clock, in ms. */ #ahead = 0;

  /** @param {number} span the server's when it made the page */
  constructor(span) {
    const age = this.span - span;
    if (age < 0 || age > MAX_AGE) this.#ahead = (span + 0.5) * SPAN_SECONDS * 1000 - Date.now();
  }

  get span() {
    return Math.floor((Date.now() + this.#ahead) / 1000 / SPAN_SECONDS);
  }

  /** The span of a message. One from the future shows that the clock is slow. */
  spanOf(createdAt) {
    const time = Date.parse(createdAt);
    if (Number.isNaN(time)) return this.span;
    this.#ahead = Math.max(this.#ahead, time - Date.now());
    return Math.floor(time / 1000 / SPAN_SECONDS);
  }
}

/** The messages of one channel in each of the last spans. */
export class Rate {
  #counts = new Uint32Array(SPANS);
  /** The last of them. */ #span;
  #drawn = "";

  /** @param {string} counts as the server writes them, separated by commas; none for a channel that is new */
  constructor(span, counts = "") {
    this.#span = span;
    if (counts) this.#counts.set(counts.split(",").slice(-SPANS).map(Number));
  }

  add(span) {
    this.advance(span);
    const place = SPANS - 1 - (this.#span - span);
    if (place >= 0) this.#counts[place] += 1;
  }

  /** Let the time pass up to a span. */
  advance(span) {
    const by = span - this.#span;
    if (by <= 0) return;
    this.#counts.copyWithin(0, Math.min(by, SPANS));
    this.#counts.fill(0, Math.max(0, SPANS - by));
    this.#span = span;
  }

  get peak() {
    return Math.max(...this.#counts);
  }

  get perMinute() {
    return this.#counts.slice(-MINUTE).reduce((sum, count) => sum + count, 0);
  }

  get words() {
    const total = this.#counts.reduce((sum, count) => sum + count, 0);
    const minutes = (SPANS * SPAN_SECONDS) / 60;
    if (!total) return `No messages in the last ${minutes} minutes`;
    const number = (count) => count.toLocaleString("en");
    const noun = total === 1 ? "message" : "messages";
    return `${number(total)} ${noun} in the last ${minutes} minutes, at most ${number(this.peak)} in ${SPAN_SECONDS} seconds`;
  }

  /** Draw it, unless it is drawn already; returns whether something has changed. */
  draw(svg) {
    const state = this.#counts.join();
    if (state === this.#drawn) return false;
    this.#drawn = state;
    svg.querySelector("path").setAttribute("d", this.#path());
    svg.setAttribute("aria-label", this.words);
    return true;
  }

  #path() {
    const peak = this.peak;
    let bars = "";
    this.#counts.forEach((count, x) => {
      if (!count) return;
      const height = Math.max(1, Math.round((HEIGHT * count) / peak));
      bars += `M${x} ${HEIGHT}v-${height}h.8v${height}z`;
    });
    return bars;
  }
}

/** An empty picture, for a channel that is new. */
export function plotElement() {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const attributes = { class: "pubsub-plot", role: "img", viewBox: `0 0 ${SPANS} ${HEIGHT}`, preserveAspectRatio: "none" };
  for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
  svg.append(document.createElementNS(space, "path"));
  return svg;
}
