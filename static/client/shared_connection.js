/**
 * One connection for all tabs of an origin; used by `connect({share: true})`.
 *
 * It moves frames between tabs and decides which tab holds the connection. The
 * union decides what the connection follows; the connection and the subscriber
 * know what a frame means.
 *
 * All readers of a database are members of one group, wherever they are: each
 * is named, holds a lock of that name as long as it lives, and says to all what
 * it follows and how far it is (`join`). The one that holds the group's lock is
 * the leader: it has the line, follows what all follow together, and posts its
 * frames, and who is among the readers (`group`). A reader takes frames only of
 * a connection that follows all it asks for. One that is offered a frame which
 * does not join on to what it had joins again, and the leader goes back to
 * where it is; so a new reader, one that lagged, and a new leader are all the
 * same case, and nothing is lost or doubled. When a leader falls silent (a
 * frozen tab), another takes the lock from it.
 *
 * @module client/shared_connection
 */

import { CHECK_MS, Line } from "./connection.js";
import { matcher, same } from "./selection.js";
import { Union } from "./union.js";

/** How long a leader whose subscription was superseded stays one, so that all its tabs hear of it first, in ms. */
const LAST_WORD_MS = 1_000;

/** How long more is followed than is asked for, when a reader has gone: pages come and go, in ms. */
const SHRINK_MS = 10_000;

/** The parameters that differ between the readers of a group; those with another filter are in another group. */
const OWN = ["channel", "pattern", "after", "start", "since"];

export class Shared {
  /** The stream with all that this reader asks for. */ #url;
  #reader;
  #how;
  #named;
  /** @type {import("./selection.js").Reads} */ #reads;
  #follows;
  /** Whether to be in a group of those alone that follow the same. */ #exact;
  #name = "";
  #me = "";
  /** Ends what belongs to the present group: the lock of this reader, and its place in the queue for the other. */
  #group = new AbortController();
  /** @type {BroadcastChannel | null} */ #tabs = null;
  /** @type {Line | null} While this reader is in no group: a connection of its own. */ #own = null;
  /** @type {Line | null} Set while this reader leads, as is the next. */ #line = null;
  /** @type {Union | null} */ #union = null;
  /** Lets the group's lock go. */ #release = () => {};
  /** From where the next connection must begin, for those who are behind. */ #back = null;
  #leader = "";
  /** The leader's epoch that follows all that this reader asks for; null: the present one does not. */ #covered = null;
  /** Whether that follows nothing else. */ #whole = false;
  /** The members, as the leader named them: for the day this one leads. */ #known = [];
  /** The leader's epoch that this reader has complained about. */ #complained = null;
  #heard = 0;
  #asked = false;

  /**
   * @param {URL} url
   * @param {import("./subscriber.js").Reader} reader
   * @param {{named: boolean, silence: number, credentials: boolean, token?: string}} how
   */
  constructor(url, reader, how) {
    this.#url = url;
    this.#reader = reader;
    this.#how = how;
    this.#named = this.#exact = how.named;
    this.#reads = { channels: url.searchParams.getAll("channel"), patterns: url.searchParams.getAll("pattern") };
    // The server decides what a named subscription reads.
    this.#follows = this.#named ? () => true : matcher(this.#reads);
  }

