/**
 * One connection for all tabs of an origin; used by `connect({share: true})`.
 *
 * It moves frames between tabs and decides which tab holds the connection. The
 * union decides which channels the connection follows; the connection and the
 * subscriber know what a frame means.
 *
 * Theory of operation. The subscribers of a database, in all tabs, are members of
 * one group. Each member has an id, and holds a lock with that id while it lives.
 * It posts its channels and its position to the group (`join`). The member that
 * holds the group's lock is the leader. The leader has the connection, which follows
 * the union of all members' channels. It posts the connection's frames, and the list
 * of members (`group`). A member takes frames only while the connection follows all
 * of the member's channels. A member that gets a frame which does not continue its
 * position posts `join` again, and the leader reconnects from that position. A new
 * member, a member that lags and a new leader are all handled in this way, so no
 * message is lost or delivered twice. When a leader is silent for too long (a frozen
 * tab), another member steals the lock.
 *
 * @module client/shared_connection
 */

import { CHECK_MS, StreamConnection } from "./connection.js";
import { matcher, same } from "./selection.js";
import { Union } from "./union.js";

/** How long a leader whose subscription was superseded stays leader, in ms: all tabs must receive the status first. */
const SUPERSEDED_MS = 1_000;

/** How long the connection follows the channels of a member that has left, in ms: visitors move from page to page. */
const SHRINK_MS = 10_000;

/** The parameters that differ between the members of a group; members with another filter are in another group. */
const OWN_PARAMETERS = ["channel", "pattern", "after", "start", "since"];

export class SharedConnection {
  /** The stream's address with this subscriber's parameters. */ #url;
  #subscriber;
  #settings;
  #named;
  /** @type {import("./selection.js").Reads} */ #reads;
  #follows;
  /** Whether the group has only members with the same channels. */ #exact;
  /** The group's name. */ #name = "";
  /** This member's id. */ #me = "";
  /** Ends what belongs to the present group: this member's lock, and its request for the group's lock. */
  #group = new AbortController();
  /** @type {BroadcastChannel | null} */ #tabs = null;
  /** @type {StreamConnection | null} A connection for this subscriber alone, while it is in no group. */ #own = null;
  /** @type {StreamConnection | null} The group's connection; set while this member leads. */ #stream = null;
  /** @type {Union | null} Set while this member leads. */ #union = null;
  /** Releases the group's lock. */ #release = () => {};
  /** The position from which the leader must reconnect, for members that lag. */ #rewindTo = null;
  /** The leader's id. */ #leader = "";
  /** The leader's epoch that follows all channels of this member; null: the present one does not. */ #admittedEpoch = null;
  /** Whether that epoch follows no other channels. */ #onlyOwnChannels = false;
  /** The members that the leader has posted; this member needs them if it becomes leader. */ #members = [];
  /** The leader's epoch that this member has complained about. */ #complained = null;
  /** When the leader last posted a frame. */ #heard = 0;
  /** Whether this member has posted `join` since then. */ #asked = false;

  /**
   * @param {URL} url
   * @param {import("./subscriber.js").Subscriber} subscriber
   * @param {{named: boolean, silence: number, credentials: boolean, token?: string}} settings
   */
  constructor(url, subscriber, settings) {
    this.#url = url;
    this.#subscriber = subscriber;
    this.#settings = settings;
    this.#named = this.#exact = settings.named;
    this.#reads = { channels: url.searchParams.getAll("channel"), patterns: url.searchParams.getAll("pattern") };
    // The server decides what a named subscription reads.
    this.#follows = this.#named ? () => true : matcher(this.#reads);
  }

