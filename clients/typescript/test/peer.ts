// A peer that answers each connection with bytes that were made before, and then breaks it, or says nothing any more.

import { EventEmitter, once } from "node:events";
import { createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type { MessageInitShape } from "@bufbuild/protobuf";

import {
  PublishBatchResponseSchema,
  SubscribeRequestSchema,
  SubscribeResponseSchema,
} from "../src/gen/db/v1/db_pb.js";
import type { SubscribeRequest } from "../src/gen/db/v1/db_pb.js";

type Responses = MessageInitShape<typeof SubscribeResponseSchema>[];

function chunk(data: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(`${data.length.toString(16)}\r\n`), data, Buffer.from("\r\n")]);
}

/** A Connect stream that does not end. */
export function stream(...responses: Responses): Buffer {
  const head = "HTTP/1.1 200 OK\r\nContent-Type: application/connect+proto\r\nTransfer-Encoding: chunked\r\n\r\n";
  const frames = responses.map((init) => {
    const data = toBinary(SubscribeResponseSchema, create(SubscribeResponseSchema, init));
    const prefix = Buffer.alloc(5);
    prefix.writeUInt32BE(data.length, 1);
    return chunk(Buffer.concat([prefix, data]));
  });
  return Buffer.concat([Buffer.from(head), ...frames]);
}

export function message(id: number): MessageInitShape<typeof SubscribeResponseSchema> {
  return { messageId: BigInt(id), channel: "a", payload: String(id) };
}

/** The answer to a publish. */
export function published(...ids: bigint[]): Buffer {
  const body = toBinary(PublishBatchResponseSchema, create(PublishBatchResponseSchema, { messageIds: ids }));
  const head = `HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: ${body.length}\r\n`;
  return Buffer.concat([Buffer.from(`${head}Connection: close\r\n\r\n`), body]);
}

/** An answer with a text. */
export function answer(status: number, kind: string, body: string, ...headers: string[]): Buffer {
  const head = [`HTTP/1.1 ${status} X`, `Content-Type: ${kind}`, `Content-Length: ${body.length}`, ...headers];
  return Buffer.from(`${[...head, "Connection: close"].join("\r\n")}\r\n\r\n${body}`);
}

/** The body of a whole request; `undefined` while more of it must come. */
function bodyOf(data: Buffer): Buffer | undefined {
  const at = data.indexOf("\r\n\r\n");
  if (at < 0) {
    return undefined;
  }
  const head = data.subarray(0, at).toString();
  const body = data.subarray(at + 4);
  const length = /content-length: (\d+)/i.exec(head);
  if (length !== null) {
    return body.length >= Number(length[1]) ? body : undefined;
  }
  if (!body.includes("0\r\n\r\n")) {
    return undefined;
  }
  const parts: Buffer[] = [];
  for (let rest = body; ; ) {
    const end = rest.indexOf("\r\n");
    const size = parseInt(rest.subarray(0, end).toString(), 16);
    if (size === 0) {
      return Buffer.concat(parts);
    }
    parts.push(rest.subarray(end + 2, end + 2 + size));
    rest = rest.subarray(end + 4 + size);
  }
}

export class Peer {
  /** The bodies of the requests. */
  readonly requests: Buffer[] = [];
  url = "";
  readonly #closed = new EventEmitter();
  readonly #sockets: Socket[] = [];
  readonly #server = createServer((socket) => {
    this.#sockets.push(socket);
    socket.on("close", () => this.#closed.emit("closed"));
    let data = Buffer.alloc(0);
    socket.on("error", () => undefined);
    socket.on("data", (more) => {
      data = Buffer.concat([data, more]);
      const body = bodyOf(data);
      if (body === undefined) {
        return;
      }
      data = Buffer.alloc(0);
      this.requests.push(body);
      const found = this.#answers.shift();
      if (found === undefined || found.length === 0) {
        socket.resetAndDestroy();
      } else {
        socket.write(found);
        if (!this.#hang) {
          socket.end();
        }
      }
    });
  });
  readonly #answers: Buffer[];
  readonly #hang: boolean;

  private constructor(answers: Buffer[], hang: boolean) {
    this.#answers = answers;
    this.#hang = hang;
  }

  static async with(answers: Buffer[], hang = false): Promise<Peer> {
    const peer = new Peer(answers, hang);
    peer.#server.listen(0, "127.0.0.1");
    await once(peer.#server, "listening");
    peer.url = `http://127.0.0.1:${(peer.#server.address() as AddressInfo).port}/data`;
    return peer;
  }

  /** What the connections of a subscriber asked for. */
  asked(): SubscribeRequest[] {
    return this.requests.map((body) => fromBinary(SubscribeRequestSchema, body.subarray(5)));
  }

  /** Resolves when the client has closed its connection. */
  async left(): Promise<void> {
    if (this.#sockets.some((socket) => !socket.destroyed)) {
      await once(this.#closed, "closed", { signal: AbortSignal.timeout(5000) });
    }
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) {
      socket.destroy();
    }
  }
}