  open() {
    // What has no position yet, and no common beginning, gets one first.
    const begins = this.#url.searchParams;
    const apart = ["earliest", "last"].includes(begins.get("start")) || begins.has("since");
    if (apart && !this.#named) this.#alone();
    else this.#enter();
  }

  close() {
    this.#leave();
    this.#own?.close();
    this.#own = null;
  }

  /** A connection of its own, up to the head; then (back) into the group. */
  #alone() {
    this.#leave();
    const own = new Line(() => this.#url, (frame) => {
      if (this.#own !== own) return;
      this.#reader.take(frame);
      if (frame.kind !== "ready") return;
      own.close();
      this.#own = null;
      this.#enter();
    }, this.#how);
    this.#own = own;
    own.open(this.#reader.position);
  }

  #enter() {
    const url = new URL(this.#url);
    if (!this.#exact) for (const name of OWN) url.searchParams.delete(name);
    const { credentials, token } = this.#how;
    this.#name = `datasette-pubsub ${credentials ? "+" : "-"}${token ? ` ${token}` : ""} ${url.href}`;
    this.#me = crypto.randomUUID();
    this.#group = new AbortController();
    const { signal } = this.#group;
    this.#tabs = new BroadcastChannel(this.#name);
    this.#tabs.onmessage = (event) => this.#hear(event.data);
    this.#leader = "";
    this.#covered = null;
    this.#heard = performance.now();
    const check = setInterval(() => this.#watch(), Math.min(CHECK_MS, this.#how.silence / 4));
    signal.addEventListener("abort", () => clearInterval(check));
    const alive = () => {
      this.#join();
      return new Promise((resolve) => signal.addEventListener("abort", resolve));
    };
    navigator.locks.request(this.#lockOf(this.#me), { signal }, alive).catch(() => {});
    this.#queue();
  }

  #leave() {
    this.#group.abort();
    this.#stand();
    this.#tabs?.close();
    this.#tabs = null;
    this.#release();
  }

  /** A group of those that follow the same: the server refuses this reader, or could refuse others for it. */
  #enterExact() {
    this.#exact = true;
    this.#leave();
    this.#enter();
  }

  #lockOf(id) {
    return `${this.#name} ${id}`;
  }

  #post(frame) {
    this.#tabs.postMessage({ ...frame, from: this.#me, epoch: this.#line?.epoch });
  }

  // -- leading ----------------------------------------------------------------

  /** Queue for the lock, or take it. It is held until `#release` is called or the tab is gone. */
  #queue(steal = false) {
    const { signal } = this.#group;
    let mine = false;
    const held = () => {
      mine = true;
      return new Promise((resolve) => this.#lead(() => resolve(undefined)));
    };
    navigator.locks.request(this.#name, steal ? { steal } : { signal }, held).catch(() => {
      // Either no longer queued, or, if it was held, taken away by another tab.
      if (!mine || signal.aborted) return;
      this.#stand();
      this.#heard = performance.now();
      this.#queue();
      this.#join();
    });
  }

