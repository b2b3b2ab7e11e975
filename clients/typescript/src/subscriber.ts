// One subscriber: an async iterator of messages that goes on over every loss of the connection.

import type { CallOptions } from "@connectrpc/connect";

import { passing } from "./failures.js";
import type { Passing } from "./failures.js";
import type { SubscribeResponse } from "./gen/db/v1/db_pb.js";
import type { Session } from "./session.js";
import type { Gap } from "./values.js";
import { Message } from "./values.js";
import { sleep } from "./waiting.js";

/** What a subscriber needs of its client. */
export interface Calls {
  /** Begin a connection. */
  readonly open: (options: CallOptions) => AsyncIterable<SubscribeResponse>;
  /** Acknowledge; `undefined` without a subscription. */
  readonly ack: ((message: Message | bigint | number) => Promise<bigint>) | undefined;
}

/** How a subscriber behaves. */
export interface SubscriberOptions {
  /** Is called when messages were missed. */
  onGap?: ((gap: Gap) => void) | undefined;
  /** After this much silence a connection counts as lost. The default is 45. */
  silenceSeconds?: number | undefined;
  /** Ends the subscriber: the loop throws the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** How long a connection may be silent. */
export const SILENCE_SECONDS = 45;

/**
 * One subscriber: an async iterator of messages that goes on over every loss of the connection. It connects at the
 * first message. Leave the loop, or call `close()`, to end it. A loop throws `Refused`, `Forbidden`, `Superseded` and
 * `Unreachable`.
 */
export class Subscriber implements AsyncIterableIterator<Message> {
  readonly #calls: Calls;
  readonly #session: Session;
  readonly #options: SubscriberOptions;
  readonly #ended = new AbortController();
  readonly #messages: AsyncGenerator<Message, undefined>;

  constructor(calls: Calls, session: Session, options: SubscriberOptions) {
    this.#calls = calls;
    this.#session = session;
    this.#options = options;
    this.#messages = this.#run();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** The next message; waits for it. */
  next(): Promise<IteratorResult<Message, undefined>> {
    return this.#messages.next();
  }

  /** End the connection, as leaving a loop does. */
  async return(): Promise<IteratorResult<Message, undefined>> {
    await this.close();
    return { done: true, value: undefined };
  }

  /** End the connection. A loop that waits for a message ends. */
  async close(): Promise<void> {
    this.#ended.abort();
    await this.#messages.return(undefined);
  }

  /** Every message up to this id was handed out, or is not for this subscriber; `undefined`: not known yet. */
  get position(): bigint | undefined {
    return this.#session.position;
  }

  /**
   * Acknowledge every message up to this one; returns the cursor when it is on disk. Tried again as a publish with a
   * key is. Rejects with `Refused` and `Unreachable`.
   */
  ack(message: Message | bigint | number): Promise<bigint> {
    if (this.#calls.ack === undefined) {
      throw new TypeError("only a subscription has acks: give subscribe() its name");
    }
    return this.#calls.ack(message);
  }

  async *#run(): AsyncGenerator<Message, undefined> {
    const { signal } = this.#options;
    const abort = (): void => this.#ended.abort();
    signal?.addEventListener("abort", abort, { once: true });
    try {
      for (;;) {
        signal?.throwIfAborted();
        const failure = yield* this.#connection();
        if (this.#ended.signal.aborted) {
          signal?.throwIfAborted();
          return undefined;
        }
        await sleep(this.#session.lost(failure, performance.now()), this.#ended.signal).catch(() => undefined);
      }
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  /** One connection; returns why it has ended. */
  async *#connection(): AsyncGenerator<Message, Passing> {
    const connection = new AbortController();
    const end = (): void => connection.abort();
    this.#ended.signal.addEventListener("abort", end, { once: true });
    const seconds = this.#options.silenceSeconds ?? SILENCE_SECONDS;
    try {
      const responses = this.#calls.open({ signal: connection.signal })[Symbol.asyncIterator]();
      while (!this.#ended.signal.aborted) {
        // Only while it waits: a program that takes long over a message does not make the connection silent.
        const silence = setTimeout(end, seconds * 1000);
        let found: IteratorResult<SubscribeResponse>;
        try {
          found = await responses.next();
        } catch (error) {
          return connection.signal.aborted ? ended(`the connection was silent for ${seconds} seconds`) : passing(error);
        } finally {
          clearTimeout(silence);
        }
        if (found.done === true) {
          return ended("the server has ended the stream");
        }
        const taken = this.#session.take(found.value);
        if (taken instanceof Message) {
          yield taken;
        } else if (taken !== undefined) {
          this.#options.onGap?.(taken);
        }
      }
      return ended("it was closed");
    } finally {
      this.#ended.signal.removeEventListener("abort", end);
      // Where the loop was left, or an error came from the program, the connection is still open.
      end();
    }
  }
}

function ended(reason: string): Passing {
  return { reason, reached: true, retryAfterMs: 0, shutdown: false };
}