  open() {
    // A subscriber without a position, whose start differs from the others', first reads alone up to the head.
    const begins = this.#url.searchParams;
    const apart = ["earliest", "last"].includes(begins.get("start")) || begins.has("since");
    if (apart && !this.#named) this.#readAlone();
    else this.#joinGroup();
  }

  close() {
    this.#leaveGroup();
    this.#own?.close();
    this.#own = null;
  }

  /** Read over a separate connection up to the head, then join the group. */
  #readAlone() {
    this.#leaveGroup();
    const own = new StreamConnection(() => this.#url, (frame) => {
      if (this.#own !== own) return;
      this.#subscriber.take(frame);
      if (frame.kind !== "ready") return;
      own.close();
      this.#own = null;
      this.#joinGroup();
    }, this.#settings);
    this.#own = own;
    own.open(this.#subscriber.position);
  }

  #joinGroup() {
    const url = new URL(this.#url);
    if (!this.#exact) for (const name of OWN_PARAMETERS) url.searchParams.delete(name);
    const { credentials, token } = this.#settings;
    this.#name = `datasette-pubsub ${credentials ? "+" : "-"}${token ? ` ${token}` : ""} ${url.href}`;
    this.#me = crypto.randomUUID();
    this.#group = new AbortController();
    const { signal } = this.#group;
    this.#tabs = new BroadcastChannel(this.#name);
    this.#tabs.onmessage = (event) => this.#receive(event.data);
    this.#leader = "";
    this.#admittedEpoch = null;
    this.#heard = performance.now();
    const check = setInterval(() => this.#watch(), Math.min(CHECK_MS, this.#settings.silence / 4));
    signal.addEventListener("abort", () => clearInterval(check));
    const alive = () => {
      this.#announce();
      return new Promise((resolve) => signal.addEventListener("abort", resolve));
    };
    navigator.locks.request(this.#lockOf(this.#me), { signal }, alive).catch(() => {});
    this.#requestLead();
  }

  #leaveGroup() {
    this.#group.abort();
    this.#stepDown();
    this.#tabs?.close();
    this.#tabs = null;
    this.#release();
  }

  /** Join a group whose members all have the same channels: the server refuses this subscriber's channels. */
  #joinExactGroup() {
    this.#exact = true;
    this.#leaveGroup();
    this.#joinGroup();
  }

  #lockOf(id) {
    return `${this.#name} ${id}`;
  }

  #post(frame) {
    this.#tabs.postMessage({ ...frame, from: this.#me, epoch: this.#stream?.epoch });
  }

  // -- leading ----------------------------------------------------------------

  /** Request the group's lock, or steal it. This member holds it until `#release` is called or the tab is closed. */
  #requestLead(steal = false) {
    const { signal } = this.#group;
    let mine = false;
    const held = () => {
      mine = true;
      return new Promise((resolve) => this.#lead(() => resolve(undefined)));
    };
    navigator.locks.request(this.#name, steal ? { steal } : { signal }, held).catch(() => {
      // The request was aborted, or another tab has stolen the lock from this member.
      if (!mine || signal.aborted) return;
      this.#stepDown();
      this.#heard = performance.now();
      this.#requestLead();
      this.#announce();
    });
  }