  #lead(release) {
    if (this.#group.signal.aborted || this.#reader.ended) {
      release();
      return;
    }
    this.#release = release;
    this.#back = null;
    this.#union = new Union(this.#known);
    if (!this.#union.has(this.#me)) this.#union.add(this.#me, this.#reads);
    for (const [id] of this.#union.members) this.#watchOver(id);
    const line = new Line(() => this.#address(), (frame) => this.#line === line && this.#lineSays(frame), this.#how);
    this.#line = line;
    line.open(this.#reader.position);
  }

  /** Lead no longer. */
  #stand() {
    this.#line?.close();
    this.#line = null;
    this.#union = null;
  }

  #address() {
    const url = new URL(this.#url);
    const { channels, patterns } = this.#union.choose();
    if (this.#exact) return url;
    for (const name of OWN) url.searchParams.delete(name);
    for (const channel of channels) url.searchParams.append("channel", channel);
    for (const pattern of patterns) url.searchParams.append("pattern", pattern);
    return url;
  }

  /** A member is gone when its lock can be had. @param {string} id */
  #watchOver(id) {
    if (id === this.#me) return;
    const union = this.#union;
    const gone = () => {
      if (this.#union !== union) return;
      union.remove(id);
      setTimeout(() => this.#union === union && !this.#exact && union.excess && this.#reopen(null), SHRINK_MS);
    };
    navigator.locks.request(this.#lockOf(id), { signal: this.#group.signal }, gone).catch(() => {});
  }

  /** @param {import("./connection.js").Frame} frame */
  #lineSays(frame) {
    if (frame.kind === "refused" && !this.#exact) return this.#refused();
    if (frame.kind === "dial") {
      this.#greet();
    } else if (frame.kind === "open") {
      this.#union.taken();
      if (this.#union.waiting || this.#back !== null) this.#reopen(null);
    } else if (frame.kind !== "refused") {
      this.#say(frame);
      if (frame.status === "superseded") setTimeout(() => this.close(), LAST_WORD_MS);
    }
    return false;
  }

  /** To the others, and to the reader of this tab like to theirs. */
  #say(frame) {
    const { epoch } = this.#line;
    this.#post(frame);
    this.#follow({ ...frame, from: this.#me, epoch });
  }

  #greet() {
    const { position, status, detail, ready } = this.#line;
    const { members, admitted, followed } = this.#union;
    this.#say({ kind: "group", prev: position, at: position, status, detail, ready, members, admitted, followed });
  }

  /** The connection anew, for those who wait or are behind; one that is not answered yet is not cut short. */
  #reopen(at) {
    if (at !== null && (this.#back === null || at < this.#back)) this.#back = at;
    if (this.#line.dialling) return;
    const back = this.#back;
    this.#back = null;
    this.#line.reopen(back);
  }

  #refused() {
    const id = this.#union.refused();
    if (id === this.#me) {
      this.#enterExact();
      return true;
    }
    if (id !== null) this.#post({ kind: "away", id });
    this.#reopen(null);
    return true;
  }

  #joined({ from, reads, at, about }) {
    const line = this.#line;
    const { epoch } = line;
    if (!this.#union.has(from)) {
      this.#union.add(from, reads);
      this.#watchOver(from);
    }
    const behind = at !== null && (line.position === null || at < line.position);
    // A complaint about an earlier connection is out of date.
    if (!this.#union.admits(from) || (behind && (about === null || about === epoch))) this.#reopen(at);
    if (this.#line !== line) return;
    line.nudge();
    if (line.epoch === epoch) this.#greet();
  }

  // -- following --------------------------------------------------------------

  /** Say what is followed and from where; `about` an epoch whose frames do not join on. */
  #join(about = null) {
    const word = { kind: "join", reads: this.#reads, at: this.#reader.position, about };
    if (this.#line !== null) this.#joined({ ...word, from: this.#me });
    else this.#post(word);
  }

  #hear(frame) {
    if (frame.kind === "join") {
      if (this.#line !== null) this.#joined(frame);
    } else if (this.#line === null) {
      this.#follow(frame);
    }
  }

  #follow(frame) {
    if (frame.kind === "group") {
      this.#greeted(frame);
    } else if (frame.from === this.#leader) {
      this.#heard = performance.now();
      if (frame.kind === "away") {
        if (frame.id === this.#me) this.#enterExact();
      } else if (frame.kind === "status") {
        this.#show(frame);
      } else if (frame.epoch === this.#covered) {
        this.#take(frame);
      }
    }
  }

  /** The leader says who is among the readers, and what is followed. */
  #greeted(frame) {
    this.#leader = frame.from;
    this.#heard = performance.now();
    this.#asked = false;
    this.#known = frame.members;
    this.#covered = frame.admitted.includes(this.#me) ? frame.epoch : null;
    this.#whole = this.#exact || same(frame.followed, this.#reads);
    if (!frame.members.some(([id]) => id === this.#me)) this.#join();
    this.#show(frame);
    // Up to there nothing is left for those who begin at the head.
    if (this.#covered !== null && frame.ready) this.#take({ ...frame, kind: "here" });
  }

  /** The line's status is this reader's, but for being live: for that it must be followed, and caught up with. */
  #show({ status, detail, epoch, ready = status === "live" }) {
    const live = status === "live" || status === "catching up";
    if (live && epoch !== this.#covered) return;
    const behind = status === "live" && !ready && this.#reader.status !== "live";
    this.#reader.take({ kind: "status", status: behind ? "catching up" : status, detail });
    if (status === "superseded" && this.#line === null) this.close();
  }

  #take(frame) {
    const { position } = this.#reader;
    const { kind, prev, at } = frame;
    // One that begins at the head is not concerned by what others catch up with.
    if (position === null && !this.#named && kind !== "ready" && kind !== "here") return;
    const next = position === null || (prev !== null && prev <= position && at > position);
    if (next && !this.#whole && this.#tells(frame)) {
      // How many of its own were trimmed must be asked for by itself.
      this.#alone();
      return;
    }
    const passed = kind === "message" && !this.#follows(frame.channel);
    const taken = this.#reader.take(passed ? { kind: "here", prev, at } : frame);
    const complaint = `${frame.from} ${frame.epoch}`;
    if (taken || this.#complained === complaint) return;
    this.#complained = complaint;
    this.#join(frame.epoch);
  }

  /** Whether a frame tells of a gap. */
  #tells({ kind, data, told }) {
    if (kind !== "message" || told || !data.includes('"missed"')) return kind === "gap";
    return JSON.parse(data).missed !== undefined;
  }

  #watch() {
    if (this.#line !== null) return;
    if (performance.now() - this.#heard > this.#how.silence) {
      if (this.#asked) {
        this.#heard = performance.now();
        this.#asked = false;
        this.#queue(true);
        return;
      }
      this.#asked = true;
      this.#join();
    } else if (this.#reader.status === "reconnecting" && !document.hidden) {
      this.#join();
    }
  }
}
