// One call over many attempts, without input and output: when to try again, and when not.

import type { Passing } from "./failures.js";
import { NotPublished, Unreachable } from "./values.js";
import { backoff } from "./waiting.js";

/** The first wait before another attempt; each further one is twice as long. */
const FIRST_WAIT_MS = 100;

const LONGEST_WAIT_MS = 5000;

/**
 * One call, which is tried again for `retrySeconds`.
 *
 * If it `repeats`, which means that the server does it once however often it is asked, it is tried again after every
 * failure that may pass. Otherwise only if nothing can have been stored: no connection was made, or the server said
 * that it was too busy to begin.
 */
export class Attempts {
  readonly #repeats: boolean;
  readonly #end: number;
  #failures = 0;

  /** `now` is a time in milliseconds, as `performance.now()` gives it. */
  constructor(repeats: boolean, retrySeconds: number, now: number) {
    this.#repeats = repeats;
    this.#end = now + retrySeconds * 1000;
  }

  /**
   * An attempt has failed; returns how long to wait before the next one, in milliseconds. Throws `Unreachable`, and
   * `NotPublished` if the messages may have been stored.
   */
  failed(failure: Passing, now: number): number {
    if (failure.reached && !this.#repeats) {
      throw new NotPublished(
        `${failure.reason}; it is not known whether this was stored: with a key it would be tried again`,
      );
    }
    const wait = backoff(this.#failures, FIRST_WAIT_MS, LONGEST_WAIT_MS);
    this.#failures += 1;
    if (now + wait > this.#end) {
      throw new Unreachable(failure.reason);
    }
    return Math.max(wait, Math.min(failure.retryAfterMs, LONGEST_WAIT_MS));
  }
}
