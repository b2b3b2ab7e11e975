// A subscription over many connections, without input and output: what to ask, what to make of what comes.
//
// Theory of operation. A session is connecting, open or over. `request()` is what the next connection asks for;
// `take()` makes messages and gaps of responses, and moves the position: every message up to it was handed out, or was
// not for this subscriber. How the next connection goes on depends on who keeps the place:
//
// - The client does: without a subscription, and for one whose cursor follows what has arrived. It asks for what comes
//   after the position. Until the first position is known, it asks as in the beginning.
// - The server does: a subscription with explicit acks goes on after the last one. What was handed out and is not
//   acknowledged comes again; the session leaves it out, since the program has it.
//
// After a connection has ended, `lost()` says how long to wait. A refusal and a newer subscriber end the session.

import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";

import type { Passing } from "./failures.js";
import { AckMode, Kind, Start } from "./gen/db/v1/db_pb.js";
import type { SubscribeRequestSchema, SubscribeResponse } from "./gen/db/v1/db_pb.js";
import type { Gap } from "./values.js";
import { Message, Unreachable } from "./values.js";
import { backoff } from "./waiting.js";

/** The first wait after a connection was lost; each further one is twice as long. */
const FIRST_WAIT_MS = 200;

const LONGEST_WAIT_MS = 5000;

/** What a subscriber asks for. */
export interface Asked {
  /** GLOB patterns of channels, as in SQLite. */
  patterns?: readonly string[] | undefined;
  /** An SQL expression about a message: only messages for which it is true. */
  filter?: string | undefined;
  /** The name of a durable subscription. */
  subscription?: string | undefined;
  /** With `"explicit"`, what is not acknowledged comes again to the next subscriber of this name. Default: `"auto"`. */
  ack?: "auto" | "explicit" | undefined;
  /** Where an unnamed subscriber or a new subscription begins. */
  start?: "earliest" | "latest" | "last" | undefined;
  /** … after this message id. */
  after?: bigint | number | undefined;
  /** … with the first message since a time. */
  since?: Date | undefined;
}

const STARTS = { earliest: Start.EARLIEST, latest: Start.LATEST, last: Start.LAST };

/** One subscriber's state. It gives up when connecting has failed for `reconnectSeconds`. */
export class Session {
  /** Every message up to this id was handed out, or is not for this subscriber; `undefined`: not known yet. */
  position: bigint | undefined;

  readonly #first: MessageInitShape<typeof SubscribeRequestSchema>;
  readonly #explicit: boolean;
  readonly #reconnectMs: number;
  /** The newest message that was handed out. */
  #handed = 0n;
  #missed = 0;
  #failures = 0;
  #failingSince: number | undefined;

  constructor(
    dbName: string,
    channels: readonly string[],
    asked: Asked,
    heartbeatSeconds: number,
    reconnectSeconds: number,
  ) {
    this.#explicit = asked.subscription !== undefined && asked.ack === "explicit";
    this.#reconnectMs = reconnectSeconds * 1000;
    this.#first = {
      dbName,
      channels: [...channels],
      patterns: [...(asked.patterns ?? [])],
      subscriptionName: asked.subscription ?? "",
      filter: asked.filter ?? "",
      ackMode: this.#explicit ? AckMode.EXPLICIT : AckMode.AUTO,
      start: asked.start === undefined ? Start.UNSPECIFIED : STARTS[asked.start],
      ...(asked.after === undefined ? {} : { after: BigInt(asked.after) }),
      ...(asked.since === undefined ? {} : { since: timestampFromDate(asked.since) }),
      status: true,
      heartbeatSeconds,
    };
  }

  /** What the next connection asks for. */
  request(): MessageInitShape<typeof SubscribeRequestSchema> {
    return this.position === undefined || this.#explicit
      ? this.#first
      : { ...this.#first, lastMessageId: this.position };
  }

  /** Process a response; returns what to hand out. */
  take(response: SubscribeResponse): Message | Gap | undefined {
    switch (response.kind) {
      case Kind.MESSAGE:
        return this.#message(response);
      case Kind.GAP:
        return this.#gap(Number(response.missed), response.head);
      case Kind.READY:
      case Kind.HEARTBEAT:
        this.#connected();
        this.position = this.position === undefined || response.head > this.position ? response.head : this.position;
        return undefined;
      default:
        // Of a newer server.
        return undefined;
    }
  }

  #message(response: SubscribeResponse): Message | undefined {
    this.#connected();
    const missed = this.#missed || Number(response.missed);
    this.#missed = 0;
    const id = response.messageId;
    if (id <= this.#handed) {
      return undefined;
    }
    this.#handed = this.position = id;
    const payload = response.blob.length > 0 ? response.blob : response.payload;
    const at = response.createdAt === undefined ? new Date(0) : timestampDate(response.createdAt);
    return new Message(id, response.channel, payload, at, missed);
  }

  #gap(missed: number, resumedAt: bigint): Gap {
    if (missed < 0) {
      // Another log stands in the place of this one: its ids may be those that were handed out.
      this.#handed = 0n;
    }
    this.position = resumedAt;
    this.#missed = missed < 0 || this.#missed < 0 ? -1 : this.#missed + missed;
    return { missed, resumedAt };
  }

  #connected(): void {
    this.#failures = 0;
    this.#failingSince = undefined;
  }

  /**
   * The connection could not be made, or has ended; returns how long to wait, in milliseconds. `now` is a time as
   * `performance.now()` gives it. Throws `Unreachable`.
   */
  lost(failure: Passing, now: number): number {
    this.#failingSince ??= now;
    let wait = Math.max(
      backoff(this.#failures, FIRST_WAIT_MS, LONGEST_WAIT_MS),
      Math.min(failure.retryAfterMs, LONGEST_WAIT_MS),
    );
    if (failure.shutdown) {
      // All subscribers hear of it at once, and must not all come back at once.
      wait = LONGEST_WAIT_MS * (0.2 + 0.8 * Math.random());
    }
    this.#failures += 1;
    if (now + wait - this.#failingSince > this.#reconnectMs) {
      throw new Unreachable(failure.reason);
    }
    return wait;
  }
}
