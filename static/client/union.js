/**
 * The readers of one shared connection: what they follow together, and who must be left out.
 *
 * It decides, and knows no tab, no lock and no connection. The server refuses a
 * stream as a whole (a channel that the actor may not view, too many channels), so
 * new subscribers are on trial: after a refusal they are let in one by one, and the
 * one that is refused alone is left out.
 *
 * @module client/union
 */

import { includes, same, together } from "./selection.js";

/** @typedef {import("./selection.js").Reads} Reads */

export class Union {
  /** @type {Map<string, {reads: Reads, proven: boolean}>} By reader; proven: the server has taken it. */
  #members = new Map();
  /** @type {Set<string>} Those who are in what is followed now. */ #admitted = new Set();
  /** @type {Reads} */ #followed = { channels: [], patterns: [] };
  /** Whether the server has taken what is followed now. */ #taken = false;
  /** Set by a refusal, cleared when nobody is left on trial. */ #oneByOne = false;

  /** @param {Iterable<[string, Reads, boolean]>} members as `members` gives them */
  constructor(members) {
    for (const [id, reads, proven] of members) this.#members.set(id, { reads, proven });
  }

  /** @returns {[string, Reads, boolean][]} */
  get members() {
    return Array.from(this.#members, ([id, { reads, proven }]) => [id, reads, proven]);
  }

  get admitted() {
    return [...this.#admitted];
  }

  get followed() {
    return this.#followed;
  }

  /** Whether somebody waits to be let in. */
  get waiting() {
    return this.#admitted.size < this.#members.size;
  }

  /** Whether more is followed than anybody asks for. */
  get excess() {
    return !same(this.#followed, together(this.members.map(([, reads]) => reads)));
  }

  /** @param {string} id */
  has(id) {
    return this.#members.has(id);
  }

  /** @param {string} id */
  admits(id) {
    return this.#admitted.has(id);
  }

  /** A reader more, who is admitted at once where the others follow the same. @param {string} id @param {Reads} reads */
  add(id, reads) {
    const within = this.#admitted.size > 0 && includes(this.#followed, reads);
    this.#members.set(id, { reads, proven: within && this.#taken });
    if (within) this.#admitted.add(id);
  }

  /** @param {string} id */
  remove(id) {
    this.#members.delete(id);
    this.#admitted.delete(id);
  }

  /** What to follow from now on. */
  choose() {
    const onTrial = this.members.filter(([, , proven]) => !proven);
    if (!onTrial.length) this.#oneByOne = false;
    const admitted = this.members.filter(([, , proven]) => proven);
    admitted.push(...(this.#oneByOne ? onTrial.slice(0, 1) : onTrial));
    this.#taken = false;
    this.#admitted = new Set(admitted.map(([id]) => id));
    this.#followed = together(admitted.map(([, reads]) => reads));
    return this.#followed;
  }

  /** The server has taken what was chosen. */
  taken() {
    this.#taken = true;
    for (const id of this.#admitted) this.#members.get(id).proven = true;
  }

  /** The server has refused what was chosen: who must go, or null when others are to be tried first. */
  refused() {
    const onTrial = this.admitted.filter((id) => !this.#members.get(id).proven);
    if (onTrial.length === 1) {
      this.remove(onTrial[0]);
      return onTrial[0];
    }
    // All were taken once, and are not any more: rights have changed.
    if (!onTrial.length) for (const member of this.#members.values()) member.proven = false;
    this.#oneByOne = true;
    return null;
  }
}
