/**
 * One connection for all tabs of an origin; used by `connect({share: true})`.
 *
 * The law of this module: it moves frames between tabs and decides who holds
 * the line; what a frame means is the line's and the reader's business.
 *
 * @module pubsub_share
 */

/** How often silence is looked for, at most, in ms. */
const CHECK_MS = 5_000;

/** How long a leader whose subscription was superseded stays one, so that all its tabs hear of it first, in ms. */
const LAST_WORD_MS = 1_000;

/**
 * One line for all tabs of the origin that follow the same.
 *
 * The tab that holds the lock is the leader: it has the line, takes its frames
 * and posts them. The others follow. A follower that is offered a frame which
 * does not join on to what it had asks the leader to rewind; that also makes
 * the hand-over safe: a new leader goes on from its own position, and a tab
 * that was behind it says so. When a leader falls silent (a frozen tab), a
 * follower takes the lock from it.
 */
export class Shared {
  #name;
  #makeLine;
  #reader;
  #named;
  #silence;
  /** @type {BroadcastChannel} */ #tabs;
  /** @type {Line | null} Set while this tab leads. */ #line = null;
  #release = () => {};
  #queued = new AbortController();
  #ended = new AbortController();
  #leader = "";
  /** The leader's epoch that this tab has complained about; cleared by any later one. */ #complained = -1;
  #heard = performance.now();
  #asked = false;
  #live = false;
  #me = crypto.randomUUID();

  constructor(url, makeLine, reader, { named, silence, credentials }) {
    this.#name = `datasette-pubsub ${credentials ? "+" : "-"} ${url.href}`;
    this.#makeLine = makeLine;
    this.#reader = reader;
    this.#named = named;
    this.#silence = silence;
    this.#tabs = new BroadcastChannel(this.#name);
    this.#tabs.onmessage = (event) => this.#hear(event.data);
    const check = setInterval(() => this.#watch(), Math.min(CHECK_MS, silence / 4));
    this.#ended.signal.addEventListener("abort", () => clearInterval(check));
  }

  /** Join the tabs that follow the same. */
  open() {
    this.#request();
    this.#post({ kind: "where" });
  }

  close() {
    if (this.#ended.signal.aborted) return;
    this.#ended.abort();
    this.#queued.abort();
    this.#stand();
    this.#tabs.close();
    this.#release();
  }

  #post(frame) {
    this.#tabs.postMessage({ ...frame, from: this.#me, epoch: this.#line?.epoch });
  }

  /** Queue for the lock, or take it. It is held until `#release` is called or the tab is gone. */
  #request(steal = false) {
    this.#queued.abort();
    this.#queued = new AbortController();
    const options = steal ? { steal } : { signal: this.#queued.signal };
    let mine = false;
    const held = () => {
      mine = true;
      return new Promise((resolve) => this.#lead(resolve));
    };
    navigator.locks.request(this.#name, options, held).catch(() => {
      // Either no longer queued, or, if it was held, taken away by another tab.
      if (!mine || this.#ended.signal.aborted) return;
      this.#stand();
      this.#heard = performance.now();
      this.#request();
    });
  }

  #lead(release) {
    if (this.#ended.signal.aborted || this.#reader.ended) {
      release();
      return;
    }
    this.#release = release;
    this.#line = this.#makeLine((frame) => this.#lineSays(frame));
    this.#line.open(this.#reader.position);
    this.#here();
  }

  /** Lead no longer. */
  #stand() {
    this.#line?.close();
    this.#line = null;
  }

  #lineSays(frame) {
    this.#post(frame);
    this.#reader.take(frame);
    if (frame.kind === "status" && frame.status === "superseded") setTimeout(() => this.close(), LAST_WORD_MS);
  }

  #here() {
    const { position, status, detail } = this.#line;
    this.#post({ kind: "here", prev: position, at: position, status, detail });
  }

  #hear(frame) {
    if (this.#line !== null) this.#answer(frame);
    else if (frame.kind !== "where" && frame.kind !== "rewind") this.#follow(frame);
  }

  #answer(frame) {
    if (frame.kind === "where") {
      this.#line.nudge();
      this.#here();
    } else if (frame.kind === "rewind" && frame.to === this.#me && frame.about === this.#line.epoch) {
      if (this.#line.position !== null && frame.at < this.#line.position) this.#line.rewind(frame.at);
    }
  }

  #follow(frame) {
    if (frame.from !== this.#leader) {
      this.#leader = frame.from;
      this.#complained = -1;
    }
    this.#heard = performance.now();
    this.#asked = false;
    if (frame.status) {
      this.#live = frame.status === "live";
      this.#reader.take({ kind: "status", status: frame.status, detail: frame.detail });
      if (frame.status === "superseded") this.close();
    }
    if (frame.kind === "status") return;
    // A tab that begins at the head is not concerned by what others catch up with.
    if (this.#reader.position === null && !this.#named && !this.#live && frame.kind !== "ready") return;
    if (!this.#reader.take(frame) && this.#complained !== frame.epoch) {
      this.#complained = frame.epoch;
      this.#post({ kind: "rewind", at: this.#reader.position, to: frame.from, about: frame.epoch });
    }
  }

  #watch() {
    if (this.#line !== null) return;
    if (performance.now() - this.#heard > this.#silence) {
      if (this.#asked) {
        this.#heard = performance.now();
        this.#asked = false;
        this.#request(true);
        return;
      }
      this.#asked = true;
      this.#post({ kind: "where" });
    } else if (this.#reader.status === "reconnecting" && !document.hidden) {
      this.#post({ kind: "where" });
    }
  }
}
