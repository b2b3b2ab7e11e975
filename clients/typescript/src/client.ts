// The client of one database: publishes, subscribes and acknowledges, over every loss of the connection.

import type { CallOptions, Client as RpcClient, Transport } from "@connectrpc/connect";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";

import { Attempts } from "./attempts.js";
import { passing } from "./failures.js";
import { DbService } from "./gen/db/v1/db_pb.js";
import { itemInit } from "./items.js";
import { databaseOf } from "./place.js";
import type { Asked } from "./session.js";
import { Session } from "./session.js";
import type { SubscriberOptions } from "./subscriber.js";
import { SILENCE_SECONDS, Subscriber } from "./subscriber.js";
import type { Item, Payload } from "./values.js";
import { Message } from "./values.js";
import { sleep } from "./waiting.js";

/** How long the server may take to answer anything but a stream. */
const ANSWER_SECONDS = 30;

/** The longest interval of heartbeats that the server accepts. */
const MAX_HEARTBEAT_SECONDS = 3600;

/** How a client reaches its server, and how long it tries. */
export interface ClientOptions {
  /** An API token, as `datasette create-token` makes it. */
  token?: string | undefined;
  /** Headers of all requests. */
  headers?: HeadersInit | undefined;
  /** How long a publish and an ack are tried. The default is 30. */
  retrySeconds?: number | undefined;
}

/** A database that is reached by a transport of Connect-ES. */
export interface Place {
  /** The database, by the name that Datasette shows. */
  database: string;
  /** From `@connectrpc/connect-node` or `@connectrpc/connect-web`; its `baseUrl` is the address of Datasette. */
  transport: Transport;
}

/** How a message is published. */
export interface PublishOptions extends Pick<Item, "key" | "expectedLastId"> {
  /** Ends the attempts: the call rejects with the signal's reason. The message may have been stored. */
  signal?: AbortSignal | undefined;
}

/** What a subscriber asks for, and how it behaves. */
export interface SubscribeOptions extends Asked, SubscriberOptions {
  /** Limits how long a lost connection is made again. The default is for ever. */
  reconnectSeconds?: number | undefined;
}

/**
 * A client of one database, by the address of its page in Datasette, or by its name and a transport.
 *
 * Throws a `TypeError` if the address cannot be one.
 */
export class Client {
  /** The client that Connect-ES makes, for calls that this one has no method for. */
  readonly rpc: RpcClient<typeof DbService>;
  /** The database's name. */
  readonly database: string;
  /** The headers of all requests, for `rpc`, which does not add them. */
  readonly headers: Headers;
  readonly #retrySeconds: number;

  constructor(place: string | URL | Place, options: ClientOptions = {}) {
    if (typeof place === "string" || place instanceof URL) {
      const { baseUrl, database } = databaseOf(place);
      this.database = database;
      this.rpc = createClient(DbService, createConnectTransport({ baseUrl, useBinaryFormat: true }));
    } else {
      this.database = place.database;
      this.rpc = createClient(DbService, place.transport);
    }
    this.headers = new Headers(options.headers);
    if (options.token !== undefined) {
      this.headers.set("Authorization", `Bearer ${options.token}`);
    }
    this.#retrySeconds = options.retrySeconds ?? 30;
  }

  /**
   * Publish one message; returns its id when it is on disk.
   *
   * With a `key` it is tried again until the server has answered, and stored once. Without one it is tried again only
   * if nothing can have been stored. Rejects with `Refused`, `Unreachable` and `NotPublished`.
   */
  async publish(channel: string, payload: Payload, options: PublishOptions = {}): Promise<bigint> {
    const { signal, ...rest } = options;
    const [id] = await this.publishMany([{ channel, payload, ...rest }], { signal });
    return id as bigint;
  }

  /** Publish all items or none; returns their ids. Tried again, and rejects, as `publish()`. */
  async publishMany(items: Iterable<Item>, options: Pick<PublishOptions, "signal"> = {}): Promise<bigint[]> {
    const found = [...items];
    const request = { dbName: this.database, items: found.map(itemInit) };
    const repeats = found.every((item) => item.key !== undefined);
    const answer = await this.#tried(repeats, options.signal, (call) => this.rpc.publishBatch(request, call));
    return answer.messageIds;
  }

  /** Acknowledge a subscription's messages up to an id; returns the cursor when it is on disk. */
  async ack(
    subscription: string,
    message: Message | bigint | number,
    options: Pick<PublishOptions, "signal"> = {},
  ): Promise<bigint> {
    const messageId = message instanceof Message ? message.id : BigInt(message);
    const request = { dbName: this.database, subscriptionName: subscription, messageId };
    return (await this.#tried(true, options.signal, (call) => this.rpc.ack(request, call))).cursor;
  }

  /**
   * Subscribe to channels, GLOB patterns of them, or a durable subscription by its name; with `[]` for no channels.
   *
   * Example:
   *
   *     for await (const message of client.subscribe("orders", { start: "earliest" })) {
   *       console.log(message.id, message.json());
   *     }
   */
  subscribe(channels: string | readonly string[], options: SubscribeOptions = {}): Subscriber {
    const names = typeof channels === "string" ? [channels] : channels;
    const { subscription } = options;
    if (names.length === 0 && (options.patterns ?? []).length === 0 && subscription === undefined) {
      throw new TypeError("subscribe() takes channels, patterns or the name of a subscription");
    }
    const silence = options.silenceSeconds ?? SILENCE_SECONDS;
    const heartbeat = Math.min(MAX_HEARTBEAT_SECONDS, Math.max(1, Math.floor(silence / 3)));
    const session = new Session(this.database, names, options, heartbeat, options.reconnectSeconds ?? Infinity);
    const calls = {
      open: (call: CallOptions) => this.rpc.subscribe(session.request(), { ...call, headers: this.headers }),
      ack:
        subscription === undefined
          ? undefined
          : (message: Message | bigint | number) => this.ack(subscription, message, { signal: options.signal }),
    };
    return new Subscriber(calls, session, options);
  }

  async #tried<T>(
    repeats: boolean,
    signal: AbortSignal | undefined,
    attempt: (call: CallOptions) => Promise<T>,
  ): Promise<T> {
    const attempts = new Attempts(repeats, this.#retrySeconds, performance.now());
    const call: CallOptions = { headers: this.headers, timeoutMs: ANSWER_SECONDS * 1000 };
    for (;;) {
      signal?.throwIfAborted();
      let wait: number;
      try {
        return await attempt(signal === undefined ? call : { ...call, signal });
      } catch (error) {
        signal?.throwIfAborted();
        wait = attempts.failed(passing(error), performance.now());
      }
      await sleep(wait, signal);
    }
  }
}
