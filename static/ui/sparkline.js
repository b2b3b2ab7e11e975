/**
 * Sparklines: the rate of messages as bars in SVG, and in words. pages/sparkline.py draws those that the page begins with.
 *
 * The module keeps sixty counts for each channel, for any number of messages.
 *
 * @module ui/sparkline
 */

/** The length of a sparkline in spans, and of a span in seconds. storage/activity.py has the same constants. */
const SPANS = 60;
const SPAN_SECONDS = 10;

/** The height of the SVG, in its own units; each bar is one unit wide. pages/sparkline.py has the same constant. */
const HEIGHT = 20;

/** The number of spans in a minute. */
const SPANS_PER_MINUTE = 60 / SPAN_SECONDS;

/** Oldest age of a page by the browser's clock, in spans: an older page is from a cache, or the clocks differ. */
const MAX_AGE = 6;

/** The present span by the server's clock, which also sets the times of messages. */
export class Clock {
  /** Added to the browser's clock, in ms. */ #ahead = 0;

  /** @param {number} span the server's span when it rendered the page */
  constructor(span) {
    const age = this.span - span;
    if (age < 0 || age > MAX_AGE) this.#ahead = (span + 0.5) * SPAN_SECONDS * 1000 - Date.now();
  }

  get span() {
    return Math.floor((Date.now() + this.#ahead) / 1000 / SPAN_SECONDS);
  }

  /** The span of a message. A message from the future shows that the browser's clock is slow, and corrects it. */
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
  /** The newest span. */ #span;
  #drawn = "";

  /** @param {string} counts in the server's format, separated by commas; empty for a new channel */
  constructor(span, counts = "") {
    this.#span = span;
    if (counts) this.#counts.set(counts.split(",").slice(-SPANS).map(Number));
  }

  add(span) {
    this.advance(span);
    const place = SPANS - 1 - (this.#span - span);
    if (place >= 0) this.#counts[place] += 1;
  }

  /** Move the counts on to a newer span. */
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
    return this.#counts.slice(-SPANS_PER_MINUTE).reduce((sum, count) => sum + count, 0);
  }

  get words() {
    const total = this.#counts.reduce((sum, count) => sum + count, 0);
    const minutes = (SPANS * SPAN_SECONDS) / 60;
    if (!total) return `No messages in the last ${minutes} minutes`;
    const number = (count) => count.toLocaleString("en");
    const noun = total === 1 ? "message" : "messages";
    return `${number(total)} ${noun} in the last ${minutes} minutes, at most ${number(this.peak)} in ${SPAN_SECONDS} seconds`;
  }

  /** Draw the counts if they have changed since the last call; returns whether they have. */
  draw(svg) {
    const state = this.#counts.join();
    if (state === this.#drawn) return false;
    this.#drawn = state;
    svg.querySelector("path").setAttribute("d", this.#path());
    svg.setAttribute("aria-label", this.words);
    const peak = svg.nextElementSibling;
    if (peak?.classList.contains("pubsub-max")) peak.textContent = maximum(this.peak);
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

function maximum(peak) {
  return `max ${peak.toLocaleString("en")}`;
}

/** An empty sparkline and its maximum, for a new channel. */
export function sparklineNodes() {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const attributes = { class: "pubsub-plot", role: "img", viewBox: `0 0 ${SPANS} ${HEIGHT}`, preserveAspectRatio: "none" };
  for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
  svg.append(document.createElementNS(space, "path"));
  const peak = document.createElement("span");
  peak.className = "pubsub-max";
  peak.title = `Most messages in ${SPAN_SECONDS} seconds`;
  peak.setAttribute("aria-hidden", "true");
  peak.textContent = maximum(0);
  return [svg, " ", peak];
}
