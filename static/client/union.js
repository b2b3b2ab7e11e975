/**
 * The members of a shared connection: the union of their channels, and the members that the server refuses.
 *
 * It knows no tab, no lock and no connection. The server refuses a stream as a whole
 * (a channel that the actor may not view, too many channels), so new members are on
 * trial: after a refusal the union admits them one by one, and removes the member
 * that the server refuses alone.
 *
 * @module client/union
 */

import { includes, same, unionOf } from "./selection.js";

/** @typedef {import("./selection.js").Reads} Reads */

export class Union {
  /** @type {Map<string, {reads: Reads, proven: boolean}>} By member; proven: the server has accepted its channels. */
  #members = new Map();
  /** @type {Set<string>} The members whose channels are in the present union. */ #admitted = new Set();
  /** @type {Reads} The present union. */ #followed = { channels: [], patterns: [] };
  /** Whether the server has accepted the present union. */ #accepted = false;
  /** Set by a refusal, cleared when no member is on trial. */ #oneByOne = false;

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

  /** Whether members wait to be admitted. */
  get waiting() {
    return this.#admitted.size < this.#members.size;
  }

  /** Whether the present union has channels that no member follows. */
  get excess() {
    return !same(this.#followed, unionOf(this.members.map(([, reads]) => reads)));
  }

  /** @param {string} id */
  has(id) {
    return this.#members.has(id);
  }

  /** @param {string} id */
  admits(id) {
    return this.#admitted.has(id);
  }

  /** Add a member; it is admitted at once if the present union contains its channels. @param {string} id @param {Reads} reads */
  add(id, reads) {
    const within = this.#admitted.size > 0 && includes(this.#followed, reads);
    this.#members.set(id, { reads, proven: within && this.#accepted });
    if (within) this.#admitted.add(id);
  }

  /** @param {string} id */
  remove(id) {
    this.#members.delete(id);
    this.#admitted.delete(id);
  }

  /** Compute the union for the next connection. */
  choose() {
    const onTrial = this.members.filter(([, , proven]) => !proven);
    if (!onTrial.length) this.#oneByOne = false;
    const admitted = this.members.filter(([, , proven]) => proven);
    admitted.push(...(this.#oneByOne ? onTrial.slice(0, 1) : onTrial));
    this.#accepted = false;
    this.#admitted = new Set(admitted.map(([id]) => id));
    this.#followed = unionOf(admitted.map(([, reads]) => reads));
    return this.#followed;
  }

  /** The server has accepted the present union. */
  accept() {
    this.#accepted = true;
    for (const id of this.#admitted) this.#members.get(id).proven = true;
  }

  /** The server has refused the present union: the id of the member that is removed, or null if the next try decides. */
  refuse() {
    const onTrial = this.admitted.filter((id) => !this.#members.get(id).proven);
    if (onTrial.length === 1) {
      this.remove(onTrial[0]);
      return onTrial[0];
    }
    // The server accepted all members before, and now refuses them: permissions have changed.
    if (!onTrial.length) for (const member of this.#members.values()) member.proven = false;
    this.#oneByOne = true;
    return null;
  }
}