  #lead(release) {
    if (this.#group.signal.aborted || this.#subscriber.ended) {
      release();
      return;
    }
    this.#release = release;
    this.#rewindTo = null;
    this.#union = new Union(this.#members);
    if (!this.#union.has(this.#me)) this.#union.add(this.#me, this.#reads);
    for (const [id] of this.#union.members) this.#watchMember(id);
    const stream = new StreamConnection(() => this.#address(), (frame) => this.#stream === stream && this.#onFrame(frame), this.#settings);
    this.#stream = stream;
    stream.open(this.#subscriber.position);
  }

  /** Stop leading. */
  #stepDown() {
    this.#stream?.close();
    this.#stream = null;
    this.#union = null;
  }

  #address() {
    const url = new URL(this.#url);
    const { channels, patterns } = this.#union.choose();
    if (this.#exact) return url;
    for (const name of OWN_PARAMETERS) url.searchParams.delete(name);
    for (const channel of channels) url.searchParams.append("channel", channel);
    for (const pattern of patterns) url.searchParams.append("pattern", pattern);
    return url;
  }

  /** Wait for a member's lock: the member has left when this leader gets it. @param {string} id */
  #watchMember(id) {
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
  #onFrame(frame) {
    if (frame.kind === "refused" && !this.#exact) return this.#refused();
    if (frame.kind === "connecting") {
      this.#sendGroup();
    } else if (frame.kind === "open") {
      this.#union.accept();
      if (this.#union.waiting || this.#rewindTo !== null) this.#reopen(null);
    } else if (frame.kind !== "refused") {
      this.#send(frame);
      if (frame.status === "superseded") setTimeout(() => this.close(), SUPERSEDED_MS);
    }
    return false;
  }

  /** Post a frame to the other members, and pass it to the subscriber of this tab in the same way. */
  #send(frame) {
    const { epoch } = this.#stream;
    this.#post(frame);
    this.#follow({ ...frame, from: this.#me, epoch });
  }

  #sendGroup() {
    const { position, status, detail, ready } = this.#stream;
    const { members, admitted, followed } = this.#union;
    this.#send({ kind: "group", prev: position, at: position, status, detail, ready, members, admitted, followed });
  }

  /** Reconnect for members that wait or lag; a request without an answer is not interrupted. */
  #reopen(at) {
    if (at !== null && (this.#rewindTo === null || at < this.#rewindTo)) this.#rewindTo = at;
    if (this.#stream.connecting) return;
    const position = this.#rewindTo;
    this.#rewindTo = null;
    this.#stream.reopen(position);
  }

  #refused() {
    const id = this.#union.refuse();
    if (id === this.#me) {
      this.#joinExactGroup();
      return true;
    }
    if (id !== null) this.#post({ kind: "excluded", id });
    this.#reopen(null);
    return true;
  }

  #onJoin({ from, reads, at, about }) {
    const stream = this.#stream;
    const { epoch } = stream;
    if (!this.#union.has(from)) {
      this.#union.add(from, reads);
      this.#watchMember(from);
    }
    const behind = at !== null && (stream.position === null || at < stream.position);
    // A complaint about an earlier connection is out of date.
    if (!this.#union.admits(from) || (behind && (about === null || about === epoch))) this.#reopen(at);
    if (this.#stream !== stream) return;
    stream.nudge();
    if (stream.epoch === epoch) this.#sendGroup();
  }

  // -- following --------------------------------------------------------------

  /** Post this member's channels and position; `about` is an epoch whose frames do not continue the position. */
  #announce(about = null) {
    const frame = { kind: "join", reads: this.#reads, at: this.#subscriber.position, about };
    if (this.#stream !== null) this.#onJoin({ ...frame, from: this.#me });
    else this.#post(frame);
  }

  #receive(frame) {
    if (frame.kind === "join") {
      if (this.#stream !== null) this.#onJoin(frame);
    } else if (this.#stream === null) {
      this.#follow(frame);
    }
  }

  #follow(frame) {
    if (frame.kind === "group") {
      this.#onGroup(frame);
    } else if (frame.from === this.#leader) {
      this.#heard = performance.now();
      if (frame.kind === "excluded") {
        if (frame.id === this.#me) this.#joinExactGroup();
      } else if (frame.kind === "status") {
        this.#show(frame);
      } else if (frame.epoch === this.#admittedEpoch) {
        this.#take(frame);
      }
    }
  }

  /** The leader has posted the members, and the channels that its connection follows. */
  #onGroup(frame) {
    this.#leader = frame.from;
    this.#heard = performance.now();
    this.#asked = false;
    this.#members = frame.members;
    this.#admittedEpoch = frame.admitted.includes(this.#me) ? frame.epoch : null;
    this.#onlyOwnChannels = this.#exact || same(frame.followed, this.#reads);
    if (!frame.members.some(([id]) => id === this.#me)) this.#announce();
    this.#show(frame);
    // The connection has caught up, so a subscriber that begins at the head has no earlier messages to receive.
    if (this.#admittedEpoch !== null && frame.ready) this.#take({ ...frame, kind: "position" });
  }

  /** Show the connection's status. It is `live` only if the connection follows this member's channels and has caught up. */
  #show({ status, detail, epoch, ready = status === "live" }) {
    const live = status === "live" || status === "catching up";
    if (live && epoch !== this.#admittedEpoch) return;
    const behind = status === "live" && !ready && this.#subscriber.status !== "live";
    this.#subscriber.take({ kind: "status", status: behind ? "catching up" : status, detail });
    if (status === "superseded" && this.#stream === null) this.close();
  }

  #take(frame) {
    const { position } = this.#subscriber;
    const { kind, prev, at } = frame;
    // A subscriber that begins at the head ignores the messages that other members catch up with.
    if (position === null && !this.#named && kind !== "ready" && kind !== "position") return;
    const next = position === null || (prev !== null && prev <= position && at > position);
    if (next && !this.#onlyOwnChannels && this.#reportsGap(frame)) {
      // The gap's number counts messages of all members; a separate connection gets the number for this one.
      this.#readAlone();
      return;
    }
    const passed = kind === "message" && !this.#follows(frame.channel);
    const taken = this.#subscriber.take(passed ? { kind: "position", prev, at } : frame);
    const complaint = `${frame.from} ${frame.epoch}`;
    if (taken || this.#complained === complaint) return;
    this.#complained = complaint;
    this.#announce(frame.epoch);
  }

  /** Whether a frame reports a gap. */
  #reportsGap({ kind, data, gapReported }) {
    if (kind !== "message" || gapReported || !data.includes('"missed"')) return kind === "gap";
    return JSON.parse(data).missed !== undefined;
  }

  #watch() {
    if (this.#stream !== null) return;
    if (performance.now() - this.#heard > this.#settings.silence) {
      if (this.#asked) {
        this.#heard = performance.now();
        this.#asked = false;
        this.#requestLead(true);
        return;
      }
      this.#asked = true;
      this.#announce();
    } else if (this.#subscriber.status === "reconnecting" && !document.hidden) {
      this.#announce();
    }
  }
}
