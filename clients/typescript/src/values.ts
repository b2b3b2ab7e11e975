// What the client takes and gives: items, messages, gaps and errors.

import type { Code } from "@connectrpc/connect";

/** What a payload may be. Objects and arrays become their JSON text; numbers, `true` and `false` become text, too. */
export type Payload =
  | string
  | number
  | bigint
  | boolean
  | Uint8Array
  | readonly unknown[]
  | { readonly [name: string]: unknown };

/** One message to publish. */
export interface Item {
  channel: string;
  payload: Payload;
  /** A second message of the channel with this key is not stored; its publisher gets the id of the first one. */
  key?: string | undefined;
  /** Publish only if this is the channel's newest id (0: it never had a message). */
  expectedLastId?: bigint | number | undefined;
}

/** One message. */
export class Message {
  constructor(
    readonly id: bigint,
    readonly channel: string,
    readonly payload: string | Uint8Array,
    /** When it was published. */
    readonly createdAt: Date,
    /**
     * How many messages were missed before this one, since retention had removed them; -1: an unknown number, since the
     * log was replaced or restored.
     */
    readonly missed: number = 0,
  ) {}

  /** The payload as what its JSON means. Throws a `SyntaxError` if it is not JSON. */
  json(): unknown {
    return JSON.parse(typeof this.payload === "string" ? this.payload : new TextDecoder().decode(this.payload));
  }
}

/** Messages were missed. */
export interface Gap {
  /** How many; -1: an unknown number, since the log was replaced or restored. */
  readonly missed: number;
  /** The subscriber goes on after this id. */
  readonly resumedAt: bigint;
}

/** The base of all errors of the client. */
export class ClientError extends Error {
  override name = "ClientError";
}

/** The server refuses this, and would again. */
export class Refused extends ClientError {
  override name = "Refused";

  constructor(
    message: string,
    /** Connect's code. */
    readonly code: Code,
    /** The field of the request that it is about. */
    readonly field?: string,
    /** The name of the limit that was reached. */
    readonly limit?: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** The actor may not do this, or not any more. */
export class Forbidden extends Refused {
  override name = "Forbidden";
}

/** A newer subscriber has taken over the subscription; this one must not come back. */
export class Superseded extends ClientError {
  override name = "Superseded";
}

/** The server could not be reached, or was not ready, for as long as the client tries. */
export class Unreachable extends ClientError {
  override name = "Unreachable";
}

/** The messages may have been stored or not: they have no key, so that the client did not publish them again. */
export class NotPublished extends Unreachable {
  override name = "NotPublished";
}
